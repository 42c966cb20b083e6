//! Names of images, as far as the runtime must understand them: whether they can stand in a path, and which tag they mean.

use std::{borrow::Cow, fmt};

/// A name under which an image is asked for: `registry.example:5000/folder/name:tag`, `name@sha256:…`, or an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference(String);

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadReference {
    /// Nothing.
    #[error("the image has no name")]
    Blank,
    /// Something that no registry has, and that would lead to another call of the engine's API.
    #[error("{0:?} is no name of an image")]
    Form(String),
}

impl Reference {
    /// Takes what can be a name. The engine knows the exact rules.
    pub(crate) fn new(text: &str) -> Result<Self, BadReference> {
        if text.trim().is_empty() {
            return Err(BadReference::Blank);
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@+[]".contains(&byte);
        let component = |part: &str| !matches!(part, "" | "." | "..");
        if text.bytes().all(allowed) && text.split('/').all(component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadReference::Form(text.to_owned()))
        }
    }

    /// As it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// With the tag that it means when it says none. Without one the engine would pull every tag of the repository.
    pub(crate) fn with_tag(&self) -> Cow<'_, str> {
        let last = self.0.rsplit('/').next().unwrap_or_default();
        if last.contains([':', '@']) { Cow::Borrowed(&self.0) } else { Cow::Owned(format!("{}:latest", self.0)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_added_only_where_none_and_no_digest_is() {
        for (text, expected) in [
            ("sensor", "sensor:latest"),
            ("sensor:1", "sensor:1"),
            ("host:5000/sensor", "host:5000/sensor:latest"),
            ("host:5000/a/b/sensor:1", "host:5000/a/b/sensor:1"),
            ("[::1]:5000/sensor", "[::1]:5000/sensor:latest"),
            ("sensor@sha256:00", "sensor@sha256:00"),
            ("sha256:00", "sha256:00"),
        ] {
            assert_eq!(Reference::new(text).unwrap().with_tag(), expected);
        }
    }

    #[test]
    fn what_would_reach_another_call_is_no_name() {
        assert_eq!(Reference::new("  "), Err(BadReference::Blank));
        for text in
            ["../containers/x", "a/../b", "/a", "a//b", "a?force=1", "a#b", "a%2e", "a b", "a\n", "é", "a/", "."]
        {
            assert!(matches!(Reference::new(text), Err(BadReference::Form(_))), "{text}");
        }
    }
}
