//! The pattern language of `[[principal]]` tables: `*` any run of characters, `?` exactly one, all else literal.
//!
//! Anchored at both ends, case-sensitive, over Unicode scalar values, without escapes or classes.

use serde::{Deserialize, Serialize};

/// A pattern that ids are matched against. Patterns come from the operator's configuration, never from callers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Glob(String);

impl Glob {
    /// Takes a pattern; every text is one.
    #[must_use]
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `text` matches. Time is at most the product of both lengths.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (mut pattern, mut rest) = (self.0.chars(), text.chars());
        // Where to resume after the last `*`: the pattern behind it, and the text it has not swallowed yet.
        let mut retry = None;
        loop {
            let before_rest = rest.clone();
            match (pattern.next(), rest.next()) {
                (Some('*'), _) => {
                    retry = Some((pattern.clone(), before_rest.clone()));
                    rest = before_rest;
                }
                (Some('?'), Some(_)) => {}
                (Some(wanted), Some(found)) if wanted == found => {}
                (None, None) => return true,
                _ => {
                    let Some((resume, mut swallowed)) = retry.take() else { return false };
                    if swallowed.next().is_none() {
                        return false;
                    }
                    (pattern, rest) = (resume.clone(), swallowed.clone());
                    retry = Some((resume, swallowed));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn matches_as_the_specifications_tables_say() {
        for (pattern, text, expected) in [
            ("allowed", "Allowed", false),
            ("pat-*", "pat-", true),
            ("pat-*", "pat", false),
            ("q?", "qq", true),
            ("q?", "q", false),
            ("q?", "qqq", false),
            ("leaf-*", "leaf-lca", true),
            ("leaf-*", "xleaf-", false),
            ("a?c", "a/c", true),
            ("a?c", "abbc", false),
            ("exact", "exactly", false),
            ("aziot-edged/module/*", "aziot-edged/module/m1:identity", true),
            ("aziot-edged/module/*", "aziot-edged-ca", false),
            ("", "", true),
            ("", "x", false),
            ("*", "", true),
            ("*", "anything at all", true),
            ("*b*c", "abcbc", true),
            ("*b*c", "abcb", false),
            ("a*?", "a", false),
            ("?é", "日é", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn many_stars_stay_cheap() {
        assert!(!Glob::new("*a".repeat(64)).matches(&"a".repeat(63)));
        assert!(Glob::new("*a".repeat(64)).matches(&"a".repeat(64)));
    }
}
