//! The one error of this crate: what was being done, to which path, and why it failed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed. Prints `could not write /path`; the operating system's reason is its source.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} {}", path.display())]
pub struct Error {
    action: Action,
    path: PathBuf,
    source: io::Error,
}

/// What was being done when a file operation failed. Prints as a verb phrase that a path completes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Making the temporary file or filling it. A full disk shows here, or under [`Action::Sync`].
    Write,
    /// Putting new bytes into a file where it lies. The old ones are back, or were never touched.
    Overwrite,
    /// Putting the old bytes back after that failed: the file is damaged.
    Restore,
    /// Giving the new file or folder its owner, which only root may choose freely.
    SetOwner,
    /// Giving the new file or folder its permission bits.
    SetMode,
    /// Waiting until the disk has the bytes.
    Sync,
    /// Giving the finished file its name.
    Rename,
    /// Waiting until the disk has the folder's changed list of names. The change itself is visible already.
    SyncFolder,
    /// Removing a file.
    Remove,
    /// Making a folder.
    CreateDirectory,
    /// Listing a folder.
    List,
    /// Reading a file or what is known about it.
    Read,
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Action::Write => "write",
            Action::Overwrite => "overwrite",
            Action::Restore => "put back the contents of",
            Action::SetOwner => "set the owner of",
            Action::SetMode => "set the permissions of",
            Action::Sync => "sync to disk",
            Action::Rename => "move into place",
            Action::SyncFolder => "sync the folder of",
            Action::Remove => "remove",
            Action::CreateDirectory => "make the folder",
            Action::List => "list the folder",
            Action::Read => "read",
        })
    }
}

impl Error {
    /// For use as `.map_err(Error::at(Action::Write, path))`.
    pub(crate) fn at(action: Action, path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error { action, path: path.to_owned(), source }
    }

    /// What was being done.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// The file or folder that the caller named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of the operating system's error, such as [`io::ErrorKind::StorageFull`].
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The operating system's error alone, for a caller whose own error names the path.
    #[must_use]
    pub fn into_source(self) -> io::Error {
        self.source
    }

    /// Whether the file or folder was not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == io::ErrorKind::NotFound
    }
}
