//! Calls about the device that the runtime is on: what it is, how it fares, what a supporter wants to see; and provisioning it anew.

use std::collections::BTreeMap;

use aziot_http::{ApiVersion, Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};

/// Tells what the device is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetSystemInfo {}

impl Call for GetSystemInfo {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/systeminfo";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = SystemInfo;
}

/// What the device is. The agent reports members that it does not know as product information.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Name of the kernel: `Linux`.
    #[serde(rename = "osType")]
    pub os_type: String,
    /// Release of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// Build of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// `ID` of os-release(5): `debian`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system: Option<String>,
    /// `VERSION_ID` of os-release(5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_version: Option<String>,
    /// `VARIANT_ID` of os-release(5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_variant: Option<String>,
    /// `BUILD_ID` of os-release(5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_system_build: Option<String>,
    /// `x86_64`, `aarch64` or `arm`.
    pub architecture: String,
    /// Processors that this process may use.
    pub cpus: u64,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// `yes`, `no` or `unknown`.
    pub virtualized: String,
    /// Name of the machine, from its firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_name: Option<String>,
    /// Maker of the machine, from its firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_vendor: Option<String>,
    /// Version of the runtime.
    pub version: String,
    /// Version of the container engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// How the device got its identity.
    pub provisioning: Provisioning,
    /// Entries of `[additional_info]` that no member above has.
    #[serde(flatten)]
    pub others: BTreeMap<String, String>,
}

/// How the device got its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provisioning {
    /// `dps`, `manual` or `none`; where the identity service does not tell, the public daemon's constant `ProvisioningType`.
    pub r#type: String,
    /// Whether the agent may have the device provisioned anew.
    pub dynamic_reprovisioning: bool,
    /// Whether the device is provisioned anew at each start.
    pub always_reprovision_on_startup: bool,
}

/// Tells how the device fares.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetResources {}

impl Call for GetResources {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/systeminfo/resources";
    const SINCE: ApiVersion = ApiVersion::V2019_11_05;
    const BODY: Body = Body::Ignored;
    type Reply = Resources;
}

/// How the device fares. All members are always there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Seconds since the device started.
    pub host_uptime: u64,
    /// Seconds since the runtime started.
    pub process_uptime: u64,
    /// Load of all processors since the last such call, or since the start, in percent.
    pub used_cpu: f32,
    /// Memory that is neither free nor reclaimable, in bytes.
    pub used_ram: u64,
    /// All memory, in bytes.
    pub total_ram: u64,
    /// File systems on disks.
    pub disks: Vec<Disk>,
    /// A JSON array as text: what the engine says of each module.
    pub docker_stats: String,
}

/// A file system on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its device.
    pub name: String,
    /// Bytes that users may still fill.
    pub available_space: u64,
    /// Its size in bytes.
    pub total_space: u64,
    /// `ext4` and the like.
    pub file_system: String,
    /// What it is on.
    pub file_type: DiskKind,
}

/// What a file system is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskKind {
    /// A disk that rotates.
    #[serde(rename = "HDD")]
    Rotating,
    /// A disk without moving parts.
    #[serde(rename = "SSD")]
    SolidState,
    /// Nobody knows.
    #[serde(rename = "Unknown(-1)")]
    Unknown,
}

/// Has the device provisioned anew. The answer only says that it will be done: the runtime ends in order to do it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reprovision {}

impl Call for Reprovision {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/device/reprovision";
    const SINCE: ApiVersion = ApiVersion::V2019_10_22;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// Gathers what a supporter wants to see, as a zip file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetSupportBundle {
    /// Logs from this time on; the forms are those of [log queries](crate::logs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Logs up to this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Host name of the hub, for the checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iothub_hostname: Option<String>,
    /// `true` for the logs of the agent and the hub module alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_runtime_only: Option<String>,
}

impl Call for GetSupportBundle {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/systeminfo/supportbundle";
    const QUERY: &'static [&'static str] = &["since", "until", "iothub_hostname", "edge_runtime_only"];
    const SINCE: ApiVersion = ApiVersion::V2020_07_07;
    const BODY: Body = Body::Ignored;
    type Reply = ();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_are_those_that_the_agent_reads() {
        let info = SystemInfo {
            os_type: "Linux".to_owned(),
            architecture: "x86_64".to_owned(),
            cpus: 4,
            virtualized: "no".to_owned(),
            version: "1".to_owned(),
            provisioning: Provisioning { r#type: "dps".to_owned(), ..Provisioning::default() },
            others: BTreeMap::from([("line".to_owned(), "7".to_owned())]),
            ..SystemInfo::default()
        };
        assert_eq!(
            serde_json::to_string(&info).unwrap(),
            concat!(
                r#"{"osType":"Linux","architecture":"x86_64","cpus":4,"virtualized":"no","version":"1","#,
                r#""provisioning":{"type":"dps","dynamicReprovisioning":false,"alwaysReprovisionOnStartup":false},"line":"7"}"#
            )
        );
        let disk = Disk {
            name: "/dev/sda1".to_owned(),
            available_space: 1,
            total_space: 2,
            file_system: "ext4".to_owned(),
            file_type: DiskKind::Unknown,
        };
        assert_eq!(
            serde_json::to_string(&disk).unwrap(),
            r#"{"name":"/dev/sda1","available_space":1,"total_space":2,"file_system":"ext4","file_type":"Unknown(-1)"}"#
        );
    }
}
