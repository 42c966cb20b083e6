//! Why a value did not fit its type, before it is known to the reader where that was.
//!
//! serde's own messages quote the value; these do not when it is text, since the excerpt shows it unless it is a
//! secret.

use std::fmt;

use serde::de::{Expected, Unexpected};

use crate::path::Path;
use crate::suggestion::nearest;
use crate::tree::Origin;

/// An error on its way up through serde. Boxed: results pass through many frames.
#[derive(Debug)]
pub(crate) struct Failure(Box<Parts>);

#[derive(Debug)]
struct Parts {
    reason: Reason,
    place: Option<FailurePlace>,
}

/// Where it was, known once the innermost value with a place has seen the error.
#[derive(Clone, Debug)]
pub(crate) struct FailurePlace {
    pub(crate) origin: Origin,
    /// The dotted key; empty at the top.
    pub(crate) key_path: String,
    /// The table that holds the key, as in `in [a.b]`; for a missing key the table itself.
    pub(crate) table: String,
    /// A key in the table that may be the missing one, misspelled.
    pub(crate) misspelled: bool,
}

#[derive(Debug)]
pub(crate) enum Reason {
    /// The value is of another type, or out of range.
    Unfit(String),
    /// The value is a word that is none of those known.
    UnknownWord {
        word: String,
        known: &'static [&'static str],
    },
    /// The type refuses unknown keys.
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    MissingKey(String),
    DuplicateKey(&'static str),
    /// What the conversion of a value said.
    Custom(String),
}

impl Failure {
    fn new(reason: Reason) -> Failure {
        Failure(Box::new(Parts { reason, place: None }))
    }

    pub(crate) fn reason(&self) -> &Reason {
        &self.0.reason
    }

    pub(crate) fn place(&self) -> Option<&FailurePlace> {
        self.0.place.as_ref()
    }

    /// With this place, unless a value further in has given its own.
    pub(crate) fn or_at(mut self, origin: &Origin, path: &Path<'_>) -> Failure {
        if self.0.place.is_none() {
            let table = match self.0.reason {
                Reason::MissingKey(_) => path.as_table(),
                _ => path.parent().as_table(),
            };
            let (origin, key_path) = (origin.clone(), path.to_string());
            self.0.place = Some(FailurePlace { origin, key_path, table, misspelled: false });
        }
        self
    }

    /// If a key is missing in the table at `path` and one of `strangers`, keys no one asked for, looks like it, that
    /// is the place.
    pub(crate) fn or_misspelled<'t>(
        mut self,
        path: &Path<'_>,
        strangers: impl Iterator<Item = (&'t str, &'t Origin)>,
    ) -> Failure {
        if let (None, Reason::MissingKey(key)) = (&self.0.place, &self.0.reason) {
            let mut strangers = strangers;
            if let Some((_, origin)) = strangers.find(|(stranger, _)| nearest(stranger, [key.as_str()]).is_some()) {
                let (key_path, table) = (path.child(key).to_string(), path.as_table());
                self.0.place = Some(FailurePlace { origin: origin.clone(), key_path, table, misspelled: true });
            }
        }
        self
    }
}

impl serde::de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Failure {
        Failure::new(Reason::Custom(message.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Failure {
        Failure::new(Reason::Unfit(format!("expected {}, found {}", wanted(expected), type_of(unexpected))))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Failure {
        let found = match unexpected {
            Unexpected::Unsigned(number) => number.to_string(),
            Unexpected::Signed(number) => number.to_string(),
            other => type_of(other).to_owned(),
        };
        Failure::new(Reason::Unfit(format!("expected {}, found {found}", wanted(expected))))
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Failure {
        Failure::new(Reason::Unfit(format!("expected {}, found {length} elements", wanted(expected))))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Failure {
        Failure::new(Reason::UnknownWord { word: variant.to_owned(), known: expected })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Failure {
        Failure::new(Reason::UnknownKey { key: field.to_owned(), known: expected })
    }

    fn missing_field(field: &'static str) -> Failure {
        Failure::new(Reason::MissingKey(field.to_owned()))
    }

    fn duplicate_field(field: &'static str) -> Failure {
        Failure::new(Reason::DuplicateKey(field))
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        match (self.reason(), place) {
            (Reason::MissingKey(key), None) => write!(formatter, "missing key `{key}`"),
            (Reason::MissingKey(key), Some(place)) => write!(formatter, "missing key `{key}` {}", place.table),
            (Reason::UnknownKey { key, .. }, None) => write!(formatter, "unknown key `{key}`"),
            (Reason::UnknownKey { key, .. }, Some(place)) => write!(formatter, "unknown key `{key}` {}", place.table),
            (Reason::DuplicateKey(key), _) => write!(formatter, "`{key}` is given twice, under two of its names"),
            (Reason::UnknownWord { word, known }, place) => {
                write_key_path(formatter, place)?;
                write!(formatter, "unknown value `{}`, expected {}", word.escape_debug(), one_of(known))
            }
            (Reason::Unfit(text) | Reason::Custom(text), place) => {
                write_key_path(formatter, place)?;
                formatter.write_str(text)
            }
        }
    }
}

impl Failure {
    /// What stands behind the caret.
    pub(crate) fn label(&self) -> String {
        let known = match self.reason() {
            Reason::UnknownWord { word, known } => nearest(word, known.iter().copied()),
            Reason::UnknownKey { key, known } => nearest(key, known.iter().copied()),
            Reason::MissingKey(key) if self.place().is_some_and(|place| place.misspelled) => Some(key.as_str()),
            _ => None,
        };
        known.map(did_you_mean).unwrap_or_default()
    }
}

/// The question that ends a caret's line.
pub(crate) fn did_you_mean(name: &str) -> String {
    format!("did you mean `{name}`?")
}

fn write_key_path(formatter: &mut fmt::Formatter<'_>, place: Option<&FailurePlace>) -> fmt::Result {
    match place {
        Some(place) if !place.key_path.is_empty() => write!(formatter, "`{}`: ", place.key_path),
        _ => Ok(()),
    }
}

fn one_of(known: &[&str]) -> String {
    let quoted: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

/// What somebody who writes TOML calls it.
fn type_of(unexpected: Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a floating-point number",
        Unexpected::Char(_) | Unexpected::Str(_) => "a string",
        Unexpected::Seq => "an array",
        Unexpected::Map => "a table",
        _ => "another type",
    }
}

/// serde's name for a type, in the words of somebody who writes TOML.
fn wanted(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    let range = |least: &str, most: &str| format!("a whole number from {least} to {most}");
    match expected.as_str() {
        "u8" => range("0", "255"),
        "u16" => range("0", "65535"),
        "u32" => range("0", "4294967295"),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "a table".to_owned(),
        other if other.starts_with("struct ") || other.starts_with("internally tagged enum ") => "a table".to_owned(),
        other if other.starts_with("enum ") => "a string".to_owned(),
        _ => expected,
    }
}
