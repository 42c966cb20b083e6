//! Symmetric keys on a token: made, imported, and used for HMAC-SHA256 and AES-GCM (`keys.md`, 7.5 and 7.6).
//!
//! A token that cannot hold or use such a key says so with [`Outcome::Unfit`]; where the key goes instead is decided in `keys`.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::types::Ulong;
use zeroize::Zeroizing;

use super::error::TokenError;
use super::object::{TEMPLATES, Template, labelled};
use super::session::TokenSession;
use crate::aead::TAG_LENGTH;
use crate::error::{Invalid, Problem};
use crate::symmetric::{KEY_LENGTH, KeyUsage, SymmetricOperations, TAG_LAST, check_iv, split_version};

/// Length of the AES keys of tokens that have no longer ones.
const SHORT_AES_LENGTH: usize = 16;

/// What became of a new key.
pub(crate) enum Outcome {
    /// It is on the token.
    Done,
    /// The token cannot take or use it, and nothing of it was left there.
    Unfit(TokenError),
}

/// What a key on a token does; none does both.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Kind {
    Hmac,
    Aes,
}

impl Kind {
    pub(super) fn of(usage: KeyUsage) -> Result<Kind, Invalid> {
        match usage {
            KeyUsage::SIGN => Ok(Kind::Hmac),
            KeyUsage::ENCRYPT => Ok(Kind::Aes),
            _ => Err(Invalid::Usage),
        }
    }

    fn key_type(self) -> KeyType {
        match self {
            Kind::Hmac => KeyType::GENERIC_SECRET,
            Kind::Aes => KeyType::AES,
        }
    }

    fn mechanism(self) -> Mechanism<'static> {
        match self {
            Kind::Hmac => Mechanism::GenericSecretKeyGen,
            Kind::Aes => Mechanism::AesKeyGen,
        }
    }
}

fn template(kind: Kind, template: Template, label: Option<&str>) -> Vec<Attribute> {
    let mut attributes = vec![
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Token(true),
        Attribute::KeyType(kind.key_type()),
    ];
    attributes.extend(labelled(label));
    attributes.extend(match kind {
        Kind::Hmac => [Attribute::Sign(true), Attribute::Verify(true)],
        Kind::Aes => [Attribute::Encrypt(true), Attribute::Decrypt(true)],
    });
    if let Template::Strict = template {
        attributes.push(Attribute::Extractable(false));
    }
    attributes
}

/// Makes a key of random bytes.
pub(super) fn generate(session: &TokenSession<'_>, label: Option<&str>, kind: Kind) -> Result<Outcome, Problem> {
    let lengths = match kind {
        Kind::Hmac => &[KEY_LENGTH][..],
        Kind::Aes => &[KEY_LENGTH, SHORT_AES_LENGTH],
    };
    let mut last = None;
    for length in lengths {
        for which in TEMPLATES {
            let mut attributes = template(kind, which, label);
            attributes.push(Attribute::ValueLen(bits(*length)));
            if let (Kind::Aes, Template::Public) = (kind, which) {
                attributes.push(Attribute::Verify(true));
            }
            match session.check(session.generate_key(&kind.mechanism(), &attributes)) {
                Ok(handle) => return keep_if_usable(session, handle, kind),
                Err(error) if session.is_transient(&error) => return Err(error.into()),
                Err(error) => last = Some(error),
            }
        }
    }
    match last {
        Some(error) if error.is_unsupported() => Ok(Outcome::Unfit(error)),
        Some(error) => Err(error.into()),
        None => Err(session.nonsense("a key").into()),
    }
}

/// Puts a key with these bytes on the token.
pub(super) fn import(
    session: &TokenSession<'_>,
    label: Option<&str>,
    kind: Kind,
    bytes: &[u8],
) -> Result<Outcome, Problem> {
    let mut last = None;
    for which in TEMPLATES {
        let mut attributes = template(kind, which, label);
        attributes.push(Attribute::Class(ObjectClass::SECRET_KEY));
        attributes.push(Attribute::Value(bytes.to_vec()));
        let outcome = session.check(session.create_object(&attributes));
        wipe(&mut attributes);
        match outcome {
            Ok(handle) => return keep_if_usable(session, handle, kind),
            // Not the key's fault; in a file it would end up for no reason that lasts.
            Err(error) if session.is_transient(&error) => return Err(error.into()),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Ok(Outcome::Unfit(error)),
        None => Err(session.nonsense("a key").into()),
    }
}

fn wipe(attributes: &mut [Attribute]) {
    for attribute in attributes {
        if let Attribute::Value(bytes) = attribute {
            drop(Zeroizing::new(std::mem::take(bytes)));
        }
    }
}

/// Tokens that hold AES keys need not know GCM.
fn keep_if_usable(session: &TokenSession<'_>, handle: ObjectHandle, kind: Kind) -> Result<Outcome, Problem> {
    if kind == Kind::Hmac {
        return Ok(Outcome::Done);
    }
    let mut iv = *b"a test nonce";
    let probe =
        gcm(session, &mut iv, b"aad").and_then(|mechanism| session.check(session.encrypt(&mechanism, handle, b"text")));
    match probe {
        Ok(_) => Ok(Outcome::Done),
        Err(error) => {
            // Left behind, it would be found and be of no use.
            session.destroy(&[handle])?;
            if session.is_transient(&error) { Err(error.into()) } else { Ok(Outcome::Unfit(error)) }
        }
    }
}

fn gcm<'a>(session: &TokenSession<'_>, iv: &'a mut [u8], aad: &'a [u8]) -> Result<Mechanism<'a>, TokenError> {
    session.check(GcmParams::new(iv, aad, bits(TAG_LENGTH * 8)).map(Mechanism::AesGcm))
}

/// A small number as PKCS#11 has them.
fn bits(number: usize) -> Ulong {
    Ulong::new(number.try_into().expect("lengths of keys and tags are small"))
}

/// A symmetric key on a token, for the time of one call.
pub(super) struct TokenKey<'a> {
    session: &'a TokenSession<'a>,
    handle: ObjectHandle,
}

impl<'a> TokenKey<'a> {
    pub(super) fn new(session: &'a TokenSession<'a>, handle: ObjectHandle) -> TokenKey<'a> {
        TokenKey { session, handle }
    }
}

impl SymmetricOperations for TokenKey<'_> {
    fn hmac(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let signature = self.session.check(self.session.sign(&Mechanism::Sha256Hmac, self.handle, message))?;
        if signature.len() == KEY_LENGTH {
            Ok(Zeroizing::new(signature))
        } else {
            Err(self.session.nonsense("an HMAC").into())
        }
    }

    fn encrypt(&self, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Problem> {
        check_iv(iv)?;
        let mut iv = iv.to_vec();
        let mechanism = gcm(self.session, &mut iv, aad)?;
        let encrypted = self.session.check(self.session.encrypt(&mechanism, self.handle, plaintext))?;
        if encrypted.len() != plaintext.len() + TAG_LENGTH {
            return Err(self.session.nonsense("a ciphertext").into());
        }
        Ok([&[TAG_LAST], &*encrypted].concat())
    }

    fn decrypt(&self, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let (version, encrypted) = split_version(ciphertext)?;
        if version != TAG_LAST {
            return Err(Invalid::OldCiphertextForToken.into());
        }
        check_iv(iv)?;
        let mut iv = iv.to_vec();
        let mechanism = gcm(self.session, &mut iv, aad)?;
        let plaintext = self.session.check(self.session.decrypt(&mechanism, self.handle, encrypted))?;
        Ok(Zeroizing::new(plaintext))
    }
}
