//! The text of one config file, and the part of it that an error or warning shows.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::secret;

/// An excerpt is not wider than this many characters, unless it must be to show the place.
const WIDEST: usize = 160;

/// One config file. `Debug` shows its path only.
pub(crate) struct Document {
    path: PathBuf,
    text: String,
    scalars: Vec<Scalar>,
}

/// A value in a document that is neither table nor array.
pub(crate) struct Scalar {
    span: Range<usize>,
    secret: bool,
    /// The value itself, if it is a string.
    string: Option<String>,
}

/// Which value an excerpt may show, unless it is a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Show {
    /// The one that is pointed at.
    Pointed,
    /// The one of the key that is pointed at.
    ValueOfKey,
    /// None, and nothing else behind the key that is pointed at.
    KeyAlone,
}

impl Document {
    /// The document `text` with these values in it.
    pub(crate) fn new(path: PathBuf, text: String, scalars: Vec<Scalar>) -> Document {
        Document { path, text, scalars }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where `span` is, with its line. Other values than the one to show may be secrets under a misspelled name, so
    /// of strings only that one is shown.
    pub(crate) fn place(&self, span: &Range<usize>, show: Show) -> Place {
        let is_shown = |scalar: &Scalar| match show {
            Show::Pointed => scalar.span == *span,
            Show::ValueOfKey => self.text.get(span.end..scalar.span.start).is_some_and(|between| between.trim() == "="),
            Show::KeyAlone => false,
        };
        let hides = |scalar: &&Scalar| scalar.secret || (scalar.string.is_some() && !is_shown(scalar));
        let mut hidden: Vec<_> = self.scalars.iter().filter(hides).map(|scalar| scalar.span.clone()).collect();
        if show == Show::KeyAlone {
            // First, so that what stands behind the key is one gap and not several.
            hidden.insert(0, self.rest_after_key(span.end));
        }
        // A comment may hold an old secret.
        let is_comment = |index| {
            self.text[index..].starts_with('#') && !self.scalars.iter().any(|scalar| scalar.span.contains(&index))
        };
        place(&self.path, &self.text, span, &hidden, is_comment)
    }

    /// The rest of the line behind the equals sign after a key that ends at `index`; nothing in a table header, where
    /// only keys follow.
    fn rest_after_key(&self, index: usize) -> Range<usize> {
        let line = line_around(&self.text, index);
        if self.text[line.clone()].trim_start().starts_with('[') {
            return index..index;
        }
        let rest = &self.text[index..line.end];
        let value = rest.find('=').map_or(0, |equals| equals + 1);
        let blanks = rest[value..].len() - rest[value..].trim_start().len();
        index + value + blanks..line.end
    }

    /// `message` without the secrets of this document; a message of a conversion may quote what it could not convert.
    pub(crate) fn without_secrets(&self, mut message: String) -> String {
        let strings = self.scalars.iter().filter(|scalar| scalar.secret).filter_map(|scalar| scalar.string.as_deref());
        // Replacing one or two letters would hide nothing but the sense of the message.
        for secret in strings.filter(|secret| secret.len() > 2) {
            if message.contains(secret) {
                message = message.replace(secret, "…");
            }
        }
        message
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Document").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The values in a document, in the order in which they stand there.
pub(crate) fn scalars(table: &DeTable<'_>) -> Vec<Scalar> {
    let mut scalars = Vec::new();
    collect_scalars(table, false, &mut scalars);
    scalars.sort_by_key(|scalar| scalar.span.start);
    scalars
}

fn collect_scalars(table: &DeTable<'_>, secret: bool, scalars: &mut Vec<Scalar>) {
    for (key, value) in table {
        let secret = secret || secret::is_secret_name(key.get_ref());
        collect_from_value(value.get_ref(), value.span(), secret, scalars);
    }
}

fn collect_from_value(value: &DeValue<'_>, span: Range<usize>, secret: bool, scalars: &mut Vec<Scalar>) {
    match value {
        DeValue::Table(table) => collect_scalars(table, secret, scalars),
        DeValue::Array(array) => {
            for element in array {
                collect_from_value(element.get_ref(), element.span(), secret, scalars);
            }
        }
        DeValue::String(string) => {
            let secret = secret || secret::has_secret(string);
            scalars.push(Scalar { span, secret, string: Some(string.to_string()) });
        }
        _ => scalars.push(Scalar { span, secret, string: None }),
    }
}

/// The place of a syntax error in a text that has no tree; see [`secret::presentable_prefix`] for what is shown of
/// the line.
pub(crate) fn place_without_tree(path: &Path, text: &str, span: &Range<usize>) -> Place {
    let line = line_around(text, span.start);
    let shown = secret::presentable_prefix(&text[..line.start], &text[line.clone()]);
    let rest = line.start + shown..line.end;
    place(path, text, span, &[rest], |_| false)
}

fn place(
    path: &Path,
    text: &str,
    span: &Range<usize>,
    hidden: &[Range<usize>],
    is_comment: impl Fn(usize) -> bool,
) -> Place {
    let line = line_around(text, span.start);
    let start = span.start.clamp(line.start, line.end);
    let column = text[line.start..start].chars().count() + 1;
    let number = text[..line.start].matches('\n').count() + 1;

    let mut shown = String::new();
    let mut width = 0;
    let mut caret: Option<Range<usize>> = None;
    let mut last_hidden = None;
    for (offset, character) in text[line.clone()].char_indices() {
        let index = line.start + offset;
        let too_wide = width >= WIDEST && caret.as_ref().is_some_and(|caret| width >= caret.start + WIDEST / 4);
        if too_wide || is_comment(index) {
            break;
        }
        match hidden.iter().position(|range| range.contains(&index)) {
            Some(range) if last_hidden == Some(range) => {}
            Some(range) => {
                last_hidden = Some(range);
                shown.push('…');
                width += 1;
            }
            None => {
                // A caret below a tab would stand anywhere; other control characters may command the terminal.
                shown.push(if character.is_control() { ' ' } else { character });
                width += 1;
            }
        }
        if (start..span.end.max(start + 1)).contains(&index) {
            let here = width - 1;
            caret = Some(caret.map_or(here, |caret| caret.start)..width);
        }
    }
    let shown = shown.trim_end().to_owned();
    let widest = shown.chars().count();
    // At the end of a line, or in a part that is not shown, the caret stands behind what is.
    let caret = caret.filter(|caret| caret.start < widest).unwrap_or(widest..widest + 1);
    let caret = caret.start..caret.end.min(widest).max(caret.start + 1);
    Place { file: path.to_owned(), position: Some(Position { line: number, column, shown, caret }) }
}

fn line_around(text: &str, index: usize) -> Range<usize> {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    let start = text[..index].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[index..].find('\n').map_or(text.len(), |newline| index + newline);
    start..end
}

/// A file and, where there is one, a position in it with the line that stands there. Holds nothing secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) position: Option<Position>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Position {
    /// Counted from 1.
    pub(crate) line: usize,
    /// In characters, counted from 1.
    pub(crate) column: usize,
    shown: String,
    /// Characters of `shown` to point at, counted from 0.
    caret: Range<usize>,
}

impl Place {
    /// A file as a whole.
    pub(crate) fn whole(file: &Path) -> Place {
        Place { file: file.to_owned(), position: None }
    }

    /// Writes the line with carets below and `label` after them, each on a line of its own that starts with a newline.
    pub(crate) fn write_excerpt(&self, formatter: &mut fmt::Formatter<'_>, label: &str) -> fmt::Result {
        let Some(Position { line, shown, caret, .. }) = &self.position else { return Ok(()) };
        let margin = line.to_string().len().max(5);
        let blanks = caret.start;
        let carets = "^".repeat(caret.len());
        write!(formatter, "\n{line:>margin$} | {shown}\n{:margin$} | {:blanks$}{carets}", "", "")?;
        if label.is_empty() { Ok(()) } else { write!(formatter, " {label}") }
    }
}

/// Prints `file:line:column`.
impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        match &self.position {
            Some(Position { line, column, .. }) => write!(formatter, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(text: &str, part: &str, show: Show) -> String {
        struct Excerpt(Place);
        impl fmt::Display for Excerpt {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write_excerpt(formatter, "")
            }
        }
        let span = |part: &str| {
            let start = text.find(part).unwrap();
            start..start + part.len()
        };
        let table = DeTable::parse(text).unwrap();
        let document = Document::new("f".into(), text.to_owned(), scalars(table.get_ref()));
        Excerpt(document.place(&span(part), show)).to_string()
    }

    #[test]
    fn the_caret_stands_below_the_place() {
        for (text, part, expected) in [
            ("a = 1\nname = 'x'\n", "'x'", "\n    2 | name = 'x'\n      |        ^^^"),
            ("n = 'Größe'", "'Größe'", "\n    1 | n = 'Größe'\n      |     ^^^^^^^"),
            ("\tn\t= 1", "1", "\n    1 |  n = 1\n      |      ^"),
        ] {
            assert_eq!(excerpt(text, part, Show::Pointed), expected);
        }
    }

    #[test]
    fn secrets_and_comments_are_left_out() {
        for (text, part, show, shown) in [
            ("value = 'abc' # old: 'def'", "value", Show::ValueOfKey, "value = …"),
            ("a = { value = 'abc', b = 1 }", "1", Show::Pointed, "a = { value = …, b = 1 }"),
            ("pin = 1234", "1234", Show::Pointed, "pin = …"),
            (
                "symmetric_key = { x = 'abc', y = ['d', 'e'] }",
                "x",
                Show::ValueOfKey,
                "symmetric_key = { x = …, y = […, …] }",
            ),
            ("value = '''abc\ndef'''", "value", Show::ValueOfKey, "value = …"),
            ("x = [{ value = '''abc\ndef''', b = 2 }]", "2", Show::Pointed, "…, b = 2 }]"),
            ("uri = 'pkcs11:a?pin-value=1'", "uri", Show::ValueOfKey, "uri = …"),
            ("a = 'x # y' # z", "a", Show::ValueOfKey, "a = 'x # y'"),
            ("a = 'x # y' # z", "a", Show::KeyAlone, "a = …"),
            ("a.b = 1", "a", Show::KeyAlone, "a.b = …"),
            ("[a.b]", "a", Show::KeyAlone, "[a.b]"),
            ("t = { a = 'b', valeu = 'abc', n = 1 }", "a =", Show::Pointed, "t = { a = …, valeu = …, n = 1 }"),
            ("t = { aa = 'b', valeu = 'abc' }", "aa", Show::ValueOfKey, "t = { aa = 'b', valeu = … }"),
        ] {
            let excerpt = excerpt(text, part, show);
            assert_eq!(excerpt.lines().nth(1).unwrap().split_once("| ").unwrap().1, shown, "{text}");
        }
    }

    #[test]
    fn a_long_line_is_cut_behind_the_place() {
        let text = format!("a = '{}'", "x".repeat(5000));
        assert!(excerpt(&text, "a", Show::ValueOfKey).len() < 2 * WIDEST);
    }

    #[test]
    fn messages_lose_the_secrets() {
        let text = "value = \"a\\\"bc\"\nhub = 'h.net'";
        let document = Document::new("f".into(), text.to_owned(), scalars(DeTable::parse(text).unwrap().get_ref()));
        assert_eq!(document.without_secrets("bad \"a\"bc\" for h.net".into()), "bad \"…\" for h.net");
        assert_eq!(format!("{document:?}"), r#"Document { path: "f", .. }"#);
    }
}
