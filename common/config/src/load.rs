//! From files to a checked config: parse each, merge, read into the type, and gather what is odd.

use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

use crate::deserializer::{Reading, Unknown};
use crate::document::{self, Document, Place, Show};
use crate::error::{Error, Problem};
use crate::failure::{Failure, Reason};
use crate::finding::{Finding, Oddity};
use crate::merge::{Duplicate, merge};
use crate::secret::is_secret_name;
use crate::sources::{self, Files, Sources};
use crate::suggestion::nearest;
use crate::tree::{self, Kind, Origin, Table, TooLarge, Value};
use crate::unread::unread;

/// A config and what is odd about it.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The config.
    pub value: T,
    /// In the order of files and lines.
    pub findings: Vec<Finding>,
}

/// Reads and merges a service's config. Blocks on files.
pub fn load<T: DeserializeOwned>(sources: &Sources) -> Result<Loaded<T>, Error> {
    let Files { files, skipped } = sources::read(sources)?;
    let mut merged = Merged::new(&sources.main);
    merged.findings = skipped;
    for (path, bytes) in files {
        merged.add(&path, bytes)?;
    }
    merged.read()
}

/// Reads the config in one file, which must be there. Blocks on the file.
pub fn load_file<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<Loaded<T>, Error> {
    let path = path.as_ref();
    let bytes = sources::read_file(path).map_err(|error| Error::io(path, error))?;
    let mut merged = Merged::new(path);
    merged.add(path, bytes)?;
    merged.read()
}

/// Reads the config in `text`; errors and findings call it `path`.
pub fn load_str<T: DeserializeOwned>(path: impl AsRef<Path>, text: &str) -> Result<Loaded<T>, Error> {
    let path = path.as_ref();
    let mut merged = Merged::new(path);
    merged.add(path, text.as_bytes().to_owned())?;
    merged.read()
}

/// A mistake that a service finds only after [`load`]: `message`, at the key that `key_path` leads to, one name per table. The files are
/// read once more to find the place; it is the main file as a whole if the key is in none of them.
///
/// The value is not shown, as only the service knows whether it is a secret. Blocks on files.
#[must_use]
pub fn problem_at(sources: &Sources, key_path: &[&str], message: impl fmt::Display) -> Problem {
    let mut merged = Merged::new(&sources.main);
    if let Ok(Files { files, .. }) = sources::read(sources) {
        for (path, bytes) in files {
            // They could be read a moment ago; of one that cannot any more the place is lost, and the mistake is not.
            let _ = merged.add(&path, bytes);
        }
    }
    let place = match merged.key(key_path) {
        Some(key) => merged.document(key.document).place(&key.span, Show::KeyAlone),
        None => Place::whole(&sources.main),
    };
    Problem { place, message: message.to_string(), label: String::new() }
}

/// The files read so far as one tree.
struct Merged {
    /// Stands for the whole in an error when there is no file at all.
    main: Document,
    documents: Vec<Document>,
    root: Table,
    findings: Vec<Finding>,
}

impl Merged {
    fn new(main: &Path) -> Merged {
        Merged {
            main: Document::new(main.to_owned(), String::new(), Vec::new()),
            documents: Vec::new(),
            root: Table::new(),
            findings: Vec::new(),
        }
    }

    fn add(&mut self, path: &Path, bytes: Vec<u8>) -> Result<(), Error> {
        let text = String::from_utf8(bytes).map_err(|error| not_utf8(path, error.as_bytes(), error.utf8_error()))?;
        let table = DeTable::parse(&text).map_err(|error| not_toml(path, &text, &error))?;
        let number = self.documents.len();
        let tree = tree::table(number, table.get_ref());
        let scalars = document::scalars(table.get_ref());
        let document = Document::new(path.to_owned(), text, scalars);
        let tree = tree.map_err(|TooLarge(origin)| Problem {
            place: document.place(&origin.span, Show::Pointed),
            message: "the number is too large".to_owned(),
            label: String::new(),
        })?;
        self.documents.push(document);
        for Duplicate { key_path, element, earlier } in merge(&mut self.root, tree) {
            let place = self.place(&element);
            let earlier = self.place(&earlier).to_string();
            self.findings.push(Finding { place, oddity: Oddity::DuplicateElement { key_path, earlier } });
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(mut self) -> Result<Loaded<T>, Error> {
        let root =
            Value { origin: Origin { document: 0, span: 0..0 }, kind: Kind::Table(std::mem::take(&mut self.root)) };
        let reading = Reading::default();
        let value = reading.read::<T>(&root).map_err(|failure| self.problem(&failure))?;
        let (mut unknown, buffered) = reading.into_unknown_and_buffered();
        unknown.extend(unread::<T>(&root, buffered));
        let unknown: Vec<Finding> = unknown.iter().map(|unknown| self.finding(unknown)).collect();
        self.findings.extend(unknown);
        let order = |finding: &Finding| {
            let file = &finding.place.file;
            let document = self.documents.iter().position(|document| document.path() == file);
            (document, file.clone(), finding.line_and_column())
        };
        self.findings.sort_by_cached_key(order);
        Ok(Loaded { value, findings: self.findings })
    }

    fn key(&self, key_path: &[&str]) -> Option<&Origin> {
        let (last, tables) = key_path.split_last()?;
        let table = tables.iter().try_fold(&self.root, |table, key| match &table.get(*key)?.value.kind {
            Kind::Table(table) => Some(table),
            _ => None,
        })?;
        table.get(*last).map(|entry| &entry.key)
    }

    fn document(&self, number: usize) -> &Document {
        self.documents.get(number).unwrap_or(&self.main)
    }

    fn place(&self, origin: &Origin) -> Place {
        self.document(origin.document).place(&origin.span, Show::Pointed)
    }

    fn problem(&self, failure: &Failure) -> Problem {
        let place = match failure.place() {
            Some(place) if place.misspelled => {
                // Whether the value is a secret is told by the right name, not by the one that is there.
                let show = if is_hidden(failure) { Show::KeyAlone } else { Show::ValueOfKey };
                self.document(place.origin.document).place(&place.origin.span, show)
            }
            Some(place) if !place.key_path.is_empty() => self.place(&place.origin),
            _ => Place::whole(self.document(0).path()),
        };
        let mut message = failure.to_string();
        for document in &self.documents {
            message = document.without_secrets(message);
        }
        Problem { place, message, label: failure.label() }
    }

    fn finding(&self, unknown: &Unknown<'_>) -> Finding {
        let suggestion = nearest(unknown.key, unknown.known.iter().copied());
        // A misspelled key hides that its value is a secret, so a value is shown only when the right name says it is
        // none.
        let show = match suggestion {
            Some(name) if !is_secret_name(name) => Show::ValueOfKey,
            _ => Show::KeyAlone,
        };
        let key = &unknown.entry.key;
        Finding {
            place: self.document(key.document).place(&key.span, show),
            oddity: Oddity::UnknownKey {
                key_path: unknown.key_path.clone(),
                key: unknown.key.to_owned(),
                table: unknown.table.clone(),
                suggestion: suggestion.map(str::to_owned),
            },
        }
    }
}

fn is_hidden(failure: &Failure) -> bool {
    matches!(failure.reason(), Reason::MissingKey(key) if is_secret_name(key))
}

fn not_utf8(path: &Path, bytes: &[u8], error: std::str::Utf8Error) -> Error {
    let line = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
    let message = format!("line {line} is not valid UTF-8");
    Problem { place: Place::whole(path), message, label: String::new() }.into()
}

fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let place = match error.span() {
        Some(span) => document::place_without_tree(path, text, &span),
        None => Place::whole(path),
    };
    Problem { place, message: format!("TOML parse error: {}", error.message()), label: String::new() }.into()
}
