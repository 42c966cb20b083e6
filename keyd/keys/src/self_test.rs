//! What is computed with keys is computed rightly, or the key service does not start: answers that are known, and a signature of each
//! kind that is verified.
//!
//! A library that was built for another processor, or damaged on disk, otherwise shows itself as signatures that the cloud refuses. It
//! takes about two milliseconds. It also pages in what every later call needs, so that memory does not grow with the first of them.

use openssl::{error::ErrorStack, pkey::PKey, rsa::Rsa};
use zeroize::Zeroizing;

use crate::{
    error::{NotKeyPair, Problem},
    key_pair::KeyPair,
    preferred_algorithms::NewKeyPair,
    symmetric::{SymmetricKey, SymmetricOperations as _, TAG_LAST},
};

/// The system's crypto library does not compute what it should.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// It failed outright.
    #[error("the self-test of {operation} failed")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// What OpenSSL said.
        source: ErrorStack,
    },
    /// It answered, wrongly.
    #[error("the self-test of {operation} gave a wrong result: the system's OpenSSL or the processor is faulty")]
    Wrong {
        /// What was tried.
        operation: &'static str,
    },
}

/// RFC 4231, section 4.3.
const HMAC_KEY: &[u8] = b"Jefe";
const HMAC_MESSAGE: &[u8] = b"what do ya want for nothing?";
const HMAC: [u8; 32] = [
    0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e, 0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7, 0x5a, 0x00, 0x3f,
    0x08, 0x9d, 0x27, 0x39, 0x83, 0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43,
];

/// Test case 14 of the GCM specification by `McGrew` and `Viega`: key, IV and plaintext are zero.
const CIPHERTEXT: [u8; 33] = [
    TAG_LAST, 0xce, 0xa7, 0x40, 0x3d, 0x4d, 0x60, 0x6b, 0x6e, 0x07, 0x4e, 0xc5, 0xd3, 0xba, 0xf3, 0x9d, 0x18, 0xd0,
    0xd1, 0xc8, 0xa7, 0x99, 0x99, 0x6b, 0xf0, 0x26, 0x5b, 0x98, 0xb5, 0xd4, 0x8a, 0xb9, 0x19,
];

/// The smallest that OpenSSL makes, and worth nothing: it is made anew at each start, and dropped.
const RSA_BITS: u32 = 512;

/// Tries every operation that keys of this library are used for.
pub fn self_test() -> Result<(), SelfTestError> {
    hmac(HMAC_KEY)?;
    aead(&CIPHERTEXT)?;
    key_pair("ECDSA P-256", || KeyPair::generate(NewKeyPair::EcP256))?;
    key_pair("RSA", || PKey::from_rsa(Rsa::generate(RSA_BITS)?)?.private_key_to_pem_pkcs8().map(Zeroizing::new))
}

fn hmac(key: &[u8]) -> Result<(), SelfTestError> {
    let operation = "HMAC-SHA256";
    let failed = |source| SelfTestError::Failed { operation, source };
    let key = SymmetricKey::new(Zeroizing::new(key.to_vec())).map_err(failed)?;
    match key.hmac(HMAC_MESSAGE) {
        Ok(hmac) if *hmac == HMAC => Ok(()),
        _ => Err(SelfTestError::Wrong { operation }),
    }
}

fn aead(ciphertext: &[u8]) -> Result<(), SelfTestError> {
    let operation = "AES-256-GCM";
    let failed = |source| SelfTestError::Failed { operation, source };
    let (iv, plaintext) = ([0; 12], [0; 16]);
    let key = SymmetricKey::new(Zeroizing::new(vec![0; 32])).map_err(failed)?;
    let encrypted = key.encrypt(&iv, &[], &plaintext).is_ok_and(|encrypted| encrypted == ciphertext);
    let decrypted = key.decrypt(&iv, &[], ciphertext).is_ok_and(|decrypted| *decrypted == plaintext);
    let mut changed = ciphertext.to_vec();
    changed[1] ^= 1;
    let refused: Result<_, Problem> = key.decrypt(&iv, &[], &changed);
    if encrypted && decrypted && refused.is_err() { Ok(()) } else { Err(SelfTestError::Wrong { operation }) }
}

/// Reading a key pair signs with the private half and verifies with the public one.
fn key_pair(
    operation: &'static str,
    generate: impl Fn() -> Result<Zeroizing<Vec<u8>>, ErrorStack>,
) -> Result<(), SelfTestError> {
    let failed = |source| SelfTestError::Failed { operation, source };
    match KeyPair::from_pem(&generate().map_err(failed)?) {
        Ok(_) => Ok(()),
        Err(NotKeyPair::Unreadable(source)) => Err(failed(source)),
        Err(_) => Err(SelfTestError::Wrong { operation }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_computes_rightly() {
        self_test().unwrap();
    }

    #[test]
    fn a_wrong_answer_is_told() {
        assert!(matches!(hmac(b"Jeff"), Err(SelfTestError::Wrong { operation: "HMAC-SHA256" })));
        let mut other = CIPHERTEXT;
        other[32] ^= 1;
        assert!(matches!(aead(&other), Err(SelfTestError::Wrong { operation: "AES-256-GCM" })));
        let text = || Ok(Zeroizing::new(b"no key".to_vec()));
        assert!(matches!(key_pair("RSA", text), Err(SelfTestError::Wrong { operation: "RSA" })));
    }
}
