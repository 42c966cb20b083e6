//! Key files: read, written, renamed and removed. What may be done to which key is decided in `keys`.
//!
//! Writing is left to `aziot_files`: whole or not at all, mode 0600, on disk when the call returns. Files of the public system
//! have mode 0644; they are used as they are, with a warning.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aziot_files::{Action, Created, Mode};
use aziot_log::fields;
use zeroize::Zeroizing;

use crate::cache::{Cache, Stamp};
use crate::content::Content;
use crate::error::Failure;
use crate::location::FileLocation;

/// More than any key; a request body cannot carry as much.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Bytes of a file whose key stays in memory: the largest RSA key that OpenSSL takes. All that stay take 20 megabytes for each processor at the
/// worst, and rarely more than some hundred kilobytes.
const LARGEST_KEPT: usize = 16 * 1024;

/// How old an unfinished file is before nobody can be writing it any more: a disk may take its time, but not that much.
pub const LEFTOVER_AGE: Duration = Duration::from_secs(300);

/// Who has written a file that is read.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Writer {
    Anybody,
    /// This library, a moment ago, as a new file under the old name.
    Ourselves,
}

/// When the file of a key must have been seen.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Look {
    /// For whoever asks whether it is there.
    Now,
    /// For whoever uses it: one that was there a moment ago will do.
    AMomentAgo,
}

pub(crate) struct Store {
    folder: Option<PathBuf>,
    cache: Cache,
}

impl Store {
    /// `folder` is where the keys lie that are not preloaded.
    pub(crate) fn new(folder: Option<&Path>) -> Store {
        Store { folder: folder.map(Path::to_owned), cache: Cache::default() }
    }

    /// The key at `location`, `None` if nothing is there.
    pub(crate) fn load(&self, look: Look, location: &FileLocation) -> Result<Option<Arc<Content>>, Failure> {
        if look == Look::AMomentAgo
            && let Some(content) = self.cache.get_just_seen(&location.path)
        {
            return Ok(Some(content));
        }
        self.read(&location.path, Writer::Anybody)
    }

    fn read(&self, path: &Path, writer: Writer) -> Result<Option<Arc<Content>>, Failure> {
        let looked_at = SystemTime::now();
        let Some(stamp) = stamp(path)? else {
            self.cache.forget(path);
            return Ok(None);
        };
        if let Some(content) = self.cache.get(path, stamp) {
            return Ok(Some(content));
        }
        let bytes = match aziot_files::read_limited(path, LARGEST_FILE) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if bytes.is_empty() {
            return Err(Failure::Empty { path: path.to_owned() });
        }
        // A file that vanished since is no matter for a warning.
        if let Ok(Some(warning)) = aziot_files::mode_warning(path) {
            tracing::warn!("{warning}");
        }
        let is_small = bytes.len() <= LARGEST_KEPT;
        let content = Arc::new(Content::parse(bytes));
        // Nobody else knows of a file that was new a moment ago, let alone writes to it.
        if is_small && (writer == Writer::Ourselves || stamp.is_settled(looked_at)) {
            self.cache.put(path, stamp, &content);
        } else {
            self.cache.forget(path);
        }
        Ok(Some(content))
    }

    /// Keeps what was written just now. What is wrong with it is told to whoever uses it.
    fn read_back(&self, path: &Path) {
        let _ = self.read(path, Writer::Ourselves);
    }

    /// Whether the key is in memory and such a one: [`Store::load`] then looks at its file's times and reads it only if they have changed.
    pub(crate) fn is_ready(&self, location: &FileLocation, is_such: impl FnOnce(&Content) -> bool) -> bool {
        self.cache.has_such(&location.path, is_such)
    }

    /// Puts a new key where nothing is. A file of no bytes counts as nothing unless it is preloaded; a crash of the public system leaves such files.
    pub(crate) fn create(&self, location: &FileLocation, bytes: &[u8]) -> Result<Created, Failure> {
        let path = &location.path;
        self.make_folder(location)?;
        let mut created = aziot_files::write_new(path, Mode::PRIVATE, bytes)?;
        if created == Created::AlreadyThere && !location.preloaded && is_empty_file(path) {
            tracing::warn!({ fields::FILE } = %path.display(), "the key file is empty, as a crash while it was written leaves it; making a new key in its place");
            aziot_files::write(path, Mode::PRIVATE, bytes)?;
            created = Created::New;
        }
        if created == Created::New {
            self.read_back(path);
        }
        Ok(created)
    }

    /// Puts a key at `location`, over what is there.
    pub(crate) fn replace(&self, location: &FileLocation, bytes: &[u8]) -> Result<(), Failure> {
        self.make_folder(location)?;
        aziot_files::write(&location.path, Mode::PRIVATE, bytes)?;
        self.read_back(&location.path);
        Ok(())
    }

    /// Removes the key; tells whether it was there.
    pub(crate) fn remove(&self, location: &FileLocation) -> Result<bool, Failure> {
        let removed = aziot_files::remove(&location.path)?;
        self.cache.forget(&location.path);
        Ok(removed)
    }

    /// Gives a key the place of another, in one step.
    pub(crate) fn rename(&self, from: &FileLocation, to: &FileLocation) -> Result<(), Failure> {
        aziot_files::rename(&from.path, &to.path)?;
        self.cache.forget(&from.path);
        self.cache.forget(&to.path);
        Ok(())
    }

    /// A preloaded key's folder is the operator's and must exist.
    fn make_folder(&self, location: &FileLocation) -> Result<(), Failure> {
        if let Some(folder) = self.folder.as_ref().filter(|_| !location.preloaded) {
            // New or there already: both are what is wanted.
            let _ = aziot_files::create_directory(folder, Mode::PRIVATE_DIRECTORY)?;
        }
        Ok(())
    }
}

/// Removes what a crash left of unfinished writes in `folders`. Lists them, which takes its time with thousands of keys.
///
/// `alone` is the folder to which nobody else writes. In the others only what is old goes: it may be another process that is writing.
/// Goes on after an error and returns the first.
pub(crate) fn tidy(folders: &BTreeSet<PathBuf>, alone: Option<&Path>) -> Result<(), aziot_files::Error> {
    let mut outcome = Ok(());
    for folder in folders {
        let age = if alone == Some(folder.as_path()) { Duration::ZERO } else { LEFTOVER_AGE };
        match aziot_files::remove_old_leftovers(folder, age) {
            Ok(0) => {}
            Ok(removed) => {
                tracing::info!({ fields::FILE } = %folder.display(), removed, "removed what a crash left of unfinished key files");
            }
            // An operator's folder, of which only the keys are for us.
            Err(error) if error.kind() == ErrorKind::PermissionDenied && error.action() == Action::List => {}
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// `None` if nothing is at `path`.
fn stamp(path: &Path) -> Result<Option<Stamp>, Failure> {
    match path.metadata() {
        // Opening a pipe would wait for a writer for ever.
        Ok(metadata) if !metadata.is_file() => Err(Failure::NotAFile { path: path.to_owned() }),
        Ok(metadata) => Ok(Some(Stamp::from(&metadata))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Inaccessible { path: path.to_owned(), source }),
    }
}

fn is_empty_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}
