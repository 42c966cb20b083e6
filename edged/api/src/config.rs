//! Configuration of the module runtime: `/etc/aziot/edged/config.toml` and its drop-ins.
//!
//! It is read at start only: a changed file needs a restart. What is wrong is refused while it is read, so that the error names file, line
//! and key. Names and defaults are the public daemon's; what ours refuses beyond that is told in `docs/differences.md`.

mod agent;
mod collection;
mod edge_ca;
mod engine;
mod hidden;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use aziot_http::{Endpoint, endpoint::built_in, server::MaxRequests};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use agent::{AGENT, Agent, AgentConfig, AgentName, Image, InvalidName, ModuleType, PullPolicy};
pub use collection::{CleanupTime, Days, ImageGarbageCollection, InvalidDays, InvalidTime, Span};
pub use edge_ca::{EDGE_CA, EdgeCa};
pub use engine::{ContentTrust, EngineUri, InvalidEngineUri, Ipam, IpamConfig, MobyRuntime, Network};
pub use hidden::Hidden;

/// Id of the key under which modules keep secrets; an imported one of an older installation has it too.
pub const MASTER_ENCRYPTION_KEY: &str = "iotedge_master_encryption_id";
/// Id of the trust bundle unless configured otherwise.
pub const TRUST_BUNDLE: &str = "aziot-edged-trust-bundle";
/// Id of the manifest trust bundle unless configured otherwise.
pub const MANIFEST_TRUST_BUNDLE: &str = "aziot-edged-manifest-trust-bundle";

/// All settings. Plain keys stand before tables, as TOML writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Name of this device in its network: the hub module takes it for its certificate and as its name in the containers' network.
    pub hostname: String,
    /// Folder of the runtime's state; made if it is not there.
    pub homedir: PathBuf,
    /// Certificate id of what modules trust.
    #[serde(default = "trust_bundle")]
    pub trust_bundle_cert: String,
    /// Certificate id of what the agent trusts to sign deployments.
    #[serde(default = "manifest_trust_bundle", skip_serializing_if = "is_manifest_trust_bundle")]
    pub manifest_trust_bundle_cert: String,
    /// When the device is provisioned anew.
    #[serde(default)]
    pub auto_reprovisioning_mode: ReprovisioningMode,
    /// Whether modules may have elevated rights. Default true.
    #[serde(default = "yes")]
    pub allow_elevated_docker_permissions: bool,
    /// Where elevated rights are off: whether modules may still have namespaces, devices and system folders of the host. Default true. An
    /// addition of ours.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub allow_host_access: bool,
    /// Requests that are worked on at once.
    #[serde(default, skip_serializing_if = "Requests::is_default")]
    pub iotedge_max_requests: Requests,
    /// The CA that signs the certificates of modules.
    #[serde(default)]
    pub edge_ca: EdgeCa,
    /// The container that the runtime starts by itself.
    pub agent: Agent,
    /// Addresses of both APIs as containers see them.
    pub connect: Connect,
    /// Addresses of both APIs as the runtime opens them.
    pub listen: Listen,
    /// When the runtime gives up on the agent.
    #[serde(default)]
    pub watchdog: Watchdog,
    /// The container engine.
    pub moby_runtime: MobyRuntime,
    /// When unused images are removed.
    #[serde(default, skip_serializing_if = "ImageGarbageCollection::is_default")]
    pub image_garbage_collection: ImageGarbageCollection,
    /// Product information that is merged into the answer about the system.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub additional_info: BTreeMap<String, String>,
    /// Where the other services listen.
    #[serde(default, skip_serializing_if = "Endpoints::is_default")]
    pub endpoints: Endpoints,
}

fn trust_bundle() -> String {
    TRUST_BUNDLE.to_owned()
}

fn manifest_trust_bundle() -> String {
    MANIFEST_TRUST_BUNDLE.to_owned()
}

fn is_manifest_trust_bundle(id: &str) -> bool {
    id == MANIFEST_TRUST_BUNDLE
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
fn is_yes(value: &bool) -> bool {
    *value
}

/// When the device is provisioned anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReprovisioningMode {
    /// When the agent asks for it.
    #[default]
    Dynamic,
    /// At each start too.
    AlwaysOnStartup,
    /// As `Dynamic`: the difference is the agent's.
    OnErrorOnly,
}

/// Requests that are worked on at once, per listener and user of the machine. Both keys must be there if the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Of the management API. Default 50.
    pub management: MaxRequests,
    /// Of each workload socket. Default 10.
    pub workload: MaxRequests,
}

impl Requests {
    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Requests {
    fn default() -> Self {
        let management = MaxRequests::try_from(50).expect("50 is not zero");
        Self { management, workload: MaxRequests::default() }
    }
}

/// Addresses of both APIs as containers see them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// `unix:///path` of the module's workload socket.
    pub workload_uri: ConnectUri,
    /// `unix:///path` of the management socket.
    pub management_uri: ConnectUri,
}

/// The address of a socket inside containers, kept to the letter: programs get it as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConnectUri {
    text: String,
    path: PathBuf,
}

/// An address that no container can connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not unix:///path, which is where containers find the sockets of this runtime")]
pub struct InvalidConnectUri(String);

impl ConnectUri {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Path of the socket inside the container.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl TryFrom<String> for ConnectUri {
    type Error = InvalidConnectUri;

    fn try_from(text: String) -> Result<Self, InvalidConnectUri> {
        match text.parse() {
            Ok(Endpoint::Unix(path)) => Ok(Self { text, path }),
            Ok(Endpoint::Descriptor(_)) | Err(_) => Err(InvalidConnectUri(text)),
        }
    }
}

impl From<ConnectUri> for String {
    fn from(uri: ConnectUri) -> Self {
        uri.text
    }
}

impl fmt::Display for ConnectUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Addresses of both APIs as the runtime opens them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// Of the workload socket that modules of very old releases share.
    pub workload_uri: Endpoint,
    /// Of the management socket.
    pub management_uri: Endpoint,
}

/// When the runtime gives up on the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    /// Rounds that may fail in a row. Default `"infinite"`.
    #[serde(default)]
    pub max_retries: MaxRetries,
}

/// `"infinite"`, in any case, or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxRetries {
    /// Never gives up.
    #[default]
    Infinite,
    /// Gives up when so many rounds in a row have failed; 0 counts as 1, since nothing is wrong before the first.
    Number(u32),
}

impl Serialize for MaxRetries {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Infinite => serializer.serialize_str("infinite"),
            Self::Number(number) => serializer.serialize_u32(*number),
        }
    }
}

impl<'de> Deserialize<'de> for MaxRetries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MaxRetriesVisitor)
    }
}

struct MaxRetriesVisitor;

impl de::Visitor<'_> for MaxRetriesVisitor {
    type Value = MaxRetries;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"infinite\" or a whole number from 0 to {}", u32::MAX)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MaxRetries, E> {
        let infinite = text.eq_ignore_ascii_case("infinite");
        if infinite { Ok(MaxRetries::Infinite) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<MaxRetries, E> {
        let fits = u32::try_from(number).map(MaxRetries::Number);
        fits.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<MaxRetries, E> {
        let fits = u32::try_from(number).map(MaxRetries::Number);
        fits.map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
}

/// The sockets of the other services. Each is written only where it is not the built-in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The certificate service's.
    #[serde(default = "built_in::certd", skip_serializing_if = "built_in::is_certd")]
    pub aziot_certd_url: Endpoint,
    /// The key service's.
    #[serde(default = "built_in::keyd", skip_serializing_if = "built_in::is_keyd")]
    pub aziot_keyd_url: Endpoint,
    /// The identity service's.
    #[serde(default = "built_in::identityd", skip_serializing_if = "built_in::is_identityd")]
    pub aziot_identityd_url: Endpoint,
}

impl Endpoints {
    /// Whether all sockets are where they always are.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            aziot_certd_url: built_in::certd(),
            aziot_keyd_url: built_in::keyd(),
            aziot_identityd_url: built_in::identityd(),
        }
    }
}

#[cfg(test)]
mod tests;
