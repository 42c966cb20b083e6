//! X.509 with private keys that live in the key service.
//!
//! [`key`] makes a remote key pair look like a signer, [`request`] and [`certificate`] build what it signs, [`name`] writes
//! configured subjects, [`tls`] connects to the cloud. Nothing here stores anything, and no private key ever passes through.

pub mod certificate;
pub mod key;
pub mod name;
mod pem;
pub mod request;
pub mod tls;

pub use der::asn1::OctetString;
pub use x509_cert::{ext::Extension, name::Name};
