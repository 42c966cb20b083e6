//! Where in a TOML text a key stands.

use toml::de::{DeTable, DeValue};

/// A line and a column, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// A text and its keys.
pub struct Positions<'t> {
    text: &'t str,
    root: Option<DeTable<'t>>,
}

impl<'t> Positions<'t> {
    /// The keys of `text`; none if it is no TOML.
    #[must_use]
    pub fn new(text: &'t str) -> Self {
        let root = DeTable::parse(text).ok().map(toml::Spanned::into_inner);
        Self { text, root }
    }

    /// The keys at the top, in byte order.
    #[must_use]
    pub fn top_level_keys(&self) -> Vec<String> {
        self.root.iter().flat_map(DeTable::keys).map(|key| key.get_ref().to_string()).collect()
    }

    /// Where the key at the end of `key_path` stands, or else the last one before it that the text has.
    #[must_use]
    pub fn find(&self, key_path: &[String]) -> Option<Position> {
        let mut table = self.root.as_ref()?;
        let mut found = None;
        for key in key_path {
            let Some((key, value)) = table.iter().find(|(name, _)| name.get_ref() == key) else { break };
            found = Some(key.span().start);
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        let before = &self.text[..found?];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Some(Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_every_spelling_of_a_table() {
        let text = "a = 1\n[t.u]\nb = 1\nc.d = { 'é' = 1, f = 2 }\n";
        let positions = Positions::new(text);
        let find = |path: &str| {
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            positions.find(&path).map(|position| (position.line, position.column))
        };
        assert_eq!(find("a"), Some((1, 1)));
        assert_eq!(find("t.u.b"), Some((3, 1)));
        assert_eq!(find("t.u.c.d.f"), Some((4, 18)));
        assert_eq!(find("t.u.missing"), Some((2, 4)));
        assert_eq!(find("missing"), None);
        assert_eq!(positions.top_level_keys(), ["a", "t"]);
        assert_eq!(Positions::new("= 1").find(&["a".to_owned()]), None);
    }
}
