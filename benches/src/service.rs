//! A real `aziot-keyd` in a temporary folder, with limits that the load does not reach.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aziot_tests::{
    device::write_private,
    process::{Process, Ready, Restart},
};
use tempfile::TempDir;

/// A running key service, ended when dropped.
pub(crate) struct Service {
    // Before the folder: it is ended before its files go.
    process: Process,
    folder: TempDir,
    socket: PathBuf,
    /// From the start of the process until it was ready.
    pub(crate) started_in: Duration,
}

impl Service {
    /// Starts `aziotd` as the key service.
    pub(crate) fn start(aziotd: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("aziot-bench-").tempdir().context("could not make a folder")?;
        Self::start_in(aziotd, folder)
    }

    /// Starts it over the keys in `folder`.
    pub(crate) fn start_in(aziotd: &Path, folder: TempDir) -> Result<Self> {
        let (home, socket) = (folder.path().join("home"), folder.path().join("keyd.sock"));
        // Far from the log and the socket: the service watches this folder and the one above, and would notice every line of a log there.
        let (config, drop_ins) = (folder.path().join("etc/keyd/config.toml"), folder.path().join("etc/keyd/config.d"));
        fs::create_dir_all(&home).context("could not make a home")?;
        fs::create_dir_all(&drop_ins).context("could not make a folder")?;
        let uid = rustix::process::getuid().as_raw();
        let settings = format!(
            "max_requests = 1000\n\n[aziot_keys]\nhomedir_path = \"{}\"\n\n[endpoints]\naziot_keyd = \"unix://{}\"\n\n\
             [[principal]]\nuid = {uid}\nkeys = [\"*\"]\n",
            home.display(),
            socket.display()
        );
        write_private(&config, settings)?;
        let program = aziotd.canonicalize().with_context(|| format!("no program at {}", aziotd.display()))?;
        let command = move || {
            let mut command = Command::new(&program);
            command.arg0("aziot-keyd").stdin(Stdio::null()).env("AZIOT_KEYD_CONFIG", &config);
            command.env("AZIOT_KEYD_CONFIG_DIR", &drop_ins);
            for variable in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
                command.env_remove(variable);
            }
            command
        };
        let log = folder.path().join("keyd.log");
        let begun = Instant::now();
        let process = Process::start("keyd", &log, Restart::Never, &Ready::Notify(folder.path().into()), command)?;
        Ok(Self { process, started_in: begun.elapsed(), socket, folder })
    }

    /// Stops it, and returns its folder with its keys.
    pub(crate) fn stop(self) -> Result<TempDir> {
        self.process.stop()?;
        Ok(self.folder)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the keys are.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> Result<usize> {
        let folder = format!("/proc/{}/task", self.process.pid()?);
        Ok(fs::read_dir(&folder).with_context(|| format!("could not list {folder}"))?.count())
    }

    /// Processor time that all its threads have used.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.process.pid()?);
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
        // The name, in brackets, may hold blanks; user and system time are the 14th and 15th field of proc_pid_stat(5).
        let (_, fields) = text.rsplit_once(')').with_context(|| format!("no name in {path}"))?;
        let mut fields = fields.split_ascii_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system)) = (fields.next(), fields.next()) else { bail!("no times in {path}") };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        Ok(Duration::from_nanos((user + system) * 1_000_000_000 / ticks_per_second))
    }

    /// Resident memory of the process.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        Ok(self.process.memory()?.0)
    }
}
