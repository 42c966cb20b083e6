//! The two kinds of URI that a configuration names a key's place with: `file:` and `pkcs11:`.
//!
//! Only what `keys.md`, 4.3 and 7.1 ask for; RFC 7512 has many more attributes, which are ignored as the public system ignores them.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::{fmt, str};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

/// A URI that cannot name a key's place. Never quotes the URI itself, it may hold a PIN.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UriError {
    /// Neither `file:` nor `pkcs11:`.
    #[error("the URI starts with neither `file:` nor `pkcs11:`")]
    Scheme,
    /// A `file:` URI of another machine.
    #[error("the host of a `file:` URI can only be empty or `localhost`")]
    Host,
    /// A `file:` URI whose path does not start with `/` or holds a NUL byte.
    #[error("a `file:` URI needs an absolute path")]
    Path,
    /// A `pkcs11:` URI that does not say which token.
    #[error("a `pkcs11:` URI needs `token` or `slot-id`")]
    NoToken,
    /// A `slot-id` that is no decimal number.
    #[error("`slot-id` of a `pkcs11:` URI must be a decimal number")]
    SlotId,
    /// An `object` with a character that marks labels of changes under way.
    #[error("`object` of a `pkcs11:` URI must not have the control character U+0001")]
    ReservedObject,
    /// A value whose percent-decoded bytes are not UTF-8.
    #[error("a value of a `pkcs11:` URI is not UTF-8")]
    Utf8,
}

/// Where a preloaded key is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyUri {
    /// `file:///path`.
    File(PathBuf),
    /// `pkcs11:...`.
    Pkcs11(Pkcs11Uri),
}

impl str::FromStr for KeyUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<KeyUri, UriError> {
        let (scheme, rest) = uri.split_once(':').ok_or(UriError::Scheme)?;
        if scheme.eq_ignore_ascii_case("file") {
            file_path(rest).map(KeyUri::File)
        } else if scheme.eq_ignore_ascii_case("pkcs11") {
            Pkcs11Uri::parse_rest(rest).map(KeyUri::Pkcs11)
        } else {
            Err(UriError::Scheme)
        }
    }
}

/// The path of a `file:` URI; `rest` is what follows the scheme.
fn file_path(rest: &str) -> Result<PathBuf, UriError> {
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                return Err(UriError::Host);
            }
            path
        }
        None => rest,
    };
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    if bytes.first() == Some(&b'/') && !bytes.contains(&0) {
        Ok(PathBuf::from(OsString::from_vec(bytes)))
    } else {
        Err(UriError::Path)
    }
}

/// Which token a `pkcs11:` URI means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenIdentifier {
    /// By number of its slot; wins over a label.
    SlotId(u64),
    /// By its label.
    Label(String),
}

impl fmt::Display for TokenIdentifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenIdentifier::SlotId(slot_id) => write!(formatter, "token in slot {slot_id}"),
            TokenIdentifier::Label(label) => write!(formatter, "token {label:?}"),
        }
    }
}

/// A parsed `pkcs11:` URI. Its PIN never shows in `Debug` output.
#[derive(Clone, Eq, PartialEq)]
pub struct Pkcs11Uri {
    /// The token.
    pub token: TokenIdentifier,
    /// Label of the object on the token; absent for a URI that means the token as a whole.
    pub object: Option<String>,
    /// The user PIN.
    pub pin: Option<Zeroizing<String>>,
}

impl str::FromStr for Pkcs11Uri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Pkcs11Uri, UriError> {
        match uri.parse()? {
            KeyUri::Pkcs11(uri) => Ok(uri),
            KeyUri::File(_) => Err(UriError::Scheme),
        }
    }
}

impl Pkcs11Uri {
    fn parse_rest(rest: &str) -> Result<Pkcs11Uri, UriError> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut label, mut slot_id, mut object, mut pin) = (None, None, None, None);
        for (name, value) in attributes(path, ';') {
            match &*decode(name)? {
                "token" => label = Some(decode(value)?),
                "slot-id" => slot_id = Some(decode(value)?.parse().map_err(|_| UriError::SlotId)?),
                "object" => object = Some(decode(value)?),
                _ => {}
            }
        }
        for (name, value) in attributes(query, '&') {
            if decode(name)? == "pin-value" {
                pin = Some(Zeroizing::new(decode(value)?));
            }
        }
        let token = match (slot_id, label) {
            (Some(slot_id), _) => TokenIdentifier::SlotId(slot_id),
            (None, Some(label)) => TokenIdentifier::Label(label),
            (None, None) => return Err(UriError::NoToken),
        };
        Ok(Pkcs11Uri { token, object, pin })
    }

    /// The canonical text, PIN included: token or slot, object, PIN, each encoded but for ASCII letters and digits.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all at once, so that no piece of the PIN stays behind in freed memory.
        let longest = |text: &str| text.len() * 3;
        let pin_length = self.pin.as_ref().map_or(0, |pin| longest(pin));
        let mut text = Zeroizing::new(String::with_capacity(64 + pin_length));
        text.push_str("pkcs11:");
        // Writing to a String cannot fail.
        let _ = match &self.token {
            TokenIdentifier::SlotId(slot_id) => write!(text, "slot-id={slot_id}"),
            TokenIdentifier::Label(label) => write!(text, "token={}", encode(label)),
        };
        if let Some(object) = &self.object {
            let _ = write!(text, ";object={}", encode(object));
        }
        if let Some(pin) = &self.pin {
            text.reserve_exact("?pin-value=".len() + longest(pin));
            let _ = write!(text, "?pin-value={}", encode(pin));
        }
        text
    }
}

impl fmt::Debug for Pkcs11Uri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pkcs11Uri")
            .field("token", &self.token)
            .field("object", &self.object)
            .field("pin", &self.pin.as_ref().map(|_| "[redacted]"))
            .finish()
    }
}

/// The `name=value` pairs of one part; what has no `=` says nothing we know.
fn attributes(part: &str, separator: char) -> impl Iterator<Item = (&str, &str)> {
    part.split(separator).filter_map(|attribute| attribute.split_once('='))
}

fn decode(text: &str) -> Result<String, UriError> {
    percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| UriError::Utf8)
}

fn encode(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pkcs11(uri: &str) -> (TokenIdentifier, Option<String>, Option<String>) {
        let uri: Pkcs11Uri = uri.parse().unwrap();
        (uri.token, uri.object, uri.pin.map(|pin| pin.to_string()))
    }

    fn label(text: &str) -> TokenIdentifier {
        TokenIdentifier::Label(text.to_owned())
    }

    #[test]
    fn the_table_of_pkcs11_uris() {
        let expected = (label("Key pairs"), None, Some("1234".to_owned()));
        assert_eq!(pkcs11("pkcs11:token=Key pairs?pin-value=1234"), expected);
        assert_eq!(pkcs11("pkcs11:token=Key%20pairs?pin-value=1234"), expected);
        assert_eq!(
            pkcs11("pkcs11:slot-id=7;token=x;object=a%2Db"),
            (TokenIdentifier::SlotId(7), Some("a-b".into()), None)
        );
        assert_eq!(pkcs11("pkcs11:token=x;pin-value=1?object=o"), (label("x"), None, None));
        for uri in ["pkcs11:object=o", "pkcs11:"] {
            assert_eq!(uri.parse::<Pkcs11Uri>(), Err(UriError::NoToken), "{uri}");
        }
    }

    #[test]
    fn further_pkcs11_rules() {
        assert_eq!(pkcs11("pkcs11:token=a;token=b?pin-value=1&pin-value=2"), (label("b"), None, Some("2".into())));
        assert_eq!(pkcs11("PKCS11:tok%65n=a;id=%ff;type=private").0, label("a"));
        assert_eq!("pkcs11:slot-id=x".parse::<Pkcs11Uri>(), Err(UriError::SlotId));
        assert_eq!("pkcs11:token=%ff".parse::<Pkcs11Uri>(), Err(UriError::Utf8));
        assert_eq!("file:///x".parse::<Pkcs11Uri>(), Err(UriError::Scheme));
    }

    #[test]
    fn the_canonical_text() {
        let uri: Pkcs11Uri = "pkcs11:object=est-bootstrap-id;slot-id=0?pin-value=1234".parse().unwrap();
        assert_eq!(*uri.to_text(), "pkcs11:slot-id=0;object=est%2Dbootstrap%2Did?pin-value=1234");
        assert!(!format!("{uri:?}").contains("1234"));
    }

    #[test]
    fn the_table_of_file_uris() {
        let path = |uri: &str| match uri.parse() {
            Ok(KeyUri::File(path)) => Ok(path.to_str().unwrap().to_owned()),
            Ok(KeyUri::Pkcs11(_)) => panic!("{uri} is a file"),
            Err(error) => Err(error),
        };
        assert_eq!(path("file:///a%20b"), Ok("/a b".to_owned()));
        assert_eq!(path("file://localhost/x"), Ok("/x".to_owned()));
        assert_eq!(path("file:/x"), Ok("/x".to_owned()));
        assert_eq!(path("file://example.com/x"), Err(UriError::Host));
        assert_eq!(path("http://x"), Err(UriError::Scheme));
        for uri in ["file:", "file://", "file:x", "file:///a%00b"] {
            assert_eq!(path(uri), Err(UriError::Path), "{uri}");
        }
        assert_eq!(path("/x"), Err(UriError::Scheme));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            token in prop_oneof![any::<u64>().prop_map(TokenIdentifier::SlotId), any::<String>().prop_map(TokenIdentifier::Label)],
            object in any::<Option<String>>(),
            pin in any::<Option<String>>(),
        ) {
            let uri = Pkcs11Uri { token, object, pin: pin.map(Zeroizing::new) };
            prop_assert_eq!(uri.to_text().parse::<Pkcs11Uri>().unwrap(), uri);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(file:|pkcs11:|)(\\PC|[/;?&=%#]){0,40}") {
            let _ = text.parse::<KeyUri>();
        }

        #[test]
        fn any_absolute_path_survives(path in "/[^\0]{0,40}") {
            const ALL_BUT_SLASH: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC.remove(b'/');
            let uri = format!("file://{}", utf8_percent_encode(&path, ALL_BUT_SLASH));
            prop_assert_eq!(uri.parse::<KeyUri>().unwrap(), KeyUri::File(PathBuf::from(path)));
        }
    }
}
