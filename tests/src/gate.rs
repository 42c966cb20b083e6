//! A gate in front of a daemon's socket: it lets calls through, counts them, and stops the one that a test wants, before the daemon sees it
//! or when the daemon has carried it out and the caller has not heard of it. So a test can end either of them at each step of a longer work.
//!
//! Knows as much of HTTP/1.1 as our own clients and daemons use with each other: bodies have a length.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::net::{Shutdown, shutdown};

/// For how long a call that was stopped is kept, at most.
const LONGEST_STOP: Duration = Duration::from_secs(60);

/// When a call is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The daemon does not get it.
    Before,
    /// The daemon has carried it out, its answer is not delivered.
    After,
}

/// The gate. Dropping it closes it.
pub struct Gate {
    path: PathBuf,
    listener: UnixListener,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    behind: PathBuf,
    is_ending: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Methods and paths since the gate was armed.
    calls: Vec<String>,
    stop: Option<(usize, Moment)>,
    stopped: Option<String>,
}

impl Gate {
    /// Listens at `path` and leads to the socket `behind`.
    pub fn open(path: &Path, behind: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("could not bind {}", path.display()))?;
        let shared = Arc::new(Shared {
            behind: behind.to_owned(),
            is_ending: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (state, incoming) = (Arc::clone(&shared), listener.try_clone().context("could not share the socket")?);
        let thread = thread::spawn(move || {
            for client in incoming.incoming() {
                if state.is_ending.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&state);
                // It ends with its client; what it cannot do its client notices.
                let _detached =
                    thread::spawn(move || client.map_err(Into::into).and_then(|client| shared.lead(client)));
            }
        });
        Ok(Self { path: path.to_owned(), listener, shared, thread: Some(thread) })
    }

    /// Stops the call with this number, counted from 0 and from now on.
    pub fn arm(&self, number: usize, moment: Moment) {
        *self.shared.state() = State { stop: Some((number, moment)), ..State::default() };
    }

    /// Lets everything through from now on. The connection of a call that was stopped ends without an answer.
    pub fn disarm(&self) {
        *self.shared.state() = State::default();
        self.shared.changed.notify_all();
    }

    /// Waits until the call is stopped, which is then told, or until `is_over` says that it will not come any more: `None`.
    pub fn stopped(&self, limit: Duration, mut is_over: impl FnMut() -> Result<bool>) -> Result<Option<String>> {
        const GLANCE: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + limit;
        loop {
            {
                let wait = self
                    .shared
                    .changed
                    .wait_timeout_while(self.shared.state(), GLANCE, |state| state.stopped.is_none());
                if let Some(call) = &wait.unwrap_or_else(PoisonError::into_inner).0.stopped {
                    return Ok(Some(call.clone()));
                }
            }
            if is_over()? {
                // It may have come in between.
                return Ok(self.shared.state().stopped.clone());
            }
            if Instant::now() > deadline {
                bail!("neither the call nor the end came within {limit:?}; calls so far: {:?}", self.calls());
            }
        }
    }

    /// Methods and paths of the calls since the gate was armed or disarmed.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.shared.state().calls.clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        self.disarm();
        // Wakes the thread that waits for a connection; its path may be gone already.
        let _ = shutdown(&self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lead(&self, mut client: UnixStream) -> Result<()> {
        let mut requests = BufReader::new(client.try_clone()?);
        let mut daemon = BufReader::new(UnixStream::connect(&self.behind)?);
        while let Some(request) = read_message(&mut requests)? {
            let moment = self.count(&request.head);
            if moment != Some(Moment::Before) {
                daemon.get_mut().write_all(&request.bytes)?;
                let answer = read_message(&mut daemon)?.context("the daemon closed the connection")?;
                if moment.is_none() {
                    client.write_all(&answer.bytes)?;
                    if request.is_last {
                        return Ok(());
                    }
                    continue;
                }
            }
            self.keep(&request.head);
            return Ok(());
        }
        Ok(())
    }

    fn count(&self, call: &str) -> Option<Moment> {
        let mut state = self.state();
        let number = state.calls.len();
        state.calls.push(call.to_owned());
        state.stop.filter(|(wanted, _)| *wanted == number).map(|(_, moment)| moment)
    }

    fn keep(&self, call: &str) {
        let mut state = self.state();
        state.stopped = Some(call.to_owned());
        self.changed.notify_all();
        let kept = self.changed.wait_timeout_while(state, LONGEST_STOP, |state| state.stopped.is_some());
        drop(kept);
    }
}

struct Message {
    /// Method and path of a request, without the query.
    head: String,
    bytes: Vec<u8>,
    /// Whether the connection is to be closed after it.
    is_last: bool,
}

/// `None` at the end of the connection.
fn read_message(stream: &mut BufReader<UnixStream>) -> Result<Option<Message>> {
    let mut bytes = Vec::new();
    let (mut length, mut is_last) = (0, false);
    loop {
        let begin = bytes.len();
        if stream.read_until(b'\n', &mut bytes)? == 0 {
            return if begin == 0 { Ok(None) } else { bail!("the connection ended in the middle of a head") };
        }
        let line = String::from_utf8_lossy(&bytes[begin..]).to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().context("content-length is no number")?;
        }
        if let Some(value) = line.strip_prefix("connection:") {
            is_last = value.trim() == "close";
        }
        if line.starts_with("transfer-encoding:") {
            bail!("a body without a length");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let first = String::from_utf8_lossy(&bytes);
    let mut words = first.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let head = format!("{method} {}", target.split('?').next().unwrap_or_default());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    bytes.extend(body);
    Ok(Some(Message { head, bytes, is_last }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{World, calls, raw};

    #[test]
    fn one_call_is_stopped_on_either_side_of_its_daemon() -> Result<()> {
        let world = World::keys("")?;
        let behind = world.socket(crate::Daemon::Keys);
        let path = world.path("gate.sock");
        let gate = Gate::open(&path, &behind)?;
        let create = |id: &str| {
            let body = format!(r#"{{"keyId":"{id}","usage":"sign"}}"#);
            raw::call(&path, "POST", &format!("/key?{}", calls::VERSION), Some(&body))
        };
        let exists = |id: &str| -> Result<bool> {
            Ok(raw::call(&behind, "GET", &format!("/key/{id}?{}", calls::VERSION), None)?.status == 200)
        };
        for (moment, id, is_made) in [(Moment::Before, "before", false), (Moment::After, "after", true)] {
            gate.arm(1, moment);
            let _ = create("first")?.expect(200)?;
            thread::scope(|scope| -> Result<()> {
                let caller = scope.spawn(|| create(id).is_err());
                let stopped = gate.stopped(Duration::from_secs(10), || Ok(false))?;
                assert_eq!((stopped.as_deref(), gate.calls().len()), (Some("POST /key"), 2));
                assert_eq!(exists(id)?, is_made, "{id}");
                gate.disarm();
                assert!(caller.join().is_ok_and(|is_err| is_err), "an answer came");
                Ok(())
            })?;
            let _ = create(id)?.expect(200)?;
        }
        gate.arm(7, Moment::Before);
        assert_eq!(gate.stopped(Duration::from_secs(10), || Ok(true))?, None);
        assert!(gate.stopped(Duration::ZERO, || Ok(false)).is_err());
        Ok(())
    }
}
