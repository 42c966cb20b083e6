//! The device's side of the cloud: registering with DPS, and the module registry of an IoT Hub.
//!
//! [`dps`] and [`hub`] speak the protocols, [`sas`] proves who we are, [`transport`] repeats what the network loses, and [`exchange`] is the one
//! seam to that network. Nothing here keeps state or knows where keys live: whoever calls hands in a [`Signer`] or a [`TpmKey`], or an
//! [`Exchange`] whose connections prove themselves by a client certificate.

pub mod dps;
pub mod error;
pub mod exchange;
pub mod hub;
mod name;
pub mod sas;
pub mod transport;

use std::pin::Pin;

pub use dps::{Assignment, Attestation, Registration};
pub use error::{Error, Refusal};
pub use exchange::{Exchange, Exchanges, Roots, TlsExchange, TlsExchanges};
pub use hub::{Hub, Module, ModuleKeys};
pub use transport::Transport;

/// Any error, of whoever makes the signatures.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Something that whoever has the keys will have done.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// A signature on its way.
pub type Signing<'a> = Doing<'a, Vec<u8>>;

/// The device's symmetric key, wherever it lives.
pub trait Signer: Send + Sync + 'static {
    /// HMAC-SHA256 of the key over `message`.
    fn sign(&self, message: Vec<u8>) -> Signing<'_>;
}

/// The public halves of a TPM's own keys, each a marshalled `TPM2B_PUBLIC` with its size before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmPublicKeys {
    /// The endorsement key: DPS knows the device by it.
    pub endorsement_key: Vec<u8>,
    /// The storage root key: what DPS sends is wrapped for it.
    pub storage_root_key: Vec<u8>,
}

/// A symmetric key within a TPM, which only a service that knows the TPM can put there.
pub trait TpmKey: Signer {
    /// The keys that DPS asks for.
    fn public_keys(&self) -> Doing<'_, TpmPublicKeys>;

    /// Puts the key of an import blob in the place of the one that [`sign`](Signer::sign) uses.
    fn import(&self, blob: Vec<u8>) -> Doing<'_, ()>;
}
