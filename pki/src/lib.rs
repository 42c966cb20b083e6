//! X.509 with private keys that live in the key service.
//!
//! [`key`] makes a remote key pair look like a signer, [`request`] and [`certificate`] build what it signs, [`name`] writes
//! configured subjects, [`pkcs7`] reads what EST servers answer, [`tls`] connects to them and to the cloud, [`renewal`] decides
//! when a certificate is replaced. Nothing here stores anything, and no private key ever passes through.

pub mod certificate;
pub mod key;
pub mod name;
mod pem;
pub mod pkcs7;
pub mod renewal;
pub mod request;
pub mod tls;

pub use der::asn1::OctetString;
pub use x509_cert::{ext::Extension, name::Name};
