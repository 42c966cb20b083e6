//! The keys of IoT Edge in a super-config. They stand at the top of the same file; `aziotctl` does not look into them.
//!
//! Values that the module runtime checks are of its own types, so that a mistake is found here with its line. Each key of a table has its own
//! default, unlike in the public tool, which wants some tables whole.

use std::collections::BTreeMap;

use aziot_edged_api::config::{
    AgentName, ConnectUri, EngineUri, Hidden, Image, ImageGarbageCollection, ModuleType, Network, PullPolicy,
    ReprovisioningMode, Watchdog,
};
use aziot_http::Endpoint;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::foreign::Foreign;
use super::{AutoRenew, CertificateOptions};
use aziot_http::SecretText;

/// All keys of IoT Edge; the others of the file are not its own.
#[derive(Debug, Deserialize)]
pub struct EdgeConfig {
    /// URI of further roots that modules trust, in PEM.
    #[serde(default)]
    pub trust_bundle_cert: Option<String>,
    /// Whether modules may have elevated rights. Default `true`.
    #[serde(default)]
    pub allow_elevated_docker_permissions: Option<bool>,
    /// Where elevated rights are off: whether modules may still have what else is the host's. Default `true`. Not in the public tool.
    #[serde(default)]
    pub allow_host_access: Option<bool>,
    /// When the device is provisioned anew. Default `Dynamic`.
    #[serde(default)]
    pub auto_reprovisioning_mode: ReprovisioningMode,
    /// Path of a key of 32 bytes under which a former release kept the secrets of modules.
    #[serde(default)]
    pub imported_master_encryption_key: Option<String>,
    /// URI of the roots that deployments must be signed by, in PEM.
    #[serde(default)]
    pub manifest_trust_bundle_cert: Option<String>,
    /// URI of a TOML file with texts that are shown as information about the system.
    #[serde(default)]
    pub additional_info: Option<String>,
    /// Requests that are worked on at once.
    #[serde(default)]
    pub iotedge_max_requests: EdgeMaxRequests,
    /// The container that the runtime starts by itself.
    #[serde(default)]
    pub agent: Agent,
    /// Addresses of the sockets as containers see them.
    #[serde(default)]
    pub connect: Connect,
    /// Addresses of the sockets as the runtime opens them.
    #[serde(default)]
    pub listen: Listen,
    /// When the runtime gives up on the agent.
    #[serde(default)]
    pub watchdog: Watchdog,
    /// The CA that signs the certificates of modules.
    #[serde(default)]
    pub edge_ca: Option<EdgeCa>,
    /// The container engine.
    #[serde(default)]
    pub moby_runtime: MobyRuntime,
    /// When unused images are removed.
    #[serde(default)]
    pub image_garbage_collection: ImageGarbageCollection,
}

/// `[iotedge_max_requests]`
#[derive(Debug, Default, Deserialize)]
pub struct EdgeMaxRequests {
    /// Of the management API. Default 50.
    #[serde(default)]
    pub management: Option<u64>,
    /// Of each workload socket. Default 10.
    #[serde(default)]
    pub workload: Option<u64>,
}

/// `[agent]`
#[derive(Debug, Default, Deserialize)]
pub struct Agent {
    /// `edgeAgent`, which is the default.
    #[serde(default)]
    pub name: AgentName,
    /// `docker`, which is the default.
    #[serde(default)]
    pub r#type: ModuleType,
    /// When the image is pulled. Default `on-create`.
    #[serde(default, rename = "imagePullPolicy")]
    pub image_pull_policy: PullPolicy,
    /// What its container is made of.
    #[serde(default)]
    pub config: AgentConfig,
    /// Its environment.
    #[serde(default)]
    pub env: Hidden<BTreeMap<String, String>>,
}

/// `[agent.config]`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// The image. Default: the public one.
    #[serde(default)]
    pub image: Option<Image>,
    /// Not looked at by the runtime.
    #[serde(default)]
    pub image_hash: Option<String>,
    /// Not looked at by the runtime.
    #[serde(default)]
    pub digest: Option<String>,
    /// Docker's create options.
    #[serde(default)]
    pub create_options: Hidden<Map<String, Value>>,
    /// Credentials at the registry.
    #[serde(default)]
    pub auth: Option<Hidden<BTreeMap<String, String>>>,
}

/// `[connect]`
#[derive(Debug, Default, Deserialize)]
pub struct Connect {
    /// Of the workload API.
    #[serde(default)]
    pub workload_uri: Option<ConnectUri>,
    /// Of the management API.
    #[serde(default)]
    pub management_uri: Option<ConnectUri>,
}

/// `[listen]`
#[derive(Debug, Default, Deserialize)]
pub struct Listen {
    /// Of the workload API.
    #[serde(default)]
    pub workload_uri: Option<Endpoint>,
    /// Of the management API.
    #[serde(default)]
    pub management_uri: Option<Endpoint>,
    /// Written by tools of former releases; TLS is the hub module's affair.
    #[serde(default)]
    pub min_tls_version: Foreign,
}

/// `[edge_ca]`: issued if there is a `method`, else there already if `cert` and `pk` are given, else made by the device for itself.
#[derive(Debug, Default, Deserialize)]
pub struct EdgeCa {
    /// `est`, `local_ca` or `self_signed`.
    #[serde(default)]
    pub method: Option<String>,
    /// The subject, if it is a common name alone.
    #[serde(default)]
    pub common_name: Option<String>,
    /// The subject, attribute by attribute.
    #[serde(default)]
    pub subject: Option<BTreeMap<String, String>>,
    /// Issued: lifetime in days.
    #[serde(default)]
    pub expiry_days: Option<u32>,
    /// When it is renewed.
    #[serde(default)]
    pub auto_renew: Option<AutoRenew>,
    /// EST: URL of the server.
    #[serde(default)]
    pub url: Option<String>,
    /// EST authentication, as this and all below.
    #[serde(default)]
    pub username: Option<String>,
    /// EST authentication.
    #[serde(default)]
    pub password: Option<SecretText>,
    /// EST authentication.
    #[serde(default)]
    pub identity_cert: Option<String>,
    /// EST authentication.
    #[serde(default)]
    pub identity_pk: Option<SecretText>,
    /// EST authentication.
    #[serde(default)]
    pub bootstrap_identity_cert: Option<String>,
    /// EST authentication.
    #[serde(default)]
    pub bootstrap_identity_pk: Option<SecretText>,
    /// There already: URI of the certificate.
    #[serde(default)]
    pub cert: Option<String>,
    /// There already: URI of its key.
    #[serde(default)]
    pub pk: Option<SecretText>,
    /// Made by the device for itself: lifetime in days. Default 90.
    #[serde(default)]
    pub auto_generated_edge_ca_expiry_days: Option<u32>,
}

impl EdgeCa {
    /// The part that all issued certificates have in common.
    #[must_use]
    pub fn into_options(self, method: String, expiry_days: Option<u32>) -> CertificateOptions {
        CertificateOptions {
            method,
            common_name: self.common_name,
            subject: self.subject,
            expiry_days,
            url: self.url,
            auto_renew: self.auto_renew,
            username: self.username,
            password: self.password,
            identity_cert: self.identity_cert,
            identity_pk: self.identity_pk,
            bootstrap_identity_cert: self.bootstrap_identity_cert,
            bootstrap_identity_pk: self.bootstrap_identity_pk,
        }
    }
}

/// `[moby_runtime]`
#[derive(Debug, Default, Deserialize)]
pub struct MobyRuntime {
    /// Where the engine listens. Default `unix:///var/run/docker.sock`.
    #[serde(default)]
    pub uri: Option<EngineUri>,
    /// The network that modules are in. Default `azure-iot-edge`.
    #[serde(default)]
    pub network: Network,
    /// Registries to be trusted.
    #[serde(default)]
    pub content_trust: ContentTrust,
}

/// `[moby_runtime.content_trust]`
#[derive(Debug, Default, Deserialize)]
pub struct ContentTrust {
    /// Host of a registry to URI of its root certificate.
    #[serde(default)]
    pub ca_certs: BTreeMap<String, String>,
}
