//! What a key file holds. Symmetric keys and key pairs share one folder and one naming rule, so only the contents tell them apart.
//!
//! Whatever parses as a private key in PEM form is a key pair; everything else is the bytes of a symmetric key, or a key pair that was
//! damaged: a key file has no mark of its own, and never is one kind overwritten or used as the other.

use std::path::Path;

use zeroize::Zeroizing;

use crate::error::{Failure, Invalid, NotKeyPair};
use crate::key_pair::{KeyPair, has_pem_marks};
use crate::symmetric::SymmetricKey;

/// A key file's contents, parsed and checked.
pub(crate) enum Content {
    KeyPair(KeyPair),
    /// A private key in PEM form that cannot be used: encrypted, or with halves that do not belong together.
    UnusableKeyPair(NotKeyPair),
    /// Any other bytes, and why they are no key pair.
    Symmetric(SymmetricKey, NotKeyPair),
    /// Other bytes in which a PEM block begins or ends: usable as a symmetric key, and more likely a damaged key pair.
    SymmetricWithPemMarks(SymmetricKey, NotKeyPair),
}

impl Content {
    pub(crate) fn parse(bytes: Zeroizing<Vec<u8>>) -> Content {
        match KeyPair::from_pem(&bytes) {
            Ok(pair) => Content::KeyPair(pair),
            Err(reason @ (NotKeyPair::Encrypted | NotKeyPair::Inconsistent)) => Content::UnusableKeyPair(reason),
            Err(reason @ (NotKeyPair::NoPem | NotKeyPair::Unreadable(_))) if has_pem_marks(&bytes) => {
                Content::SymmetricWithPemMarks(SymmetricKey::new(bytes), reason)
            }
            Err(reason @ (NotKeyPair::NoPem | NotKeyPair::Unreadable(_))) => {
                Content::Symmetric(SymmetricKey::new(bytes), reason)
            }
        }
    }

    pub(crate) fn symmetric(&self) -> Result<&SymmetricKey, Invalid> {
        match self {
            Content::Symmetric(key, _) | Content::SymmetricWithPemMarks(key, _) => Ok(key),
            Content::KeyPair(_) | Content::UnusableKeyPair(_) => Err(Invalid::NotSymmetric),
        }
    }

    /// `path` is for the error.
    pub(crate) fn key_pair(&self, path: &Path) -> Result<&KeyPair, Failure> {
        match self {
            Content::KeyPair(pair) => Ok(pair),
            Content::UnusableKeyPair(reason)
            | Content::Symmetric(_, reason)
            | Content::SymmetricWithPemMarks(_, reason) => {
                Err(Failure::Damaged { path: path.to_owned(), source: reason.clone() })
            }
        }
    }

    /// Whether this is a key pair of P-256 that can be used.
    pub(crate) fn is_p256_pair(&self) -> bool {
        matches!(self, Content::KeyPair(pair) if pair.is_p256())
    }

    /// Whether a caller who asks to remove or replace a key pair may mean this.
    pub(crate) fn removable_as_key_pair(&self) -> Result<(), Invalid> {
        match self {
            Content::KeyPair(_) | Content::UnusableKeyPair(_) | Content::SymmetricWithPemMarks(..) => Ok(()),
            Content::Symmetric(..) => Err(Invalid::NotKeyPair),
        }
    }
}
