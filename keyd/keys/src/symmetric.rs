//! Symmetric keys: HMAC-SHA256, derivation and AES-256-GCM (`keys.md`, 6.1, 6.5 and 6.6).

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rand::rand_priv_bytes;
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use zeroize::Zeroizing;

use crate::error::{Failure, Invalid, Problem};

/// Length of generated keys, of HMACs and of derived keys.
pub(crate) const KEY_LENGTH: usize = 32;
const TAG_LENGTH: usize = 16;
/// The longest that OpenSSL 3 takes for GCM.
const LONGEST_IV: usize = 128;

/// Version, tag, ciphertext: written by products older than 1.2, never by us.
const TAG_FIRST: u8 = 1;
/// Version, ciphertext, tag.
const TAG_LAST: u8 = 2;

/// A key of at least one byte.
pub(crate) struct SymmetricKey {
    bytes: Zeroizing<Vec<u8>>,
    /// The same bytes, prepared for HMAC. OpenSSL wipes them.
    hmac: PKey<Private>,
}

impl SymmetricKey {
    pub(crate) fn new(bytes: Zeroizing<Vec<u8>>) -> Result<SymmetricKey, ErrorStack> {
        let hmac = PKey::hmac(&bytes)?;
        Ok(SymmetricKey { bytes, hmac })
    }

    /// Random bytes for a new key.
    pub(crate) fn generate() -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        let mut bytes = Zeroizing::new(vec![0; KEY_LENGTH]);
        rand_priv_bytes(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn hmac(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        let mut signer = Signer::new(MessageDigest::sha256(), &self.hmac)?;
        let mut signature = Zeroizing::new(vec![0; KEY_LENGTH]);
        let length = signer.sign_oneshot(&mut signature, message)?;
        signature.truncate(length);
        Ok(signature)
    }

    /// The key that `data` makes of this one.
    pub(crate) fn derive(&self, data: &[u8]) -> Result<SymmetricKey, ErrorStack> {
        self.hmac(data).and_then(SymmetricKey::new)
    }

    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.bytes.clone()
    }

    pub(crate) fn encrypt(&self, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Problem> {
        self.check_aead(iv)?;
        let mut tag = [0; TAG_LENGTH];
        let encrypted = encrypt_aead(Cipher::aes_256_gcm(), &self.bytes, Some(iv), aad, plaintext, &mut tag)?;
        Ok([&[TAG_LAST], &*encrypted, &tag].concat())
    }

    pub(crate) fn decrypt(&self, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let (version, rest) = ciphertext.split_first().ok_or(Invalid::CiphertextTooShort)?;
        let (tag, encrypted) = match *version {
            TAG_FIRST => rest.split_first_chunk::<TAG_LENGTH>(),
            TAG_LAST => rest.split_last_chunk::<TAG_LENGTH>().map(|(encrypted, tag)| (tag, encrypted)),
            unknown => return Err(Invalid::CiphertextVersion(unknown).into()),
        }
        .ok_or(Invalid::CiphertextTooShort)?;
        self.check_aead(iv)?;
        decrypt_aead(Cipher::aes_256_gcm(), &self.bytes, Some(iv), aad, encrypted, tag)
            .map(Zeroizing::new)
            // GCM reports a wrong tag with no reason of its own.
            .map_err(|_| Failure::NotAuthentic.into())
    }

    fn check_aead(&self, iv: &[u8]) -> Result<(), Failure> {
        if self.bytes.len() != KEY_LENGTH {
            Err(Failure::KeyLength(self.bytes.len()))
        } else if iv.is_empty() || iv.len() > LONGEST_IV {
            Err(Failure::IvLength(iv.len()))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vectors::{hex, k1, unhex};

    fn key(bytes: &[u8]) -> SymmetricKey {
        SymmetricKey::new(Zeroizing::new(bytes.to_vec())).unwrap()
    }

    #[test]
    fn the_table_of_hmacs_and_derivations() {
        let hmac = |key: &SymmetricKey, message: &str| hex(&key.hmac(message.as_bytes()).unwrap());
        let k1 = key(&k1());
        assert_eq!(hmac(&k1, "hello"), "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433");
        assert_eq!(hmac(&k1, ""), "6656ed44406d8895497b1b8d854118fcd7790e181ce6ea7ca4eed793f0fcd594");
        let derived = k1.derive(b"modA:1:primary").unwrap();
        assert_eq!(hmac(&derived, "hello"), "8ae8ff4488ed75342a8b279dee9478288643a22124d994d53579613ea8fdc8d6");
        let exported = hex(&derived.to_bytes());
        assert_eq!(exported, "82a2faf9a7cd82794e071c6b1a0465bde3ae46adbf05ac6d3924b364529d755c");
        assert_eq!(hmac(&key(b"key"), "m"), "782906cfdc87462bf9242b96f17057c3389530ff937920823bf7a583f5d983a5");
        let derived = key(b"key").derive(b"data").unwrap();
        assert_eq!(hmac(&derived, "m"), "f104cdbd9f7b3d66bfab0bee2f48c517e4a497570a141f62194dc9a6b754df76");
        assert!(k1.derive(b"").is_ok());
    }

    /// Key, IV, AAD, plaintext, ciphertext in hex.
    type Row<'a> = (&'a SymmetricKey, &'a [u8], &'a [u8], &'a [u8], &'a str);

    const AAD: &[u8] = b"$iotedged";
    const PLAINTEXT: &[u8] = b"some plaintext";

    #[test]
    fn the_table_of_ciphertexts() {
        let counting = |length: u8| (0..length).collect::<Vec<u8>>();
        let iv = counting(12);
        let derived = key(&k1()).derive(b"modA:1:primary").unwrap();
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
