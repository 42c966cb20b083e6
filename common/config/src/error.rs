//! Why a config could not be read: the file, and the line and key when it was read but is not right.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::document::Place;

/// The config could not be read. Its sources name the file and then the reason: an [`io::Error`] or a [`Problem`].
#[derive(Debug, thiserror::Error)]
#[error("could not read config")]
pub struct Error {
    source: FileError,
}

/// One file could not be read, parsed or understood.
#[derive(Debug, thiserror::Error)]
#[error("could not read config from {}", path.display())]
pub(crate) struct FileError {
    path: PathBuf,
    source: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Problem(Box<Problem>),
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Error {
        Error { source: FileError { path: path.to_owned(), source: Cause::Io(source) } }
    }

    /// The file or folder that is the trouble.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// The place in the file, unless the file could not be read at all.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match &self.source.source {
            Cause::Problem(problem) => Some(problem),
            Cause::Io(_) => None,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        Error { source: FileError { path: problem.place.file.clone(), source: Cause::Problem(Box::new(problem)) } }
    }
}

/// Something in a config file that is an error. Prints `file:line:column: what`, and below it the line with a caret;
/// secrets are left out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    pub(crate) place: Place,
    pub(crate) message: String,
    pub(crate) label: String,
}

impl Problem {
    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.place.file
    }

    /// Line, counted from 1, and column in characters, counted from 1; none if the whole file is meant, as when a key
    /// is missing at its top level.
    #[must_use]
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        self.place.position.as_ref().map(|position| (position.line, position.column))
    }

    /// What is wrong, in one line, with the key.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)?;
        self.place.write_excerpt(formatter, &self.label)
    }
}

impl std::error::Error for Problem {}
