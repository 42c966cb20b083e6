//! Sessions and loaded objects, gone from the TPM on every path: a TPM has about three places for each, and not every one has a resource
//! manager that tidies up after a program.
//!
//! An HMAC session proves a password without sending it. One that is salted with a key of the TPM also encrypts parameters, so that who
//! listens on the bus reads neither passwords nor keys.

use std::ops::{Deref, DerefMut};

use aziot_log::chain;
use tss_esapi::Context;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::SymmetricDefinition;

use super::Error;

/// The library's connection, and whether something was left in the TPM over it.
pub(super) struct Library {
    context: Context,
    is_untidy: bool,
}

impl Library {
    pub(super) fn new(context: Context) -> Library {
        Library { context, is_untidy: false }
    }

    /// Whether a session or an object could not be removed. The connection is to be closed then, which tries again.
    pub(super) fn is_untidy(&self) -> bool {
        self.is_untidy
    }
}

impl Deref for Library {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

impl DerefMut for Library {
    fn deref_mut(&mut self) -> &mut Context {
        &mut self.context
    }
}

/// Which of a command's first parameters are encrypted on the bus.
#[derive(Clone, Copy)]
pub(super) enum Encrypted {
    /// Neither: the command has no such parameter.
    Nothing,
    /// What the TPM is told and what it answers.
    BothWays,
}

/// Runs a command whose first authorization is an HMAC session, salted with `salt` if there is a key for it.
pub(super) fn authorized<T>(
    library: &mut Library,
    salt: Option<KeyHandle>,
    encrypted: Encrypted,
    command: impl FnOnce(&mut Context) -> Result<T, Error>,
) -> Result<T, Error> {
    authorized_with(library, salt, encrypted, None, command)
}

/// The same, with another session as the second authorization.
pub(super) fn authorized_with<T>(
    library: &mut Library,
    salt: Option<KeyHandle>,
    encrypted: Encrypted,
    second: Option<AuthSession>,
    command: impl FnOnce(&mut Context) -> Result<T, Error>,
) -> Result<T, Error> {
    with_session(library, salt, SessionType::Hmac, |library, session| {
        if let Encrypted::BothWays = encrypted {
            let (attributes, mask) = SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
            library.tr_sess_set_attributes(session, attributes, mask)?;
        }
        library.execute_with_sessions((Some(session), second, None), command)
    })
}

/// Starts a session of this kind, and ends it after `work`.
pub(super) fn with_session<T>(
    library: &mut Library,
    salt: Option<KeyHandle>,
    kind: SessionType,
    work: impl FnOnce(&mut Library, AuthSession) -> Result<T, Error>,
) -> Result<T, Error> {
    let session = library.start_auth_session(
        salt,
        None,
        None,
        kind,
        SymmetricDefinition::AES_128_CFB,
        HashingAlgorithm::Sha256,
    )?;
    let Some(session) = session else { return Err(Error::Library(tss_esapi::WrapperErrorKind::WrongValueFromTpm)) };
    let outcome = work(library, session);
    flush_after(library, SessionHandle::from(session).into(), outcome)
}

/// Works with an object that is loaded, and unloads it then.
pub(super) fn with_object<T>(
    library: &mut Library,
    object: KeyHandle,
    work: impl FnOnce(&mut Library, KeyHandle) -> Result<T, Error>,
) -> Result<T, Error> {
    let outcome = work(library, object);
    flush_after(library, object.into(), outcome)
}

/// The outcome alone counts: what the TPM has done is not undone by what cannot be tidied up.
fn flush_after<T>(library: &mut Library, handle: ObjectHandle, outcome: Result<T, Error>) -> Result<T, Error> {
    if let Err(error) = library.flush_context(handle) {
        tracing::warn!("could not remove a session or an object from the TPM: {}", chain(&Error::from(error)));
        library.is_untidy = true;
    }
    outcome
}
