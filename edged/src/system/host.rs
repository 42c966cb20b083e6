//! The machine itself: kernel, distribution, firmware, processors, memory, and how long it has been up.

use aziot_edged_api::system::SystemInfo;

use super::{Machine, MachineError, release::Release};

const MEMORY: &str = "proc/meminfo";
const UPTIME: &str = "proc/uptime";
const FIRMWARE: &str = "sys/devices/virtual/dmi/id";

/// What does not change while this process lives. What cannot be found out is left out. Blocks on files.
pub(super) fn describe(machine: &Machine) -> SystemInfo {
    let kernel = rustix::system::uname();
    let text = |text: &std::ffi::CStr| Some(text.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
    let release = Release::read(machine);
    let firmware = |file: &str| {
        let text = machine.read(format!("{FIRMWARE}/{file}")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    SystemInfo {
        os_type: text(kernel.sysname()).unwrap_or_else(|| "UNKNOWN".to_owned()),
        kernel_release: text(kernel.release()),
        kernel_version: text(kernel.version()),
        operating_system: release.get("ID"),
        operating_system_version: release.get("VERSION_ID"),
        operating_system_variant: release.get("VARIANT_ID"),
        operating_system_build: release.get("BUILD_ID"),
        architecture: std::env::consts::ARCH.to_owned(),
        cpus: u64::try_from(cpus).unwrap_or(u64::MAX),
        total_memory: Memory::read(machine).ok().map(|memory| memory.total),
        product_name: firmware("product_name"),
        system_vendor: firmware("sys_vendor"),
        version: crate::version(),
        ..SystemInfo::default()
    }
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// What programs hold: neither free nor reclaimable.
    pub(super) used: u64,
    /// All of it.
    pub(super) total: u64,
}

impl Memory {
    /// Blocks on a file.
    pub(super) fn read(machine: &Machine) -> Result<Self, MachineError> {
        let text = machine.read(MEMORY)?;
        let kibibytes = |name: &'static str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            let bytes = number.and_then(|number| number.checked_mul(1024));
            bytes.ok_or_else(|| MachineError::Unexpected { path: machine.path(MEMORY), what: name })
        };
        let (total, available) = (kibibytes("MemTotal")?, kibibytes("MemAvailable")?);
        Ok(Self { used: total.saturating_sub(available), total })
    }
}

/// Seconds since the machine started. Blocks on a file.
pub(super) fn uptime(machine: &Machine) -> Result<u64, MachineError> {
    let text = machine.read(UPTIME)?;
    let seconds = text.split(['.', ' ']).next().and_then(|seconds| seconds.parse().ok());
    seconds.ok_or_else(|| MachineError::Unexpected { path: machine.path(UPTIME), what: "seconds" })
}
