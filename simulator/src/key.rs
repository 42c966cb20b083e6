//! Symmetric keys as the cloud knows them: bytes written as base64, shared by a device and its hub.
//!
//! The bytes show up in exactly two places, the state file and the replies of the module registry; never in `Debug`, logs or errors.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::random;

/// Why a text is no symmetric key. The text itself is not repeated: it may be a key after all.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The text is not standard base64.
    #[error("the key is not standard base64")]
    NotBase64,
    /// The hub takes keys of 16 to 64 bytes.
    #[error("the key has {0} bytes, but the hub takes 16 to 64")]
    Length(usize),
}

/// A symmetric key of 16 to 64 bytes; serialized as standard base64, and wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SymmetricKey(Zeroizing<Vec<u8>>);

impl SymmetricKey {
    /// Reads standard base64.
    pub fn from_base64(text: &str) -> Result<Self, Error> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| Error::NotBase64)?);
        if (16..=64).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(Error::Length(bytes.len())) }
    }

    /// Makes a key of 32 random bytes.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new(vec![0; 32]);
        random::fill(&mut bytes);
        Self(bytes)
    }

    /// Writes the key as standard base64.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(&*self.0))
    }

    /// The key itself, for whoever encrypts it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns HMAC-SHA256 of `message` under this key.
    #[must_use]
    pub(crate) fn hmac_sha256(&self, message: &[u8]) -> Vec<u8> {
        let hmac = || {
            let key = PKey::hmac(&self.0)?;
            Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(message)
        };
        hmac().expect("HMAC-SHA256 takes any key of 16 to 64 bytes")
    }

    /// Derives a device's own key from a group's: HMAC-SHA256 over the registration id.
    #[must_use]
    pub fn derive(&self, registration_id: &str) -> Self {
        Self(Zeroizing::new(self.hmac_sha256(registration_id.as_bytes())))
    }
}

impl std::fmt::Debug for SymmetricKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SymmetricKey([redacted])")
    }
}

impl Serialize for SymmetricKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for SymmetricKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::from_base64(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_key_of_the_worked_example_is_derived() {
        let master = SymmetricKey(Zeroizing::new((0..32).collect()));
        let key = master.derive("testmodule:638000000000000000:primary");
        assert_eq!(*key.to_base64(), "ArP6yO6YhEctUO0cYXITd/CT+5ae5EsjdWmG3Rsdrgg=");
    }

    #[test]
    fn texts_that_are_no_key_are_refused() {
        assert_eq!(SymmetricKey::from_base64("no base64!").unwrap_err(), Error::NotBase64);
        assert_eq!(SymmetricKey::from_base64("AAAA").unwrap_err(), Error::Length(3));
        assert_eq!(SymmetricKey::from_base64("").unwrap_err(), Error::Length(0));
    }

    #[test]
    fn debug_shows_no_byte_of_it() {
        assert_eq!(format!("{:?}", SymmetricKey::random()), "SymmetricKey([redacted])");
    }
}
