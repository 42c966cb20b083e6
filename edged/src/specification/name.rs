//! Names of modules: they become container names, names of socket files and parts of the engine's URLs, so only what is harmless in all three is one.

use std::fmt;

use super::Invalid;

/// Ends the name of a container that is about to take a module's place. No module's name ends so.
pub(crate) const REPLACEMENT: &str = ".aziot-edged-replacement";
/// Bytes of a name: its socket's file is called so, with five more, and names of files end at 255.
const LIMIT: usize = 250;

/// In the name of a container that has left a module's place and only waits for its removal, before its id.
const RETIRED: &str = ".aziot-edged-retired-";

/// Whether a container's name says that it has left a module's place. No module has such a name.
pub(crate) fn is_retired(name: &str) -> bool {
    name.contains(RETIRED)
}

/// The name of a module: the engine's grammar of container names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(String);

impl Name {
    /// Takes a name: an ASCII letter or digit, then at least one more of those, `_`, `.` or `-`; 250 at most.
    pub(crate) fn new(text: &str) -> Result<Self, Invalid> {
        if text.trim().is_empty() {
            return Err(Invalid::NoName);
        }
        if text.len() > LIMIT {
            return Err(Invalid::LongName);
        }
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if first && rest && text.len() > 1 && !text.ends_with(REPLACEMENT) && !is_retired(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::Name(text.to_owned()))
        }
    }

    /// Takes the name in a path of the management API, where leading `/` count for nothing.
    pub(crate) fn of_path(segment: &str) -> Result<Self, Invalid> {
        Self::new(segment.trim_start_matches('/'))
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the container that is about to take this module's place.
    pub(crate) fn replacement(&self) -> String {
        format!("{}{REPLACEMENT}", self.0)
    }

    /// Name of the container of this id when it has left the module's place. Each has one of its own: more than one may be left.
    pub(crate) fn retired(&self, id: &str) -> String {
        format!("{}{RETIRED}{id}", self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_container_names_are_names() {
        for text in ["edgeAgent", "a1", "0.a_b-c", &"x".repeat(250)] {
            assert_eq!(Name::new(text).unwrap().as_str(), text);
        }
        for text in ["a", "$edgeAgent", "..", "../a", "a/b", "a%2fb", "-a", ".a", "_a", "a b", "aé", "a\0", "a\n"] {
            assert!(matches!(Name::new(text), Err(Invalid::Name(_))), "{text:?}");
        }
        for text in ["", "  ", "\t"] {
            assert!(matches!(Name::new(text), Err(Invalid::NoName)), "{text:?}");
        }
        let error = Name::new(&"x".repeat(251)).unwrap_err();
        assert_eq!(error.to_string(), "module name is longer than 250 characters");
        assert!(Name::new(&Name::new("aa").unwrap().replacement()).is_err());
        assert!(Name::new(&Name::new("aa").unwrap().retired("0123456789abcdef")).is_err());
        assert_eq!(Name::of_path("//aa").unwrap().as_str(), "aa");
        assert!(Name::of_path("//../aa").is_err());
    }
}
