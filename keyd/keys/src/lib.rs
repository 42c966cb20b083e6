//! The keys of a device and what can be done with them: made, imported, moved and deleted in files and on PKCS#11 tokens, used for HMAC,
//! AEAD, ECDSA and RSA.
//!
//! Files lie where the public key service puts them and hold what it puts there, so that a home directory can be taken over in either
//! direction. Knows no HTTP, no handles and no principals: who may use a key is the key service's business.
//!
//! Two doors lead here beside Rust's own: [`abi`], the C ABI that makes this crate `libaziot_keys.so`, and [`KeyLibrary`], behind which
//! [`Foreign`] stands for a vendor's library with that ABI. Unsafe code stands behind these two only.
//!
//! Every call blocks: on the disk when a key is first read or written, on the processor for RSA. See [`Keys::is_ready`].

mod aead;
mod cache;
mod content;
mod context_pool;
mod error;
mod ffi;
mod foreign;
mod generation;
mod hmac;
mod key_pair;
mod keys;
mod library;
mod location;
mod parameters;
mod paths;
mod preferred_algorithms;
mod self_test;
mod store;
mod symmetric;
#[cfg(test)]
mod test_vectors;
mod token;
mod turns;
mod uri;

pub use error::{Error, Failure, Invalid, NotKeyPair};
pub use ffi::{abi, aziot_keys_get_function_list};
pub use foreign::{CallError, Foreign, LoadError};
pub use key_pair::{KeyPairAlgorithm, PublicParameter, RsaPadding};
pub use keys::{Keys, Secret, SymmetricUse};
pub use library::KeyLibrary;
pub use location::{Settings, SettingsError, file_name};
pub use parameters::{PRELOADED_KEY, ParameterError};
pub use self_test::{SelfTestError, self_test};
pub use store::LEFTOVER_AGE;
pub use symmetric::KeyUsage;
pub use token::{Pkcs11Error, TokenError};
pub use uri::{KeyUri, Pkcs11Uri, TokenIdentifier, UriError};
