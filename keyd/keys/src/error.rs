//! Why a key could not be used: the caller's fault, a preloaded key that is not ours to change, or a fault on this side.
//!
//! The three variants of [`Error`] are what a status or a return code is chosen from; what exactly happened is the source.

use std::ffi::NulError;
use std::io;
use std::path::PathBuf;

use openssl::error::ErrorStack;

use crate::token::TokenError;

use crate::foreign::CallError;

/// A call on a key that failed. Names the key; the reason is its source, except for [`Error::Preloaded`], which says everything.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked for something that cannot be; nothing was changed.
    #[error("cannot do this with the key {id:?}")]
    InvalidParameter {
        /// The key.
        id: String,
        /// What is wrong.
        source: Invalid,
    },
    /// The call would overwrite, move or delete a key that an operator put there; nothing was changed.
    #[error("the key {id:?} is preloaded and exists: it is never overwritten, moved or deleted")]
    Preloaded {
        /// The key.
        id: String,
    },
    /// The key is damaged, the disk refuses, or the operation failed.
    #[error("could not use the key {id:?}")]
    External {
        /// The key.
        id: String,
        /// What happened.
        source: Failure,
    },
}

/// What is wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// No location has the key.
    #[error("there is no such key")]
    NotFound,
    /// The key is not preloaded, and neither `homedir_path` nor a token for new keys is set.
    #[error(
        "there is no place for keys that are not preloaded: [aziot_keys] has neither homedir_path nor pkcs11_lib_path with pkcs11_base_slot"
    )]
    NoHome,
    /// The key is preloaded from a token, and no PKCS#11 library is set.
    #[error("the key is preloaded from a PKCS#11 token, but pkcs11_lib_path in [aziot_keys] is not set")]
    TokenWithoutLibrary,
    /// The file name made from the id would have more than 255 bytes.
    #[error("the id has more than 186 ASCII letters and digits")]
    IdTooLong,
    /// With a token, an id with a character that marks labels of changes under way on it.
    #[error("the id of a key that may be on a token must not have the control character U+0001")]
    ReservedId,
    /// An import of no bytes.
    #[error("a key of no bytes cannot be imported")]
    EmptyImport,
    /// An import of bytes that are a private key in PEM form; as a symmetric key they could never be used.
    #[error("the bytes to import are a private key in PEM form, not a symmetric key")]
    ImportOfPrivateKey,
    /// A call for symmetric keys on the file of a key pair.
    #[error("the key file holds a key pair, not a symmetric key")]
    NotSymmetric,
    /// A call that would remove or replace a key pair, on the file of a symmetric key.
    #[error("the key file holds no key pair")]
    NotKeyPair,
    /// `preferredAlgorithms` names no algorithm that is known.
    #[error("none of the preferred algorithms is known")]
    NoKnownAlgorithm,
    /// An operation or parameter of another kind of key pair.
    #[error("the key pair's algorithm does not have this")]
    WrongAlgorithm,
    /// A usage that no key on a token can have.
    #[error("a token takes keys that either sign and derive or encrypt, not both and not neither")]
    Usage,
    /// The token makes key pairs of none of the preferred algorithms.
    #[error("the token can make a key pair of none of the preferred algorithms")]
    NoAlgorithmOfToken,
    /// An object on a token is to be moved, replaced or deleted, and the key's URI does not say which one.
    #[error("the pkcs11 URI of the key has no object, so it cannot be moved or deleted")]
    NoLabel,
    /// A move from a file to a token, the other way round, or between tokens.
    #[error("a key pair cannot be moved between files and tokens, nor from one token to another")]
    MoveBetweenPlaces,
    /// A ciphertext of a layout that is decrypted with file keys only.
    #[error("ciphertexts of version 1 cannot be decrypted with a key on a token")]
    OldCiphertextForToken,
    /// A ciphertext without version, or too short to hold a tag.
    #[error("the ciphertext is too short")]
    CiphertextTooShort,
    /// A ciphertext whose first byte is no known version.
    #[error("the ciphertext has the unknown version {0}")]
    CiphertextVersion(u8),
    /// A vendor's library gives no other reason.
    #[error("the key library refuses it: there is no such key, or a parameter is invalid")]
    Refused,
    /// An id or another text that cannot be said in C.
    #[error("a key library cannot be asked for a text with a NUL byte")]
    Nul(#[source] NulError),
}

/// What failed on this side.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Reading, writing, moving or removing the key file; names the file.
    #[error(transparent)]
    File(#[from] aziot_files::Error),
    /// What is known about the key file cannot be read.
    #[error("could not look up the key file {}", path.display())]
    Inaccessible {
        /// The key file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A folder, socket or device stands where the key file should be.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// The key file has no bytes; a crash while it was written leaves that.
    #[error("the key file {} is empty", path.display())]
    Empty {
        /// The key file.
        path: PathBuf,
    },
    /// A key pair was expected, and the file holds none that can be used. It is left as it is.
    #[error("the key file {} holds no usable key pair", path.display())]
    Damaged {
        /// The key file.
        path: PathBuf,
        /// What is wrong with the contents.
        source: NotKeyPair,
    },
    /// The key pair to move is not there.
    #[error("there is no key pair to move")]
    NothingToMove,
    /// Another program removed the key while it was being made.
    #[error("the key was gone right after it was made")]
    Vanished,
    /// The initialization vector has no bytes or more than 128.
    #[error("the initialization vector has {0} bytes, not 1 to 128")]
    IvLength(usize),
    /// AES-256 with a key of another length.
    #[error("the key has {0} bytes, not the 32 that AES-256 needs")]
    KeyLength(usize),
    /// The tag does not match: wrong key, initialization vector or additional data, or altered ciphertext.
    #[error("the ciphertext was altered, or made with another key, initialization vector or additional data")]
    NotAuthentic,
    /// The PKCS#11 token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Every place where the key could be made refused it.
    #[error("no place for the key can hold it")]
    NoPlace(#[source] TokenError),
    /// The cryptographic operation itself.
    #[error("OpenSSL refused the operation")]
    OpenSsl(#[from] ErrorStack),
    /// A vendor's library.
    #[error(transparent)]
    Foreign(#[from] CallError),
}

/// Why the contents of a file are no usable key pair.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotKeyPair {
    /// Nothing that looks like a private key in PEM form.
    #[error("there is no private key in PEM form in it")]
    NoPem,
    /// A private key under a passphrase; there is nobody to ask for it.
    #[error("the private key in it is encrypted")]
    Encrypted,
    /// PEM that cannot be parsed, such as a file cut in half.
    #[error("the private key in it cannot be parsed")]
    Unreadable(#[source] ErrorStack),
    /// A key whose signatures do not verify with its own public half.
    #[error("the two halves of the key in it do not belong together")]
    Inconsistent,
}

/// An error before somebody has said which key it is about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Invalid(Invalid),
    #[error("the key is preloaded and exists")]
    Preloaded,
    #[error(transparent)]
    Failure(Failure),
}

impl Problem {
    /// For use as `.map_err(Problem::with(id))`.
    pub(crate) fn with(id: &str) -> impl FnOnce(Problem) -> Error + '_ {
        move |problem| {
            let id = id.to_owned();
            match problem {
                Problem::Invalid(source) => Error::InvalidParameter { id, source },
                Problem::Preloaded => Error::Preloaded { id },
                Problem::Failure(source) => Error::External { id, source },
            }
        }
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Problem {
        Problem::Invalid(invalid)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        Problem::Failure(failure)
    }
}

impl From<aziot_files::Error> for Problem {
    fn from(error: aziot_files::Error) -> Problem {
        Problem::Failure(Failure::File(error))
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Problem {
        Problem::Failure(Failure::Token(error))
    }
}

impl From<ErrorStack> for Problem {
    fn from(error: ErrorStack) -> Problem {
        Problem::Failure(Failure::OpenSsl(error))
    }
}
