//! What can go wrong with the TPM, by what can be done about it.

use std::path::PathBuf;

use tss_esapi::WrapperErrorKind;

use super::code::Code;
use crate::blob::Malformed;

/// Why the TPM did not do something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No TPM that the kernel knows.
    #[error("could not initialize TPM: there is no {}", devices.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and no "))]
    NoDevice {
        /// Where one was looked for.
        devices: Vec<PathBuf>,
    },
    /// A TPM that this user may not use.
    #[error("could not initialize TPM: {} may not be opened by this user; a udev rule or a group must allow it", device.display())]
    NotPermitted {
        /// The device.
        device: PathBuf,
    },
    /// A device that takes one program at a time, and has one.
    #[error("could not initialize TPM: {} is in use by another program", device.display())]
    InUse {
        /// The device.
        device: PathBuf,
    },
    /// A device that the kernel does not open.
    #[error("could not initialize TPM: {} cannot be opened", device.display())]
    Device {
        /// The device.
        device: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The TPM cannot be opened.
    #[error("could not initialize TPM at {tcti}")]
    Open {
        /// The way to it.
        tcti: String,
        /// What the library said.
        source: Code,
    },
    /// The library does not take the way to the TPM.
    #[error("the TSS library does not take {tcti:?}")]
    Tcti {
        /// The way to it.
        tcti: String,
        /// What it said.
        source: tss_esapi::Error,
    },
    /// The TPM, or what is between, refuses.
    #[error(transparent)]
    Tpm(#[from] Code),
    /// What the TPM said, or was to be told, does not fit the library's types.
    #[error("the TSS library: {0}")]
    Library(WrapperErrorKind),
    /// Nothing was imported yet.
    #[error("there is no auth key at {handle:#x}: none was imported yet")]
    NoAuthKey {
        /// Where it would be.
        handle: u32,
    },
    /// Somebody else's object.
    #[error("the object at {handle:#x} is no HMAC key and is left alone; choose another auth_key_index")]
    Foreign {
        /// Where it is.
        handle: u32,
    },
    /// Nobody waits for the outcome any more.
    #[error("given up, since its caller waits no longer")]
    GivenUp,
    /// A blob that is none.
    #[error("the import blob is malformed")]
    Blob(#[from] Malformed),
    /// A blob with something else in it.
    #[error("the import blob holds no key that can sign with HMAC-SHA256 and a password")]
    NoSigningKey,
}

impl Error {
    /// Whether it is a person's to mend before another start.
    pub(crate) fn is_mistake(&self) -> bool {
        matches!(self, Error::Tcti { .. })
    }

    /// Whether a TPM that could not be opened may be opened later without anybody's doing.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Error::Open { .. } | Error::InUse { .. } | Error::Device { .. })
    }

    /// Whether the TPM did all that it was asked to do.
    pub(super) fn is_harmless(&self) -> bool {
        matches!(
            self,
            Error::NoAuthKey { .. } | Error::Foreign { .. } | Error::Blob(_) | Error::NoSigningKey | Error::GivenUp
        )
    }

    /// Whether a new connection may help.
    pub(super) fn is_stale(&self) -> bool {
        match self {
            Error::Open { .. } | Error::InUse { .. } | Error::Device { .. } => true,
            _ => self.code().is_some_and(Code::is_stale),
        }
    }

    /// Whether it helps to ask again after a while.
    pub(super) fn is_busy(&self) -> bool {
        self.code().is_some_and(Code::is_busy)
    }

    /// Whether the TPM has no room to work in.
    pub(super) fn is_full(&self) -> bool {
        self.code().is_some_and(Code::is_full)
    }

    /// What the TPM, or the library in its name, answered.
    pub(super) fn code(&self) -> Option<Code> {
        if let Error::Tpm(code) = self { Some(*code) } else { None }
    }
}

impl From<tss_esapi::Error> for Error {
    fn from(error: tss_esapi::Error) -> Error {
        match error {
            tss_esapi::Error::Tss2Error(code) => Error::Tpm(Code::from_wrapper(code)),
            tss_esapi::Error::WrapperError(kind) => Error::Library(kind),
        }
    }
}
