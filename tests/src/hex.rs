//! Bytes as hexadecimal text, the notation of the test vectors.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

/// Two lower-case digits per byte.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The bytes of such a text; anything else is an error.
pub fn decode(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2));
    pairs.map(|pair| u8::from_str_radix(pair.context("half a byte")?, 16).context("no hexadecimal digit")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!(encode(&[0, 0x7f, 0xff]), "007fff");
        assert_eq!(decode("007Fff").unwrap(), [0, 0x7f, 0xff]);
        assert!(decode("0").is_err() && decode("0g").is_err() && decode("é").is_err());
    }
}
