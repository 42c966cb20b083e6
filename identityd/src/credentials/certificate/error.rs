//! Why the device's certificate cannot be shown. The texts name the service that is at fault.

use std::time::Duration;

use aziot_http::ClientError;
use aziot_pki::{
    certificate::ChainError, key::KeyError, name::NameError, renewal::NotAvailable, request::CreateError,
    tls::IdentityError,
};

use super::super::SubjectError;

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The certificate service said no, or did not answer.
    #[error("the certificate service (certd) could not {action} the certificate {id}")]
    Service {
        /// What it was asked for.
        action: &'static str,
        /// Id of the certificate.
        id: String,
        /// What it said.
        source: ClientError,
    },
    /// There is none, and none can be requested.
    #[error(
        "there is no certificate {0}, and provisioning.attestation.registration_id does not say whom to request one for"
    )]
    Absent(String),
    /// It does not say which registration it is for, and nothing else does.
    #[error("the certificate {0} has no common name, and provisioning.attestation.registration_id is not set")]
    Nameless(String),
    /// No certificate is stored under the id.
    #[error("the certificate {0} is empty")]
    Empty(String),
    /// Something else is stored under the id.
    #[error("the certificate {id} is broken")]
    Broken {
        /// Id of the certificate.
        id: String,
        /// What is wrong with it.
        source: ChainError,
    },
    /// The settings make no subject.
    #[error("the certificate cannot be requested")]
    Subject(#[from] SubjectError),
    /// The subject cannot be written.
    #[error("the certificate's subject cannot be written")]
    Name(#[source] NameError),
    /// The key service said no, or did not answer.
    #[error("the key service (keyd) could not {action} the key pair {id}")]
    Key {
        /// What it was asked for.
        action: &'static str,
        /// Id of the key pair.
        id: String,
        /// What it said.
        source: ClientError,
    },
    /// The key pair is none for TLS, or could not be read.
    #[error("could not use the key pair {id}")]
    Unusable {
        /// Id of the key pair.
        id: String,
        /// What is wrong.
        source: KeyError,
    },
    /// The request could not be made.
    #[error("could not request a certificate for the key pair {key_id}")]
    Request {
        /// Id of the key pair.
        key_id: String,
        /// What went wrong.
        source: CreateError,
    },
    /// Certificate and key make no identity.
    #[error("the certificate {id} cannot be shown with the key pair {key_id}")]
    Identity {
        /// Id of the certificate.
        id: String,
        /// Id of the key pair.
        key_id: String,
        /// What is wrong.
        source: IdentityError,
    },
    /// It is over or its key is gone, and it could not be renewed.
    #[error("the certificate {id} is not to be had")]
    NotAvailable {
        /// Id of the certificate.
        id: String,
        /// Why.
        source: NotAvailable,
    },
    /// Other settings have taken the place of those that wanted it, or the service is about to end.
    #[error("the certificate is not this device's any more, or the service is stopping")]
    Ended,
    /// Somebody registers with the certificate.
    #[error("the certificate {id} was not replaced: somebody has been registering with it for {} s", limit.as_secs())]
    Registering {
        /// Id of the certificate.
        id: String,
        /// How long was waited.
        limit: Duration,
    },
    /// DPS has not decided.
    #[error("the new certificate {id} could not be registered within {} s", limit.as_secs())]
    NotRegisteredInTime {
        /// Id of the certificate.
        id: String,
        /// How long was waited.
        limit: Duration,
    },
}

impl CertificateError {
    /// Whether there is no such key pair.
    pub(in crate::credentials) fn is_key_absent(&self) -> bool {
        matches!(self, Self::Key { action: "load", source, .. } if aziot_keyd_api::is_absent(source))
    }

    /// Whether it is the key that cannot be had or used, and not the certificate.
    pub(crate) fn is_of_key(&self) -> bool {
        matches!(self, Self::Key { .. } | Self::Unusable { .. })
    }
}
