//! The device's side of the cloud: registering with DPS, and the module registry of an IoT Hub.
//!
//! [`dps`] and [`hub`] speak the protocols, [`sas`] proves who we are, [`transport`] repeats what the network loses, and [`exchange`] is the one
//! seam to that network. Nothing here keeps state or knows where keys live: whoever calls hands in a [`Signer`]. X.509 and TPM
//! attestation have their place beside it: a client identity in the TLS settings, and a first step before `dps::register`.

pub mod dps;
pub mod error;
pub mod exchange;
pub mod hub;
pub mod sas;
pub mod transport;

use std::pin::Pin;

pub use dps::{Assignment, Registration};
pub use error::{Error, Refusal};
pub use exchange::{Exchange, Roots, TlsExchange};
pub use hub::{Hub, Module, ModuleKeys};
pub use transport::Transport;

/// Any error, of whoever makes the signatures.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A signature on its way.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, BoxError>> + Send + 'a>>;

/// The device's symmetric key, wherever it lives.
pub trait Signer: Send + Sync + 'static {
    /// HMAC-SHA256 of the key over `message`.
    fn sign(&self, message: Vec<u8>) -> Signing<'_>;
}
