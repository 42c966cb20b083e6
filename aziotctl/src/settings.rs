//! What a super-config means once it has been checked: only values that work, and of things that exclude each other only the one that counts.
//!
//! Made by [`check`](crate::check::check); turned into the services' files by [`generate`](crate::generate::generate).

mod edge;

use std::collections::BTreeMap;

use aziot_certd_api::config::{Basic, EstUrl, Options, Preloaded};
use aziot_certd_api::renewal::AutoRenew;
use aziot_http::server::MaxRequests;
use aziot_http::{Endpoint, SecretBytes};
use aziot_identityd_api::config::{CloudRetries, CloudTimeout, DpsEndpoint};
use aziot_keys::KeyUri;
use aziot_tpmd_api::config::{AuthKeyIndex, HierarchyAuthorization, Tcti};
use url::Url;

use aziot_http::SecretText;

pub use edge::{Edge, EdgeCa, EdgeCaSubject, EdgeUris, IssuedEdgeCa, QUICKSTART_DAYS};

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
    /// The TPM.
    pub tpm: Tpm,
    /// Of the key service.
    pub keyd_max_requests: MaxRequests,
    /// Of the certificate service.
    pub certd_max_requests: MaxRequests,
    /// Of the identity service.
    pub identityd_max_requests: MaxRequests,
    /// Of the TPM service.
    pub tpmd_max_requests: MaxRequests,
    /// Where the services listen, as far as the user says so.
    pub endpoints: Endpoints,
    /// Modules and their runtime; `None` for a tool that does not look into that.
    pub edge: Option<Edge>,
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
        /// What the device proves its name with.
        authentication: Authentication,
    },
    /// The Device Provisioning Service says both.
    Dps {
        /// Where the service is.
        global_endpoint: DpsEndpoint,
        /// The owner's scope.
        id_scope: String,
        /// What the device proves its name with.
        attestation: Attestation,
        /// JSON file that is sent along.
        payload: Option<Url>,
    },
    /// The device has local identities only.
    None,
}

impl Provisioning {
    /// The symmetric key that the device proves itself with, if it does so.
    #[must_use]
    pub fn symmetric_key(&self) -> Option<&SymmetricKey> {
        match self {
            Self::Manual { authentication: Authentication::Sas(key), .. }
            | Self::Dps { attestation: Attestation::SymmetricKey { key, .. }, .. } => Some(key),
            Self::Manual { .. } | Self::Dps { .. } | Self::None => None,
        }
    }

    /// The certificate that the device proves itself with, if it does so.
    #[must_use]
    pub fn certificate(&self) -> Option<&DeviceCertificate> {
        match self {
            Self::Manual { authentication: Authentication::X509(certificate), .. }
            | Self::Dps { attestation: Attestation::X509 { certificate, .. }, .. } => Some(certificate),
            Self::Manual { .. } | Self::Dps { .. } | Self::None => None,
        }
    }
}

/// What a device proves its name to the hub with.
#[derive(Debug)]
pub enum Authentication {
    /// Tokens signed with its key.
    Sas(SymmetricKey),
    /// A certificate.
    X509(DeviceCertificate),
}

/// What a device proves its name to DPS with.
#[derive(Debug)]
pub enum Attestation {
    /// Tokens signed with its key.
    SymmetricKey {
        /// Its name at DPS.
        registration_id: String,
        /// The key.
        key: SymmetricKey,
    },
    /// A certificate.
    X509 {
        /// Its name at DPS; absent: the certificate's common name.
        registration_id: Option<String>,
        /// The certificate.
        certificate: DeviceCertificate,
    },
    /// The TPM's endorsement key.
    Tpm {
        /// Its name at DPS.
        registration_id: String,
    },
}

/// The device's own certificate and where its key comes from.
#[derive(Debug)]
pub enum DeviceCertificate {
    /// Both are on the device already.
    Preloaded {
        /// The certificate.
        cert: Url,
        /// Its key.
        key: KeyUri,
    },
    /// The key is made on the device and the certificate issued for it.
    Issued(Box<Issued>),
}

/// How the device's own certificate is issued.
#[derive(Debug)]
pub struct Issued {
    /// Method, lifetime, subject and EST server; without credentials.
    pub options: Options,
    /// EST: credentials for this certificate alone.
    pub est: EstCredentials,
    /// When it is renewed; absent: never.
    pub auto_renew: Option<AutoRenew>,
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
    /// What the device proves itself with, where a certificate has no credentials of its own.
    pub credentials: EstCredentials,
    /// Certificate id, or `default`, to URL of the server.
    pub urls: BTreeMap<String, EstUrl>,
    /// When EST identities are renewed.
    pub identity_auto_renew: AutoRenew,
}

/// What the device proves itself with at an EST server: either, both or neither.
#[derive(Debug, Default)]
pub struct EstCredentials {
    /// Basic authentication.
    pub basic: Option<Basic>,
    /// TLS client certificate.
    pub identity: Option<EstIdentity>,
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

/// The TPM, and what the device may do with it.
#[derive(Debug, Default)]
pub struct Tpm {
    /// How it is reached.
    pub tcti: Tcti,
    /// Where the key that DPS sends is kept.
    pub auth_key_index: AuthKeyIndex,
    /// Passwords of its hierarchies.
    pub hierarchy_authorization: HierarchyAuthorization,
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
    /// The TPM service.
    pub tpmd: Option<Endpoint>,
}
