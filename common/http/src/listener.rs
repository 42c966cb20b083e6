//! The socket a daemon listens on: handed over by the service manager, or bound here with its mode set before anybody can
//! connect. It is opened before a daemon initializes, so that early callers queue instead of being refused.

use std::{
    env, fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::{Endpoint, peer::Moment};

/// Connections that wait in the kernel until they are accepted.
const BACKLOG: i32 = 1024;

/// Who may connect to a socket that is bound here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketMode {
    /// 0660: the service's own user, and the members of its group.
    Group,
    /// 0666: everybody who reaches the file.
    Everybody,
}

impl SocketMode {
    const fn bits(self) -> u32 {
        match self {
            Self::Group => 0o660,
            Self::Everybody => 0o666,
        }
    }
}

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
        match name.parse::<usize>() {
            Ok(number) => number.checked_sub(3).filter(|index| *index < self.count),
            Err(_) => self.index_named(name),
        }
    }

    fn index_named(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name).filter(|index| *index < self.count)
    }

    /// Whether there are several descriptors and somebody gave them names.
    fn tells_several_apart(&self) -> bool {
        self.count > 1 && self.names.iter().any(|name| !name.is_empty())
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
    pub(crate) socket: UnixListener,
    /// Nobody connected before.
    pub(crate) since: Moment,
    /// A socket bound here.
    pub(crate) bound: Option<Bound>,
}

/// The file of a socket, which is removed at the end if it is still ours.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
    file: FileId,
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
            (Some(index), _) => Ok(Self::inherited(activation.take(index)?)),
            (None, Endpoint::Unix(path)) => Self::bind(path),
            (None, Endpoint::Descriptor(name)) => Err(ListenerError::NoDescriptor(name.clone())),
        }
    }

    /// One of several sockets of a daemon. The handed-over descriptor called `name` wins over a `unix://` endpoint: socket units stay in place
    /// where an administrator wrote an address into the settings. An `fd://` endpoint names its own descriptor.
    ///
    /// Several descriptors with names of which none is `name` are an error, since somebody meant one of them. Without names, or with a
    /// single descriptor of another name, the endpoint is bound with `mode`.
    pub fn open_named(
        endpoint: &Endpoint,
        activation: &mut Activation,
        name: &str,
        mode: SocketMode,
    ) -> Result<Self, ListenerError> {
        let missing = |name: &str| ListenerError::NoDescriptor(name.to_owned());
        let index = match endpoint {
            Endpoint::Descriptor(own) => activation.index_of(own).ok_or_else(|| missing(own))?,
            Endpoint::Unix(path) => match activation.index_named(name) {
                Some(index) => index,
                None if activation.tells_several_apart() => return Err(missing(name)),
                None => return Self::bind_with(path, mode),
            },
        };
        Ok(Self::inherited(activation.take(index)?))
    }

    fn inherited(socket: UnixListener) -> Self {
        Self { socket, since: Moment::FIRST, bound: None }
    }

    /// Binds a socket file of mode 0660 in place of a dead one, or of an empty directory. Missing parent directories are not made.
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        Self::bind_with(path, SocketMode::Group)
    }

    /// As [`bind`](Self::bind), with another mode.
    pub fn bind_with(path: &Path, mode: SocketMode) -> Result<Self, ListenerError> {
        clear(path)?;
        let bind = || -> io::Result<Self> {
            let since = Moment::now();
            let socket = listen(path, mode)?;
            Ok(Self { socket, since, bound: Some(Bound { path: path.to_owned(), file: FileId::of(path)? }) })
        };
        bind().map_err(|source| ListenerError::Bind { path: path.to_owned(), source })
    }

    /// Binds a socket file over the one that is at the path, alive or dead, so that there always is one, and leaves it there at the end.
    /// Unlike an address, which ends at 107 bytes, the path may be as long as paths may be. Returns which file it is as well: as long as that
    /// is at the path, callers reach this listener.
    pub fn replace(path: &Path, mode: SocketMode) -> Result<(Self, FileId), ListenerError> {
        let replace = || -> io::Result<(Self, FileId)> {
            let (Some(folder), Some(_)) = (path.parent(), path.file_name()) else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file in a folder"));
            };
            let directory =
                rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            // Free: one left by a process that was killed is nobody's.
            let name = format!(".binding-{}", TEMPORARY.fetch_add(1, Ordering::Relaxed));
            let mut temporary = folder.join(&name);
            if SocketAddrUnix::new(&temporary).is_err() {
                // Short, whatever the folder's path.
                temporary = PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
            }
            remove_if_there(&temporary)?;
            let since = Moment::now();
            let socket = listen(&temporary, mode)?;
            let id = FileId::of(&temporary)?;
            fs::rename(&temporary, path).inspect_err(|_| {
                let _ = fs::remove_file(&temporary);
            })?;
            Ok((Self { socket, since, bound: None }, id))
        };
        replace().map_err(|source| ListenerError::Bind { path: path.to_owned(), source })
    }
}

/// Numbers of the names under which sockets are made before they take their places.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

fn listen(path: &Path, mode: SocketMode) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode.bits()))?;
    // Nobody could connect until here.
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file at this path, not what a symbolic link there points to.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
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

impl Drop for Bound {
    fn drop(&mut self) {
        if FileId::of(&self.path).is_ok_and(|now| now == self.file) {
            // A socket left behind is replaced at the next start.
            let _ = fs::remove_file(&self.path);
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

    #[test]
    fn a_socket_for_everybody_has_a_mode_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let _listener = Listener::bind_with(&path, SocketMode::Everybody).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    }

    #[test]
    fn a_replacement_takes_the_place_of_a_live_socket_at_a_path_of_any_length_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(150));
        fs::create_dir(&deep).unwrap();
        let path = deep.join(format!("{}.sock", "n".repeat(128)));
        let (first, first_id) = Listener::replace(&path, SocketMode::Everybody).unwrap();
        let (second, second_id) = Listener::replace(&path, SocketMode::Everybody).unwrap();
        assert_ne!(first_id, second_id);
        assert_eq!(FileId::of(&path).unwrap(), second_id);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        drop((first, second));
        assert_eq!(FileId::of(&path).unwrap(), second_id, "it stays for whoever has it mounted");
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 1, "nothing else is left");
        let missing = folder.path().join("missing/s.sock");
        assert!(matches!(Listener::replace(&missing, SocketMode::Group), Err(ListenerError::Bind { .. })));
    }

    fn activation(names: &str, count: usize) -> Activation {
        let names = names.split(':').map(str::to_owned).collect();
        Activation { manager: listenfd::ListenFd::empty(), names, count }
    }

    #[test]
    fn of_several_sockets_the_name_decides() {
        let folder = tempfile::tempdir().unwrap();
        let unix = |name: &str| Endpoint::Unix(folder.path().join(name));
        let descriptor = |name: &str| Endpoint::Descriptor(name.to_owned());
        let open = |endpoint: &Endpoint, names: &str, count, name: &str| {
            Listener::open_named(endpoint, &mut activation(names, count), name, SocketMode::Group)
        };
        // No descriptor is really there: the error tells which one was meant.
        let meant = |outcome: Result<Listener, ListenerError>| match outcome {
            Err(ListenerError::NotListening(number)) => Some(number),
            _ => None,
        };
        for endpoint in [unix("a"), descriptor("mgmt")] {
            assert_eq!(meant(open(&endpoint, "mgmt:workload", 2, "mgmt")), Some(3));
        }
        assert_eq!(meant(open(&unix("b"), "mgmt:workload", 2, "workload")), Some(4));
        assert_eq!(meant(open(&descriptor("4"), "mgmt:workload", 2, "mgmt")), Some(4));
        assert!(matches!(open(&descriptor("5"), "mgmt:workload", 2, "mgmt"), Err(ListenerError::NoDescriptor(_))));
        assert!(matches!(open(&descriptor("x"), "x", 0, "x"), Err(ListenerError::NoDescriptor(_))));
        assert!(matches!(open(&unix("c"), "other:another", 2, "mgmt"), Err(ListenerError::NoDescriptor(_))));
        // A single one of another name is somebody else's, and so are those without names.
        assert!(open(&unix("d"), "other", 1, "mgmt").is_ok());
        assert!(open(&unix("e"), "", 2, "mgmt").is_ok());
        assert!(open(&unix("f"), "", 0, "mgmt").is_ok());
    }
}
