//! What there is to say about a super-config: a slip, or something that works but may not be meant.
//!
//! A finding names the key it is about; where that stands in the file is looked up when findings are shown.

use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know; never an error, not even under `--strict`.
    Note,
    /// The file can be applied, but probably not as meant. An error under `--strict`.
    Warning,
    /// The file cannot be applied.
    Error,
}

impl Severity {
    /// The word that stands before a message.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing to say about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Keys from the top of the file down to the one that this is about.
    pub key_path: Vec<String>,
    /// What is the matter, without any secret.
    pub message: String,
}

/// Findings in the order in which they were made.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Adds something good to know.
    pub fn note(&mut self, key_path: &[&str], message: impl Into<String>) {
        self.add(Severity::Note, key_path, message.into());
    }

    /// Adds something that is probably not meant.
    pub fn warn(&mut self, key_path: &[&str], message: impl Into<String>) {
        self.add(Severity::Warning, key_path, message.into());
    }

    /// Adds something that makes the file unusable.
    pub fn error(&mut self, key_path: &[&str], message: impl Into<String>) {
        self.add(Severity::Error, key_path, message.into());
    }

    /// The value, or nothing and an error about the key.
    pub fn value<T, E: fmt::Display>(&mut self, key_path: &[&str], result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.error(key_path, error.to_string())).ok()
    }

    /// Whether anything makes the file unusable.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    fn add(&mut self, severity: Severity, key_path: &[&str], message: String) {
        let key_path = key_path.iter().map(|&key| key.to_owned()).collect();
        self.0.push(Finding { severity, key_path, message });
    }
}
