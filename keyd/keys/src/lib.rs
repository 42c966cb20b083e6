//! The keys of a device and what can be done with them: made, imported, moved and deleted as files, used for HMAC, AEAD, ECDSA and RSA.
//!
//! Files lie where the public key service puts them and hold what it puts there, so that a home directory can be taken over in either
//! direction. Knows no HTTP, no handles and no principals: who may use a key is the key service's business.
//!
//! Every call blocks: on the disk when a key is first read or written, on the processor for RSA. See [`Keys::is_ready`].
//! Tokens (PKCS#11) and the C library `libaziot_keys.so` will stand here too; `location` says where.

mod cache;
mod content;
mod error;
mod key_pair;
mod keys;
mod location;
mod preferred_algorithms;
mod store;
mod symmetric;
#[cfg(test)]
mod test_vectors;
mod turns;
mod uri;

pub use error::{Class, Error, Failure, Invalid, NotKeyPair};
pub use key_pair::{KeyPairAlgorithm, PublicParameter, RsaPadding};
pub use keys::{Keys, Secret, SymmetricUse};
pub use location::{Settings, SettingsError, file_name};
pub use uri::{KeyUri, Pkcs11Uri, TokenIdentifier, UriError};
