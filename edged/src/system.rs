//! What the device is and how it fares, as the agent reports it to the cloud.
//!
//! The few lines that are needed of `/proc`, `/sys` and os-release are read here: a crate for them reads all of each file, or all of the
//! machine, and costs more than it saves. What never changes is read once.

mod disks;
mod host;
mod load;
mod release;
mod virtualization;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aziot_edged_api::{
    config::ReprovisioningMode,
    system::{GetSupportBundle, Provisioning, Resources, SystemInfo},
};
use aziot_files::read_limited;
use aziot_http::{Client, Streamed};
use aziot_identityd_api::provisioning::{GetProvisioning, ProvisioningInfo};
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::{
    docker::Docker,
    error::Error,
    modules::Modules,
    settings::Settings,
    support_bundle::{Query, SupportBundles},
};
use load::{Load, Sample};

/// The identity service answers this from memory; it is not worth a long wait.
const PROVISIONING_LIMIT: Duration = Duration::from_secs(2);
/// A disk that is failing answers late or never.
const RESOURCES_LIMIT: Duration = Duration::from_secs(10);
/// Files of the kernel have a few KiB, on machines with many processors some hundred.
const LARGEST_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// What the public daemon says of how the device got its identity.
const PLACEHOLDER: &str = "ProvisioningType";

/// Why the machine cannot be described.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// A file of the kernel could not be read.
    #[error("could not read what the kernel tells of the machine")]
    File(#[from] aziot_files::Error),
    /// A file of the kernel says something else than it always did.
    #[error("{} has no {what}", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// No answer in time.
    #[error("the machine did not tell how it fares within {} s", RESOURCES_LIMIT.as_secs())]
    TimedOut,
    /// The runtime is ending.
    #[error("the runtime is ending")]
    Ending,
}

/// The device, and where to ask about it.
pub(crate) struct System {
    docker: Docker,
    modules: Arc<Modules>,
    identityd: Client,
    bundles: SupportBundles,
    machine: Machine,
    additional_info: BTreeMap<String, String>,
    mode: ReprovisioningMode,
    /// What does not change while the runtime lives.
    constant: SystemInfo,
    load: Arc<Mutex<Load>>,
    readings: Readings,
    started: Instant,
}

impl System {
    /// Reads what never changes. Whether the machine is virtual is asked of systemd, for some seconds at most.
    pub(crate) async fn new(settings: &Settings, docker: Docker, modules: Arc<Modules>, identityd: Client) -> Self {
        let config = &settings.config;
        let started = Instant::now();
        let machine = Machine::this();
        let virtualized = virtualization::detect().await;
        let reading = machine.clone();
        let read = tokio::task::spawn_blocking(move || (host::describe(&reading), Sample::read(&reading).ok()));
        // Nothing but a panic ends it early, and that is told elsewhere.
        let (mut constant, sample) = read.await.unwrap_or_default();
        virtualized.clone_into(&mut constant.virtualized);
        Self {
            bundles: SupportBundles::new(
                Arc::clone(&modules),
                docker.clone(),
                config.moby_runtime.uri.as_str(),
                settings.cache(),
            ),
            docker,
            modules,
            identityd,
            machine,
            additional_info: config.additional_info.clone(),
            mode: config.auto_reprovisioning_mode,
            constant,
            load: Arc::new(Mutex::new(Load::new(sample.unwrap_or_default()))),
            readings: Readings::default(),
            started,
        }
    }

    /// What the device is.
    pub(crate) async fn info(&self) -> Result<SystemInfo, Error> {
        let (engine, source) = tokio::join!(self.docker.info(), self.provisioning_source());
        let engine = engine.map_err(|error| Error::SystemInfo(error.into()))?;
        let mut info = SystemInfo {
            server_version: engine.server_version,
            provisioning: Provisioning {
                r#type: source.to_owned(),
                dynamic_reprovisioning: self.mode == ReprovisioningMode::Dynamic,
                always_reprovision_on_startup: self.mode == ReprovisioningMode::AlwaysOnStartup,
            },
            ..self.constant.clone()
        };
        override_with(&mut info, &self.additional_info);
        Ok(info)
    }

    /// How the device fares.
    pub(crate) async fn resources(&self) -> Result<Resources, Error> {
        let (machine, load) = (self.machine.clone(), Arc::clone(&self.load));
        let read = self.readings.read(move || fares(&machine, &load));
        let (read, docker_stats) = tokio::join!(read, self.modules.statistics());
        let mut resources = read.map_err(|error| Error::SystemInfo(error.into()))?;
        resources.process_uptime = self.started.elapsed().as_secs();
        resources.docker_stats = docker_stats?;
        Ok(resources)
    }

    /// What a supporter wants to see.
    pub(crate) async fn support_bundle(&self, call: &GetSupportBundle) -> Result<Streamed, Error> {
        let query = Query::new(call, Timestamp::now()).map_err(|error| Error::Invalid(error.to_string()))?;
        self.bundles.make(query).await.map_err(|error| Error::SupportBundle(error.into()))
    }

    async fn provisioning_source(&self) -> &'static str {
        match tokio::time::timeout(PROVISIONING_LIMIT, self.identityd.send(&GetProvisioning {})).await {
            Ok(Ok(ProvisioningInfo::Dps { .. })) => "dps",
            Ok(Ok(ProvisioningInfo::Manual { .. })) => "manual",
            Ok(Ok(ProvisioningInfo::None)) => "none",
            Ok(Err(_)) | Err(_) => PLACEHOLDER,
        }
    }
}

/// Readings of the machine, one at a time: one that hangs on a disk keeps its thread for as long as the disk does.
#[derive(Debug)]
struct Readings(Arc<Semaphore>);

impl Default for Readings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Readings {
    /// What `read` tells, after the reading before it, in [`RESOURCES_LIMIT`].
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, MachineError> + Send + 'static,
    ) -> Result<T, MachineError> {
        let outcome = async {
            // Nobody closes the semaphore, and a reading ends early by a panic at most.
            let turn = Arc::clone(&self.0).acquire_owned().await.map_err(|_| MachineError::Ending)?;
            let reading = tokio::task::spawn_blocking(move || {
                // Given back when the reading ends, which nobody may wait for any more.
                let _turn = turn;
                read()
            });
            reading.await.map_err(|_| MachineError::Ending)?
        };
        tokio::time::timeout(RESOURCES_LIMIT, outcome).await.unwrap_or(Err(MachineError::TimedOut))
    }
}

/// All but what the engine and this process know. Blocks on files and disks.
fn fares(machine: &Machine, load: &Mutex<Load>) -> Result<Resources, MachineError> {
    let sample = Sample::read(machine)?;
    let used_cpu = load.lock().unwrap_or_else(PoisonError::into_inner).percent(sample, Instant::now());
    let memory = host::Memory::read(machine)?;
    Ok(Resources {
        host_uptime: host::uptime(machine)?,
        process_uptime: 0,
        used_cpu,
        used_ram: memory.used,
        total_ram: memory.total,
        disks: disks::mounted(machine)?,
        docker_stats: String::new(),
    })
}

/// Entries of `[additional_info]` take the place of what was found out; those that no member is for stand beside it.
fn override_with(info: &mut SystemInfo, additional: &BTreeMap<String, String>) {
    for (name, value) in additional {
        let member = match name.as_str() {
            "kernel" => {
                info.os_type.clone_from(value);
                continue;
            }
            "architecture" => {
                info.architecture.clone_from(value);
                continue;
            }
            "virtualized" => {
                info.virtualized.clone_from(value);
                continue;
            }
            "kernel_release" => &mut info.kernel_release,
            "kernel_version" => &mut info.kernel_version,
            "operating_system" => &mut info.operating_system,
            "operating_system_version" => &mut info.operating_system_version,
            "operating_system_variant" => &mut info.operating_system_variant,
            "operating_system_build" => &mut info.operating_system_build,
            "product_name" => &mut info.product_name,
            "system_vendor" => &mut info.system_vendor,
            "server_version" => &mut info.server_version,
            _ => {
                info.others.insert(name.clone(), value.clone());
                continue;
            }
        };
        *member = Some(value.clone());
    }
}

/// Where the machine tells about itself; another folder in tests.
#[derive(Clone, Debug)]
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn this() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// A path on this machine, such as `proc/stat`.
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// A file's text; bytes that are no UTF-8 are replaced.
    fn read(&self, path: impl AsRef<Path>) -> Result<String, aziot_files::Error> {
        let bytes = read_limited(self.path(path), LARGEST_FILE_BYTES)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests;
