//! Authorization values: the passwords of a TPM's hierarchies.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap as _};
use zeroize::Zeroizing;

/// A password of up to 64 bytes. In a file text without NUL, or any bytes as `{ hex = "00ff" }`. `Debug` shows nothing of it, dropping wipes it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AuthValue(Zeroizing<Vec<u8>>);

/// Why something is no authorization value. Tells nothing of what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Longer than the longest digest of any TPM.
    #[error("an authorization value has at most {} bytes", AuthValue::MOST)]
    TooLong,
    /// The public service takes C strings.
    #[error("text with a NUL is no authorization value; write it as {{ hex = \"...\" }}")]
    Nul,
    /// Something else than two hexadecimal digits for each byte.
    #[error("two hexadecimal digits are expected for each byte")]
    Hex,
}

impl AuthValue {
    /// Bytes of the longest one: `TPM2B_AUTH` holds a digest.
    pub const MOST: usize = 64;
    const HEX: &str = "hex";

    /// A value of these bytes. Zeros at the end do not count, as TPMs have it.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Invalid> {
        let mut bytes = Zeroizing::new(bytes);
        if bytes.len() > Self::MOST {
            return Err(Invalid::TooLong);
        }
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(Self(bytes))
    }

    fn from_text(text: &str) -> Result<Self, Invalid> {
        if text.contains('\0') { Err(Invalid::Nul) } else { Self::new(text.as_bytes().to_vec()) }
    }

    fn from_hex(text: &str) -> Result<Self, Invalid> {
        let pairs = text.as_bytes().chunks(2);
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            let digits = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(pair, 16).ok())?
        };
        Self::new(pairs.map(byte).collect::<Option<_>>().ok_or(Invalid::Hex)?)
    }

    /// The bytes themselves; the name marks the places that handle them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is empty, which is the default.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for AuthValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_empty() { "[empty]" } else { "[redacted]" })
    }
}

impl Serialize for AuthValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.contains('\0') => serializer.serialize_str(text),
            _ => {
                let digits: Zeroizing<String> =
                    Zeroizing::new(self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect());
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry(Self::HEX, &*digits)?;
                map.end()
            }
        }
    }
}

fn digit(nibble: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(nibble)])
}

impl<'de> Deserialize<'de> for AuthValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = AuthValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("text, or { hex = \"...\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        AuthValue::from_text(text).map_err(E::custom)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const KEYS: &[&str] = &[AuthValue::HEX];
        let missing = || de::Error::missing_field(AuthValue::HEX);
        let key: String = map.next_key()?.ok_or_else(missing)?;
        if key != AuthValue::HEX {
            return Err(de::Error::unknown_field(&key, KEYS));
        }
        let digits: Zeroizing<String> = Zeroizing::new(map.next_value()?);
        if map.next_key::<String>()?.is_some() {
            return Err(de::Error::custom("nothing but `hex` is expected"));
        }
        AuthValue::from_hex(&digits).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_one_has_64_bytes() {
        let text = |length: usize| format!("{:?}", "x".repeat(length));
        assert_eq!(serde_json::from_str::<AuthValue>(&text(64)).unwrap().expose().len(), 64);
        assert!(serde_json::from_str::<AuthValue>(&text(65)).is_err());
        let hex = |length: usize| format!("{{\"hex\":{:?}}}", "ff".repeat(length));
        assert_eq!(serde_json::from_str::<AuthValue>(&hex(64)).unwrap().expose().len(), 64);
        assert!(serde_json::from_str::<AuthValue>(&hex(65)).is_err());
    }

    #[test]
    fn bytes_that_are_no_text_are_written_in_digits() {
        let value = AuthValue::new(vec![0, 0xff, 0, 0]).unwrap();
        assert_eq!(value.expose(), [0, 0xff], "zeros at the end do not count");
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"hex":"00ff"}"#);
        assert_eq!(serde_json::to_string(&AuthValue::new(b"hello".to_vec()).unwrap()).unwrap(), r#""hello""#);
        for text in [
            r#""a\u0000""#,
            r#"{"hex":"0"}"#,
            r#"{"hex":"+1"}"#,
            r#"{"hex":"0g"}"#,
            r#"{"hex":"é"}"#,
            "{}",
            r#"{"hex":"00","b":1}"#,
        ] {
            assert!(serde_json::from_str::<AuthValue>(text).is_err(), "{text}");
        }
    }
}
