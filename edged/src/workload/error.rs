//! What can go wrong with what modules ask for. `http` chooses the status.

use aziot_http::ClientError;
use openssl::error::ErrorStack;

use crate::{edge_ca, identities};

/// Why a module did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Bytes that are not written as base64.
    #[error("invalid parameter: {0} is not base64")]
    NotBase64(&'static str),
    /// A vector that no cipher here takes.
    #[error("invalid parameter: initializationVector has {0} bytes, 1 to 128 are possible")]
    VectorLength(usize),
    /// A generation that no hub gives.
    #[error(
        "invalid parameter: the generation is empty, has more than {longest} characters, or others than letters, digits, - and _"
    )]
    Generation {
        /// Characters that it can have.
        longest: usize,
    },
    /// A generation that nobody has encrypted in.
    #[error("invalid parameter: the generation has more than {longest} bytes")]
    OldGeneration {
        /// Bytes that it can have.
        longest: usize,
    },
    /// A name that no certificate can have.
    #[error("invalid parameter: commonName is empty, has more than 253 bytes, or has characters that no host name has")]
    CommonName,
    /// A name that no certificate can have.
    #[error("invalid parameter: the module's name has characters that no certificate can have")]
    ModuleName,
    /// Damaged, encrypted for another module, or with another key.
    #[error(
        "invalid parameter: ciphertext is not what was encrypted for this module with this generation and initializationVector"
    )]
    Ciphertext,
    /// The module's identity or key is not to be had.
    #[error(transparent)]
    Identity(#[from] identities::Error),
    /// The key service did not sign.
    #[error("failed to sign with the key of the module {module_id}")]
    Sign {
        /// Name of the module.
        module_id: String,
        /// What it said.
        source: ClientError,
    },
    /// The key of all secrets is not to be had.
    #[error("failed to get the master encryption key")]
    MasterKey(#[source] ClientError),
    /// The key service did not encrypt.
    #[error("failed to encrypt")]
    Encrypt(#[source] ClientError),
    /// The key service did not decrypt, and not because of what it was to decrypt.
    #[error("failed to decrypt")]
    Decrypt(#[source] ClientError),
    /// No key and request were made.
    #[error("failed to create a key and a certificate request")]
    Request(#[source] ErrorStack),
    /// The Edge CA cannot issue.
    #[error("failed to get edge CA key")]
    EdgeCa(#[source] Box<edge_ca::Error>),
    /// The certificate service did not issue.
    #[error("failed to create cert {id}")]
    Issue {
        /// Name of the certificate.
        id: String,
        /// What it said.
        source: ClientError,
    },
    /// What the certificate service issued cannot be read.
    #[error("the issued certificate {id} is unreadable")]
    Certificate {
        /// Name of the certificate.
        id: String,
        /// What is wrong with it.
        source: aziot_pki::certificate::ChainError,
    },
    /// What the certificate service issued is for another key, or has no dates.
    #[error("the issued certificate {0} is of no use")]
    Useless(String),
    /// The service ends.
    #[error("the service is stopping")]
    Stopping,
}
