//! X.509 with private keys that live in the key service.
//!
//! [`key`] makes a remote key pair look like a signer, [`certificate`] and [`request`] build what it signs, [`tls`] connects
//! to the cloud. Nothing here stores anything, and no private key ever passes through.

pub mod certificate;
pub mod key;
pub mod request;
pub mod tls;
