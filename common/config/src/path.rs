//! The keys that lead to a value, as a chain of borrowed names while the tree is walked and as text in messages.

use std::fmt::{self, Write};

/// The way from the top of the document to a value. Elements of arrays add nothing to it.
#[derive(Clone, Copy)]
pub(crate) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    key: &'p str,
    element: bool,
}

impl Path<'static> {
    /// The top of the document.
    pub(crate) const ROOT: &'static Path<'static> = &Path { parent: None, key: "", element: false };
}

impl<'p> Path<'p> {
    pub(crate) fn child<'c>(&'c self, key: &'c str) -> Path<'c>
    where
        'p: 'c,
    {
        Path { parent: Some(self), key, element: false }
    }

    /// The way to an element of the array here.
    pub(crate) fn element(&self) -> Path<'p> {
        Path { element: true, ..*self }
    }

    /// The way to what holds this value.
    pub(crate) fn parent(&self) -> &Path<'p> {
        self.parent.unwrap_or(self)
    }

    /// `in [a.b]`, `in [[a.b]]`, or that it is the top.
    pub(crate) fn as_table(&self) -> String {
        match (self.parent, self.element) {
            (None, _) => "at the top level".to_owned(),
            (Some(_), false) => format!("in [{self}]"),
            (Some(_), true) => format!("in [[{self}]]"),
        }
    }
}

/// Prints the dotted key, quoted where TOML wants quotes: `provisioning.attestation`. Empty at the top.
impl fmt::Display for Path<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        if parent.parent.is_some() {
            write!(formatter, "{parent}.")?;
        }
        write_key(formatter, self.key)
    }
}

fn write_key(formatter: &mut fmt::Formatter<'_>, key: &str) -> fmt::Result {
    if !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
        return formatter.write_str(key);
    }
    formatter.write_char('"')?;
    write!(formatter, "{}", key.escape_debug())?;
    formatter.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_dotted_and_quoted_when_needed() {
        let top = Path::ROOT;
        let table = top.child("provisioning");
        let key = table.child("a b\n");
        assert_eq!(key.to_string(), r#"provisioning."a b\n""#);
        assert_eq!((top.as_table(), key.parent().as_table()), ("at the top level".into(), "in [provisioning]".into()));
        assert_eq!(table.element().as_table(), "in [[provisioning]]");
        assert_eq!(top.to_string(), "");
    }
}
