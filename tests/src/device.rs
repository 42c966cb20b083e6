//! The device in a folder: `etc/aziot`, `run/aziot`, `run/iotedge`, `var/lib/aziot`, `log`, and beside them the cloud's own folder.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    curl::{self, Reply},
    process::{self, Process, Ready, Restart},
};

/// The daemons of the device, in the order in which they are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// `aziot-tpmd`
    Tpm,
    /// `aziot-keyd`
    Keys,
    /// `aziot-certd`
    Certificates,
    /// `aziot-identityd`
    Identity,
    /// `aziot-edged`, which calls all others but the TPM service.
    Edge,
}

impl Daemon {
    /// Those that every device has; the TPM service and the module runtime run where a test starts them.
    pub const ALL: [Self; 3] = [Self::Keys, Self::Certificates, Self::Identity];

    /// Short name, as in the paths of its folders.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tpm => "tpmd",
            Self::Keys => "keyd",
            Self::Certificates => "certd",
            Self::Identity => "identityd",
            Self::Edge => "edged",
        }
    }

    /// The program that it is a name of. The TPM service is one of its own, since it alone needs the TPM's C library, and the module runtime, as
    /// its package is.
    const fn program(self) -> &'static str {
        match self {
            Self::Tpm => "aziot-tpmd",
            Self::Edge => "aziot-edged",
            Self::Keys | Self::Certificates | Self::Identity => "aziotd",
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Programs in this folder.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Programs of the build that this test belongs to, which `cargo xtask test` makes before any test runs; or those in the folder that
    /// the environment variable `AZIOT_TEST_PROGRAMS` names.
    pub fn of_this_build() -> Result<Self> {
        if let Some(folder) = env::var_os("AZIOT_TEST_PROGRAMS") {
            return Ok(Self::in_folder(folder));
        }
        let test = env::current_exe().context("the test does not know where it is")?;
        let folder = test.ancestors().nth(2).context("tests lie in target/PROFILE/deps")?;
        let programs = Self::in_folder(folder);
        for name in ["aziotd", "aziotctl", "aziot-simulator"] {
            if !programs.path(name).exists() {
                bail!(
                    "{} is missing: run `cargo xtask test`, or `cargo build --bins` first",
                    programs.path(name).display()
                );
            }
        }
        Ok(programs)
    }

    /// Path of one program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// A device and its cloud.
pub struct Device {
    folder: PathBuf,
    programs: Programs,
    /// The command line that makes the daemons' files.
    tool: &'static str,
    restart: Restart,
    simulator: Option<Process>,
    /// Further arguments of the cloud's program.
    cloud_arguments: Vec<String>,
    daemons: BTreeMap<Daemon, Process>,
    /// Address of the cloud's TLS port, once it has one; it stays the same over its restarts.
    address: Option<String>,
}

/// Where the cloud listened last: its name for the device has the port in it, and must stay.
const CLOUD_ADDRESS: &str = "cloud/last-address";
/// Registration id of the device.
pub const REGISTRATION_ID: &str = "pump-7";
/// Id scope of the simulated DPS.
pub const ID_SCOPE: &str = "0ne00000007";
/// Device id for manual provisioning: it is at the hub from the start.
pub const MANUAL_DEVICE_ID: &str = "pump-8";

impl Device {
    /// Makes the folders. What an earlier device left there is kept.
    pub fn new(folder: &Path, programs: Programs, restart: Restart) -> Result<Self> {
        for name in ["bin", "etc/aziot", "run/aziot", "var/lib/aziot", "var/secrets", "log", "cloud", "module"] {
            let path = folder.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .with_context(|| path.display().to_string())?;
        }
        let folder = folder.canonicalize().context("could not resolve the device's folder")?;
        // A program that nobody starts need not be there.
        for daemon in Daemon::ALL.into_iter().chain([Daemon::Tpm, Daemon::Edge]) {
            let link = folder.join("bin").join(format!("aziot-{}", daemon.name()));
            // Of an earlier run, and maybe of another build.
            let _ = fs::remove_file(&link);
            let program = programs.path(daemon.program());
            symlink(program, &link).with_context(|| format!("could not make {}", link.display()))?;
        }
        let address = fs::read_to_string(folder.join(CLOUD_ADDRESS)).ok();
        let (cloud_arguments, daemons) = (Vec::new(), BTreeMap::new());
        Ok(Self { folder, programs, tool: "aziotctl", restart, simulator: None, cloud_arguments, daemons, address })
    }

    /// From now on super-configs are applied by `iotedge`, which configures the module runtime too.
    pub fn have_modules(&mut self) {
        self.tool = "iotedge";
    }

    /// The device's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path inside it.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.join(relative)
    }

    /// Socket of a daemon; of the module runtime that for its management.
    #[must_use]
    pub fn socket(&self, daemon: Daemon) -> PathBuf {
        match daemon {
            Daemon::Edge => self.path("run/iotedge/mgmt.sock"),
            _ => self.path(&format!("run/aziot/{}.sock", daemon.name())),
        }
    }

    /// The workload socket that all modules share.
    #[must_use]
    pub fn workload_socket(&self) -> PathBuf {
        self.path("run/iotedge/workload.sock")
    }

    /// The workload socket of one module, as the host sees it.
    #[must_use]
    pub fn module_socket(&self, module: &str) -> PathBuf {
        self.path(&format!("var/lib/aziot/edged/mnt/{module}.sock"))
    }

    /// The CA that the cloud's certificate comes from.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.path("cloud/ca.pem")
    }

    /// `localhost:PORT`, where DPS and hub listen.
    pub fn cloud(&self) -> Result<String> {
        let address = self.address.as_ref().context("the cloud has not been started")?;
        let (_, port) = address.rsplit_once(':').with_context(|| format!("no port in {address}"))?;
        Ok(format!("localhost:{port}"))
    }

    /// Enrols what these tables say (`docs/simulator.md` has their keys) instead of the device with its key. For a cloud that has not run yet.
    pub fn enrol(&self, tables: &str) -> Result<()> {
        write_private(&self.path("cloud/enrollments.toml"), tables)
    }

    /// Starts the cloud with further arguments from now on.
    pub fn add_cloud_arguments(&mut self, arguments: &[&str]) {
        self.cloud_arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    /// Enrols the device with a random key, unless it is enrolled already, and starts the cloud.
    pub fn start_cloud(&mut self) -> Result<()> {
        let enrollments = self.path("cloud/enrollments.toml");
        if !enrollments.exists() {
            let key = STANDARD.encode(random_key()?);
            let tables = format!(
                "[[enrollment]]\nregistration_id = {REGISTRATION_ID:?}\nsymmetric_key = {key:?}\n\n\
                 [[device]]\ndevice_id = {MANUAL_DEVICE_ID:?}\nsymmetric_key = {key:?}\n"
            );
            self.enrol(&tables)?;
        }
        let program = self.programs.path("aziot-simulator");
        let (folder, file) = (self.path("cloud"), enrollments);
        let listen = self.address.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let more = self.cloud_arguments.clone();
        let command = move || {
            let mut command = Command::new(&program);
            command.arg("--dir").arg(&folder).arg("--enrollments").arg(&file).args(["--id-scope", ID_SCOPE]);
            command.args(["--listen", &listen, "--retry-after", "1"]).args(&more).stdin(Stdio::null());
            command
        };
        let ready = Ready::File(self.path("cloud/address"));
        let log = self.path("log/simulator.log");
        self.simulator = Some(Process::start("simulator", &log, self.restart, &ready, command)?);
        let address = fs::read_to_string(self.path("cloud/address")).context("could not read the cloud's address")?;
        let address = address.trim().to_owned();
        write_private(&self.path(CLOUD_ADDRESS), &address)?;
        self.address = Some(address);
        Ok(())
    }

    /// Ends the cloud as a power cut would.
    pub fn kill_cloud(&mut self) -> Result<()> {
        self.simulator.take().context("the cloud is not running")?.kill()
    }

    /// Calls the cloud's control socket, where faults are set and its journal is read.
    pub fn control(&self, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
        curl::on_socket(&self.path("cloud/control.sock"), None, method, target, body)
    }

    /// Takes the cloud away.
    pub fn stop_cloud(&mut self) -> Result<()> {
        self.simulator.take().context("the cloud is not running")?.stop().map(|_| ())
    }

    /// Key of the device's enrolment, base64.
    pub fn enrollment_key(&self) -> Result<String> {
        let text = fs::read_to_string(self.path("cloud/enrollments.toml")).context("the device is not enrolled")?;
        let line = text.lines().find_map(|line| line.strip_prefix("symmetric_key = "));
        Ok(line.context("no key in the enrolment")?.trim_matches('"').to_owned())
    }

    /// `[provisioning]` for DPS with the enrolment's symmetric key.
    pub fn dps_provisioning(&self) -> Result<String> {
        let (cloud, key) = (self.cloud()?, self.enrollment_key()?);
        Ok(format!(
            "[provisioning]\nsource = \"dps\"\nglobal_endpoint = \"https://{cloud}\"\nid_scope = \"{ID_SCOPE}\"\n\n\
             [provisioning.attestation]\nmethod = \"symmetric_key\"\nregistration_id = \"{REGISTRATION_ID}\"\n\
             symmetric_key = {{ value = \"{key}\" }}\n"
        ))
    }

    /// `[provisioning]` by hand, with a connection string for [`MANUAL_DEVICE_ID`].
    pub fn manual_provisioning(&self) -> Result<String> {
        let (cloud, key) = (self.cloud()?, self.enrollment_key()?);
        Ok(format!(
            "[provisioning]\nsource = \"manual\"\n\
             connection_string = \"HostName={cloud};DeviceId={MANUAL_DEVICE_ID};SharedAccessKey={key}\"\n"
        ))
    }

    /// Writes the super-config and lets `config apply` make the daemons' files of it. Returns what it printed.
    pub fn configure(&self, super_config: &str) -> Result<String> {
        write_private(&self.path("etc/aziot/config.toml"), super_config)?;
        let output = self.run_tool(self.tool, &["config", "apply"])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("{} config apply failed: {text}", self.tool);
        }
        Ok(text)
    }

    /// Runs `aziotctl` on this device.
    pub fn aziotctl(&self, arguments: &[&str]) -> Result<std::process::Output> {
        self.run_tool("aziotctl", arguments)
    }

    /// Runs `iotedge` on this device.
    pub fn iotedge(&self, arguments: &[&str]) -> Result<std::process::Output> {
        self.run_tool("iotedge", arguments)
    }

    fn run_tool(&self, tool: &str, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(self.programs.path(tool));
        command.args(arguments).arg("--root").arg(&self.folder);
        command.output().with_context(|| format!("could not run {tool}"))
    }

    /// Adds a drop-in beside a daemon's generated configuration.
    pub fn drop_in(&self, daemon: Daemon, name: &str, text: &str) -> Result<()> {
        let folder = self.path(&format!("etc/aziot/{}/config.d", daemon.name()));
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        write_private(&folder.join(name), text)
    }

    /// Starts a daemon and waits until it is ready.
    pub fn start(&mut self, daemon: Daemon) -> Result<()> {
        self.start_with(daemon, |_| {})
    }

    /// Starts a daemon whose command line or environment the caller changes.
    pub fn start_with(&mut self, daemon: Daemon, change: impl Fn(&mut Command) + Send + 'static) -> Result<()> {
        let name = daemon.name();
        let build = self.command(daemon);
        let command = move || {
            let mut command = build();
            change(&mut command);
            command
        };
        let ready = Ready::Notify(self.path("run"));
        let process = Process::start(name, &self.log_path(daemon), self.restart, &ready, command)?;
        self.daemons.insert(daemon, process);
        Ok(())
    }

    /// Runs a daemon that is expected to end by itself, and returns how it ended.
    pub fn run_to_end(&self, daemon: Daemon, change: impl Fn(&mut Command)) -> Result<ExitStatus> {
        let mut command = self.command(daemon)();
        change(&mut command);
        process::run_to_end(command, &self.log_path(daemon))
    }

    /// The command that starts a daemon with this device's configuration.
    fn command(&self, daemon: Daemon) -> impl Fn() -> Command + Send + 'static {
        let name = daemon.name();
        let program = self.path(&format!("bin/aziot-{name}"));
        let (config, roots) = (self.path(&format!("etc/aziot/{name}")), self.roots());
        move || {
            let mut command = Command::new(&program);
            let variable = format!("AZIOT_{}_CONFIG", name.to_uppercase());
            command.env(&variable, config.join("config.toml")).env(format!("{variable}_DIR"), config.join("config.d"));
            command.env("SSL_CERT_FILE", &roots).env_remove("SSL_CERT_DIR").stdin(Stdio::null());
            for variable in ["HTTPS_PROXY", "https_proxy", "AZIOT_LOG", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
                command.env_remove(variable);
            }
            command
        }
    }

    /// Where a daemon logs.
    #[must_use]
    pub fn log_path(&self, daemon: Daemon) -> PathBuf {
        self.path(&format!("log/{}.log", daemon.name()))
    }

    /// All that a daemon has logged, over its restarts.
    pub fn log(&self, daemon: Daemon) -> Result<String> {
        let path = self.log_path(daemon);
        fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
    }

    /// Starts all daemons.
    pub fn start_all(&mut self) -> Result<()> {
        Daemon::ALL.into_iter().try_for_each(|daemon| self.start(daemon))
    }

    /// The process of a daemon that runs.
    pub fn process(&self, daemon: Daemon) -> Result<&Process> {
        self.daemons.get(&daemon).with_context(|| format!("{} is not running", daemon.name()))
    }

    /// Ends a daemon as a power cut would.
    pub fn kill(&mut self, daemon: Daemon) -> Result<()> {
        self.take(daemon)?.kill()
    }

    /// Stops a daemon in order.
    pub fn stop(&mut self, daemon: Daemon) -> Result<ExitStatus> {
        self.take(daemon)?.stop()
    }

    fn take(&mut self, daemon: Daemon) -> Result<Process> {
        self.daemons.remove(&daemon).with_context(|| format!("{} is not running", daemon.name()))
    }

    /// Calls a daemon as the user that runs this.
    pub fn call(&self, daemon: Daemon, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
        curl::on_socket(&self.socket(daemon), None, method, target, body)
    }

    /// Calls a daemon as another user; only root can.
    pub fn call_as(&self, uid: u32, daemon: Daemon, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
        curl::on_socket(&self.socket(daemon), Some(uid), method, target, body)
    }

    /// Stops everything in order: callers before the called.
    pub fn stop_all(&mut self) -> Result<()> {
        self.stop_daemons()?;
        if self.simulator.is_some() {
            self.stop_cloud()?;
        }
        Ok(())
    }

    /// Stops the daemons in order: callers before the called. Returns those that ran, in the order of their start.
    pub fn stop_daemons(&mut self) -> Result<Vec<Daemon>> {
        let mut stopped = Vec::new();
        while let Some((daemon, process)) = self.daemons.pop_last() {
            let status = process.stop()?;
            if !status.success() {
                bail!("{} ended with {status}", daemon.name());
            }
            stopped.insert(0, daemon);
        }
        Ok(stopped)
    }
}

/// A symmetric key that nobody else has.
pub fn random_key() -> Result<[u8; 32]> {
    use std::io::Read as _;
    let mut key = [0; 32];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut key))
        .context("could not read /dev/urandom")?;
    Ok(key)
}

/// Writes a file that only its owner reads. A device in a folder is scenery: nothing is lost when it is cut short.
pub fn write_private(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes.as_ref()));
    written.with_context(|| format!("could not write {}", path.display()))
}
