//! Findings with their places, as lines for people and as data for programs.

use std::fmt;
use std::path::Path;

use aziot_config::Oddity;
use serde::Serialize;

use crate::finding::{Finding, Findings, Severity};
use crate::position::Positions;

/// Something to say about a place in a file. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// `note`, `warning` or `error`.
    pub severity: &'static str,
    /// The file.
    pub file: String,
    /// Counted from 1; none if the whole file is meant.
    pub line: Option<usize>,
    /// In characters, counted from 1.
    pub column: Option<usize>,
    /// The dotted key, if one is meant.
    pub key: Option<String>,
    /// What is the matter.
    pub message: String,
    /// The name that was probably meant.
    pub suggestion: Option<String>,
    /// The place, the message and, where there is one, the line with a caret below.
    #[serde(skip)]
    text: String,
}

/// All there is to say about one super-config.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order of making.
    pub remarks: Vec<Remark>,
}

impl Report {
    /// Adds a file that cannot be read into the schema. One that is no TOML is none for any schema, and told once.
    pub fn add_error(&mut self, error: &aziot_config::Error) {
        let (line, column) = error.problem().and_then(aziot_config::Problem::line_and_column).unzip();
        let message = match error.problem() {
            Some(problem) => problem.message().to_owned(),
            None => error.to_string(),
        };
        let text = match error.problem() {
            Some(problem) => problem.to_string(),
            None => format!("{}: {error}", error.path().display()),
        };
        let remark = Remark {
            severity: "error",
            file: error.path().display().to_string(),
            line,
            column,
            key: None,
            message,
            suggestion: None,
            text,
        };
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Adds what is odd about the file's keys.
    pub fn add_oddities(&mut self, findings: &[aziot_config::Finding]) {
        for finding in findings {
            let (line, column) = finding.line_and_column().unzip();
            let (key, suggestion) = match finding.oddity() {
                Oddity::UnknownKey { key_path, suggestion, .. } => (Some(key_path.clone()), suggestion.clone()),
                Oddity::DuplicateElement { key_path, .. } => (Some(key_path.clone()), None),
                _ => (None, None),
            };
            let text = finding.to_string();
            self.remarks.push(Remark {
                severity: "warning",
                file: finding.file().display().to_string(),
                line,
                column,
                key,
                message: finding.oddity().to_string(),
                suggestion,
                text: text.strip_prefix("warning: ").unwrap_or(&text).to_owned(),
            });
        }
    }

    /// Adds what is to be said about the values, in the order of their lines.
    pub fn add_findings(&mut self, file: &Path, positions: &Positions<'_>, findings: Findings) {
        let mut placed: Vec<_> =
            findings.0.into_iter().map(|finding| (positions.find(&finding.key_path), finding)).collect();
        placed.sort_by_key(|(position, _)| *position);
        for (position, Finding { severity, key_path, message }) in placed {
            let file = file.display().to_string();
            let key = dotted(&key_path);
            let place = position.map_or_else(String::new, |position| format!(":{}:{}", position.line, position.column));
            let text = format!("{file}{place}: `{key}`: {message}");
            self.remarks.push(Remark {
                severity: severity.name(),
                file,
                line: position.map(|position| position.line),
                column: position.map(|position| position.column),
                key: Some(key),
                message,
                suggestion: None,
                text,
            });
        }
    }

    /// How many remarks there are of this severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.remarks.iter().filter(|remark| remark.severity == severity.name()).count()
    }
}

/// `severity: file:line:column: what`, with the line below where it is shown.
impl fmt::Display for Remark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.severity, self.text)
    }
}

/// Keys as TOML would write them.
fn dotted(key_path: &[String]) -> String {
    let is_bare = |key: &str| {
        !key.is_empty() && key.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
    };
    let keys =
        key_path.iter().map(|key| if is_bare(key) { key.clone() } else { format!("\"{}\"", key.escape_debug()) });
    keys.collect::<Vec<_>>().join(".")
}
