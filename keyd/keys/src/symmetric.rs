//! Symmetric keys: HMAC-SHA256, derivation and AES-256-GCM (`keys.md`, 6.1, 6.5 and 6.6).

use std::sync::OnceLock;

use openssl::error::ErrorStack;
use openssl::rand::rand_priv_bytes;
use zeroize::Zeroizing;

use crate::aead::{self, Aead, TAG_LENGTH};
use crate::error::{Failure, Invalid, Problem};
use crate::hmac::Hmac;

/// Length of generated keys, of HMACs and of derived keys.
pub(crate) const KEY_LENGTH: usize = 32;
/// The longest that OpenSSL 3 takes for GCM.
const LONGEST_IV: usize = 128;

/// Version, tag, ciphertext: written by products older than 1.2, never by us.
const TAG_FIRST: u8 = 1;
/// Version, ciphertext, tag.
pub(crate) const TAG_LAST: u8 = 2;

/// What a symmetric key is for. Only keys on tokens care; a file takes any use, as the public service's files do.
///
/// The bits are those of the C library: 0x01 to sign and derive, 0x10 to encrypt. A token makes keys of exactly one of the two.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KeyUsage(u32);

impl KeyUsage {
    /// HMAC-SHA256, and derivation of other keys.
    pub const SIGN: KeyUsage = KeyUsage(0x01);
    /// AES-256-GCM.
    pub const ENCRYPT: KeyUsage = KeyUsage(0x10);

    /// Any bits at all; which of them a key can have is decided when it is made.
    #[must_use]
    pub const fn from_bits(bits: u32) -> KeyUsage {
        KeyUsage(bits)
    }

    /// The bits of the C library.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Both uses at once.
    #[must_use]
    pub const fn and(self, other: KeyUsage) -> KeyUsage {
        KeyUsage(self.0 | other.0)
    }
}

/// A key of at least one byte.
pub(crate) struct SymmetricKey {
    bytes: Zeroizing<Vec<u8>>,
    /// The same bytes, prepared for what is first asked of the key: most are for one of the two.
    hmac: OnceLock<Hmac>,
    aead: Aead,
}

impl SymmetricKey {
    pub(crate) fn new(bytes: Zeroizing<Vec<u8>>) -> SymmetricKey {
        SymmetricKey { bytes, hmac: OnceLock::new(), aead: Aead::default() }
    }

    /// Random bytes for a new key.
    pub(crate) fn generate() -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        let mut bytes = Zeroizing::new(vec![0; KEY_LENGTH]);
        rand_priv_bytes(&mut bytes)?;
        Ok(bytes)
    }

    fn for_aes(&self) -> Result<&[u8; aead::KEY_LENGTH], Failure> {
        self.bytes.as_slice().try_into().map_err(|_| Failure::KeyLength(self.bytes.len()))
    }
}

/// What a symmetric key does, wherever it is.
pub(crate) trait SymmetricOperations {
    /// HMAC-SHA256, which is also how keys are derived. 32 bytes.
    fn hmac(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem>;

    /// AES-GCM in the layout [`TAG_LAST`].
    fn encrypt(&self, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Problem>;

    /// The plaintext of any layout that the key's place supports.
    fn decrypt(&self, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem>;
}

impl SymmetricOperations for SymmetricKey {
    fn hmac(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
        if let Some(hmac) = self.hmac.get() {
            return Ok(hmac.of(message)?);
        }
        let prepared = Hmac::new(&self.bytes)?;
        Ok(self.hmac.get_or_init(|| prepared).of(message)?)
    }

    fn encrypt(&self, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Problem> {
        let key = self.for_aes()?;
        check_iv(iv)?;
        let mut output = Vec::with_capacity(1 + plaintext.len() + TAG_LENGTH);
        output.push(TAG_LAST);
        self.aead.encrypt(key, iv, aad, plaintext, &mut output)?;
        Ok(output)
    }

    fn decrypt(&self, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let (version, rest) = split_version(ciphertext)?;
        let (tag, encrypted) = if version == TAG_FIRST {
            rest.split_at(TAG_LENGTH)
        } else {
            let (encrypted, tag) = rest.split_at(rest.len() - TAG_LENGTH);
            (tag, encrypted)
        };
        let key = self.for_aes()?;
        check_iv(iv)?;
        self.aead.decrypt(key, iv, aad, encrypted, tag)?.ok_or_else(|| Failure::NotAuthentic.into())
    }
}

/// A known version, and at least a tag.
pub(crate) fn split_version(ciphertext: &[u8]) -> Result<(u8, &[u8]), Invalid> {
    match ciphertext {
        [version, ..] if ![TAG_FIRST, TAG_LAST].contains(version) => Err(Invalid::CiphertextVersion(*version)),
        [version, rest @ ..] if rest.len() >= TAG_LENGTH => Ok((*version, rest)),
        _ => Err(Invalid::CiphertextTooShort),
    }
}

pub(crate) fn check_iv(iv: &[u8]) -> Result<(), Failure> {
    if (1..=LONGEST_IV).contains(&iv.len()) { Ok(()) } else { Err(Failure::IvLength(iv.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vectors::{hex, k1, unhex};

    fn key(bytes: &[u8]) -> SymmetricKey {
        SymmetricKey::new(Zeroizing::new(bytes.to_vec()))
    }

    fn derive(base: &SymmetricKey, data: &[u8]) -> SymmetricKey {
        SymmetricKey::new(base.hmac(data).unwrap())
    }

    #[test]
    fn the_table_of_hmacs_and_derivations() {
        let hmac = |key: &SymmetricKey, message: &str| hex(&key.hmac(message.as_bytes()).unwrap());
        let k1 = key(&k1());
        assert_eq!(hmac(&k1, "hello"), "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433");
        assert_eq!(hmac(&k1, ""), "6656ed44406d8895497b1b8d854118fcd7790e181ce6ea7ca4eed793f0fcd594");
        let derived = derive(&k1, b"modA:1:primary");
        assert_eq!(hmac(&derived, "hello"), "8ae8ff4488ed75342a8b279dee9478288643a22124d994d53579613ea8fdc8d6");
        let exported = hex(&derived.bytes);
        assert_eq!(exported, "82a2faf9a7cd82794e071c6b1a0465bde3ae46adbf05ac6d3924b364529d755c");
        assert_eq!(hmac(&key(b"key"), "m"), "782906cfdc87462bf9242b96f17057c3389530ff937920823bf7a583f5d983a5");
        let derived = derive(&key(b"key"), b"data");
        assert_eq!(hmac(&derived, "m"), "f104cdbd9f7b3d66bfab0bee2f48c517e4a497570a141f62194dc9a6b754df76");
        assert!(k1.hmac(b"").is_ok());
    }

    /// Key, IV, AAD, plaintext, ciphertext in hex.
    type Row<'a> = (&'a SymmetricKey, &'a [u8], &'a [u8], &'a [u8], &'a str);

    const AAD: &[u8] = b"$iotedged";
    const PLAINTEXT: &[u8] = b"some plaintext";

    #[test]
    fn the_table_of_ciphertexts() {
        let counting = |length: u8| (0..length).collect::<Vec<u8>>();
        let iv = counting(12);
        let derived = derive(&key(&k1()), b"modA:1:primary");
        let k1 = key(&k1());
        let table: [Row; 8] = [
            (&k1, &iv, AAD, PLAINTEXT, "02496a011d57fc28c1ab7cf4a7c099a39373afb7d904b0f728907694833490"),
            (&k1, &iv, AAD, b"", "02b7ea4334aedf484bfc0d12346b5a8d7e"),
            (&k1, &iv, b"", PLAINTEXT, "02496a011d57fc28c1ab7cf4a7c0999230889a2e2b3110ca5524b392f3f400"),
            (&k1, b"abcdefgh", b"aa", b"p", "02fa2d5f461f75fa0e38ce8fdc6dfc0e794d"),
            (&k1, &[0; 16], AAD, PLAINTEXT, "02767d2e61d826adb04c0a50b8b60cc8413610d0def904b740457edc5c1bac"),
            (
                &k1,
                b"123e4567e89b12d3a456426614174000",
                AAD,
                PLAINTEXT,
                "0211d0c0be7b57b681df1de8a28767de359008ee0fd4ab4aea73e136932716",
            ),
            (&k1, &counting(128), AAD, PLAINTEXT, "029f1c34e37c01aed4e9e6821c8775ed9de17887f9433800b419f953bbfde6"),
            (&derived, &iv, AAD, PLAINTEXT, "028d250aaa0af1de92dd19e6cfbfb503ec6d4d187d9666075cc5102d3e22ff"),
        ];
        for (key, iv, aad, plaintext, expected) in table {
            let ciphertext = key.encrypt(iv, aad, plaintext).unwrap();
            assert_eq!(hex(&ciphertext), expected);
            assert_eq!(*key.decrypt(iv, aad, &ciphertext).unwrap(), plaintext);
        }
        let old = unhex("01a39373afb7d904b0f728907694833490496a011d57fc28c1ab7cf4a7c099");
        assert_eq!(*k1.decrypt(&iv, AAD, &old).unwrap(), PLAINTEXT);
    }

    #[test]
    fn refusals_are_of_the_specified_kind() {
        let (iv, key_1) = ([7; 12], key(&k1()));
        let mut ciphertext = key_1.encrypt(&iv, AAD, PLAINTEXT).unwrap();
        let failure = |outcome: Result<Zeroizing<Vec<u8>>, Problem>| match outcome {
            Err(Problem::Failure(failure)) => failure,
            other => panic!("{other:?}"),
        };
        let invalid = |outcome: Result<Zeroizing<Vec<u8>>, Problem>| match outcome {
            Err(Problem::Invalid(invalid)) => invalid,
            other => panic!("{other:?}"),
        };
        for iv in [&[][..], &[0; 129]] {
            let encrypted = key_1.encrypt(iv, AAD, PLAINTEXT).map(Zeroizing::new);
            assert!(matches!(failure(encrypted), Failure::IvLength(_)));
            assert!(matches!(failure(key_1.decrypt(iv, AAD, &ciphertext)), Failure::IvLength(_)));
        }
        for length in [16, 64] {
            let other = key(&vec![1; length]);
            let encrypted = other.encrypt(&iv, AAD, PLAINTEXT).map(Zeroizing::new);
            assert!(matches!(failure(encrypted), Failure::KeyLength(n) if n == length));
            assert!(matches!(failure(other.decrypt(&iv, AAD, &ciphertext)), Failure::KeyLength(_)));
        }
        assert!(matches!(failure(key_1.decrypt(&iv, b"other", &ciphertext)), Failure::NotAuthentic));
        *ciphertext.last_mut().unwrap() ^= 1;
        assert!(matches!(failure(key_1.decrypt(&iv, AAD, &ciphertext)), Failure::NotAuthentic));
        ciphertext[0] = 3;
        assert!(matches!(invalid(key_1.decrypt(&iv, AAD, &ciphertext)), Invalid::CiphertextVersion(3)));
        for short in [&[][..], &[2; 16], &[1; 16], &[2]] {
            assert!(matches!(invalid(key_1.decrypt(&iv, AAD, short)), Invalid::CiphertextTooShort));
        }
    }

    #[test]
    fn generated_keys_have_32_bytes_and_differ() {
        let (first, second) = (SymmetricKey::generate().unwrap(), SymmetricKey::generate().unwrap());
        assert_eq!((first.len(), second.len()), (32, 32));
        assert_ne!(first, second);
    }
}
