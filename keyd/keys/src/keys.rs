//! All keys of the device: the one door to this crate. Decides what may be done to which key and in which order; the work is done elsewhere.
//!
//! One caller at a time changes a key, callers for other keys do not wait, and using a key takes no turn at all.

mod places;

use std::collections::BTreeSet;
use std::path::PathBuf;

use aziot_files::Created;
use aziot_log::{chain, fields};
use openssl::memcmp;
use zeroize::Zeroizing;

use crate::content::Content;
use crate::error::{Error, Failure, Invalid, Problem};
use crate::key_pair::{KeyPair, KeyPairAlgorithm, KeyPairOperations, PublicParameter, RsaPadding};
use crate::location::{Location, Locations, Settings, SettingsError};
use crate::preferred_algorithms::{self, NewKeyPair};
use crate::store::{self, Look, Store};
use crate::symmetric::{KeyUsage, SymmetricKey, SymmetricOperations};
use crate::token::{Outcome, TokenError, TokenLocation};
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

impl Keys {
    /// Checks the settings; makes no folder and reads no key yet.
    pub fn new(settings: Settings) -> Result<Keys, SettingsError> {
        let locations = Locations::new(settings)?;
        let store = Store::new(locations.folder());
        Ok(Keys { locations, store, turns: Turns::default() })
    }

    /// Removes what a crash left of unfinished key files; others may use keys meanwhile. Call it where no other process writes to the
    /// home. In the folders of preloaded keys only what is older than [`LEFTOVER_AGE`](crate::LEFTOVER_AGE) goes.
    pub fn tidy(&self) -> Result<(), aziot_files::Error> {
        store::tidy(&self.folders(), self.locations.folder())
    }

    /// Every folder that key files may be written to.
    pub(crate) fn folders(&self) -> BTreeSet<PathBuf> {
        self.locations.folders()
    }

    /// Whether the key is in memory. Looking at it, and using a symmetric key, is then a matter of microseconds, unless its file was
    /// changed by somebody else: it is then read again, once.
    ///
    /// Never true of a key that may be on a token: how long one takes nobody knows.
    #[must_use]
    pub fn is_ready(&self, id: &str) -> bool {
        self.is_in_memory(id, |_| true)
    }

    /// Whether the key is in memory, and a pair whose ECDSA signatures take some tens of microseconds too: one of P-256. OpenSSL takes
    /// ten times as long for those of larger curves.
    #[must_use]
    pub fn is_ready_to_sign_ecdsa(&self, id: &str) -> bool {
        self.is_in_memory(id, Content::is_p256_pair)
    }

    fn is_in_memory(&self, id: &str, is_such: impl FnOnce(&Content) -> bool) -> bool {
        matches!(self.locations.of(id).as_deref(), Ok([Location::File(file)]) if self.store.is_ready(file, is_such))
    }

    /// Makes the symmetric key `id` unless it exists, of 32 random bytes (16 on tokens that have only such AES keys).
    ///
    /// `usage` matters where the key goes to a token. Of several callers at the same time one makes it, all get it.
    pub fn create_key(&self, id: &str, usage: KeyUsage) -> Result<(), Error> {
        let create = || {
            let locations = self.locations.of(id)?;
            if self.is_key_there(&locations)? {
                return Ok(());
            }
            self.in_turn(&locations, || {
                // Whoever had the turn before may have made it.
                if self.is_key_there(&locations)? {
                    return Ok(());
                }
                self.generate_key(id, &locations, usage)?;
                // What is stored counts, and nobody gets a key that cannot be read back.
                if self.is_key_there(&locations)? { Ok(()) } else { Err(Failure::Vanished.into()) }
            })
        };
        create().map_err(Problem::with(id))
    }

    /// At the first place that takes it.
    fn generate_key(&self, id: &str, locations: &[Location], usage: KeyUsage) -> Result<(), Problem> {
        let mut refusal = None;
        for location in locations {
            match location {
                Location::File(file) => {
                    if self.store.create(file, &SymmetricKey::generate()?)? == Created::New {
                        tracing::info!({ fields::KEY_ID } = id, { fields::FILE } = %file.path.display(), "made a key");
                    }
                    return Ok(());
                }
                Location::Token(token) => match token.generate_key(usage)? {
                    Outcome::Done => {
                        tracing::info!({ fields::KEY_ID } = id, { fields::TOKEN } = token.token_name(), "made a key");
                        return Ok(());
                    }
                    Outcome::Unfit(error) => refusal = Some(refused(id, token, error)),
                },
            }
        }
        Err(no_place(refusal))
    }

    /// Makes sure that the symmetric key `id` exists and can be used.
    pub fn load_key(&self, id: &str) -> Result<(), Error> {
        self.with_stored(Look::Now, id, |_| Ok(()))
    }

    /// Makes `bytes` the symmetric key `id`, over the symmetric key that is there. Never over a key pair or a preloaded key.
    ///
    /// `usage` matters where the key goes to a token; bytes that the token does not take go to the file.
    pub fn import_key(&self, id: &str, usage: KeyUsage, bytes: &Secret) -> Result<(), Error> {
        self.import(id, usage, bytes).map_err(Problem::with(id))
    }

    fn import(&self, id: &str, usage: KeyUsage, bytes: &Secret) -> Result<(), Problem> {
        if bytes.is_empty() {
            return Err(Invalid::EmptyImport.into());
        }
        if Content::parse(bytes.clone()).symmetric().is_err() {
            return Err(Invalid::ImportOfPrivateKey.into());
        }
        let locations = self.locations.of(id)?;
        self.in_turn(&locations, || {
            for location in &locations {
                self.check_key_replaceable(location)?;
            }
            let mut refusal = None;
            for location in &locations {
                match location {
                    Location::File(file) if file.preloaded => {
                        return match self.store.create(file, bytes)? {
                            Created::New => Ok(()),
                            Created::AlreadyThere => Err(Problem::Preloaded),
                        };
                    }
                    Location::File(file) => {
                        self.store.replace(file, bytes)?;
                        // What a token still has under this id would hide the new key.
                        return delete_key_at_tokens(&locations);
                    }
                    Location::Token(token) => match token.import_key(usage, bytes)? {
                        Outcome::Done => return Ok(()),
                        Outcome::Unfit(error) => refusal = Some(refused(id, token, error)),
                    },
                }
            }
            Err(no_place(refusal))
        })
    }

    /// Deletes the symmetric key `id`, wherever it is; absent is fine.
    pub fn delete_key(&self, id: &str) -> Result<(), Error> {
        self.delete(
            id,
            |location| self.check_key_replaceable(location),
            |location| match location {
                Location::File(file) => Ok(self.store.remove(file)?),
                Location::Token(token) => token.delete_key(),
            },
        )
        .map_err(Problem::with(id))
    }

    /// Makes the key pair `id` with one of the preferred algorithms (`ec-p256`, `rsa-2048`, `rsa-4096`, `*`, separated by `:`; none: any)
    /// unless it exists, whatever its algorithm. On files the first algorithm is taken, on tokens the first that the token can do.
    pub fn create_key_pair(&self, id: &str, preferred_algorithms: Option<&str>) -> Result<(), Error> {
        let create = || {
            let algorithms = preferred_algorithms::parse(preferred_algorithms)?;
            let locations = self.locations.of(id)?;
            if self.is_key_pair_there(&locations)? {
                return Ok(());
            }
            self.in_turn(&locations, || {
                // Whoever had the turn before may have made it.
                if self.is_key_pair_there(&locations)? {
                    return Ok(());
                }
                self.generate_key_pair(id, &locations, &algorithms)?;
                // What is stored counts, and nobody gets a key pair that cannot be read back.
                if self.is_key_pair_there(&locations)? { Ok(()) } else { Err(Failure::Vanished.into()) }
            })
        };
        create().map_err(Problem::with(id))
    }

    /// At the first place only: a key pair that belongs on a token never ends up in a file.
    fn generate_key_pair(&self, id: &str, locations: &[Location], algorithms: &[NewKeyPair]) -> Result<(), Problem> {
        match locations.first() {
            Some(Location::File(file)) => {
                let algorithm = *algorithms.first().ok_or(Invalid::NoKnownAlgorithm)?;
                if self.store.create(file, &KeyPair::generate(algorithm)?)? == Created::New {
                    tracing::info!({ fields::KEY_ID } = id, { fields::FILE } = %file.path.display(), "made a key pair");
                }
            }
            Some(Location::Token(token)) => {
                token.generate_key_pair(algorithms)?;
                tracing::info!({ fields::KEY_ID } = id, { fields::TOKEN } = token.token_name(), "made a key pair");
            }
            None => return Err(Invalid::NoHome.into()),
        }
        Ok(())
    }

    /// Makes sure that the key pair `id` exists and can be used.
    pub fn load_key_pair(&self, id: &str) -> Result<(), Error> {
        let load = || {
            for location in self.locations.of(id)? {
                if self.has_key_pair(&location)? {
                    return Ok(());
                }
            }
            Err(Invalid::NotFound.into())
        };
        load().map_err(Problem::with(id))
    }

    /// Gives the key pair `from` the id `to`, in place of the key pair that has it. A preloaded key pair is neither moved nor replaced.
    ///
    /// It stays where it is, in a file or on its token, whatever would be the place for a new one.
    pub fn move_key_pair(&self, from: &str, to: &str) -> Result<(), Error> {
        let sources = self.locations.of(from).map_err(|invalid| Problem::with(from)(invalid.into()))?;
        let targets = self.locations.of(to).map_err(|invalid| Problem::with(to)(invalid.into()))?;
        let mut turns = turns(&sources).map_err(Problem::with(from))?;
        turns.extend(self::turns(&targets).map_err(Problem::with(to))?);
        self.during(&turns, || {
            let source = match self.movable(&sources) {
                // It was moved when a kill cut this off, and only the end is missing.
                Err(Problem::Failure(Failure::NothingToMove))
                    if finish_move(&sources, &targets).map_err(Problem::with(from))? =>
                {
                    return Ok(());
                }
                source => source.map_err(Problem::with(from))?,
            };
            for target in &targets {
                self.check_key_pair_replaceable(target).map_err(Problem::with(to))?;
            }
            self.relocate(source, &targets).map_err(Problem::with(from))
        })?;
        tracing::info!({ fields::KEY_ID } = from, to, "moved a key pair");
        Ok(())
    }

    fn relocate(&self, source: &Location, targets: &[Location]) -> Result<(), Problem> {
        let file = targets.iter().find_map(|target| if let Location::File(file) = target { Some(file) } else { None });
        let token =
            targets.iter().find_map(|target| if let Location::Token(token) = target { Some(token) } else { None });
        match (source, file, token) {
            // What the token has under the new id would hide the file.
            (Location::File(source), Some(file), Some(token)) => {
                let clear = || Ok(self.store.remove(file).map(|_| ())?);
                token.give_way_to_file(&file.path, clear, || Ok(self.store.rename(source, file)?))
            }
            (Location::File(source), Some(file), None) => Ok(self.store.rename(source, file)?),
            (Location::Token(source), _, Some(token)) if source.is_on_token_of(token)? => source.move_key_pair(token),
            _ => Err(Invalid::MoveBetweenPlaces.into()),
        }
    }

    /// Deletes the key pair `id`, wherever it is; absent is fine.
    pub fn delete_key_pair(&self, id: &str) -> Result<(), Error> {
        self.delete(
            id,
            |location| self.check_key_pair_replaceable(location),
            |location| match location {
                Location::File(file) => Ok(self.store.remove(file)?),
                Location::Token(token) => token.delete_key_pair(),
            },
        )
        .map_err(Problem::with(id))
    }

    /// HMAC-SHA256 of `message`, 32 bytes.
    pub fn sign_hmac(&self, key: SymmetricUse<'_>, message: &[u8]) -> Result<Secret, Error> {
        self.hmac(Look::AMomentAgo, key, message)
    }

    /// Whether `signature` is the HMAC-SHA256 of `message`, in constant time. A wrong length is just "no".
    pub fn verify_hmac(&self, key: SymmetricUse<'_>, message: &[u8], signature: &[u8]) -> Result<bool, Error> {
        let expected = self.hmac(Look::Now, key, message)?;
        Ok(expected.len() == signature.len() && memcmp::eq(&expected, signature))
    }

    /// The key derived from `base` and `data`, 32 bytes.
    pub fn derive(&self, base: &str, data: &[u8]) -> Result<Secret, Error> {
        self.with_stored(Look::Now, base, |key| key.hmac(data))
    }

    /// AES-256-GCM: version byte 2, ciphertext, 16-byte tag. `iv` has 1 to 128 bytes and is not part of the result.
    pub fn encrypt_aead(
        &self,
        key: SymmetricUse<'_>,
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.with_symmetric(Look::AMomentAgo, key, |key| key.encrypt(iv, aad, plaintext))
    }

    /// The plaintext of what [`Keys::encrypt_aead`] made, or of the older layout (version byte 1, tag, ciphertext).
    pub fn decrypt_aead(
        &self,
        key: SymmetricUse<'_>,
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Result<Secret, Error> {
        self.with_symmetric(Look::AMomentAgo, key, |key| key.decrypt(iv, aad, ciphertext))
    }

    /// The algorithm of a key pair.
    pub fn key_pair_algorithm(&self, id: &str) -> Result<KeyPairAlgorithm, Error> {
        self.with_key_pair(id, |pair| pair.algorithm())
    }

    /// Something about the public half of a key pair.
    pub fn public_parameter(&self, id: &str, parameter: PublicParameter) -> Result<Vec<u8>, Error> {
        self.with_key_pair(id, |pair| pair.parameter(parameter))
    }

    /// ECDSA over `digest` as it is, shortened to the length of the curve's order. DER.
    pub fn sign_ecdsa(&self, id: &str, digest: &[u8]) -> Result<Vec<u8>, Error> {
        self.with_key_pair(id, |pair| pair.sign_ecdsa(digest))
    }

    /// The RSA private operation on `input`; the result is as long as the modulus.
    pub fn encrypt_rsa(&self, id: &str, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.with_key_pair(id, |pair| pair.encrypt_rsa(padding, input))
    }

    fn hmac(&self, look: Look, key: SymmetricUse<'_>, message: &[u8]) -> Result<Secret, Error> {
        self.with_symmetric(look, key, |key| key.hmac(message))
    }

    fn with_symmetric<T>(
        &self,
        look: Look,
        key: SymmetricUse<'_>,
        operation: impl Fn(&dyn SymmetricOperations) -> Result<T, Problem>,
    ) -> Result<T, Error> {
        match key {
            SymmetricUse::Stored(id) => self.with_stored(look, id, operation),
            // Derived on the base key's token if need be, and used here.
            SymmetricUse::Derived { base, data } => {
                let derived = self.derive(base, data)?;
                operation(&SymmetricKey::new(derived)).map_err(Problem::with(base))
            }
        }
    }

    fn with_stored<T>(
        &self,
        look: Look,
        id: &str,
        operation: impl Fn(&dyn SymmetricOperations) -> Result<T, Problem>,
    ) -> Result<T, Error> {
        let find = || {
            for location in self.locations.of(id)? {
                let found = match location {
                    Location::File(file) => match self.store.load(look, &file)? {
                        Some(content) => Some(operation(content.symmetric()?)?),
                        None => None,
                    },
                    Location::Token(token) => token.with_key(&operation)?,
                };
                if let Some(outcome) = found {
                    return Ok(outcome);
                }
            }
            Err(Invalid::NotFound.into())
        };
        find().map_err(Problem::with(id))
    }

    fn with_key_pair<T>(
        &self,
        id: &str,
        operation: impl Fn(&dyn KeyPairOperations) -> Result<T, Problem>,
    ) -> Result<T, Error> {
        let find = || {
            for location in self.locations.of(id)? {
                let found = match location {
                    Location::File(file) => match self.store.load(Look::AMomentAgo, &file)? {
                        Some(content) => Some(operation(content.key_pair(&file.path)?)?),
                        None => None,
                    },
                    Location::Token(token) => token.with_key_pair(&operation)?,
                };
                if let Some(outcome) = found {
                    return Ok(outcome);
                }
            }
            Err(Invalid::NotFound.into())
        };
        find().map_err(Problem::with(id))
    }

    /// Whether all of the key may go is asked before any of it goes.
    fn delete(
        &self,
        id: &str,
        check: impl Fn(&Location) -> Result<(), Problem>,
        remove: impl Fn(&Location) -> Result<bool, Problem>,
    ) -> Result<(), Problem> {
        let locations = self.locations.of(id)?;
        self.in_turn(&locations, || {
            for location in &locations {
                if let Location::Token(token) = location {
                    token.label()?;
                }
                check(location)?;
            }
            // The last first: cut off in between, an older key must not come back to light.
            for location in locations.iter().rev() {
                if remove(location)? {
                    tracing::info!({ fields::KEY_ID } = id, "deleted a key");
                }
            }
            Ok(())
        })
    }

    /// Runs `work` while nobody else changes what is at these locations.
    fn in_turn<T>(&self, locations: &[Location], work: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
        self.during(&turns(locations)?, work)
    }

    fn during<T>(&self, turns: &[PathBuf], work: impl FnOnce() -> T) -> T {
        let turns: Vec<_> = turns.iter().map(PathBuf::as_path).collect();
        self.turns.during(&turns, work)
    }
}

fn turns(locations: &[Location]) -> Result<Vec<PathBuf>, Problem> {
    locations.iter().map(Location::turn).collect()
}

/// Whether a move between these places on one token was all but done and is done now.
fn finish_move(sources: &[Location], targets: &[Location]) -> Result<bool, Problem> {
    match (sources.first(), targets.first()) {
        (Some(Location::Token(source)), Some(Location::Token(target))) if source.is_on_token_of(target)? => {
            source.finish_move(target)
        }
        _ => Ok(false),
    }
}

fn delete_key_at_tokens(locations: &[Location]) -> Result<(), Problem> {
    for location in locations {
        if let Location::Token(token) = location {
            token.delete_key()?;
        }
    }
    Ok(())
}

fn refused(id: &str, token: &TokenLocation, error: TokenError) -> TokenError {
    tracing::warn!(
        { fields::KEY_ID } = id,
        { fields::TOKEN } = token.token_name(),
        { fields::ERROR } = %chain(&error),
        "the token cannot hold the key"
    );
    error
}

fn no_place(refusal: Option<TokenError>) -> Problem {
    refusal.map_or(Problem::Invalid(Invalid::NoHome), |error| Problem::Failure(Failure::NoPlace(error)))
}
