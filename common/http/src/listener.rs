//! The socket a daemon listens on: handed over by the service manager, or bound here with its mode set before anybody can
//! connect. It is opened before a daemon initializes, so that early callers queue instead of being refused.

use std::{
    env, fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::Endpoint;

/// Connections that wait in the kernel until they are accepted.
const BACKLOG: i32 = 1024;
const SOCKET_MODE: u32 = 0o660;

/// Why a daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// `LISTEN_PID` or `LISTEN_FDS` is no number.
    #[error("the environment variable {name} is not a number: {value:?}")]
    Variable {
        /// Name of the variable.
        name: &'static str,
        /// What it holds.
        value: String,
    },
    /// The endpoint names a descriptor that the service manager did not hand over.
    #[error("no descriptor {0:?} was handed over by the service manager")]
    NoDescriptor(String),
    /// A descriptor was handed over that nobody can connect to.
    #[error("descriptor {0} is not a listening Unix stream socket")]
    NotListening(usize),
    /// Something stands at the socket's path that must not be removed.
    #[error("{} is in the way: it is neither a socket nor an empty directory", .0.display())]
    InTheWay(PathBuf),
    /// Nobody can tell whether the socket is in use; it is left alone.
    #[error("could not tell whether {} is in use", path.display())]
    Unclear {
        /// Path of the socket.
        path: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// Another process serves this socket.
    #[error("another process is listening on {}", .0.display())]
    InUse(PathBuf),
    /// The socket could not be made.
    #[error("could not listen on {}", path.display())]
    Bind {
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Descriptors that the service manager handed to this process (`sd_listen_fds`(3)).
pub struct Activation {
    manager: listenfd::ListenFd,
    names: Vec<String>,
    count: usize,
}

impl Activation {
    /// Reads `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`. Call it first in `main`, before any thread starts: what was
    /// meant for this process is removed, so that no child takes it for its own.
    pub fn from_environment() -> Result<Self, ListenerError> {
        let own = number("LISTEN_PID")?.is_some_and(|pid| pid == u64::from(std::process::id()));
        let count = number("LISTEN_FDS")?.unwrap_or(0);
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let count = if own { usize::try_from(count).unwrap_or(0) } else { 0 };
        // Without an own LISTEN_PID the crate would take the descriptors all the same.
        let manager = if count > 0 { listenfd::ListenFd::from_env() } else { listenfd::ListenFd::empty() };
        Ok(Self { manager, names: names.split(':').map(str::to_owned).collect(), count })
    }

    fn take(&mut self, index: usize) -> Result<UnixListener, ListenerError> {
        let listener = self.manager.take_unix_listener(index).ok().flatten();
        let listener = listener.ok_or(ListenerError::NotListening(index + 3))?;
        let listening = sockopt::socket_acceptconn(&listener).unwrap_or(false);
        if listening { Ok(listener) } else { Err(ListenerError::NotListening(index + 3)) }
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        let index = match name.parse::<usize>() {
            Ok(number) => number.checked_sub(3)?,
            Err(_) => self.names.iter().position(|known| known == name)?,
        };
        (index < self.count).then_some(index)
    }
}

fn number(name: &'static str) -> Result<Option<u64>, ListenerError> {
    match env::var(name) {
        Err(_) => Ok(None),
        Ok(value) => value.parse().map(Some).map_err(|_| ListenerError::Variable { name, value }),
    }
}

/// A socket that callers can already connect to.
#[derive(Debug)]
pub struct Listener {
    pub(crate) listener: UnixListener,
    /// Path, device and inode of a socket bound here, which is removed at the end if it is still ours.
    bound: Option<(PathBuf, u64, u64)>,
}

impl Listener {
    /// A single handed-over descriptor wins, whatever its name; then an `fd://` endpoint; then an own bind.
    pub fn open(endpoint: &Endpoint, mut activation: Activation) -> Result<Self, ListenerError> {
        let index = match endpoint {
            _ if activation.count == 1 => Some(0),
            Endpoint::Descriptor(name) => {
                Some(activation.index_of(name).ok_or_else(|| ListenerError::NoDescriptor(name.clone()))?)
            }
            Endpoint::Unix(_) => None,
        };
        match (index, endpoint) {
            (Some(index), _) => Ok(Self { listener: activation.take(index)?, bound: None }),
            (None, Endpoint::Unix(path)) => Self::bind(path),
            (None, Endpoint::Descriptor(name)) => Err(ListenerError::NoDescriptor(name.clone())),
        }
    }

    /// Binds a socket file of mode 0660 in place of a dead one. Missing parent directories are not made.
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        clear(path)?;
        let bind = || -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket: OwnedFd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
            // Nobody could connect until here.
            net::listen(&socket, BACKLOG)?;
            let metadata = fs::symlink_metadata(path)?;
            Ok(Self { listener: socket.into(), bound: Some((path.to_owned(), metadata.dev(), metadata.ino())) })
        };
        bind().map_err(|source| ListenerError::Bind { path: path.to_owned(), source })
    }
}

fn clear(path: &Path) -> Result<(), ListenerError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let kind = metadata.file_type();
    let removed = if kind.is_socket() {
        match try_connect(path) {
            // Nobody listens.
            Err(Errno::CONNREFUSED) => fs::remove_file(path),
            // Somebody listens, if with a full backlog.
            Ok(()) | Err(Errno::AGAIN) => return Err(ListenerError::InUse(path.to_owned())),
            Err(error) => return Err(ListenerError::Unclear { path: path.to_owned(), source: error.into() }),
        }
    } else if kind.is_dir() {
        fs::remove_dir(path)
    } else {
        return Err(ListenerError::InTheWay(path.to_owned()));
    };
    removed.map_err(|_| ListenerError::InTheWay(path.to_owned()))
}

/// Connects without waiting for a place in a backlog.
fn try_connect(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, device, inode)) = &self.bound else { return };
        if fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (*device, *inode)) {
            // A socket left behind is replaced at the next start.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(Listener::bind(&path), Err(ListenerError::InUse(_))));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_with_a_full_backlog_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("busy.sock");
        let socket = net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        net::listen(&socket, 0).unwrap();
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenerError::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn only_a_socket_or_an_empty_directory_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::File::create(&file).unwrap();
        assert!(matches!(Listener::bind(&file), Err(ListenerError::InTheWay(_))));
        assert!(file.exists());
        let full = folder.path().join("full");
        fs::create_dir_all(full.join("inner")).unwrap();
        assert!(matches!(Listener::bind(&full), Err(ListenerError::InTheWay(_))));
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(Listener::bind(&empty).is_ok());
    }
}
