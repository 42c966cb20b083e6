//! HMAC-SHA256 (RFC 2104) under a key that is prepared once: the two hash states that it begins with are kept, and copied for every message.
//!
//! OpenSSL 3 prepares the key anew for each message, which costs ten times as much as hashing a short one (`docs/benchmarks.md`). All
//! hashing is OpenSSL's, which also wipes the states.

use openssl::error::ErrorStack;
use openssl::hash::{Hasher, MessageDigest};
use zeroize::{Zeroize, Zeroizing};

/// Block of SHA-256 in bytes.
const BLOCK: usize = 64;

/// A prepared key.
pub(crate) struct Hmac {
    /// After the first block of the inner hash.
    inner: Hasher,
    /// After the first block of the outer hash.
    outer: Hasher,
}

impl Hmac {
    /// Prepares a key of any length.
    pub(crate) fn new(key: &[u8]) -> Result<Hmac, ErrorStack> {
        let mut block = Zeroizing::new([0; BLOCK]);
        if key.len() <= BLOCK {
            block[..key.len()].copy_from_slice(key);
        } else {
            let mut digest = openssl::hash::hash(MessageDigest::sha256(), key)?;
            block[..digest.len()].copy_from_slice(&digest);
            digest.zeroize();
        }
        let begin = |pad: u8| {
            let mut padded = block.clone();
            padded.iter_mut().for_each(|byte| *byte ^= pad);
            let mut hasher = Hasher::new(MessageDigest::sha256())?;
            hasher.update(&*padded)?;
            Ok(hasher)
        };
        Ok(Hmac { inner: begin(0x36)?, outer: begin(0x5c)? })
    }

    /// The HMAC of `message`, 32 bytes.
    pub(crate) fn of(&self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        let (mut inner, mut outer) = (self.inner.clone(), self.outer.clone());
        inner.update(message)?;
        let mut digest = inner.finish()?;
        let updated = outer.update(&digest);
        digest.zeroize();
        updated?;
        let mut digest = outer.finish()?;
        // It may be a derived key.
        let hmac = Zeroizing::new(digest.to_vec());
        digest.zeroize();
        Ok(hmac)
    }
}

#[cfg(test)]
mod tests {
    use openssl::pkey::PKey;
    use openssl::sign::Signer;

    use super::*;

    #[test]
    fn is_what_openssl_makes_of_any_key_and_message() {
        let bytes: Vec<u8> = (0..=255).collect();
        for key_length in 1..=200 {
            let hmac = Hmac::new(&bytes[..key_length]).unwrap();
            let key = PKey::hmac(&bytes[..key_length]).unwrap();
            for length in [0, 1, 31, 32, 55, 56, 63, 64, 65, 255] {
                let expected =
                    Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(&bytes[..length]).unwrap();
                assert_eq!(*hmac.of(&bytes[..length]).unwrap(), expected, "{key_length} {length}");
            }
        }
    }

    #[test]
    fn many_threads_may_use_one_key() {
        let hmac = Hmac::new(&[7; 32]).unwrap();
        let expected = hmac.of(b"message").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| assert_eq!(hmac.of(b"message").unwrap(), expected)));
            }
        });
    }
}
