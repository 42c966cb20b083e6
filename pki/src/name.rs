//! Distinguished names from configuration.
//!
//! OpenSSL builds them, because its attribute names, string types and length limits are what configuration files mean.

use der::Decode as _;
use openssl::{error::ErrorStack, x509::X509Name};
use x509_cert::name::Name;

/// Characters of a common name (RFC 5280, appendix A.1, `ub-common-name`).
pub const LONGEST_COMMON_NAME: usize = 64;

/// What of a name fits into a common name: its first [`LONGEST_COMMON_NAME`] characters.
#[must_use]
pub fn cut_common_name(name: &str) -> &str {
    name.char_indices().nth(LONGEST_COMMON_NAME).map_or(name, |(end, _)| &name[..end])
}

/// Why entries make no name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// No attribute has this name, or its value is too long, too short or has characters that the attribute cannot have.
    #[error("the subject cannot have {attribute} = {value:?}")]
    Entry {
        /// The attribute as it was written.
        attribute: String,
        /// Its value.
        value: String,
        /// What OpenSSL said; absent for an attribute that no text of its own can name.
        source: Option<ErrorStack>,
    },
    /// OpenSSL failed otherwise, which is mostly a lack of memory.
    #[error("could not build a subject")]
    OpenSsl(#[source] ErrorStack),
    /// The name came out in a form that the certificate builder does not take.
    #[error("could not read back a subject")]
    Encoding(#[source] der::Error),
}

/// A name of these attributes in their order, each in a part of its own.
///
/// Attributes are called as OpenSSL calls them, short (`CN`), long (`commonName`) or dotted (`2.5.4.3`), case-sensitive.
pub fn from_entries<'e>(entries: impl IntoIterator<Item = (&'e str, &'e str)>) -> Result<Name, NameError> {
    let mut builder = X509Name::builder().map_err(NameError::OpenSsl)?;
    for (attribute, value) in entries {
        let refused = |source| NameError::Entry { attribute: attribute.to_owned(), value: value.to_owned(), source };
        if attribute.contains('\0') {
            return Err(refused(None));
        }
        builder.append_entry_by_text(attribute, value).map_err(|error| refused(Some(error)))?;
    }
    let bytes = builder.build().to_der().map_err(NameError::OpenSsl)?;
    Name::from_der(&bytes).map_err(NameError::Encoding)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use der::Encode as _;

    use super::*;

    fn hex(name: &Name) -> String {
        let mut text = String::new();
        for byte in name.to_der().unwrap() {
            write!(text, "{byte:02x}").unwrap();
        }
        text
    }

    #[test]
    fn names_are_the_documented_bytes() {
        let name = from_entries([("CN", "my-device")]).unwrap();
        assert_eq!(hex(&name), "30143112301006035504030c096d792d646576696365");
        let name = from_entries([("CN", "my-device"), ("L", "AQ"), ("ST", "Antarctica")]).unwrap();
        assert_eq!(
            hex(&name),
            "30363112301006035504030c096d792d646576696365310b300906035504070c0241513113301106035504080c0a416e74617263746963\
             61"
        );
    }

    #[test]
    fn each_attribute_has_its_string_type() {
        const PRINTABLE: u8 = 0x13;
        const UTF8: u8 = 0x0c;
        const IA5: u8 = 0x16;
        for (attribute, value, kind) in [
            ("2.5.4.5", "7", PRINTABLE),
            ("serialNumber", "7", PRINTABLE),
            ("C", "AQ", PRINTABLE),
            ("dnQualifier", "q", PRINTABLE),
            ("commonName", "n", UTF8),
            ("O", "n", UTF8),
            ("OU", "n", UTF8),
            ("emailAddress", "a@b", IA5),
            ("DC", "example", IA5),
            ("SN", "n", UTF8),
            ("GN", "n", UTF8),
            ("initials", "n", UTF8),
            ("street", "n", UTF8),
            ("title", "n", UTF8),
            ("UID", "n", UTF8),
        ] {
            let name = from_entries([(attribute, value)]).unwrap();
            let bytes = name.to_der().unwrap();
            assert_eq!(bytes[bytes.len() - value.len() - 2], kind, "{attribute}");
        }
    }

    #[test]
    fn unfit_entries_are_named() {
        let (long, longer) = ("x".repeat(65), "x".repeat(129));
        for (attribute, value) in [
            ("cn", "x"),
            ("", "x"),
            ("C\0N", "x"),
            ("CN", ""),
            ("CN", &long),
            ("L", &longer),
            ("C", "A"),
            ("serialNumber", "ü"),
        ] {
            let error = from_entries([("O", "fine"), (attribute, value)]).unwrap_err();
            assert!(error.to_string().contains(attribute), "{error}");
        }
        assert!(from_entries([("L", long.as_str())]).is_ok());
        assert_eq!(hex(&from_entries([]).unwrap()), "3000");
    }
}
