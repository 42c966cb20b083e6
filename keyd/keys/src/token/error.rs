//! What can go wrong between this library and a token. No error holds a PIN.

use std::fmt;
use std::path::PathBuf;

use cryptoki::error::{Error, RvError};

/// A token that cannot be used, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The PKCS#11 library is not there, or is no PKCS#11 library.
    #[error("could not load the PKCS#11 library {}", path.display())]
    Load {
        /// The library.
        path: PathBuf,
        /// Why.
        source: Pkcs11Error,
    },
    /// The PKCS#11 library is there and does not start: the device, driver or daemon behind it may not be ready.
    #[error("could not start the PKCS#11 library {}", path.display())]
    Start {
        /// The library.
        path: PathBuf,
        /// Why.
        source: Pkcs11Error,
    },
    /// The PKCS#11 library is older than 2.20.
    #[error("the PKCS#11 library {} speaks version {version}, older than 2.20", path.display())]
    Version {
        /// The library.
        path: PathBuf,
        /// What it says of itself.
        version: String,
    },
    /// The PKCS#11 library lacks a function that every such library has.
    #[error("the PKCS#11 library {} has no function C_{function}", path.display())]
    Function {
        /// The library.
        path: PathBuf,
        /// The name without `C_`.
        function: String,
    },
    /// No slot holds the token.
    #[error("there is no initialized token with the label {label:?}")]
    NoToken {
        /// The label that was looked for.
        label: String,
    },
    /// The token said that the PIN is wrong, now or earlier.
    #[error(
        "the {token} refused the configured PIN; it is not tried again before a restart, so that the token does not lock"
    )]
    PinRefused {
        /// The token.
        token: String,
    },
    /// The token counted wrong PINs.
    #[error(
        "the PIN of the {token} is locked, or one wrong PIN away from it, and is not tried; log in once with another tool, then restart the service"
    )]
    PinAtRisk {
        /// The token.
        token: String,
    },
    /// All sessions of the token were busy for too long.
    #[error("all {sessions} sessions of the {token} were busy for {seconds} seconds")]
    Busy {
        /// The token.
        token: String,
        /// How many there are.
        sessions: usize,
        /// How long the call waited.
        seconds: u64,
    },
    /// A call into the PKCS#11 library failed.
    #[error("the {token} failed")]
    Call {
        /// The token.
        token: String,
        /// Which call, and with what.
        source: Pkcs11Error,
    },
    /// A private key whose public half is neither on the token as an object, nor as a certificate of the same label that fits.
    #[error("the {token} has the private key but neither its public key nor a certificate for it under the same label")]
    NoPublicKey {
        /// The token.
        token: String,
    },
    /// Two objects of one label that are no pair.
    #[error("the public and the private key on the {token} are of different kinds")]
    NoPair {
        /// The token.
        token: String,
    },
    /// An answer that cannot be what was asked for.
    #[error("the {token} gave {what} that makes no sense")]
    Nonsense {
        /// The token.
        token: String,
        /// What it was asked for.
        what: &'static str,
    },
}

/// A failed call into a PKCS#11 library: the function and its return value, by their names in the standard.
#[derive(Debug)]
pub struct Pkcs11Error(pub(crate) Error);

impl fmt::Display for Pkcs11Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // The crate explains each value in a paragraph; its name is what one looks for.
            Error::Pkcs11(value, function) => write!(formatter, "C_{function:?} returned {value:?}"),
            Error::LibraryLoading(error) => write!(formatter, "{error}"),
            other => write!(formatter, "{other}"),
        }
    }
}

impl std::error::Error for Pkcs11Error {}

impl TokenError {
    fn value(&self) -> Option<RvError> {
        match self {
            TokenError::Call { source: Pkcs11Error(Error::Pkcs11(value, _)), .. } => Some(*value),
            _ => None,
        }
    }

    /// The token or its sessions are gone; a new session may find it again.
    pub(super) fn is_lost(&self) -> bool {
        matches!(
            self.value(),
            Some(
                RvError::SessionHandleInvalid
                    | RvError::SessionClosed
                    | RvError::DeviceError
                    | RvError::DeviceRemoved
                    | RvError::TokenNotPresent
                    | RvError::TokenNotRecognized
                    | RvError::SlotIdInvalid
                    | RvError::CryptokiNotInitialized
            )
        )
    }

    /// There was no token to talk to: nothing was asked of it, not even the PIN.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, TokenError::NoToken { .. })
            || matches!(self.value(), Some(RvError::SlotIdInvalid | RvError::TokenNotPresent | RvError::DeviceRemoved))
    }

    /// It lies with the token and its library, not with what the configuration says of them: another start may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            TokenError::Call { source: Pkcs11Error(error), .. } => matches!(error, Error::Pkcs11(..)),
            TokenError::Load { .. } | TokenError::Version { .. } | TokenError::Function { .. } => false,
            _ => true,
        }
    }

    /// Somebody closed the process's last session with the token, or logged out.
    pub(super) fn is_logged_out(&self) -> bool {
        self.value() == Some(RvError::UserNotLoggedIn)
    }

    /// An object was destroyed, or hidden by a logout elsewhere, between finding and using it.
    pub(super) fn is_stale_object(&self) -> bool {
        matches!(self.value(), Some(RvError::ObjectHandleInvalid | RvError::KeyHandleInvalid))
    }

    /// The library was finalized.
    pub(super) fn is_not_initialized(&self) -> bool {
        self.value() == Some(RvError::CryptokiNotInitialized)
    }

    /// What the session was doing is not over, or nobody knows.
    pub(super) fn spoils_session(&self) -> bool {
        matches!(
            self.value(),
            Some(RvError::OperationActive | RvError::GeneralError | RvError::FunctionFailed | RvError::BufferTooSmall)
        )
    }

    /// The token cannot do what was asked for at all.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.value(), Some(RvError::FunctionNotSupported | RvError::MechanismInvalid))
    }
}

/// Whether the PIN was wrong, or can never be right.
pub(super) fn refuses_pin(value: RvError) -> bool {
    matches!(
        value,
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinExpired | RvError::PinLocked
    )
}
