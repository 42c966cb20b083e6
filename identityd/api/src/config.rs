//! Configuration of the identity service: `/etc/aziot/identityd/config.toml` and its drop-ins.

mod origin;
mod principal;
mod provisioning;
mod subject;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use aziot_http::{Endpoint, endpoint::built_in, server::MaxRequests};
use serde::{Deserialize, Serialize};

pub use origin::Origin;
pub use principal::{CertificateUse, IdType, LocalIdOptions, LocalIdType, Principal, module_name_is_valid};
pub use provisioning::{
    Attestation, Dps, DpsEndpoint, Invalid as InvalidProvisioning, Manual, ManualAuthentication, Payload, Provisioning,
};
pub use subject::Subject;

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Name of this device in its network; stands in the certificates of local identities.
    pub hostname: String,
    /// Folder of the service's state; made if it is not there. Read at start only.
    pub homedir: PathBuf,
    /// Whether module identities are looked up in the state before the hub is asked. Default false. Reloaded
    /// when a file changes.
    #[serde(default)]
    pub prefer_module_identity_cache: bool,
    /// Requests of one uid that are worked on at once. Default 10. Read at start only.
    #[serde(default, skip_serializing_if = "MaxRequests::is_default")]
    pub max_requests: MaxRequests,
    /// Seconds that one attempt of a cloud request may take; at least and by default 70. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "CloudTimeout::is_default")]
    pub cloud_timeout_sec: CloudTimeout,
    /// How often a cloud request that failed is repeated. Default 1. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "CloudRetries::is_default")]
    pub cloud_retries: CloudRetries,
    /// Where the device's identity comes from. Reloaded when a file changes: the old device is served until the new one is there.
    pub provisioning: Provisioning,
    /// Who may ask for what. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principal: Vec<Principal>,
    /// Enables local identities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub localid: Option<LocalId>,
    /// Where this service listens and where it finds the others. Read at start only.
    #[serde(default, skip_serializing_if = "Endpoints::is_default")]
    pub endpoints: Endpoints,
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// A name is given twice.
    #[error("the principal name {0:?} is used twice")]
    DuplicateName(String),
    /// A local identity without a domain.
    #[error("the principal {0:?} has the idtype \"local\", which needs [localid] with a domain")]
    NoLocalDomain(String),
    /// Options of a local identity that it does not have.
    #[error("the principal {0:?} has options in `localid`, but not the idtype \"local\"")]
    OptionsWithoutLocal(String),
    /// Hub identities without a hub.
    #[error("the principal {0:?} has the idtype \"module\" or \"device\", but provisioning is off (source = \"none\")")]
    NoHub(String),
    /// The hub would refuse it.
    #[error(
        "the principal {0:?} cannot be a module: the name must have 1 to 128 ASCII letters, digits or - : . + % _ # * ? ! ( ) , = @ ; $ '"
    )]
    NoModuleName(String),
}

impl Config {
    /// Tells the first contradiction between settings.
    pub fn check(&self) -> Result<(), Contradiction> {
        let mut names = BTreeSet::new();
        for principal in &self.principal {
            let name = || principal.name.clone();
            if !names.insert(&principal.name) {
                return Err(Contradiction::DuplicateName(name()));
            }
            let local = principal.has(IdType::Local);
            if local && self.localid.is_none() {
                return Err(Contradiction::NoLocalDomain(name()));
            }
            if principal.idtype.is_some() && !local && principal.localid.is_some() {
                return Err(Contradiction::OptionsWithoutLocal(name()));
            }
            let module = principal.has(IdType::Module);
            if self.provisioning == Provisioning::None && (module || principal.has(IdType::Device)) {
                return Err(Contradiction::NoHub(name()));
            }
            if module && !module_name_is_valid(&principal.name) {
                return Err(Contradiction::NoModuleName(name()));
            }
        }
        Ok(())
    }
}

/// Seconds that one attempt of a cloud request may take: the hub itself may hold a throttled request back for a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct CloudTimeout(u32);

impl CloudTimeout {
    /// The least value, and the default.
    pub const LEAST_SECONDS: u32 = 70;

    /// A timeout of so many seconds, at least 70.
    #[must_use]
    pub fn from_seconds(seconds: u32) -> Option<Self> {
        (seconds >= Self::LEAST_SECONDS).then_some(Self(seconds))
    }

    /// Its length.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }

    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for CloudTimeout {
    fn default() -> Self {
        Self(Self::LEAST_SECONDS)
    }
}

/// A timeout that the hub's own throttling would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be at least {} seconds: the hub itself may hold a request back for a minute",
    CloudTimeout::LEAST_SECONDS
)]
pub struct TooShort;

impl TryFrom<u32> for CloudTimeout {
    type Error = TooShort;

    fn try_from(seconds: u32) -> Result<Self, Self::Error> {
        Self::from_seconds(seconds).ok_or(TooShort)
    }
}

impl From<CloudTimeout> for u32 {
    fn from(timeout: CloudTimeout) -> Self {
        timeout.0
    }
}

/// How often a cloud request that failed is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CloudRetries(pub u32);

impl CloudRetries {
    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for CloudRetries {
    fn default() -> Self {
        Self(1)
    }
}

/// Settings of local identities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalId {
    /// End of their names: `<module>.<hostname>.<domain>`.
    pub domain: String,
}

/// The sockets that the identity service knows. Each is written only where it is not the built-in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The certificate service's.
    #[serde(default = "built_in::certd", skip_serializing_if = "built_in::is_certd")]
    pub aziot_certd: Endpoint,
    /// Its own.
    #[serde(default = "built_in::identityd", skip_serializing_if = "built_in::is_identityd")]
    pub aziot_identityd: Endpoint,
    /// The key service's.
    #[serde(default = "built_in::keyd", skip_serializing_if = "built_in::is_keyd")]
    pub aziot_keyd: Endpoint,
    /// The TPM service's.
    #[serde(default = "built_in::tpmd", skip_serializing_if = "built_in::is_tpmd")]
    pub aziot_tpmd: Endpoint,
}

impl Endpoints {
    /// Whether all sockets are where they always are.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            aziot_certd: built_in::certd(),
            aziot_identityd: built_in::identityd(),
            aziot_keyd: built_in::keyd(),
            aziot_tpmd: built_in::tpmd(),
        }
    }
}

#[cfg(test)]
mod tests;
