//! A container engine of the test's own: Docker, or Podman with its socket for Docker's clients. It shares nothing with the machine's engine,
//! nor with those of other tests, can be killed, stopped and started again, and takes all its containers along when it goes.

pub mod cgroups;
mod containers;
pub mod image;
pub mod namespaces;
mod owners;
mod podman;
pub mod registry;

use std::{
    env, fs,
    io::{self, Write as _},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::{
    eventually,
    process::{Process, Ready, Restart},
};
pub use containers::{Client, Exit, Frame, frames};
use namespaces::Namespaces;
use owners::Owned;

/// For how long an engine may come up: one that was killed first ends what it left running, which takes Docker 10 s.
const PATIENCE: Duration = Duration::from_secs(180);

/// The environment variable that leaves out all engines but one, `docker` or `podman`, while somebody works on a test.
pub const ONLY: &str = "AZIOT_TEST_ENGINE";

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `dockerd`
    Docker,
    /// `podman system service`
    Podman,
}

impl Kind {
    /// The engines that tests run on: both, or that which the environment variable [`ONLY`] names. Says on standard error what it leaves out.
    pub fn under_test() -> Result<Vec<Self>> {
        let all = [Self::Docker, Self::Podman].into_iter();
        all.map(|kind| Ok(kind.is_under_test()?.then_some(kind))).filter_map(Result::transpose).collect()
    }

    /// The same for a test that wants this engine.
    pub fn is_under_test(self) -> Result<bool> {
        let only = match env::var(ONLY).as_deref() {
            Err(_) => return Ok(true),
            Ok("docker") => Self::Docker,
            Ok("podman") => Self::Podman,
            Ok(other) => bail!("{ONLY} is {other:?}, and neither docker nor podman"),
        };
        if self != only {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            // Nobody may be listening.
            let _ = writeln!(io::stderr().lock(), "{test}: without {self:?}, as {ONLY} wants it");
        }
        Ok(self == only)
    }
}

/// How an engine is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which one.
    pub kind: Kind,
    /// Containers outlive it. Podman's always do.
    pub live_restore: bool,
    /// All its data fits into so much, such as `64m`.
    pub disk: Option<&'static str>,
}

impl Settings {
    /// One as it comes.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self { kind, live_restore: false, disk: None }
    }
}

/// An engine. Dropping it removes its containers, then itself.
pub struct Engine {
    // Dropped first: it ends before its name spaces go.
    process: Option<Process>,
    /// Where it lives.
    pub namespaces: Namespaces,
    client: Client,
    settings: Settings,
    folder: PathBuf,
    // Its only work is to be there, and to go last.
    _owned: Owned,
}

impl Engine {
    /// Starts it in a folder, which is made.
    pub fn start(folder: &Path, kind: Kind) -> Result<Self> {
        Self::start_with(folder, Settings::of(kind))
    }

    /// The same with settings.
    pub fn start_with(folder: &Path, settings: Settings) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
        owners::sweep();
        let mut mounts = Vec::new();
        if let Some(size) = settings.disk {
            mounts.push((size, folder.join("data")));
        }
        let sized: Vec<(String, PathBuf)> =
            mounts.into_iter().map(|(size, folder)| (format!("size={size}"), folder)).collect();
        let mut mounts: Vec<(&str, PathBuf)> = sized.iter().map(|(size, folder)| (&**size, folder.clone())).collect();
        if settings.kind == Kind::Podman {
            podman::configure(folder)?;
            mounts.extend(podman::OWN_FOLDERS.map(|folder| ("size=16m", PathBuf::from(folder))));
        }
        let namespaces = Namespaces::make(folder, &mounts)?;
        let owned = Owned::note(folder)?;
        let client = Client::new(&folder.join("engine.sock"));
        let mut engine = Self { process: None, namespaces, client, settings, folder: folder.to_owned(), _owned: owned };
        engine.start_again()?;
        Ok(engine)
    }

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.settings.kind
    }

    /// What it logged.
    pub fn log(&self) -> Result<String> {
        let path = self.folder.join("engine.log");
        fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
    }

    /// Starts it after [`Self::kill`] or [`Self::stop`], with the containers it had.
    pub fn start_again(&mut self) -> Result<()> {
        // Whoever wrote these is dead, but where nobody reaps orphans its pid may still be taken.
        for file in ["docker.pid", "run/containerd/containerd.pid"] {
            let _ = fs::remove_file(self.folder.join(file));
        }
        let (enter, folder, settings) = (self.namespaces.enter()?, self.folder.clone(), self.settings.clone());
        let command = move || {
            let mut command = enter();
            match settings.kind {
                Kind::Docker => dockerd(&mut command, &folder, settings.live_restore),
                Kind::Podman => podman::service(&mut command, &folder),
            }
            command
        };
        let ready = Ready::File(self.socket());
        let process = Process::start("engine", &self.folder.join("engine.log"), Restart::Never, &ready, command)?;
        self.process = Some(process);
        // The socket is bound before the engine knows its containers.
        eventually("the engine's answer", PATIENCE, || {
            Ok(self.call("GET", "/_ping", None).ok().filter(|reply| reply.status == 200))
        })
        .map(|_| ())
    }

    /// Whether it was started and not ended since.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL. Its containers go on running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the engine does not run")?.kill()
    }

    /// Stops it in order; without live restore its containers are stopped first.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("the engine does not run")?.stop().map(|_| ())
    }

    /// From now on it hangs: connections are taken by the kernel, and nobody answers.
    pub fn hang(&self) -> Result<()> {
        let process = self.process.as_ref().context("the engine does not run")?;
        process.signal(Signal::STOP)?;
        let threads = PathBuf::from(format!("/proc/{}/task", process.pid()?));
        // A thread at work stops a moment later.
        eventually("the stop of all threads", PATIENCE, || {
            let threads = fs::read_dir(&threads).with_context(|| format!("could not read {}", threads.display()))?;
            let is_stopped = |thread: fs::DirEntry| {
                let state = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                state.is_empty() || state.contains(") T ")
            };
            Ok(threads.flatten().all(is_stopped).then_some(()))
        })
    }

    /// It goes on where it hung.
    pub fn go_on(&self) -> Result<()> {
        self.process.as_ref().context("the engine does not run")?.signal(Signal::CONT)
    }

    /// Removes all containers, and ends.
    fn clear(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.go_on()?;
        } else {
            self.start_again()?;
        }
        self.remove_all()?;
        self.stop()
    }
}

impl Deref for Engine {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            // Seen where the test fails anyway, and the reason of what is found left over where it does not.
            let log = self.folder.join("left-over.log");
            let _ = crate::device::write_private(&log, format!("{error:#}\n"));
        }
        // It ends before its watchers do, who would tell it.
        self.process = None;
        containers::end_left_over(&self.folder);
    }
}

fn dockerd(command: &mut Command, folder: &Path, live_restore: bool) {
    let in_folder = |name: &str| folder.join(name);
    command.arg("dockerd").arg("--host").arg(format!("unix://{}", in_folder("engine.sock").display()));
    command.arg("--data-root").arg(in_folder("data")).arg("--exec-root").arg(in_folder("run"));
    command.arg("--pidfile").arg(in_folder("docker.pid"));
    // The network is its own, so nobody needs to be kept out of it. A default bridge would cost time and serve nobody.
    command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--userland-proxy=false"]);
    // A pull that fails is told at once; its repetitions would take a minute.
    command.args(["--log-level=warn", "--max-download-attempts=1"]);
    if live_restore {
        command.arg("--live-restore");
    }
}
