//! What a super-config says about modules and their runtime.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use aziot_certd_api::config::Options;
use aziot_certd_api::renewal::AutoRenew;
use aziot_edged_api::config::{
    Agent, ConnectUri, EngineUri, ImageGarbageCollection, Network, ReprovisioningMode, Requests, Watchdog,
};
use aziot_http::Endpoint;
use aziot_keys::KeyUri;
use url::Url;

use super::EstCredentials;

/// Settings of modules and their runtime.
#[derive(Debug)]
pub struct Edge {
    /// Further roots that modules trust.
    pub trust_bundle_cert: Option<Url>,
    /// Roots that deployments must be signed by.
    pub manifest_trust_bundle_cert: Option<Url>,
    /// Whether modules may have elevated rights.
    pub allow_elevated_docker_permissions: bool,
    /// Where elevated rights are off: whether modules may still have what else is the host's.
    pub allow_host_access: bool,
    /// When the device is provisioned anew.
    pub auto_reprovisioning_mode: ReprovisioningMode,
    /// A key of a former release that is copied to the key service.
    pub imported_master_encryption_key: Option<PathBuf>,
    /// A file of texts that are shown as information about the system.
    pub additional_info: Option<PathBuf>,
    /// Requests that are worked on at once.
    pub max_requests: Requests,
    /// The container that the runtime starts by itself.
    pub agent: Agent,
    /// Sockets that the user names.
    pub uris: EdgeUris,
    /// When the runtime gives up on the agent.
    pub watchdog: Watchdog,
    /// The CA that signs the certificates of modules.
    pub edge_ca: EdgeCa,
    /// Where the container engine listens.
    pub engine: EngineUri,
    /// The network that modules are in.
    pub network: Network,
    /// Host of a registry to its root certificate.
    pub content_trust: BTreeMap<String, Url>,
    /// When unused images are removed.
    pub image_garbage_collection: ImageGarbageCollection,
}

/// Where the module runtime has its sockets, as far as somebody says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeUris {
    /// Of the workload API as containers see it.
    pub connect_workload: Option<ConnectUri>,
    /// Of the management API as containers see it.
    pub connect_management: Option<ConnectUri>,
    /// Of the workload API as the runtime opens it.
    pub listen_workload: Option<Endpoint>,
    /// Of the management API as the runtime opens it.
    pub listen_management: Option<Endpoint>,
}

impl EdgeUris {
    /// These, and of `others` those that are missing here.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        Self {
            connect_workload: self.connect_workload.or_else(|| others.connect_workload.clone()),
            connect_management: self.connect_management.or_else(|| others.connect_management.clone()),
            listen_workload: self.listen_workload.or_else(|| others.listen_workload.clone()),
            listen_management: self.listen_management.or_else(|| others.listen_management.clone()),
        }
    }
}

/// Where the CA comes from.
#[derive(Debug)]
pub enum EdgeCa {
    /// Certificate and key are on the device already.
    Preloaded {
        /// The certificate.
        cert: Url,
        /// Its key.
        key: KeyUri,
    },
    /// The key is made on the device and the certificate issued for it.
    Issued(Box<IssuedEdgeCa>),
}

/// How the CA's certificate is issued.
#[derive(Debug)]
pub struct IssuedEdgeCa {
    /// Method, lifetime, EST server and, except for EST, the subject; without credentials.
    pub options: Options,
    /// EST: what the module runtime asks for as the subject, if not for its own choice.
    pub subject: Option<EdgeCaSubject>,
    /// EST: credentials for this certificate alone.
    pub est: EstCredentials,
    /// When it is renewed.
    pub auto_renew: AutoRenew,
}

/// A subject to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeCaSubject {
    /// A common name alone.
    CommonName(String),
    /// Attribute by attribute.
    Attributes(BTreeMap<String, String>),
}

/// Days that a CA lasts which the device makes for itself.
pub const QUICKSTART_DAYS: NonZeroU32 = NonZeroU32::new(90).expect("ninety is more than none");
