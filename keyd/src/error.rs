//! Why the service refuses or fails a call. `http` chooses the status.

use std::ffi::NulError;

use crate::{blocking::Interrupted, handle};

/// A call that was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No principal allows it, or the key is reserved.
    #[error("user {uid} is not authorized to access the key {id}")]
    Unauthorized {
        /// The caller.
        uid: u32,
        /// The key.
        id: String,
    },
    /// A parameter that the service itself finds wrong.
    #[error("parameter {name:?} has an invalid value")]
    Parameter {
        /// Which one.
        name: &'static str,
        /// What is wrong with it.
        source: Reason,
    },
    /// A move of a key pair onto itself.
    #[error("source and destination for move are identical")]
    MoveOntoItself,
    /// A move of something that is no key pair.
    #[error("invalid type \"key\"")]
    MoveOfKey,
    /// A parameter that the key library finds wrong, an unknown key among them. What exactly is for the log.
    #[error("a parameter has an invalid value")]
    Refused(#[source] aziot_keys::Error),
    /// An operator's key would be changed.
    #[error("the key {id} is preloaded: what is there is never overwritten, moved or deleted through the API")]
    Preloaded {
        /// The key.
        id: String,
    },
    /// The key library failed.
    #[error("the key library failed")]
    Library(#[source] aziot_keys::Error),
    /// No handle could be made or checked.
    #[error("could not work with a key handle")]
    Handle(#[source] handle::Error),
    /// The service is stopping.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What is wrong with a parameter; the caller reads it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    /// Anything wrong with a handle.
    #[error("invalid handle")]
    InvalidHandle,
    /// A handle of another kind where a symmetric key is wanted.
    #[error("handle is not for a key")]
    NotKey,
    /// A handle of another kind where a key pair is wanted.
    #[error("handle is not for a key pair")]
    NotKeyPair,
    /// A handle of another kind where a derived key is wanted.
    #[error("handle is not for a derived key")]
    NotDerived,
    /// A derived key as base of another.
    #[error("nested derived keys are not supported, import the outer derived key first")]
    NestedDerived,
    /// A mechanism of another kind of key.
    #[error("mechanism cannot be used with this key type")]
    Mechanism,
    /// A public parameter that does not exist, or that the key does not have.
    #[error("there is no such parameter of this key")]
    NoSuchParameter,
    /// Longer than any real one, and than what the service is willing to carry around.
    #[error("at most {0} bytes are allowed")]
    TooLong(usize),
    /// An id that the key library could not take as a C string.
    #[error(transparent)]
    Nul(#[from] NulError),
}

impl Error {
    pub(crate) fn parameter(name: &'static str, source: Reason) -> Error {
        Error::Parameter { name, source }
    }

    pub(crate) fn handle(source: Reason) -> Error {
        Error::parameter("handle", source)
    }

    pub(crate) fn mechanism() -> Error {
        Error::parameter("mechanism", Reason::Mechanism)
    }
}

impl From<aziot_keys::Error> for Error {
    fn from(error: aziot_keys::Error) -> Error {
        match error {
            aziot_keys::Error::InvalidParameter { .. } => Error::Refused(error),
            aziot_keys::Error::Preloaded { id } => Error::Preloaded { id },
            aziot_keys::Error::External { .. } => Error::Library(error),
        }
    }
}

impl From<handle::Error> for Error {
    fn from(error: handle::Error) -> Error {
        match error {
            handle::Error::Invalid => Error::handle(Reason::InvalidHandle),
            error => Error::Handle(error),
        }
    }
}
