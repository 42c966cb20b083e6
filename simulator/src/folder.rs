//! The folder in which a simulator keeps everything, and its lock: two simulators on one folder would overwrite each other's state.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aziot_files::Mode;
use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixSocket};

const CONTROL_BACKLOG: u32 = 64;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It, or a file in it, cannot be made or removed.
    #[error("could not use the folder {}", path.display())]
    File {
        /// The folder.
        path: PathBuf,
        /// What could not be done.
        #[source]
        source: aziot_files::Error,
    },
    /// Another simulator has it.
    #[error("another simulator runs in {}", .0.display())]
    InUse(PathBuf),
    /// The lock cannot be taken.
    #[error("could not lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The control socket cannot be opened.
    #[error("could not listen on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system says; a path of more than 107 bytes is too long for a socket.
        #[source]
        source: io::Error,
    },
}

/// A simulator's folder. Dropping it removes `address` and `control.sock`, then lets go of the lock.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder where it is missing, and takes it. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        let file_error = |source| Error::File { path: path.clone(), source };
        // Keys in it are private by their own modes; others may need `ca.pem`.
        let _new_or_not = aziot_files::create_directory(&path, Mode::SHARED_DIRECTORY).map_err(file_error)?;
        let lock_path = path.join("lock");
        let lock_error = |source| Error::Lock { path: lock_path.clone(), source };
        let lock = File::options().create(true).append(true).open(&lock_path).map_err(lock_error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse(path)),
            Err(errno) => return Err(lock_error(errno.into())),
        }
        aziot_files::remove_leftovers(&path).map_err(file_error)?;
        // Of a simulator that was killed: whoever waits for this file must not find the old address.
        aziot_files::remove(path.join("address")).map_err(file_error)?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells others where the simulator listens: `HOST:PORT` and a line feed. Blocks.
    pub(crate) fn write_address(&self, address: &str) -> Result<(), Error> {
        aziot_files::write(self.path.join("address"), Mode::SHARED, format!("{address}\n"))
            .map_err(|source| Error::File { path: self.path.clone(), source })
    }

    /// Opens the control socket, which only its owner may use from the first moment on.
    pub(crate) fn listen(&self) -> Result<UnixListener, Error> {
        let path = self.path.join("control.sock");
        // We hold the lock, so whatever is there is left from a simulator that was killed.
        aziot_files::remove(&path).map_err(|source| Error::File { path: self.path.clone(), source })?;
        let listen = || {
            let socket = UnixSocket::new_stream()?;
            socket.bind(&path)?;
            // Nobody can connect before `listen`.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            socket.listen(CONTROL_BACKLOG)
        };
        listen().map_err(|source| Error::Socket { path: path.clone(), source })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for name in ["address", "control.sock"] {
            if let Err(error) = aziot_files::remove(self.path.join(name)) {
                tracing::debug!(error = %aziot_log::chain(&error), "could not tidy up");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_simulator_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = Folder::open(&path).unwrap();
        first.write_address("localhost:1").unwrap();
        assert!(matches!(Folder::open(&path), Err(Error::InUse(_))));
        drop(first);
        assert!(!path.join("address").exists());
        aziot_files::write(path.join("address"), Mode::SHARED, "of one that was killed").unwrap();
        let _second = Folder::open(&path).unwrap();
        assert!(!path.join("address").exists());
    }
}
