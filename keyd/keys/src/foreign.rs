//! A vendor's key library, loaded at run time through the C ABI and called from a thread of its own.
//!
//! For devices whose keys are neither files nor behind PKCS#11. The library replaces everything that this crate does otherwise: where
//! keys are, how they are made and what a parameter means is its business. `functions` calls it, `thread` waits for it.

mod error;
mod functions;
mod thread;

use std::ffi::{CString, NulError};
use std::path::Path;
use std::time::Duration;

use aziot_log::fields;

pub use self::error::{CallError, LoadError};

use self::functions::{Aead, Functions, SymmetricKey};
use self::thread::Thread;
use crate::error::Problem;
use crate::ffi::abi::{
    ENCRYPT_MECHANISM_RSA_NO_PADDING, ENCRYPT_MECHANISM_RSA_PKCS1, KEY_PAIR_PARAMETER_ALGORITHM_EC,
    KEY_PAIR_PARAMETER_ALGORITHM_RSA, KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID, KEY_PAIR_PARAMETER_TYPE_EC_POINT,
    KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT, KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS, SIGN_MECHANISM_ECDSA,
};
use crate::{
    Error, Failure, Invalid, KeyLibrary, KeyPairAlgorithm, KeyUsage, PublicParameter, RsaPadding, Secret, SymmetricUse,
};

/// A vendor's library, ready for use. It stays in the process until that ends.
pub struct Foreign {
    thread: Thread<Functions>,
}

impl Foreign {
    /// Twice as long as a client of the key service waits for it.
    pub const LIMIT: Duration = Duration::from_secs(60);

    /// Loads the library at `path`, an absolute path, and hands it `parameters` in their order.
    ///
    /// No call takes longer than `limit` to return: see [`CallError::Late`] and [`CallError::Stuck`]. Blocks.
    pub fn load(path: &Path, parameters: Vec<(String, String)>, limit: Duration) -> Result<Foreign, LoadError> {
        let thread = Thread::new(limit).map_err(LoadError::Thread)?;
        let owned = path.to_owned();
        let open = move || {
            let functions = Functions::open(&owned)?;
            for (name, value) in parameters {
                set_parameter(&functions, &name, value).map_err(|source| LoadError::Parameter {
                    path: owned.clone(),
                    name,
                    source,
                })?;
            }
            tracing::info!({ fields::FILE } = %owned.display(), version = functions.version(), "loaded a key library");
            Ok(functions)
        };
        thread.open(open).map_err(|source| LoadError::Start { path: path.to_owned(), source })??;
        Ok(Foreign { thread })
    }

    /// Calls the library about the key `id`.
    fn call<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&Functions, CString) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, Error> {
        let call = || {
            let name = c_string(id)?;
            Ok(self.thread.call(move |functions| work(functions, name))?)
        };
        call().map_err(Problem::with(id))
    }

    /// Calls the library about a stored or derived key.
    fn call_symmetric<T: Send + 'static>(
        &self,
        key: SymmetricUse<'_>,
        work: impl FnOnce(&Functions, SymmetricKey<'_>) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, Error> {
        let (id, data) = match key {
            SymmetricUse::Stored(id) => (id, None),
            SymmetricUse::Derived { base, data } => (base, Some(data.to_vec())),
        };
        self.call(id, move |functions, id| work(functions, SymmetricKey { id: &id, derivation_data: data.as_deref() }))
    }
}

impl KeyLibrary for Foreign {
    // The vendor's own business.
    fn tidy(&self) -> Result<(), aziot_files::Error> {
        Ok(())
    }

    /// Never: every call waits for the thread.
    fn is_ready(&self, _: &str) -> bool {
        false
    }

    fn is_ready_to_sign_ecdsa(&self, _: &str) -> bool {
        false
    }

    fn create_key(&self, id: &str, usage: KeyUsage) -> Result<(), Error> {
        self.call(id, move |functions, id| functions.create_key(&id, usage))
    }

    fn load_key(&self, id: &str) -> Result<(), Error> {
        self.call(id, |functions, id| functions.load_key(&id))
    }

    fn import_key(&self, id: &str, usage: KeyUsage, bytes: &Secret) -> Result<(), Error> {
        let bytes = bytes.clone();
        self.call(id, move |functions, id| functions.import_key(&id, &bytes, usage))
    }

    fn delete_key(&self, id: &str) -> Result<(), Error> {
        self.call(id, |functions, id| functions.delete_key(&id))
    }

    fn create_key_pair(&self, id: &str, preferred_algorithms: Option<&str>) -> Result<(), Error> {
        let algorithms = preferred_algorithms.map(c_string).transpose().map_err(Problem::with(id))?;
        self.call(id, move |functions, id| functions.create_key_pair(&id, algorithms.as_deref()))
    }

    fn load_key_pair(&self, id: &str) -> Result<(), Error> {
        self.call(id, |functions, id| functions.load_key_pair(&id))
    }

    fn move_key_pair(&self, from: &str, to: &str) -> Result<(), Error> {
        let to = c_string(to).map_err(Problem::with(to))?;
        self.call(from, move |functions, from| functions.move_key_pair(&from, &to))
    }

    fn delete_key_pair(&self, id: &str) -> Result<(), Error> {
        self.call(id, |functions, id| functions.delete_key_pair(&id))
    }

    fn sign_hmac(&self, key: SymmetricUse<'_>, message: &[u8]) -> Result<Secret, Error> {
        let message = message.to_vec();
        self.call_symmetric(key, move |functions, key| functions.sign_hmac(key, &message))
    }

    fn verify_hmac(&self, id: &str, message: &[u8], signature: &[u8]) -> Result<bool, Error> {
        let (message, signature) = (message.to_vec(), signature.to_vec());
        self.call(id, move |functions, id| functions.verify_hmac(&id, &message, &signature))
    }

    fn derive(&self, base: &str, data: &[u8]) -> Result<Secret, Error> {
        let data = data.to_vec();
        self.call(base, move |functions, base| functions.derive_key(&base, &data))
    }

    fn encrypt_aead(&self, key: SymmetricUse<'_>, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let (iv, aad, plaintext) = (iv.to_vec(), aad.to_vec(), Secret::new(plaintext.to_vec()));
        self.call_symmetric(key, move |functions, key| {
            functions.encrypt_aead(key, Aead { iv: &iv, aad: &aad }, &plaintext).map(public)
        })
    }

    fn decrypt_aead(&self, key: SymmetricUse<'_>, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Secret, Error> {
        let (iv, aad, ciphertext) = (iv.to_vec(), aad.to_vec(), ciphertext.to_vec());
        self.call_symmetric(key, move |functions, key| {
            functions.decrypt_aead(key, Aead { iv: &iv, aad: &aad }, &ciphertext)
        })
    }

    fn key_pair_algorithm(&self, id: &str) -> Result<KeyPairAlgorithm, Error> {
        self.call(id, |functions, id| match functions.key_pair_algorithm(&id)? {
            KEY_PAIR_PARAMETER_ALGORITHM_EC => Ok(KeyPairAlgorithm::Ec),
            KEY_PAIR_PARAMETER_ALGORITHM_RSA => Ok(KeyPairAlgorithm::Rsa),
            value => Err(CallError::UnknownValue { what: "the algorithm of a key pair", value: value.into() }),
        })
    }

    fn public_parameter(&self, id: &str, parameter: PublicParameter) -> Result<Vec<u8>, Error> {
        let parameter = match parameter {
            PublicParameter::EcCurveOid => KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID,
            PublicParameter::EcPoint => KEY_PAIR_PARAMETER_TYPE_EC_POINT,
            PublicParameter::RsaModulus => KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS,
            PublicParameter::RsaExponent => KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT,
        };
        self.call(id, move |functions, id| functions.key_pair_parameter(&id, parameter).map(public))
    }

    fn sign_ecdsa(&self, id: &str, digest: &[u8]) -> Result<Vec<u8>, Error> {
        let digest = digest.to_vec();
        self.call(id, move |functions, id| functions.sign(&id, SIGN_MECHANISM_ECDSA, &digest).map(public))
    }

    fn encrypt_rsa(&self, id: &str, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Error> {
        let mechanism = match padding {
            RsaPadding::Pkcs1 => ENCRYPT_MECHANISM_RSA_PKCS1,
            RsaPadding::None => ENCRYPT_MECHANISM_RSA_NO_PADDING,
        };
        let input = Secret::new(input.to_vec());
        self.call(id, move |functions, id| functions.encrypt(&id, mechanism, &input).map(public))
    }
}

fn set_parameter(functions: &Functions, name: &str, value: String) -> Result<(), CallError> {
    // A text with a NUL byte cannot be said in C, and is no value of anything.
    let not_c = |_: NulError| CallError::InvalidParameter;
    let value = CString::new(value).map_err(not_c)?;
    functions.set_parameter(&CString::new(name).map_err(not_c)?, &value)
}

fn c_string(text: &str) -> Result<CString, Problem> {
    CString::new(text).map_err(|error| Invalid::Nul(error).into())
}

/// Results that are no secrets travel as plain bytes.
fn public(mut bytes: Secret) -> Vec<u8> {
    std::mem::take(&mut *bytes)
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Problem {
        match error {
            CallError::InvalidParameter => Problem::Invalid(Invalid::Refused),
            error => Problem::Failure(Failure::Foreign(error)),
        }
    }
}
