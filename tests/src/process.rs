//! One process of the device: started with its log in a file, known to be ready, killed or stopped, and never left behind.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to get ready or to stop, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at that nobody announces.
const GLANCE: Duration = Duration::from_millis(20);

/// What happens when the process ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It stays down.
    Never,
    /// It is started again after a short pause, as a service manager does.
    Always,
}

/// How a process tells that it is ready.
#[derive(Clone, Debug)]
pub enum Ready {
    /// `READY=1` on `NOTIFY_SOCKET` (`sd_notify`(3)); the folder holds that socket.
    Notify(PathBuf),
    /// This file appears.
    File(PathBuf),
}

/// A running process. Dropping it ends the process.
pub struct Process {
    name: String,
    log: PathBuf,
    shared: Arc<Shared>,
    ended: Mutex<Receiver<ExitStatus>>,
}

#[derive(Default)]
struct Shared {
    /// 0 while nothing runs.
    pid: AtomicI32,
    stopping: AtomicBool,
    /// Held while a pid is reaped, so that no signal goes to a pid that was reused.
    reaping: Mutex<()>,
}

impl Process {
    /// Starts the program that `command` builds and waits until it is ready. Its standard input is up to `command`.
    pub fn start(
        name: &str,
        log: &Path,
        restart: Restart,
        ready: &Ready,
        command: impl Fn() -> Command + Send + 'static,
    ) -> Result<Self> {
        let wait = Waiting::prepare(name, ready)?;
        let notify = wait.socket_path();
        let (sender, ended) = mpsc::channel();
        let (started_sender, started) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let (state, log_path, own_name) = (Arc::clone(&shared), log.to_owned(), name.to_owned());
        thread::spawn(move || {
            let mut last = None;
            loop {
                // Whoever stops the process either finds the new pid or is seen here.
                let starting = state.reaping.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(status) = last.filter(|_| state.stopping.load(Ordering::SeqCst)) {
                    let _ = sender.send(status);
                    return;
                }
                let spawned = spawn(command(), &log_path, notify.as_deref());
                let mut child = match spawned {
                    Ok(child) => child,
                    Err(error) => {
                        // The receiver is gone once the first start succeeded.
                        let _ = started_sender.send(Err(error));
                        return;
                    }
                };
                state.pid.store(i32::try_from(child.id()).unwrap_or(0), Ordering::SeqCst);
                drop(starting);
                let _ = started_sender.send(Ok(()));
                let status = wait_for(&mut child, &state);
                let stopping = state.stopping.load(Ordering::SeqCst);
                if restart == Restart::Never || stopping {
                    if let Ok(status) = status {
                        let _ = sender.send(status);
                    }
                    return;
                }
                note(&log_path, &format!("{own_name} ended ({status:?}); starting it again"));
                last = status.ok();
                thread::sleep(Duration::from_millis(200));
            }
        });
        started
            .recv()
            .context("the thread of the process ended")?
            .with_context(|| format!("could not start {name}"))?;
        let process = Self { name: name.to_owned(), log: log.to_owned(), shared, ended: Mutex::new(ended) };
        process.wait_until_ready(&wait)?;
        Ok(process)
    }

    fn wait_until_ready(&self, wait: &Waiting) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if wait.is_over()? {
                return Ok(());
            }
            if self.shared.pid.load(Ordering::SeqCst) == 0 && self.ended().try_recv().is_ok() {
                bail!("{} ended before it was ready; its log says:\n{}", self.name, self.last_lines());
            }
            if Instant::now() > deadline {
                bail!("{} was not ready within {PATIENCE:?}; its log says:\n{}", self.name, self.last_lines());
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> Result<u32> {
        u32::try_from(self.shared.pid.load(Ordering::SeqCst))
            .ok()
            .filter(|pid| *pid > 0)
            .ok_or_else(|| anyhow!("{} is not running", self.name))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let _reaping = self.shared.reaping.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = Pid::from_raw(self.shared.pid.load(Ordering::SeqCst));
        let pid = pid.ok_or_else(|| anyhow!("{} is not running", self.name))?;
        kill_process(pid, signal).with_context(|| format!("could not signal {}", self.name))
    }

    /// SIGKILL: the end without a word, as a power cut brings it.
    pub fn kill(self) -> Result<()> {
        self.end(Signal::KILL).map(|_| ())
    }

    /// SIGTERM, and the exit status of an orderly stop.
    pub fn stop(self) -> Result<ExitStatus> {
        self.end(Signal::TERM)
    }

    fn end(&self, signal: Signal) -> Result<ExitStatus> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // One that has ended by itself cannot be signalled, and needs not.
        let signalled = self.signal(signal);
        match self.ended().recv_timeout(PATIENCE) {
            Ok(status) => Ok(status),
            Err(RecvTimeoutError::Timeout) => bail!("{} did not end within {PATIENCE:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => signalled.and_then(|()| bail!("{} was not running", self.name)),
        }
    }

    fn ended(&self) -> MutexGuard<'_, Receiver<ExitStatus>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the process to end by itself.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.ended().recv_timeout(PATIENCE).map_err(|_| anyhow!("{} did not end within {PATIENCE:?}", self.name))
    }

    /// Memory of the process: resident, and its proportional share where the kernel tells, in KiB.
    pub fn memory(&self) -> Result<(u64, Option<u64>)> {
        let pid = self.pid()?;
        let field = |file: &str, field: &str| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
            text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
        };
        let resident = field("status", "VmRSS:").with_context(|| format!("no memory figures of {}", self.name))?;
        Ok((resident, field("smaps_rollup", "Pss:")))
    }

    /// All that the process has logged.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("could not read {}", self.log.display()))
    }

    fn last_lines(&self) -> String {
        let mut text = String::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
            file.read_to_string(&mut text)
        });
        if read.is_ok() { text } else { format!("(no log at {})", self.log.display()) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if self.signal(Signal::KILL).is_ok() {
            let _ = self.ended().recv_timeout(PATIENCE);
        }
    }
}

/// Runs a process that is expected to end by itself, its log in a file. One that goes on for too long is ended, and that is an error.
pub fn run_to_end(command: Command, log: &Path) -> Result<ExitStatus> {
    let program = command.get_program().display().to_string();
    let mut child = spawn(command, log, None)?;
    let ended = eventually(&format!("the end of {program}"), PATIENCE, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().and_then(|()| child.wait()).with_context(|| format!("could not end {program}"))?;
    }
    ended
}

/// Puts another program before a command, such as `sh -c '...; exec "$0"'`: it gets the command's program as its next argument, and its
/// environment; the command's own arguments are not kept.
pub fn wrap(command: &mut Command, mut wrapper: Command) {
    wrapper.arg(command.get_program()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapper.env(name, value),
            None => wrapper.env_remove(name),
        };
    }
    *command = wrapper;
}

/// Lets a command find what is in `/usr/sbin`, which many a user's `PATH` lacks. Its environment goes with it, where it has one of its own.
pub fn find_system_programs(command: &mut Command) -> &mut Command {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
}

/// The command that ends by SIGKILL with the thread that starts it, even when that is killed itself (`setpriv`(1)); its program and
/// arguments are to be added.
#[must_use]
pub fn tied() -> Command {
    let mut command = Command::new("setpriv");
    find_system_programs(command.args(["--pdeathsig", "KILL"])).stdin(Stdio::null());
    command
}

/// Looks again and again until there is something to see, and fails when the time is over.
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            bail!("{what} did not come within {limit:?}");
        }
        thread::sleep(GLANCE);
    }
}

fn spawn(mut command: Command, log: &Path, notify: Option<&Path>) -> Result<std::process::Child> {
    let output = OpenOptions::new().create(true).append(true).open(log);
    let output = output.with_context(|| format!("could not open {}", log.display()))?;
    if let Some(socket) = notify {
        command.env("NOTIFY_SOCKET", socket);
    }
    // A group of its own: Ctrl-C reaches the starter, which stops its processes in order.
    command.process_group(0).stdout(output.try_clone()?).stderr(output);
    command.spawn().with_context(|| format!("could not run {}", command.get_program().display()))
}

/// Waits without reaping first, so that the pid stays ours until nobody can signal it any more.
fn wait_for(child: &mut std::process::Child, state: &Shared) -> Result<ExitStatus> {
    loop {
        {
            let _reaping = state.reaping.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(status) = child.try_wait()? {
                state.pid.store(0, Ordering::SeqCst);
                return Ok(status);
            }
        }
        thread::sleep(GLANCE);
    }
}

fn note(log: &Path, line: &str) {
    if let Ok(mut file) = OpenOptions::new().append(true).open(log) {
        let _ = writeln!(file, "{line}");
    }
}

enum Waiting {
    Notify { socket: UnixDatagram, path: PathBuf },
    File(PathBuf),
}

impl Waiting {
    fn prepare(name: &str, ready: &Ready) -> Result<Self> {
        match ready {
            Ready::File(path) => {
                // One of an earlier run would tell nothing.
                let _ = fs::remove_file(path);
                Ok(Self::File(path.clone()))
            }
            Ready::Notify(folder) => {
                let path = folder.join(format!("{name}.notify"));
                let _ = fs::remove_file(&path);
                let socket = UnixDatagram::bind(&path).with_context(|| format!("could not bind {}", path.display()))?;
                socket.set_read_timeout(Some(GLANCE))?;
                Ok(Self::Notify { socket, path })
            }
        }
    }

    fn socket_path(&self) -> Option<PathBuf> {
        match self {
            Self::Notify { path, .. } => Some(path.clone()),
            Self::File(_) => None,
        }
    }

    /// Looks once, for a moment.
    fn is_over(&self) -> Result<bool> {
        match self {
            Self::File(path) => {
                let there = path.exists();
                if !there {
                    thread::sleep(GLANCE);
                }
                Ok(there)
            }
            Self::Notify { socket, .. } => {
                let mut message = [0; 512];
                match socket.recv(&mut message) {
                    Ok(length) => Ok(message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Self::Notify { path, .. } = self {
            let _ = fs::remove_file(path);
        }
    }
}
