//! Keys on PKCS#11 tokens: where an object is, and what is done with it there (`keys.md`, section 7).
//!
//! Each call works on one session: it looks the object up by class and label, and uses it. Nothing of an object is remembered, so that
//! what an operator changes on the token counts at once. Whether a key may be changed, and in which turn, is decided in `keys`.

mod error;
mod key_pair;
mod module;
mod object;
mod replacement;
mod session;
mod symmetric;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cryptoki::object::{ObjectClass, ObjectHandle};

pub use self::error::{Pkcs11Error, TokenError};
use self::key_pair::TokenKeyPair;
pub(crate) use self::module::Module;
use self::object::PAIR;
pub(crate) use self::replacement::is_reserved;
pub(crate) use self::session::Token;
use self::session::TokenSession;
pub(crate) use self::symmetric::Outcome;
use self::symmetric::{Kind, TokenKey};
use crate::error::{Failure, Invalid, Problem};
use crate::key_pair::KeyPairOperations;
use crate::preferred_algorithms::NewKeyPair;
use crate::symmetric::{KeyUsage, SymmetricOperations};

/// The label of the key that the key service signs its handles with, unless that key is preloaded.
const HANDLE_KEY: &str = "handle-validation-key";

/// The place of a key on a token: objects of a label, or without one the first object of each class.
#[derive(Clone)]
pub(crate) struct TokenLocation {
    token: Arc<Token>,
    label: Option<String>,
    /// Put there by an operator: made where absent, and otherwise only read.
    preloaded: bool,
    /// The tokens on which an operator named an object of this label. One of them may be this token, by whatever name.
    namesakes: Vec<Arc<Token>>,
    /// Where the key is when it is not here.
    file: Option<PathBuf>,
}

impl TokenLocation {
    /// Where an operator put a key.
    pub(crate) fn preloaded(token: Arc<Token>, label: Option<String>) -> TokenLocation {
        TokenLocation { token, label, preloaded: true, namesakes: Vec::new(), file: None }
    }

    /// Where the key `label` goes, unless it is in `file`. On `namesakes` it is an operator's.
    pub(crate) fn dynamic(
        token: Arc<Token>,
        label: &str,
        namesakes: Vec<Arc<Token>>,
        file: Option<PathBuf>,
    ) -> TokenLocation {
        TokenLocation { token, label: Some(label.to_owned()), preloaded: false, namesakes, file }
    }

    pub(crate) fn is_preloaded(&self) -> Result<bool, Problem> {
        for namesake in &self.namesakes {
            if self.token.is_same(namesake)? {
                return Ok(true);
            }
        }
        Ok(self.preloaded)
    }

    /// The token, if this is an object of that label.
    pub(crate) fn token_with(&self, label: &str) -> Option<Arc<Token>> {
        (self.label.as_deref() == Some(label)).then(|| Arc::clone(&self.token))
    }

    pub(crate) fn token_name(&self) -> &str {
        self.token.name()
    }

    /// What writers of this place take turns by. Not a path of anything.
    pub(crate) fn turn(&self) -> Result<PathBuf, Problem> {
        // A token may have several names, and is in one slot.
        let slot = self.token.slot()?.id();
        Ok(PathBuf::from(format!("pkcs11:{slot}/{}", self.label.as_deref().unwrap_or_default())))
    }

    pub(crate) fn is_on_token_of(&self, other: &TokenLocation) -> Result<bool, Problem> {
        Ok(self.token.is_same(&other.token)?)
    }

    /// Changing objects needs to know which ones.
    pub(crate) fn label(&self) -> Result<&str, Invalid> {
        self.label.as_deref().ok_or(Invalid::NoLabel)
    }

    fn class_and_label(&self, class: ObjectClass) -> (ObjectClass, Option<&str>) {
        (class, self.label.as_deref())
    }

    /// Does `operation` with the symmetric key; `None` if it is not there.
    pub(crate) fn with_key<T>(
        &self,
        operation: impl Fn(&dyn SymmetricOperations) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        self.look(ObjectClass::SECRET_KEY, |session| match self.first_key(session)? {
            Some(handle) => operation(&TokenKey::new(session, handle)).map(Some),
            None => Ok(None),
        })
    }

    pub(crate) fn has_key(&self) -> Result<bool, Problem> {
        Ok(self.with_key(|_| Ok(()))?.is_some())
    }

    /// Makes a symmetric key where none is.
    pub(crate) fn generate_key(&self, usage: KeyUsage) -> Result<Outcome, Problem> {
        let kind = Kind::of(usage)?;
        self.token.run_making_keys(|session| {
            // A first attempt that ended with the token's removal may have made it.
            match self.first_key(session)? {
                Some(_) => Ok(Outcome::Done),
                None => symmetric::generate(session, self.label.as_deref(), kind),
            }
        })
    }

    /// Puts a symmetric key there; those that were there are destroyed only then.
    pub(crate) fn import_key(&self, usage: KeyUsage, bytes: &[u8]) -> Result<Outcome, Problem> {
        let kind = Kind::of(usage)?;
        self.token.run_alone(|session| {
            let import = || symmetric::import(session, self.label.as_deref(), kind, bytes);
            match &self.label {
                Some(label) => session.replace_key(label, import, |outcome| matches!(outcome, Outcome::Done)),
                None => import(),
            }
        })
    }

    /// Tells whether there was one.
    pub(crate) fn delete_key(&self) -> Result<bool, Problem> {
        let label = self.label()?;
        self.token.run_alone(|session| {
            session.recover_key(label)?;
            let handles = session.all(ObjectClass::SECRET_KEY, label)?;
            session.destroy(&handles)?;
            Ok(!handles.is_empty())
        })
    }

    /// Does `operation` with the key pair; `None` if its private key is not there.
    pub(crate) fn with_key_pair<T>(
        &self,
        operation: impl Fn(&dyn KeyPairOperations) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        self.look(ObjectClass::PRIVATE_KEY, |session| match TokenKeyPair::find(session, self.label.as_deref())? {
            Some(pair) => operation(&pair).map(Some),
            None => Ok(None),
        })
    }

    /// Whether a key pair is there. One without public half is an error: it is neither usable nor absent.
    pub(crate) fn has_key_pair(&self) -> Result<bool, Problem> {
        let found =
            self.look(ObjectClass::PRIVATE_KEY, |session| match TokenKeyPair::find(session, self.label.as_deref())? {
                Some(pair) => pair.check().map(Some),
                None => Ok(None),
            })?;
        Ok(found.is_some())
    }

    /// Whether an object of a key pair is there, of whatever use.
    pub(crate) fn has_objects_of_key_pair(&self) -> Result<bool, Problem> {
        self.token.run(|session| {
            for class in PAIR {
                if session.first(self.class_and_label(class))?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Makes a key pair where no private key is, with the first algorithm that the token can do.
    pub(crate) fn generate_key_pair(&self, algorithms: &[NewKeyPair]) -> Result<(), Problem> {
        let is_preloaded = self.is_preloaded()?;
        self.token.run_making_keys(|session| {
            // A first attempt that ended with the token's removal may have made it.
            if session.first(self.class_and_label(ObjectClass::PRIVATE_KEY))?.is_some() {
                return Ok(());
            }
            if is_preloaded && session.first(self.class_and_label(ObjectClass::PUBLIC_KEY))?.is_some() {
                return Err(Problem::Preloaded);
            }
            let generate = || key_pair::generate(session, self.label.as_deref(), algorithms);
            match &self.label {
                Some(label) => session.replace_lone_public(label, generate),
                None => generate(),
            }
        })
    }

    /// Tells whether there was one.
    pub(crate) fn delete_key_pair(&self) -> Result<bool, Problem> {
        let label = self.label()?;
        self.token.run_alone(|session| {
            self.recover_pair(session)?;
            // The private half first: what is left without it is no pair.
            let mut objects = session.all(ObjectClass::PRIVATE_KEY, label)?;
            objects.extend(session.all(ObjectClass::PUBLIC_KEY, label)?);
            session.destroy(&objects)?;
            Ok(!objects.is_empty())
        })
    }

    /// Gives the key pair the label of `target` on the same token, in place of the pair that has it.
    ///
    /// The pair that gives way is destroyed last. A failure before leaves everything as it was; what the token being gone leaves is put in
    /// order at the next use.
    pub(crate) fn move_key_pair(&self, target: &TokenLocation) -> Result<(), Problem> {
        let (from, to) = (self.label()?, target.label()?);
        // Finds out whether the token is there before the steps that are not repeated.
        self.has_key_pair()?;
        target.token.run_alone_once(|session| {
            self.recover_pair(session)?;
            target.recover_pair(session)?;
            session.move_pair(from, to)
        })
    }

    /// Finishes a move to `target` that was cut off when it was all but done. Tells whether there was one.
    pub(crate) fn finish_move(&self, target: &TokenLocation) -> Result<bool, Problem> {
        let (from, to) = (self.label()?, target.label()?);
        target.token.run_alone(|session| session.finish_move(from, to))
    }

    /// Does `work`, which puts `file` in the place of the key pair, and destroys the pair if that went well. `clear` removes what is at
    /// `file`, hidden behind the pair.
    pub(crate) fn give_way_to_file(
        &self,
        file: &Path,
        clear: impl FnOnce() -> Result<(), Problem>,
        work: impl FnOnce() -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let label = self.label()?;
        self.has_key_pair()?;
        self.token.run_alone_once(|session| {
            self.recover_pair(session)?;
            session.replace_pair_by_file(label, file, clear, work)
        })
    }

    /// What `look` finds, once more if a change that was cut off kept it from finding anything.
    fn look<T>(
        &self,
        class: ObjectClass,
        look: impl Fn(&TokenSession) -> Result<Option<T>, Problem>,
    ) -> Result<Option<T>, Problem> {
        let Some(label) = self.label.as_deref() else { return self.token.run(look) };
        let found = self.token.run(|session| match look(session) {
            Ok(None) if session.has_aside(class, label)? => Ok(None),
            Err(Problem::Failure(Failure::Token(TokenError::NoPublicKey { .. }))) => Ok(None),
            outcome => outcome.map(Some),
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
        self.token.run_alone(|session| match class {
            ObjectClass::SECRET_KEY => Ok(session.recover_key(label)?),
            _ => self.recover_pair(session),
        })?;
        self.token.run(look)
    }

    fn recover_pair(&self, session: &TokenSession) -> Result<(), Problem> {
        match &self.label {
            Some(label) => Ok(session.recover_pair(label, self.file.as_deref())?),
            None => Ok(()),
        }
    }

    fn first_key(&self, session: &TokenSession) -> Result<Option<ObjectHandle>, TokenError> {
        match &self.label {
            Some(label) => session.first((ObjectClass::SECRET_KEY, Some(label))),
            // Whoever has that one can make handles for all keys.
            None => session.first_but(ObjectClass::SECRET_KEY, Some(HANDLE_KEY)),
        }
    }
}
