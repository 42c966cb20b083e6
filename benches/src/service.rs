//! Real daemons in a temporary folder, with limits that the load does not reach: `aziot-keyd`, and beside it `aziot-certd` where that is
//! measured.

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
        fs::create_dir_all(&home).context("could not make a home")?;
        let uid = rustix::process::getuid().as_raw();
        let settings = format!(
            "max_requests = 1000\n\n[aziot_keys]\nhomedir_path = \"{}\"\n\n[endpoints]\naziot_keyd = \"unix://{}\"\n\n\
             [[principal]]\nuid = {uid}\nkeys = [\"*\"]\n",
            home.display(),
            socket.display()
        );
        let begun = Instant::now();
        let process = start(aziotd, folder.path(), "keyd", settings)?;
        Ok(Self { process, started_in: begun.elapsed(), socket, folder })
    }

    /// Takes more into its configuration and starts it again.
    pub(crate) fn reconfigured(self, aziotd: &Path, more: &str) -> Result<Self> {
        let folder = self.stop()?;
        write_private(&folder.path().join("etc/keyd/config.d/10-more.toml"), more)?;
        Self::start_in(aziotd, folder)
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
        processor_time(&self.process)
    }

    /// Resident memory of the process.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        Ok(self.process.memory()?.0)
    }

    /// The part of it that no file backs: what the process has allocated and changed, which cannot be read again from a disk.
    pub(crate) fn anonymous_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.pid()?);
        let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
        let field =
            text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok());
        field.with_context(|| format!("no RssAnon in {path}"))
    }
}

/// A running certificate service beside a key service, ended when dropped.
pub(crate) struct CertificateService {
    process: Process,
    socket: PathBuf,
}

impl CertificateService {
    /// Starts `aziotd` as the certificate service of `keys`, with `more` in its configuration.
    pub(crate) fn start(aziotd: &Path, keys: &Service, more: &str) -> Result<Self> {
        let (home, socket) = (keys.folder().join("certificates"), keys.folder().join("certd.sock"));
        fs::create_dir_all(&home).context("could not make a home")?;
        let uid = rustix::process::getuid().as_raw();
        let settings = format!(
            "homedir_path = \"{}\"\nmax_requests = 1000\n\n[endpoints]\naziot_certd = \"unix://{}\"\naziot_keyd = \"unix://{}\"\n\n\
             [[principal]]\nuid = {uid}\ncerts = [\"*\"]\n\n{more}",
            home.display(),
            socket.display(),
            keys.socket().display()
        );
        let process = start(aziotd, keys.folder(), "certd", settings)?;
        Ok(Self { process, socket })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Processor time that all its threads have used.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        processor_time(&self.process)
    }
}

/// Starts `aziotd` as the daemon `name`, with `settings` as its configuration, and waits until it is ready.
fn start(aziotd: &Path, folder: &Path, name: &'static str, settings: String) -> Result<Process> {
    // Far from the log and the socket: the service watches this folder and the one above, and would notice every line of a log there.
    let etc = folder.join("etc").join(name);
    let (config, drop_ins) = (etc.join("config.toml"), etc.join("config.d"));
    fs::create_dir_all(&drop_ins).context("could not make a folder")?;
    write_private(&config, settings)?;
    let program = aziotd.canonicalize().with_context(|| format!("no program at {}", aziotd.display()))?;
    let variable = format!("AZIOT_{}_CONFIG", name.to_uppercase());
    let command = move || {
        let mut command = Command::new(&program);
        command.arg0(format!("aziot-{name}")).stdin(Stdio::null()).env(&variable, &config);
        command.env(format!("{variable}_DIR"), &drop_ins);
        for variable in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        command
    };
    let log = folder.join(format!("{name}.log"));
    Process::start(name, &log, Restart::Never, &Ready::Notify(folder.into()), command)
}

/// Processor time that all threads of a process have used.
pub(crate) fn processor_time(process: &Process) -> Result<Duration> {
    let path = format!("/proc/{}/stat", process.pid()?);
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
    // The name, in brackets, may hold blanks; user and system time are the 14th and 15th field of proc_pid_stat(5).
    let (_, fields) = text.rsplit_once(')').with_context(|| format!("no name in {path}"))?;
    let mut fields = fields.split_ascii_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    let (Some(user), Some(system)) = (fields.next(), fields.next()) else { bail!("no times in {path}") };
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_nanos((user + system) * 1_000_000_000 / ticks_per_second))
}
