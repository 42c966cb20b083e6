//! Why a call from C failed, and the return code that says so.
//!
//! A return code is all that a caller gets. What it cannot say is written to standard error.

use std::error::Error as StdError;
use std::io::Write;
use std::iter::successors;

use super::abi::{RC_ERR_EXTERNAL, RC_ERR_INVALID_PARAMETER, ReturnCode};
use crate::{ParameterError, SettingsError};

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0} is NULL")]
    Null(&'static str),
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    #[error("{0} is longer than the address space allows")]
    Length(&'static str),
    #[error("a pointer is not aligned as its type wants")]
    Misaligned,
    #[error("the buffer is too small for the result")]
    BufferTooSmall,
    #[error("mechanism or type {0} is unknown, or cannot be used here")]
    Mechanism(u32),
    #[error("cannot take a parameter")]
    Parameter(#[from] ParameterError),
    #[error("cannot work with these parameters")]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Key(#[from] crate::Error),
    #[error("a fault in this library ended the call")]
    Panic,
}

impl Error {
    /// Tells the caller as much as the ABI allows, and whoever reads standard error the rest.
    pub(super) fn report(&self) -> ReturnCode {
        let code = self.code();
        // A caller's mistake is often a question: is there such a key?
        if code == RC_ERR_EXTERNAL || matches!(self, Error::Parameter(_)) {
            let causes = successors(Some(self as &dyn StdError), |error| (*error).source());
            let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            // Nobody is left to hear that nobody listens.
            let _ = writeln!(std::io::stderr().lock(), "libaziot_keys: {text}");
        }
        code
    }

    fn code(&self) -> ReturnCode {
        match self {
            Error::Null(_)
            | Error::NotUtf8(_)
            | Error::Length(_)
            | Error::Misaligned
            | Error::BufferTooSmall
            | Error::Mechanism(_)
            | Error::Parameter(_)
            // There is no code for an operator's key; it is the caller who may not have it changed.
            | Error::Key(crate::Error::InvalidParameter { .. } | crate::Error::Preloaded { .. }) => RC_ERR_INVALID_PARAMETER,
            // The values were checked one by one when they were set.
            Error::Settings(_) | Error::Panic | Error::Key(crate::Error::External { .. }) => RC_ERR_EXTERNAL,
        }
    }
}
