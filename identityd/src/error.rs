//! What can go wrong with identities, in the words that callers of the public service know.
//!
//! Errors are cheap to clone: one failed attempt answers everybody who waited for it.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use aziot_http::ClientError;
use aziot_identityd_cloud as cloud;

use crate::{
    credentials::{CertificateError, TpmFailure},
    local, state,
};

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The caller sent something that cannot be.
    #[error("parameter {name:?} has an invalid value")]
    InvalidParameter {
        /// The public service's name for the parameter.
        name: &'static str,
        /// What is wrong with it.
        source: Invalid,
    },
    /// The device has no identity.
    #[error("device identity not found")]
    DeviceNotFound,
    /// The hub's record of the module cannot have keys.
    #[error("module identity not found")]
    ModuleNotFound,
    /// The caller may not do this.
    #[error("authorization error")]
    Unauthorized,
    /// DPS could not be reached, or gave no hub.
    #[error("DPS client error")]
    Dps(#[source] Arc<cloud::Error>),
    /// The hub could not be reached, or refused.
    #[error("Hub client error")]
    Hub(#[source] Arc<cloud::Error>),
    /// The hub does not know the device, or not by this key.
    #[error("Hub client error")]
    DeviceRejected(#[source] Arc<cloud::Error>),
    /// The hub did not give the module, and no copy is kept.
    #[error("Hub client error")]
    ModuleUnavailable(#[source] ModuleUnavailable),
    /// The device's key could not be used.
    #[error("Key client error")]
    DeviceKey(#[source] Arc<dyn StdError + Send + Sync>),
    /// The TPM did not do its part; a matter of this device.
    #[error("TPM client error")]
    Tpm(#[source] Arc<dyn StdError + Send + Sync>),
    /// The device's certificate could not be obtained or used.
    #[error("could not use the device's certificate")]
    Certificate(#[source] Arc<dyn StdError + Send + Sync>),
    /// The keys of a module could not be made.
    #[error("could not derive the keys of the module {module_id}")]
    ModuleKey {
        /// Name of the module.
        module_id: String,
        /// What the key service said.
        source: Arc<ClientError>,
    },
    /// The state on disk could not be read or written.
    #[error("could not keep the state")]
    State(#[source] Arc<state::Error>),
    /// A local identity could not be issued.
    #[error("could not issue the local identity")]
    LocalIdentity(#[source] Arc<local::Error>),
    /// Local identities are asked for, but not set up.
    #[error("there is no [localid] in the configuration")]
    NoLocalDomain,
    /// Provisioning goes on, but this caller, or this attempt, had its time.
    #[error("provisioning has not ended in time")]
    StillProvisioning,
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
}

/// Why a parameter is invalid.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Invalid {
    /// It is not there.
    #[error("missing parameter")]
    Missing,
    /// An identity type that the call does not know.
    #[error("invalid type: {0}")]
    Type(String),
    /// A module without a name.
    #[error("module name cannot be empty")]
    EmptyModuleName,
    /// A name that the hub does not take.
    #[error("module name must have 1 to 128 ASCII letters, digits or - : . + % _ # * ? ! ( ) , = @ ; $ '")]
    ModuleName,
    /// A name that no certificate can have.
    #[error(transparent)]
    CertificateName(local::NoName),
    /// Options that no local identity has.
    #[error("local identities have the type \"x509\" and the attributes \"client\" or \"server\"")]
    LocalIdOptions,
    /// An id under which something else is kept.
    #[error("{0} is the id of the device's own certificate")]
    DeviceCertificate(String),
    /// A local identity that is not configured.
    #[error("local identity for {0} doesn't exist")]
    NoLocalIdentity(String),
    /// A local identity that belongs to somebody.
    #[error("local identity for {0} already exists")]
    LocalIdentityExists(String),
    /// The payload's URI names no file.
    #[error("{0:?} is no file:/// URI")]
    PayloadUri(String),
    /// The payload's file cannot be read.
    #[error("could not read the payload file")]
    PayloadFile(#[source] Arc<aziot_files::Error>),
    /// The payload's file is not JSON.
    #[error("the payload file is not JSON")]
    PayloadJson(#[source] Arc<serde_json::Error>),
}

/// The hub did not give a module, for whatever reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("module {module_id} not found")]
pub(crate) struct ModuleUnavailable {
    /// Name of the module.
    pub(crate) module_id: String,
    /// What the hub client said.
    pub(crate) source: Arc<cloud::Error>,
}

impl Error {
    /// An invalid parameter.
    pub(crate) fn invalid(name: &'static str, source: Invalid) -> Self {
        Self::InvalidParameter { name, source }
    }

    /// A failure of the hub client. What failed on this device is told apart.
    pub(crate) fn hub(error: cloud::Error) -> Self {
        Self::local(error).unwrap_or_else(|error| Self::Hub(Arc::new(error)))
    }

    /// A failure of what proves the device, as opposed to one of the cloud.
    fn local(error: cloud::Error) -> Result<Self, cloud::Error> {
        match error {
            cloud::Error::Signing(cause) => match cause.downcast::<TpmFailure>() {
                Ok(failure) => Ok(Self::Tpm(Arc::new(*failure))),
                Err(cause) => Ok(Self::DeviceKey(Arc::new(cloud::Error::Signing(cause)))),
            },
            cloud::Error::Tpm { source, .. } if source.is::<TpmFailure>() => Ok(Self::Tpm(source.into())),
            cloud::Error::Certificate(cause) => match cause.downcast::<CertificateError>() {
                Ok(error) => Ok((*error).into()),
                Err(cause) => Ok(Self::Certificate(cause.into())),
            },
            error => Err(error),
        }
    }

    /// A failure of the hub client to list the device's modules, which alone tells whether the hub knows the device: a no to any other request
    /// may be about the module or about limits.
    pub(crate) fn list(error: cloud::Error) -> Self {
        if error.is_device_rejected() { Self::DeviceRejected(Arc::new(error)) } else { Self::hub(error) }
    }

    /// A failure of the DPS client. What failed on this device is told apart.
    pub(crate) fn dps(error: cloud::Error) -> Self {
        Self::local(error).unwrap_or_else(|error| Self::Dps(Arc::new(error)))
    }

    pub(crate) fn state(error: state::Error) -> Self {
        Self::State(Arc::new(error))
    }

    fn cloud(&self) -> Option<&cloud::Error> {
        match self {
            Self::Dps(error) | Self::Hub(error) | Self::DeviceRejected(error) => Some(error),
            Self::ModuleUnavailable(unavailable) => Some(&unavailable.source),
            _ => None,
        }
    }

    /// The time for which the cloud wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.cloud().and_then(cloud::Error::retry_after)
    }

    /// Whether the cloud is out of reach for now.
    pub(crate) fn is_offline(&self) -> bool {
        matches!(self, Self::StillProvisioning) || self.cloud().is_some_and(cloud::Error::is_offline)
    }

    /// Whether the hub answered and did not give what it was asked for.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Hub(_) | Self::ModuleUnavailable(_)) && !self.is_offline()
    }

    /// Whether the hub turned this device away.
    pub(crate) fn is_device_rejected(&self) -> bool {
        matches!(self, Self::DeviceRejected(_))
    }

    /// Whether somebody else answered in the cloud's name.
    pub(crate) fn is_untrusted(&self) -> bool {
        self.cloud().is_some_and(cloud::Error::is_untrusted)
    }
}

impl From<CertificateError> for Error {
    fn from(error: CertificateError) -> Self {
        if error.is_of_key() { Self::DeviceKey(Arc::new(error)) } else { Self::Certificate(Arc::new(error)) }
    }
}
