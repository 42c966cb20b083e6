//! What can go wrong with the Edge CA.

use aziot_http::ClientError;
use aziot_pki::{
    certificate::ChainError,
    key::KeyError,
    name::NameError,
    renewal::{Failure, NotAvailable},
    request::CreateError,
};
use x509_cert::der;

/// Why the Edge CA cannot issue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No certificate can have the configured subject.
    #[error("the Edge CA cannot have the subject in [edge_ca]")]
    Subject(#[source] NameError),
    /// What the request asks for cannot be written.
    #[error("could not write the extensions of the Edge CA's certificate request")]
    Extensions(#[source] der::Error),
    /// The certificate service did not do as told.
    #[error("could not {action} the certificate {id} of the Edge CA")]
    Certificate {
        /// What was to be done.
        action: &'static str,
        /// Name of the certificate.
        id: String,
        /// What the service said.
        source: ClientError,
    },
    /// The key service did not do as told.
    #[error("could not {action} the key pair {id} of the Edge CA")]
    Key {
        /// What was to be done.
        action: &'static str,
        /// Name of the key pair.
        id: String,
        /// What the service said.
        source: ClientError,
    },
    /// The public half of the key pair cannot be read.
    #[error("could not read the key pair {id} of the Edge CA")]
    Unreadable {
        /// Name of the key pair.
        id: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The request was not signed.
    #[error("could not request a certificate for the key pair {key_id} of the Edge CA")]
    Request {
        /// Name of the key pair.
        key_id: String,
        /// Why not.
        source: CreateError,
    },
    /// What was issued is no certificate.
    #[error("the certificate {id} that was issued for the Edge CA is broken")]
    Broken {
        /// Name of the certificate.
        id: String,
        /// What is wrong with it.
        source: ChainError,
    },
    /// What was issued is for another key.
    #[error("the certificate {id} that was issued for the Edge CA is not for the key pair {key_id}")]
    ForeignKey {
        /// Name of the certificate.
        id: String,
        /// Name of the key pair.
        key_id: String,
    },
    /// Whether certificate and key belong together could not be found out.
    #[error("could not compare the Edge CA's certificate and key")]
    Repair(#[source] Failure),
    /// It is over, broken or being replaced, and was not renewed.
    #[error("the Edge CA cannot be used")]
    NotAvailable(#[source] NotAvailable),
}

impl Error {
    /// Whether a service did not answer at all.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Certificate { source, .. }
            | Self::Key { source, .. }
            | Self::Unreadable { source: KeyError::Parameter { source, .. }, .. }
            | Self::Request { source: CreateError::Key(KeyError::Sign(source)), .. } => source.is_offline(),
            Self::Repair(_) | Self::NotAvailable(NotAvailable::Busy { .. }) => true,
            Self::NotAvailable(NotAvailable::Unreadable { source, .. }) => !source.is_fatal(),
            Self::NotAvailable(_)
            | Self::Subject(_)
            | Self::Extensions(_)
            | Self::Unreadable { .. }
            | Self::Request { .. }
            | Self::Broken { .. }
            | Self::ForeignKey { .. } => false,
        }
    }
}
