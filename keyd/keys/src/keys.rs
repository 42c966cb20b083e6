//! All keys of the device: the one door to this crate. Decides what may be done to which key and in which order; the work is done elsewhere.
//!
//! One caller at a time changes a key, callers for other keys do not wait, and using a key takes no turn at all.

use std::sync::Arc;

use aziot_files::Created;
use openssl::error::ErrorStack;
use openssl::memcmp;
use zeroize::Zeroizing;

use crate::content::Content;
use crate::error::{Error, Failure, Invalid, Problem};
use crate::key_pair::{KeyPair, KeyPairAlgorithm, PublicParameter, RsaPadding};
use crate::location::{Location, Locations, Settings, SettingsError};
use crate::preferred_algorithms;
use crate::store::Store;
use crate::symmetric::SymmetricKey;
use crate::turns::Turns;

/// Secret bytes, wiped when dropped.
pub type Secret = Zeroizing<Vec<u8>>;

/// Which symmetric key an operation uses.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum SymmetricUse<'a> {
    /// The key with this id.
    Stored(&'a str),
    /// The HMAC-SHA256 of `data` under the key `base`, never stored.
    Derived {
        /// Id of the base key.
        base: &'a str,
        /// Derivation data, of any length.
        data: &'a [u8],
    },
}

/// The keys of one device. Shared between threads; every method blocks.
pub struct Keys {
    locations: Locations,
    store: Store,
    turns: Turns,
}

/// Whether a key that is there is of the kind that a caller wants made.
type Accepts = fn(&Content, &Location) -> Result<(), Problem>;

impl Keys {
    /// Checks the settings and tidies up after a crash; makes no folder and reads no key yet.
    pub fn new(settings: Settings) -> Result<Keys, SettingsError> {
        let locations = Locations::new(settings)?;
        let store = Store::new(locations.folder())?;
        Ok(Keys { locations, store, turns: Turns::default() })
    }

    /// Whether the key is in memory as it is on disk. Using a symmetric key is then a matter of microseconds.
    #[must_use]
    pub fn is_ready(&self, id: &str) -> bool {
        self.locations.of(id).is_ok_and(|location| self.store.is_ready(&location))
    }

    /// Makes the symmetric key `id` of 32 random bytes unless it exists. Of several callers at the same time one makes it, all get it.
    pub fn create_key(&self, id: &str) -> Result<(), Error> {
        self.create(id, |content, _| Ok(content.symmetric().map(|_| ())?), SymmetricKey::generate)
            .map_err(Problem::with(id))
    }

    /// Makes sure that the symmetric key `id` exists and can be used.
    pub fn load_key(&self, id: &str) -> Result<(), Error> {
        self.load(id).and_then(|(content, _)| Ok(content.symmetric().map(|_| ())?)).map_err(Problem::with(id))
    }

    /// Makes `bytes` the symmetric key `id`, over the symmetric key that is there. Never over a key pair or a preloaded file.
    pub fn import_key(&self, id: &str, bytes: &Secret) -> Result<(), Error> {
        self.import(id, bytes).map_err(Problem::with(id))
    }

    fn import(&self, id: &str, bytes: &Secret) -> Result<(), Problem> {
        if bytes.is_empty() {
            return Err(Invalid::EmptyImport.into());
        }
        if Content::parse(bytes.clone())?.symmetric().is_err() {
            return Err(Invalid::ImportOfPrivateKey.into());
        }
        let location = self.locations.of(id)?;
        self.turns.during(&[location.path()], || {
            self.check_replaceable(&location, |content| content.symmetric().map(|_| ()))?;
            if location.is_preloaded() {
                return match self.store.create(&location, bytes)? {
                    Created::New => Ok(()),
                    Created::AlreadyThere => Err(Problem::Preloaded),
                };
            }
            Ok(self.store.replace(&location, bytes)?)
        })
    }

    /// Deletes the symmetric key `id`; absent is fine.
    pub fn delete_key(&self, id: &str) -> Result<(), Error> {
        self.delete(id, |content| content.symmetric().map(|_| ())).map_err(Problem::with(id))
    }

    /// Makes the key pair `id` with the first of the preferred algorithms (`ec-p256`, `rsa-2048`, `rsa-4096`, `*`, separated by `:`; none: any)
    /// unless it exists, whatever its algorithm.
    pub fn create_key_pair(&self, id: &str, preferred_algorithms: Option<&str>) -> Result<(), Error> {
        let create = || {
            // On files the first one always works.
            let algorithm =
                *preferred_algorithms::parse(preferred_algorithms)?.first().ok_or(Invalid::NoKnownAlgorithm)?;
            self.create(id, |content, at| Ok(content.key_pair(at.path()).map(|_| ())?), || KeyPair::generate(algorithm))
        };
        create().map_err(Problem::with(id))
    }

    /// Makes sure that the key pair `id` exists and can be used.
    pub fn load_key_pair(&self, id: &str) -> Result<(), Error> {
        self.with_key_pair(id, |_| Ok(()))
    }

    /// Gives the key pair `from` the id `to`, in place of the key pair that has it. A preloaded file is neither moved nor replaced.
    pub fn move_key_pair(&self, from: &str, to: &str) -> Result<(), Error> {
        let source = self.locations.of(from).map_err(|invalid| Problem::with(from)(invalid.into()))?;
        let target = self.locations.of(to).map_err(|invalid| Problem::with(to)(invalid.into()))?;
        self.turns.during(&[source.path(), target.path()], || {
            self.check_movable(&source).map_err(Problem::with(from))?;
            self.check_replaceable(&target, Content::removable_as_key_pair).map_err(Problem::with(to))?;
            self.store.rename(&source, &target).map_err(|failure| Problem::with(from)(failure.into()))
        })?;
        tracing::info!(key_id = from, to, "moved a key pair");
        Ok(())
    }

    /// Deletes the key pair `id`; absent is fine.
    pub fn delete_key_pair(&self, id: &str) -> Result<(), Error> {
        self.delete(id, Content::removable_as_key_pair).map_err(Problem::with(id))
    }

    /// HMAC-SHA256 of `message`, 32 bytes.
    pub fn sign_hmac(&self, key: SymmetricUse<'_>, message: &[u8]) -> Result<Secret, Error> {
        self.with_symmetric(key, |key| Ok(key.hmac(message)?))
    }

    /// Whether `signature` is the HMAC-SHA256 of `message`, in constant time. A wrong length is just "no".
    pub fn verify_hmac(&self, key: SymmetricUse<'_>, message: &[u8], signature: &[u8]) -> Result<bool, Error> {
        let expected = self.sign_hmac(key, message)?;
        Ok(expected.len() == signature.len() && memcmp::eq(&expected, signature))
    }

    /// The key derived from `base` and `data`, 32 bytes.
    pub fn derive(&self, base: &str, data: &[u8]) -> Result<Secret, Error> {
        self.with_symmetric(SymmetricUse::Derived { base, data }, |key| Ok(key.to_bytes()))
    }

    /// AES-256-GCM: version byte 2, ciphertext, 16-byte tag. `iv` has 1 to 128 bytes and is not part of the result.
    pub fn encrypt_aead(
        &self,
        key: SymmetricUse<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.with_symmetric(key, |key| key.encrypt(iv, aad, plaintext))
    }

    /// The plaintext of what [`Keys::encrypt_aead`] made, or of the older layout (version byte 1, tag, ciphertext).
    pub fn decrypt_aead(
        &self,
        key: SymmetricUse<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<Secret, Error> {
        self.with_symmetric(key, |key| key.decrypt(iv, aad, ciphertext))
    }

    /// The algorithm of a key pair.
    pub fn key_pair_algorithm(&self, id: &str) -> Result<KeyPairAlgorithm, Error> {
        self.with_key_pair(id, |pair| Ok(pair.algorithm()?))
    }

    /// Something about the public half of a key pair.
    pub fn public_parameter(&self, id: &str, parameter: PublicParameter) -> Result<Vec<u8>, Error> {
        self.with_key_pair(id, |pair| Ok(pair.parameter(parameter)?.to_vec()))
    }

    /// ECDSA over `digest` as it is, shortened to the length of the curve's order. DER.
    pub fn sign_ecdsa(&self, id: &str, digest: &[u8]) -> Result<Vec<u8>, Error> {
        self.with_key_pair(id, |pair| pair.sign_ecdsa(digest))
    }

    /// The RSA private operation on `input`; the result is as long as the modulus.
    pub fn encrypt_rsa(&self, id: &str, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.with_key_pair(id, |pair| pair.encrypt_rsa(padding, input))
    }

    fn with_symmetric<T>(
        &self,
        key: SymmetricUse<'_>,
        operation: impl FnOnce(&SymmetricKey) -> Result<T, Problem>,
    ) -> Result<T, Error> {
        let (SymmetricUse::Stored(id) | SymmetricUse::Derived { base: id, .. }) = key;
        self.load(id)
            .and_then(|(content, _)| match key {
                SymmetricUse::Stored(_) => operation(content.symmetric()?),
                SymmetricUse::Derived { data, .. } => operation(&content.symmetric()?.derive(data)?),
            })
            .map_err(Problem::with(id))
    }

    fn with_key_pair<T>(&self, id: &str, operation: impl FnOnce(&KeyPair) -> Result<T, Problem>) -> Result<T, Error> {
        self.load(id)
            .and_then(|(content, location)| operation(content.key_pair(location.path())?))
            .map_err(Problem::with(id))
    }

    fn load(&self, id: &str) -> Result<(Arc<Content>, Location), Problem> {
        let location = self.locations.of(id)?;
        let content = self.store.load(&location)?.ok_or(Invalid::NotFound)?;
        Ok((content, location))
    }

    fn create(
        &self,
        id: &str,
        accepts: Accepts,
        generate: impl FnOnce() -> Result<Secret, ErrorStack>,
    ) -> Result<(), Problem> {
        let location = self.locations.of(id)?;
        if self.is_there(&location, accepts)? {
            return Ok(());
        }
        self.turns.during(&[location.path()], || {
            // Whoever had the turn before may have made it.
            if self.is_there(&location, accepts)? {
                return Ok(());
            }
            if self.store.create(&location, &generate()?)? == Created::New {
                tracing::info!(key_id = id, path = %location.path().display(), "made a key");
            }
            // What is on disk counts, and nobody gets a key that cannot be read back.
            let content = self.store.load(&location)?.ok_or(Failure::Vanished)?;
            accepts(&content, &location)
        })
    }

    fn is_there(&self, location: &Location, accepts: Accepts) -> Result<bool, Problem> {
        match self.store.load(location) {
            Ok(Some(content)) => accepts(&content, location).map(|()| true),
            Ok(None) => Ok(false),
            Err(Failure::Empty { .. }) if !location.is_preloaded() => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    fn delete(&self, id: &str, is_wanted_kind: fn(&Content) -> Result<(), Invalid>) -> Result<(), Problem> {
        let location = self.locations.of(id)?;
        self.turns.during(&[location.path()], || {
            self.check_replaceable(&location, is_wanted_kind)?;
            if self.store.remove(&location)? {
                tracing::info!(key_id = id, "deleted a key");
            }
            Ok(())
        })
    }

    /// Whether what is at `location` may go: nothing, an empty file, or a key of the wanted kind that is not preloaded.
    fn check_replaceable(
        &self,
        location: &Location,
        is_wanted_kind: impl FnOnce(&Content) -> Result<(), Invalid>,
    ) -> Result<(), Problem> {
        if location.is_untouchable() {
            return Err(Problem::Preloaded);
        }
        match self.store.load(location) {
            Ok(Some(content)) => Ok(is_wanted_kind(&content)?),
            Ok(None) | Err(Failure::Empty { .. }) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Whether a usable key pair is at `source` that is not an operator's.
    fn check_movable(&self, source: &Location) -> Result<(), Problem> {
        if source.is_untouchable() {
            return Err(Problem::Preloaded);
        }
        let content = self.store.load(source)?.ok_or(Failure::NothingToMove)?;
        content.key_pair(source.path())?;
        Ok(())
    }
}
