//! Keys on PKCS#11 tokens: where an object is, and what is done with it there (`keys.md`, section 7).
//!
//! Each call works on one session: it looks the object up by class and label, and uses it. Nothing of an object is remembered, so that
//! what an operator changes on the token counts at once. Whether a key may be changed, and in which turn, is decided in `keys`.

mod error;
mod key_pair;
mod module;
mod object;
mod session;
mod symmetric;

use std::path::PathBuf;
use std::sync::Arc;

use cryptoki::object::ObjectClass;

pub use self::error::{Pkcs11Error, TokenError};
use self::key_pair::TokenKeyPair;
pub(crate) use self::module::Module;
use self::object::PAIR;
pub(crate) use self::session::Token;
use self::session::TokenSession;
pub(crate) use self::symmetric::Outcome;
use self::symmetric::{Kind, TokenKey};
use crate::error::{Invalid, Problem};
use crate::key_pair::KeyPairOperations;
use crate::preferred_algorithms::NewKeyPair;
use crate::symmetric::{KeyUsage, SymmetricOperations};

/// Ends the label of a key pair that is about to be destroyed, until the pair that takes its place has the label.
const REPLACED: &str = " (replaced)";

/// The place of a key on a token: objects of a label, or without one the first object of each class.
#[derive(Clone)]
pub(crate) struct TokenLocation {
    token: Arc<Token>,
    label: Option<String>,
    /// Put there by an operator: made where absent, and otherwise only read.
    preloaded: bool,
}

impl TokenLocation {
    pub(crate) fn new(token: Arc<Token>, label: Option<String>, preloaded: bool) -> TokenLocation {
        TokenLocation { token, label, preloaded }
    }

    pub(crate) fn is_preloaded(&self) -> bool {
        self.preloaded
    }

    pub(crate) fn token_name(&self) -> &str {
        self.token.name()
    }

    /// What writers of this place take turns by. Not a path of anything.
    pub(crate) fn turn(&self) -> PathBuf {
        PathBuf::from(format!("pkcs11:{}/{}", self.token.name(), self.label.as_deref().unwrap_or_default()))
    }

    pub(crate) fn is_on_token_of(&self, other: &TokenLocation) -> bool {
        Arc::ptr_eq(&self.token, &other.token)
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
        self.token.run(|session| match session.first(self.class_and_label(ObjectClass::SECRET_KEY))? {
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
            match session.first(self.class_and_label(ObjectClass::SECRET_KEY))? {
                Some(_) => Ok(Outcome::Done),
                None => symmetric::generate(session, self.label.as_deref(), kind),
            }
        })
    }

    /// Puts a symmetric key there; those that were there are destroyed only then.
    pub(crate) fn import_key(&self, usage: KeyUsage, bytes: &[u8]) -> Result<Outcome, Problem> {
        let kind = Kind::of(usage)?;
        self.token.run_alone(|session| {
            let replaced = match &self.label {
                Some(label) => session.all(ObjectClass::SECRET_KEY, label)?,
                None => Vec::new(),
            };
            let outcome = symmetric::import(session, self.label.as_deref(), kind, bytes)?;
            if let Outcome::Done = outcome {
                session.destroy(&replaced)?;
            }
            Ok(outcome)
        })
    }

    /// Tells whether there was one.
    pub(crate) fn delete_key(&self) -> Result<bool, Problem> {
        let label = self.label()?;
        self.token.run_alone(|session| {
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
        self.token.run(|session| match TokenKeyPair::find(session, self.label.as_deref())? {
            Some(pair) => operation(&pair).map(Some),
            None => Ok(None),
        })
    }

    /// Whether a key pair is there. One without public half is an error: it is neither usable nor absent.
    pub(crate) fn has_key_pair(&self) -> Result<bool, Problem> {
        self.token.run(|session| match TokenKeyPair::find(session, self.label.as_deref())? {
            Some(pair) => pair.check().map(|()| true),
            None => Ok(false),
        })
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
        self.token.run_making_keys(|session| {
            // A first attempt that ended with the token's removal may have made it.
            if session.first(self.class_and_label(ObjectClass::PRIVATE_KEY))?.is_some() {
                return Ok(());
            }
            if self.preloaded && session.first(self.class_and_label(ObjectClass::PUBLIC_KEY))?.is_some() {
                return Err(Problem::Preloaded);
            }
            if let Some(label) = &self.label {
                session.destroy(&session.all(ObjectClass::PUBLIC_KEY, label)?)?;
            }
            key_pair::generate(session, self.label.as_deref(), algorithms)
        })
    }

    /// Tells whether there was one.
    pub(crate) fn delete_key_pair(&self) -> Result<bool, Problem> {
        let label = self.label()?;
        self.token.run_alone(|session| {
            let deleted = session.destroy_pairs(label)?;
            session.destroy_pairs(&replaced(label))?;
            Ok(deleted)
        })
    }

    /// Gives the key pair the label of `target` on the same token, in place of the pair that has it.
    ///
    /// The pair that gives way is destroyed last. A failure before leaves everything as it was, unless the token is gone.
    pub(crate) fn move_key_pair(&self, target: &TokenLocation) -> Result<(), Problem> {
        let (from, to) = (self.label()?, target.label()?);
        // Finds out whether the token is there before the steps that are not repeated.
        self.has_key_pair()?;
        target.instead_of_key_pair(|session| {
            // If the token is not gone, this puts the half back that was done.
            session.relabel_pairs(from, to).inspect_err(|_| _ = session.relabel_pairs(to, from))
        })
    }

    /// Does `work`, which puts a file in the place of the key pair, and destroys the pair if that went well.
    pub(crate) fn give_way_to_file(&self, work: impl FnOnce() -> Result<(), Problem>) -> Result<(), Problem> {
        self.has_key_pair()?;
        self.instead_of_key_pair(|_| work())
    }

    fn instead_of_key_pair(&self, work: impl FnOnce(&TokenSession) -> Result<(), Problem>) -> Result<(), Problem> {
        let label = self.label()?;
        let aside = replaced(label);
        self.token.run_alone_once(|session| {
            if session.has_pairs(label)? {
                // Of a move that was cut off after it had made the pair that now is at `label`.
                session.destroy_pairs(&aside)?;
            }
            let put_back = |_: &Problem| {
                if let Err(problem) = session.relabel_pairs(&aside, label) {
                    tracing::error!(
                        token = self.token_name(),
                        label,
                        aside,
                        ?problem,
                        "could not give a key pair its label back"
                    );
                }
            };
            session.relabel_pairs(label, &aside).inspect_err(put_back)?;
            work(session).inspect_err(put_back)?;
            if let Err(problem) = session.destroy_pairs(&aside) {
                tracing::warn!(
                    token = self.token_name(),
                    aside,
                    ?problem,
                    "could not destroy a key pair that was replaced"
                );
            }
            Ok(())
        })
    }
}

fn replaced(label: &str) -> String {
    format!("{label}{REPLACED}")
}
