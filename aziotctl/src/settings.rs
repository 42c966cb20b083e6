//! What a super-config means once it has been checked: only values that work, and of things that exclude each other only the one that counts.
//!
//! Made by [`check`](crate::check::check); turned into the services' files by [`generate`](crate::generate::generate).

use std::collections::BTreeMap;

use aziot_certd_api::config::{Basic, EstUrl, Options, Preloaded};
use aziot_certd_api::renewal::AutoRenew;
use aziot_http::server::MaxRequests;
use aziot_http::{Endpoint, SecretBytes};
use aziot_identityd_api::config::{CloudRetries, CloudTimeout, DpsEndpoint};
use aziot_keys::KeyUri;
use url::Url;

use crate::secret_text::SecretText;

/// A device's settings.
#[derive(Debug)]
pub struct Settings {
    /// Name of the device in its network, if not the kernel's host name.
    pub hostname: Option<String>,
    /// The parent device.
    pub local_gateway_hostname: Option<String>,
    /// How long one attempt may take.
    pub cloud_timeout_sec: CloudTimeout,
    /// After the first attempt.
    pub cloud_retries: CloudRetries,
    /// Whether module identities are taken from the local copy first.
    pub prefer_module_identity_cache: bool,
    /// How the device gets its identity.
    pub provisioning: Provisioning,
    /// What the names of local identities end with.
    pub local_id_domain: Option<String>,
    /// Parameters of the key library.
    pub aziot_keys: BTreeMap<String, SecretText>,
    /// Key id to place.
    pub preloaded_keys: BTreeMap<String, KeyUri>,
    /// Certificate id to place, or to the ids of a bundle.
    pub preloaded_certs: BTreeMap<String, Preloaded>,
    /// Of all certificates issued over EST.
    pub est: Option<Est>,
    /// The device's own CA.
    pub local_ca: Option<LocalCa>,
    /// Of the key service.
    pub keyd_max_requests: MaxRequests,
    /// Of the certificate service.
    pub certd_max_requests: MaxRequests,
    /// Of the identity service.
    pub identityd_max_requests: MaxRequests,
    /// Where the services listen, as far as the user says so.
    pub endpoints: Endpoints,
}

/// How the device gets its identity.
#[derive(Debug)]
pub enum Provisioning {
    /// The hub and the device's name there are known.
    Manual {
        /// The hub.
        iothub_hostname: String,
        /// The device's name at the hub.
        device_id: String,
        /// The device's key.
        key: SymmetricKey,
    },
    /// The Device Provisioning Service says both.
    Dps {
        /// Where the service is.
        global_endpoint: DpsEndpoint,
        /// The owner's scope.
        id_scope: String,
        /// The device's name at DPS.
        registration_id: String,
        /// The device's key.
        key: SymmetricKey,
        /// JSON file that is sent along.
        payload: Option<Url>,
    },
    /// The device has local identities only.
    None,
}

/// Where a symmetric key comes from.
#[derive(Debug)]
pub enum SymmetricKey {
    /// It stands in the super-config.
    Inline(SecretBytes),
    /// It is on the device already.
    At(KeyUri),
}

/// Settings of all certificates issued over EST.
#[derive(Debug)]
pub struct Est {
    /// CAs that the server's TLS certificate may come from.
    pub trusted_certs: Vec<Url>,
    /// Basic authentication.
    pub basic: Option<Basic>,
    /// TLS client certificate.
    pub identity: Option<EstIdentity>,
    /// Certificate id, or `default`, to URL of the server.
    pub urls: BTreeMap<String, EstUrl>,
    /// When EST identities are renewed.
    pub identity_auto_renew: AutoRenew,
}

/// A TLS client certificate for an EST server.
#[derive(Debug)]
pub enum EstIdentity {
    /// For every request.
    Lasting {
        /// The certificate.
        cert: Url,
        /// Its key.
        key: KeyUri,
    },
    /// For one request, which gets the lasting one.
    Bootstrap {
        /// The certificate.
        cert: Url,
        /// Its key.
        key: KeyUri,
    },
}

/// The device's own CA.
#[derive(Debug)]
pub enum LocalCa {
    /// Certificate and key are there.
    Preloaded {
        /// The certificate.
        cert: Url,
        /// Its key.
        key: KeyUri,
    },
    /// Certificate and key are made on the device.
    Issued(Box<Options>),
}

/// Sockets that the user names.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// The key service.
    pub keyd: Option<Endpoint>,
    /// The certificate service.
    pub certd: Option<Endpoint>,
    /// The identity service.
    pub identityd: Option<Endpoint>,
}
