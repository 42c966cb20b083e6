//! What is odd about a config without being an error: old files must go on working, but a slip must never be silent.

use std::fmt;
use std::path::Path;

use crate::document::Place;
use crate::failure::did_you_mean;

/// Something odd in a config. Prints as a warning with the line and a caret below it; [`Finding::one_line`] is for
/// logs.
///
/// A daemon logs it and goes on; a CLI's `--strict` makes it an error. Secrets are left out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    pub(crate) place: Place,
    pub(crate) oddity: Oddity,
}

/// What is odd.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Oddity {
    /// A key that nothing asks for; it is ignored.
    UnknownKey {
        /// The dotted key: `provisioning.attestation.registraton_id`.
        key_path: String,
        /// The key alone.
        key: String,
        /// Where it stands: `in [provisioning.attestation]`.
        table: String,
        /// The known name that was probably meant.
        suggestion: Option<String>,
    },
    /// An array element that an earlier file has as well. Both count, since arrays of several files add up.
    DuplicateElement {
        /// The dotted key of the array.
        key_path: String,
        /// Where the earlier one stands: `file:line:column`.
        earlier: String,
    },
    /// A file that looks like a drop-in and is not read.
    SkippedDropIn {
        /// Why not, as the end of a sentence.
        reason: &'static str,
    },
}

impl Finding {
    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.place.file
    }

    /// Line, counted from 1, and column in characters, counted from 1; none if the whole file is meant.
    #[must_use]
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        self.place.position.as_ref().map(|position| (position.line, position.column))
    }

    /// What is odd.
    #[must_use]
    pub fn oddity(&self) -> &Oddity {
        &self.oddity
    }

    /// The finding without the excerpt, for a log: `file:line:column: what, did you mean this?`.
    #[must_use]
    pub fn one_line(&self) -> String {
        let label = self.label();
        let comma = if label.is_empty() { "" } else { ", " };
        format!("{}: {}{comma}{label}", self.place, self.oddity)
    }

    fn label(&self) -> String {
        match &self.oddity {
            Oddity::UnknownKey { suggestion: Some(suggestion), .. } => did_you_mean(suggestion),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "warning: {}: {}", self.place, self.oddity)?;
        self.place.write_excerpt(formatter, &self.label())
    }
}

/// Prints what is odd in one line, without the place.
impl fmt::Display for Oddity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Oddity::UnknownKey { key, table, .. } => {
                write!(formatter, "unknown key `{}` {table}", key.escape_debug())
            }
            Oddity::DuplicateElement { key_path, earlier } => {
                write!(formatter, "this element of `{key_path}` is given at {earlier} already, and now counts twice")
            }
            Oddity::SkippedDropIn { reason } => write!(formatter, "this file is not read: {reason}"),
        }
    }
}
