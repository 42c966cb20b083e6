//! Who is at the other end of a connection: its user, and where a daemon asks for it, its process, held so that its pid cannot come to
//! mean another one. What a process may do is the daemon's business.

use std::{
    any::Any,
    fmt, io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, OnceLock},
};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt::PeerPidfd},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    param::clock_ticks_per_second,
    process::{Pid, PidfdFlags, pidfd_open},
    time::{ClockId, clock_gettime},
};

/// Credentials of the connected process, read by the kernel when it connected (`SO_PEERCRED`), and the way by which it came.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id; 0 where the kernel does not say. For the log alone: it can be reused before anybody looks.
    pub pid: i32,
    /// The process itself, where the server [asks for it](crate::Server::identify_processes) and it was still there.
    pub process: Option<PeerProcess>,
    /// Name of the listener to which it connected, if that has [one](crate::Server::named).
    pub listener: Option<Arc<str>>,
}

impl Peer {
    /// A peer of which nothing but the credentials is known.
    #[must_use]
    pub const fn new(uid: u32, gid: u32, pid: i32) -> Self {
        Self { uid, gid, pid, process: None, listener: None }
    }
}

/// A process that connected. Clones, of which each request of its connection has one, share what is known of it.
///
/// Should the process end, its connection may live on in a child; nobody has its rights then.
#[derive(Clone)]
pub struct PeerProcess(Arc<Process>);

struct Process {
    pid: Pid,
    /// Stands for this very process: whoever gets its pid after it has another descriptor.
    descriptor: OwnedFd,
    note: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl PeerProcess {
    /// The process that connected `stream`, whose pid was `pid` at that time. If it may have waited to be accepted, `queued_since` is the
    /// moment before which it did not.
    ///
    /// The kernel hands out a descriptor of the very process since Linux 6.5. Before, it is opened by the pid, which has come to mean
    /// another process if the first one ended and all other pids were used up. Between a connection and an `accept` that waits for it there
    /// is no time for that. For one that queued, only a process counts that had its pid before it could have connected.
    pub(crate) fn of(
        stream: &UnixStream,
        pid: i32,
        descriptor_of: DescriptorOf,
        queued_since: Option<Moment>,
    ) -> io::Result<Self> {
        match descriptor_of(stream) {
            Ok(descriptor) => Self::new(pid, descriptor),
            Err(Errno::ENOPROTOOPT) => {
                let process = Self::open(pid)?;
                match queued_since {
                    Some(since) if process.started()? >= since => Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        "it is younger than its connection may be, and this kernel does not say whether it is the one that connected",
                    )),
                    _ => Ok(process),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The process that has this pid now, connected or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let process = Pid::from_raw(pid).ok_or_else(unknown)?;
        Self::new(pid, pidfd_open(process, PidfdFlags::empty())?)
    }

    fn new(pid: i32, descriptor: OwnedFd) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or_else(unknown)?;
        Ok(Self(Arc::new(Process { pid, descriptor, note: OnceLock::new() })))
    }

    /// Its process id. Whatever is read by it belongs to this process if that [is alive](Self::is_alive) afterwards.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.pid.as_raw_pid()
    }

    fn started(&self) -> io::Result<Moment> {
        let stat = std::fs::read(format!("/proc/{}/stat", self.pid()))?;
        let ticks = start_time(&String::from_utf8_lossy(&stat)).ok_or_else(unknown)?;
        // Otherwise that was another one's.
        if self.is_alive() { Ok(Moment(ticks)) } else { Err(unknown()) }
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ended = [PollFd::new(&self.0.descriptor, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut ended, Some(&AT_ONCE))) == Ok(0)
    }

    /// What [`set_note`](Self::set_note) kept, if it is of this type.
    #[must_use]
    pub fn note<T: Any>(&self) -> Option<&T> {
        self.0.note.get()?.downcast_ref()
    }

    /// Keeps what was found out about the process for the other requests of its connection. The first note stays.
    pub fn set_note<T: Any + Send + Sync>(&self, note: T) {
        // One that came first found out the same.
        let _ = self.0.note.set(Box::new(note));
    }
}

/// How the kernel is asked for the process behind a connection.
pub(crate) type DescriptorOf = fn(&UnixStream) -> Result<OwnedFd, Errno>;

/// `SO_PEERPIDFD`.
pub(crate) fn descriptor_of(stream: &UnixStream) -> Result<OwnedFd, Errno> {
    getsockopt(stream, PeerPidfd)
}

/// A moment on the clock by which the kernel tells when processes started: ticks since the system did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Before all processes.
    pub(crate) const FIRST: Self = Self(0);

    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let part = |number: i64| u64::try_from(number).unwrap_or(0);
        let ticks = clock_ticks_per_second();
        Self(part(now.tv_sec) * ticks + part(now.tv_nsec) * ticks / 1_000_000_000)
    }
}

/// When a process started, in clock ticks since the system did: field 22 of its `/proc/PID/stat` (proc(5)). `None` for any other text.
#[must_use]
pub fn start_time(stat: &str) -> Option<u64> {
    // Fields are counted from the last `)`: the name before it may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the kernel does not say which process it is")
}

impl fmt::Debug for PeerProcess {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("PeerProcess").field(&self.pid()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_process_behind_a_connection_is_the_one_that_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let process = PeerProcess::of(&stream, own, descriptor_of, None).unwrap();
        assert_eq!(process.pid(), own);
        assert!(process.is_alive());
    }

    /// As kernels before 6.5 answer.
    fn old_kernel(_: &UnixStream) -> Result<OwnedFd, Errno> {
        Err(Errno::ENOPROTOOPT)
    }

    #[test]
    fn where_only_pids_are_told_a_process_that_is_younger_than_its_connection_is_not_the_one_that_connected() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let of = |since| PeerProcess::of(&stream, pid, old_kernel, since);
        let started = PeerProcess::open(pid).unwrap().started().unwrap();
        assert!(started <= Moment::now() && Moment::FIRST < started);
        assert_eq!(of(None).unwrap().pid(), pid, "it did not queue");
        assert!(of(Some(Moment(started.0 + 1))).is_ok(), "nobody else had its pid meanwhile");
        for since in [started, Moment::FIRST] {
            let error = of(Some(since)).unwrap_err();
            assert!(error.to_string().starts_with("it is younger"), "{error}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(of(None).is_err());
        // Where the kernel refuses for another reason, the pid is not used.
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(PeerProcess::of(&stream, own, |_| Err(Errno::ESRCH), None).is_err());
    }

    #[test]
    fn the_start_is_found_whatever_the_process_calls_itself() {
        let stat = "7 (a) S 1) 2 (x)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1 0\n";
        assert_eq!(start_time(stat), Some(12345));
        for bad in ["", "7 (a", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 x"] {
            assert_eq!(start_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_ended_process_is_not_alive_even_before_its_parent_has_looked() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = PeerProcess::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.is_alive());
        child.kill().unwrap();
        // Waits for the end without reaping.
        let mut ended = [PollFd::new(&process.0.descriptor, PollFlags::IN)];
        poll(&mut ended, None).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(PeerProcess::open(0).is_err());
    }

    #[test]
    fn notes_are_shared_by_clones_and_the_first_stays() {
        let process = PeerProcess::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(process.note::<u8>(), None);
        process.clone().set_note(1_u8);
        process.set_note(2_u8);
        assert_eq!(process.note::<u8>(), Some(&1));
        assert_eq!(process.note::<u16>(), None);
    }
}
