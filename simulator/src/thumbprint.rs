//! Thumbprints: digests of certificates, as operators write them into enrollments and modules into the registry.

use serde::{Deserialize, Deserializer};

/// Why a text is no thumbprint.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a thumbprint is the SHA-256 (64 digits) or SHA-1 (40 digits) of a certificate in hex")]
pub(crate) struct Error;

/// The SHA-256 or SHA-1 of a certificate's DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thumbprint(Vec<u8>);

impl Thumbprint {
    pub(crate) fn sha256_of(certificate: &[u8]) -> Self {
        Self(openssl::sha::sha256(certificate).to_vec())
    }

    /// Whether this is a thumbprint of the certificate in DER.
    pub(crate) fn is_of(&self, certificate: &[u8]) -> bool {
        match self.0.len() {
            20 => self.0 == openssl::sha::sha1(certificate),
            _ => self.0 == openssl::sha::sha256(certificate),
        }
    }
}

impl std::str::FromStr for Thumbprint {
    type Err = Error;

    /// Reads hex in either case, with or without colons and blanks between the bytes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b':' | b' ')).collect();
        if ![40, 64].contains(&digits.len()) {
            return Err(Error);
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok());
        let byte = |pair: &[u8]| Some(nibble(pair[0])? << 4 | nibble(pair[1])?);
        digits.chunks_exact(2).map(byte).collect::<Option<_>>().map(Self).ok_or(Error)
    }
}

impl std::fmt::Display for Thumbprint {
    /// As the cloud's portal shows it: upper case, without separators.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&hex(&self.0).to_uppercase())
    }
}

impl<'de> Deserialize<'de> for Thumbprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(nibble.into(), 16).expect("a nibble is a digit in base 16"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: &str = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD"; // of "abc"
    const SHA1: &str = "A9993E364706816ABA3E25717850C26C9CD0D89D";

    #[test]
    fn either_digest_in_any_spelling() {
        let with_colons = SHA256.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect::<Vec<_>>();
        for text in [SHA256, &SHA256.to_lowercase(), &with_colons.join(":"), SHA1] {
            assert!(text.parse::<Thumbprint>().unwrap().is_of(b"abc"), "{text}");
            assert!(!text.parse::<Thumbprint>().unwrap().is_of(b"abd"), "{text}");
        }
        assert_eq!(Thumbprint::sha256_of(b"abc").to_string(), SHA256);
    }

    #[test]
    fn other_texts_are_none() {
        for text in ["", "AB", &SHA256[1..], &SHA256.replace('B', "X"), &format!("{SHA1}00")] {
            assert_eq!(text.parse::<Thumbprint>(), Err(Error), "{text}");
        }
    }
}
