//! Symmetric keys as text: base64 of the standard alphabet, with its padding or without any.

use aziot_http::SecretBytes;
use base64::DecodeError;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// Why a text is no base64. Tells where, never what stands there: it may be part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Base64Error {
    /// A character that base64 does not have, counted from 1.
    #[error("character {0} does not belong to base64 (letters, digits, `+`, `/`, and `=` at the end)")]
    Character(usize),
    /// Characters are missing.
    #[error("it is not whole base64: characters are missing at its end")]
    Length,
    /// The last character has bits that belong to no byte.
    #[error("its last character is not what base64 ends with: characters are missing or mistyped")]
    LastCharacter,
    /// Some padding, but not the right number of `=`.
    #[error("it ends with the wrong number of `=`; leave them away or write all of them")]
    Padding,
}

/// The bytes that `text` stands for; none for an empty text.
pub fn decode(text: &str) -> Result<SecretBytes, Base64Error> {
    let engine = if text.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
    engine.decode(text).map(SecretBytes::new).map_err(|error| match error {
        DecodeError::InvalidByte(offset, b'=') if text[offset..].bytes().all(|byte| byte == b'=') => {
            Base64Error::Padding
        }
        DecodeError::InvalidByte(offset, _) => {
            let before = text.char_indices().take_while(|(start, _)| *start < offset).count();
            Base64Error::Character(before + 1)
        }
        DecodeError::InvalidLength(_) => Base64Error::Length,
        DecodeError::InvalidLastSymbol { .. } => Base64Error::LastCharacter,
        DecodeError::InvalidPadding => Base64Error::Padding,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_right_or_absent() {
        for (text, bytes) in [
            ("AAEC", &[0, 1, 2][..]),
            ("AAE=", &[0, 1]),
            ("AAE", &[0, 1]),
            ("AA==", &[0]),
            ("AA", &[0]),
            ("", &[]),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(decode(text).unwrap().expose(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_base64_is_named() {
        for (text, error) in [
            ("AA=", Base64Error::Padding),
            ("AAEC=", Base64Error::Padding),
            ("A", Base64Error::Length),
            ("AB", Base64Error::LastCharacter),
            ("AA EC", Base64Error::Character(3)),
            ("AAEC\n", Base64Error::Character(5)),
            ("_-_-", Base64Error::Character(1)),
            ("é", Base64Error::Character(1)),
            ("A=AE", Base64Error::Character(2)),
        ] {
            assert_eq!(decode(text).unwrap_err(), error, "{text:?}");
        }
    }
}
