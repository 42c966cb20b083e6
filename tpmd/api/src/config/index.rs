//! `auth_key_index`: where the imported key is kept among the persistent objects of the owner.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Offset of a persistent handle from `0x8100_0000`, at most `0x7F_FFFF`. In a file an integer, or hexadecimal digits in quotes (`"0x00_01_00"`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthKeyIndex(u32);

/// No persistent handle of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {RANGE}")]
pub struct OutOfRange;

const GREATEST: u32 = 0x7f_ffff;
const RANGE: &str = "integer in range 0x00_00_00..=0x7F_FF_FF";
/// The first persistent handle (TPM 2.0 Library, Part 2, 7.2: `TPM_HT_PERSISTENT`).
const FIRST: u32 = 0x8100_0000;

impl AuthKeyIndex {
    /// This offset.
    pub fn new(index: u32) -> Result<Self, OutOfRange> {
        if index > GREATEST { Err(OutOfRange) } else { Ok(Self(index)) }
    }

    /// The offset itself.
    #[must_use]
    pub const fn offset(self) -> u32 {
        self.0
    }

    /// The persistent handle of the key.
    #[must_use]
    pub const fn handle(self) -> u32 {
        FIRST + self.0
    }

    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for AuthKeyIndex {
    fn default() -> Self {
        Self(0x00_0100)
    }
}

impl Serialize for AuthKeyIndex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for AuthKeyIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = AuthKeyIndex;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(RANGE)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        let index = u32::try_from(value).ok().and_then(|index| AuthKeyIndex::new(index).ok());
        index.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        let index = u32::try_from(value).ok().and_then(|index| AuthKeyIndex::new(index).ok());
        index.ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }

    // The template of the public packages shows the default in quotes.
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let digits = text.strip_prefix("0x").map(|digits| digits.replace('_', ""));
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let index = digits.and_then(|digits| u32::from_str_radix(&digits, 16).ok());
        let index = index.and_then(|index| AuthKeyIndex::new(index).ok());
        index.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_quoted_hexadecimal_digits_are_read() {
        for (text, index) in
            [("256", 0x100), ("0", 0), ("8388607", 0x7f_ffff), ("\"0x00_01_00\"", 0x100), ("\"0x7FffFF\"", 0x7f_ffff)]
        {
            let read: AuthKeyIndex = serde_json::from_str(text).unwrap();
            assert_eq!(read.offset(), index, "{text}");
            assert_eq!(read.handle(), 0x8100_0000 + index);
        }
        for text in [
            "8388608",
            "-1",
            "1.5",
            "\"256\"",
            "\"0x\"",
            "\"0x_\"",
            "\"0x+1\"",
            "\"0x800000\"",
            "\"0x1_0000_0000_0\"",
            "null",
        ] {
            let error = serde_json::from_str::<AuthKeyIndex>(text).unwrap_err().to_string();
            assert!(error.contains("expected integer in range 0x00_00_00..=0x7F_FF_FF"), "{text}: {error}");
        }
    }
}
