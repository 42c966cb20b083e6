//! What is computed with keys in files is computed rightly, or the key service does not start: answers that are known, for all but
//! ECDSA, whose signatures are never the same and are verified instead.
//!
//! A library that was built for another processor, or damaged on disk, otherwise shows itself as signatures that the cloud refuses. It
//! takes about two milliseconds. It also pages in what every later call needs, so that memory does not grow with the first of them.
//!
//! Tested, in the system's OpenSSL and this crate's use of it: HMAC-SHA256; AES-256-GCM, both ways, and that it refuses what was altered;
//! making a P-256 pair, signing and verifying with it; reading an RSA key and its PKCS#1 v1.5 signature. Not tested: making an RSA pair,
//! which takes long; RSA without padding and other curves, which differ little; random numbers, which have no right answer; the TLS of
//! other daemons; and whatever computes elsewhere, a PKCS#11 token or a vendor's `keys_library`, which answer for themselves.

use openssl::{base64, error::ErrorStack};
use zeroize::Zeroizing;

use crate::{
    error::{Failure, NotKeyPair, Problem},
    key_pair::{KeyPair, KeyPairOperations as _, RsaPadding},
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

/// For this test alone. Of 2048 bits because the FIPS provider takes no smaller ones; read and not made because making one takes long.
const RSA_KEY: &[u8] = include_bytes!("self_test/worthless_rsa_2048.pem");
/// The `DigestInfo` of the SHA-256 of `abc` (RFC 8017, section 9.2; FIPS 180-4).
const RSA_INPUT: [u8; 51] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20,
    0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61,
    0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
];
/// Base64 of what `openssl pkeyutl -sign -pkeyopt rsa_padding_mode:pkcs1 -pkeyopt digest:sha256` makes of that digest with that key.
const RSA_SIGNATURE: &str = "\
    Vhs772OoLdb59WhaQVsCXCNb0sTyGo8aZ70BQWQdwmpzQdsDyllc1uc1aYd+4JVcJlLSScPFRd9+\
    eO/0Y1MgbfQCeNZg3JGe69xDuB4fljgDrIPXrtHo/pICilxCWsQh5gne2ZIzLfcwVfNFQHojxS86\
    BnR3jyrwdcWVOoiRt7CcdBtxrshBcSng8fZM1H6T63OEP1tZw5ndg0mtkZrEe7g2X+cWqCFkAESn\
    sWIq0SW+avMfJQOBlM2Zr0QSBB/0nMwhDdakVI8Zf3u+FiRLROfHpCwKejretDANV7n+17V/oZYd\
    g36RPJ0NZn/d42zLY8FGqdaiGCuEysAIY5azFA==";

const HMAC_SHA256: &str = "HMAC-SHA256";
const AES_256_GCM: &str = "AES-256-GCM";
const ECDSA_P256: &str = "ECDSA P-256";
const RSA_2048: &str = "RSA-2048";

/// Tries what keys in files are used for; this file's head says what is left out.
pub fn self_test() -> Result<(), SelfTestError> {
    hmac(HMAC_KEY)?;
    aead(&CIPHERTEXT)?;
    ecdsa()?;
    rsa(RSA_KEY, RSA_SIGNATURE)
}

fn hmac(key: &[u8]) -> Result<(), SelfTestError> {
    let key = SymmetricKey::new(Zeroizing::new(key.to_vec()));
    let hmac = key.hmac(HMAC_MESSAGE).map_err(told(HMAC_SHA256))?;
    expect(HMAC_SHA256, *hmac == HMAC)
}

fn aead(ciphertext: &[u8]) -> Result<(), SelfTestError> {
    let (iv, plaintext) = ([0; 12], [0; 16]);
    let key = SymmetricKey::new(Zeroizing::new(vec![0; 32]));
    let encrypted = key.encrypt(&iv, &[], &plaintext).map_err(told(AES_256_GCM))?;
    let decrypted = key.decrypt(&iv, &[], ciphertext).map_err(told(AES_256_GCM))?;
    let mut altered = ciphertext.to_vec();
    altered[1] ^= 1;
    let is_refused = matches!(key.decrypt(&iv, &[], &altered), Err(Problem::Failure(Failure::NotAuthentic)));
    expect(AES_256_GCM, encrypted == ciphertext && *decrypted == plaintext && is_refused)
}

fn ecdsa() -> Result<(), SelfTestError> {
    let pem = KeyPair::generate(NewKeyPair::EcP256).map_err(failed(ECDSA_P256))?;
    // Reading it signs with the private half and verifies with the public one.
    read(ECDSA_P256, &pem).map(|_| ())
}

fn rsa(pem: &[u8], signature: &str) -> Result<(), SelfTestError> {
    let made = read(RSA_2048, pem)?.encrypt_rsa(RsaPadding::Pkcs1, &RSA_INPUT).map_err(told(RSA_2048))?;
    expect(RSA_2048, base64::encode_block(&made) == signature)
}

fn read(operation: &'static str, pem: &[u8]) -> Result<KeyPair, SelfTestError> {
    KeyPair::from_pem(pem).map_err(|reason| match reason {
        NotKeyPair::Unreadable(source) => SelfTestError::Failed { operation, source },
        NotKeyPair::NoPem | NotKeyPair::Encrypted | NotKeyPair::Inconsistent => SelfTestError::Wrong { operation },
    })
}

fn expect(operation: &'static str, is_right: bool) -> Result<(), SelfTestError> {
    if is_right { Ok(()) } else { Err(SelfTestError::Wrong { operation }) }
}

fn failed(operation: &'static str) -> impl Fn(ErrorStack) -> SelfTestError {
    move |source| SelfTestError::Failed { operation, source }
}

/// An operation that ended in an error: OpenSSL's own, or ours about what it had answered.
fn told(operation: &'static str) -> impl Fn(Problem) -> SelfTestError {
    move |problem| match problem {
        Problem::Failure(Failure::OpenSsl(source)) => SelfTestError::Failed { operation, source },
        Problem::Failure(_) | Problem::Invalid(_) | Problem::Preloaded => SelfTestError::Wrong { operation },
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use openssl::rsa::Rsa;

    use super::*;
    use crate::test_vectors::RSA_PEM;

    #[test]
    fn this_machine_computes_rightly() {
        self_test().unwrap();
    }

    #[test]
    fn a_wrong_answer_is_told() {
        assert!(matches!(hmac(b"Jeff"), Err(SelfTestError::Wrong { operation: HMAC_SHA256 })));
        let mut other = CIPHERTEXT;
        other[32] ^= 1;
        assert!(matches!(aead(&other), Err(SelfTestError::Wrong { operation: AES_256_GCM })));
        for (pem, signature) in
            [(RSA_PEM.as_bytes(), RSA_SIGNATURE), (RSA_KEY, &RSA_SIGNATURE.replacen('A', "B", 1)), (b"no key", "")]
        {
            assert!(matches!(rsa(pem, signature), Err(SelfTestError::Wrong { operation: RSA_2048 })));
        }
    }

    #[test]
    fn what_openssl_says_is_told() {
        // Any error of OpenSSL: this machine's computes what it is asked for.
        let error = || Rsa::private_key_from_der(b"no key").unwrap_err();
        for told in [told(HMAC_SHA256)(Problem::from(error())), failed(HMAC_SHA256)(error())] {
            assert!(matches!(told, SelfTestError::Failed { operation: HMAC_SHA256, .. }));
            assert_eq!(told.source().unwrap().to_string(), error().to_string());
        }
        let cut = &RSA_KEY[..RSA_KEY.len() / 2];
        assert!(matches!(rsa(cut, RSA_SIGNATURE), Err(SelfTestError::Wrong { .. } | SelfTestError::Failed { .. })));
    }

    #[test]
    fn the_key_is_one_that_fips_allows() {
        let key = Rsa::private_key_from_pem(RSA_KEY).unwrap();
        assert_eq!(key.size() * 8, 2048);
    }
}
