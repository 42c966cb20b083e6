//! The super-config as a user writes it: `/etc/aziot/config.toml`, one table per matter.
//!
//! Only names and TOML types are held here, so that a slip in one of them is told with its line. What the values mean, and which of them go
//! together, is checked in [`check`](mod@crate::check), whose result is a [`Settings`](crate::settings::Settings). Keys of other products in the same
//! file are known by name and never read.

pub mod connection_string;
pub mod edge;
pub mod foreign;
pub mod symmetric_key;

use std::collections::BTreeMap;
use std::fmt;

use aziot_http::Endpoint;
use aziot_tpmd_api::config::{AuthKeyIndex, HierarchyAuthorization, Tcti};
use serde::{Deserialize, Deserializer, de};

use aziot_http::SecretText;
use foreign::Foreign;

/// Every key that may stand in the file. Absent means the default, except for `provisioning`, which has none.
#[derive(Debug, Deserialize)]
pub struct SuperConfig {
    /// Name of the device in its network. Default: the kernel's host name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The parent device in a nested deployment.
    #[serde(default)]
    pub local_gateway_hostname: Option<String>,
    /// Another name of `local_gateway_hostname`.
    #[serde(default)]
    pub parent_hostname: Option<String>,
    /// Seconds to wait for one answer of the cloud; at least 70, which is the default.
    #[serde(default)]
    pub cloud_timeout_sec: Option<u32>,
    /// How often a call is repeated after the first attempt. Default 1.
    #[serde(default)]
    pub cloud_retries: Option<u32>,
    /// Whether module identities are taken from the local copy first. Default `false`.
    #[serde(default)]
    pub prefer_module_identity_cache: bool,
    /// How the device gets its identity.
    pub provisioning: Provisioning,
    /// Identities that exist on the device only.
    #[serde(default)]
    pub localid: Option<LocalId>,
    /// Parameters of the key library; the URI of a token may hold its PIN.
    #[serde(default)]
    pub aziot_keys: BTreeMap<String, SecretText>,
    /// Key id to key URI.
    #[serde(default)]
    pub preloaded_keys: BTreeMap<String, SecretText>,
    /// Certificate id to certificate URI, or to a list of certificate ids.
    #[serde(default)]
    pub preloaded_certs: BTreeMap<String, UriOrIds>,
    /// How certificates are issued.
    #[serde(default)]
    pub cert_issuance: CertIssuance,
    /// How the TPM is reached and used.
    #[serde(default)]
    pub tpm: Tpm,
    /// Requests of one user that each service works on at once. Default 10 each.
    #[serde(default)]
    pub aziot_max_requests: MaxRequests,
    /// Where the services listen. Default `unix:///run/aziot/<service>.sock`.
    #[serde(default)]
    pub endpoints: Endpoints,
    /// The update service, which this version does not have.
    #[serde(default)]
    pub update: Foreign,

    /// IoT Edge.
    #[serde(default)]
    pub trust_bundle_cert: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub allow_elevated_docker_permissions: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub allow_host_access: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub auto_reprovisioning_mode: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub imported_master_encryption_key: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub manifest_trust_bundle_cert: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub additional_info: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub iotedge_max_requests: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub agent: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub connect: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub listen: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub watchdog: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub edge_ca: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub moby_runtime: Foreign,
    /// IoT Edge.
    #[serde(default)]
    pub image_garbage_collection: Foreign,
}

/// `[provisioning]`: which keys count depends on `source` and on the `method` below it.
#[derive(Debug, Deserialize)]
pub struct Provisioning {
    /// `manual`, `dps` or `none`.
    pub source: String,
    /// Manual: hub, device and key in one text.
    #[serde(default)]
    pub connection_string: Option<SecretText>,
    /// Manual: the hub.
    #[serde(default)]
    pub iothub_hostname: Option<String>,
    /// Manual: the device's name at the hub.
    #[serde(default)]
    pub device_id: Option<String>,
    /// Manual: what the device proves its name with.
    #[serde(default)]
    pub authentication: Option<Authentication>,
    /// DPS: where the service is, such as `https://global.azure-devices-provisioning.net`.
    #[serde(default)]
    pub global_endpoint: Option<String>,
    /// DPS: the owner's scope.
    #[serde(default)]
    pub id_scope: Option<String>,
    /// DPS: what the device proves its name with.
    #[serde(default)]
    pub attestation: Option<Attestation>,
    /// DPS: data sent along with the registration.
    #[serde(default)]
    pub payload: Option<Payload>,
}

/// `[provisioning.authentication]`
#[derive(Debug, Deserialize)]
pub struct Authentication {
    /// `sas` or `x509`.
    pub method: String,
    /// SAS: the symmetric key.
    #[serde(default)]
    pub device_id_pk: Option<SymmetricKey>,
    /// X.509: the device's certificate, or how it is issued.
    #[serde(default)]
    pub identity_cert: Option<UriOrOptions>,
    /// X.509: the key of a certificate that is there already.
    #[serde(default)]
    pub identity_pk: Option<SecretText>,
}

/// `[provisioning.attestation]`
#[derive(Debug, Deserialize)]
pub struct Attestation {
    /// `symmetric_key`, `x509` or `tpm`.
    pub method: String,
    /// The device's name at DPS.
    #[serde(default)]
    pub registration_id: Option<String>,
    /// Symmetric key: the device's key (never a group's).
    #[serde(default)]
    pub symmetric_key: Option<SymmetricKey>,
    /// X.509: the device's certificate, or how it is issued.
    #[serde(default)]
    pub identity_cert: Option<UriOrOptions>,
    /// X.509: the key of a certificate that is there already.
    #[serde(default)]
    pub identity_pk: Option<SecretText>,
}

/// A symmetric key: written down here, or a URI that says where it is.
#[derive(Debug, Deserialize)]
pub struct SymmetricKey {
    /// The key itself, in base64.
    #[serde(default)]
    pub value: Option<SecretText>,
    /// `file:` or `pkcs11:` URI.
    #[serde(default)]
    pub uri: Option<SecretText>,
}

/// `[provisioning.payload]`
#[derive(Debug, Deserialize)]
pub struct Payload {
    /// `file:` URI of a JSON file, which the identity service reads whenever it registers.
    pub uri: String,
}

/// `[localid]`
#[derive(Debug, Deserialize)]
pub struct LocalId {
    /// What the names of local identities end with.
    pub domain: String,
}

/// `[cert_issuance]`
#[derive(Debug, Default, Deserialize)]
pub struct CertIssuance {
    /// Settings of every certificate issued over EST.
    #[serde(default)]
    pub est: Option<Est>,
    /// The device's own CA.
    #[serde(default)]
    pub local_ca: Option<LocalCa>,
}

/// `[cert_issuance.est]`
#[derive(Debug, Deserialize)]
pub struct Est {
    /// URIs of the CAs that the EST server's TLS certificate may come from.
    #[serde(default)]
    pub trusted_certs: Vec<String>,
    /// What the device proves itself with.
    #[serde(default)]
    pub auth: EstAuthentication,
    /// Certificate id to URL of the server; `default` for all others.
    #[serde(default)]
    pub urls: BTreeMap<String, String>,
    /// When certificates for EST itself are renewed.
    #[serde(default)]
    pub identity_auto_renew: Option<AutoRenew>,
}

/// What the device proves itself with at an EST server: basic authentication, a certificate, or both.
#[derive(Debug, Default, Deserialize)]
pub struct EstAuthentication {
    /// Counts together with `password` only.
    #[serde(default)]
    pub username: Option<String>,
    /// Counts together with `username` only.
    #[serde(default)]
    pub password: Option<SecretText>,
    /// URI of a TLS client certificate that is on the device already.
    #[serde(default)]
    pub identity_cert: Option<String>,
    /// URI of its key.
    #[serde(default)]
    pub identity_pk: Option<SecretText>,
    /// URI of a TLS client certificate that is used once, to get the one for later.
    #[serde(default)]
    pub bootstrap_identity_cert: Option<String>,
    /// URI of its key.
    #[serde(default)]
    pub bootstrap_identity_pk: Option<SecretText>,
}

/// When a certificate is renewed.
#[derive(Debug, Deserialize)]
pub struct AutoRenew {
    /// Whether the new certificate gets a new key. Default `true`.
    #[serde(default)]
    pub rotate_key: Option<bool>,
    /// When to renew: `80%` of the lifetime, or `10day` or `30min` before its end. Default `80%`.
    #[serde(default)]
    pub threshold: Option<String>,
    /// How long to wait after a failure, as `threshold`. Default `4%`.
    #[serde(default)]
    pub retry: Option<String>,
}

/// `[cert_issuance.local_ca]`
#[derive(Debug, Deserialize)]
pub struct LocalCa {
    /// URI of the CA's certificate, or how it is issued.
    pub cert: UriOrOptions,
    /// URI of the CA's key.
    #[serde(default)]
    pub pk: Option<SecretText>,
}

/// How a certificate is issued.
#[derive(Debug, Deserialize)]
pub struct CertificateOptions {
    /// `est`, `local_ca` or `self_signed`.
    pub method: String,
    /// The subject, if it is a common name alone.
    #[serde(default)]
    pub common_name: Option<String>,
    /// The subject, attribute by attribute.
    #[serde(default)]
    pub subject: Option<BTreeMap<String, String>>,
    /// Lifetime in days, at least 1; EST servers decide for themselves.
    #[serde(default)]
    pub expiry_days: Option<u32>,
    /// EST: URL of the server.
    #[serde(default)]
    pub url: Option<String>,
    /// Renewal; acts on the device's own certificate only, as all keys below do.
    #[serde(default)]
    pub auto_renew: Option<AutoRenew>,
    /// EST authentication, as in [`EstAuthentication`].
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
}

/// `[tpm]`. The values are the service's own, checked as it checks them.
#[derive(Debug, Default, Deserialize)]
pub struct Tpm {
    /// TCTI string. Default `device`.
    #[serde(default)]
    pub tcti: Tcti,
    /// Offset of the handle at which the key from DPS is kept. Default `0x00_01_00`.
    #[serde(default)]
    pub auth_key_index: AuthKeyIndex,
    /// Passwords of the TPM's hierarchies. Default: empty.
    #[serde(default)]
    pub hierarchy_authorization: HierarchyAuthorization,
}

/// `[aziot_max_requests]`
#[derive(Debug, Default, Deserialize)]
pub struct MaxRequests {
    /// The key service.
    #[serde(default)]
    pub keyd: Option<u64>,
    /// The certificate service.
    #[serde(default)]
    pub certd: Option<u64>,
    /// The identity service.
    #[serde(default)]
    pub identityd: Option<u64>,
    /// The TPM service.
    #[serde(default)]
    pub tpmd: Option<u64>,
}

/// `[endpoints]`
#[derive(Debug, Default, Deserialize)]
pub struct Endpoints {
    /// The key service.
    #[serde(default)]
    pub aziot_keyd: Option<Endpoint>,
    /// The certificate service.
    #[serde(default)]
    pub aziot_certd: Option<Endpoint>,
    /// The identity service.
    #[serde(default)]
    pub aziot_identityd: Option<Endpoint>,
    /// The TPM service.
    #[serde(default)]
    pub aziot_tpmd: Option<Endpoint>,
}

/// A value of `[preloaded_certs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UriOrIds {
    /// Where the certificate is.
    Uri(String),
    /// The certificates that make up a bundle.
    Ids(Vec<String>),
}

impl<'de> Deserialize<'de> for UriOrIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = UriOrIds;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a certificate URI or an array of certificate ids")
            }

            fn visit_str<E: de::Error>(self, uri: &str) -> Result<UriOrIds, E> {
                Ok(UriOrIds::Uri(uri.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut ids: A) -> Result<UriOrIds, A::Error> {
                let mut all = Vec::new();
                while let Some(id) = ids.next_element()? {
                    all.push(id);
                }
                Ok(UriOrIds::Ids(all))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The fields of [`CertificateOptions`], as serde would say.
const CERTIFICATE_OPTIONS: &[&str] = &[
    "method",
    "common_name",
    "subject",
    "expiry_days",
    "url",
    "auto_renew",
    "username",
    "password",
    "identity_cert",
    "identity_pk",
    "bootstrap_identity_cert",
    "bootstrap_identity_pk",
];

/// A certificate that is there, or how one is issued.
#[derive(Debug)]
pub enum UriOrOptions {
    /// Where the certificate is.
    Uri(String),
    /// How it is issued.
    Options(Box<CertificateOptions>),
}

impl<'de> Deserialize<'de> for UriOrOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = UriOrOptions;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a certificate URI or a table that says how the certificate is issued")
            }

            fn visit_str<E: de::Error>(self, uri: &str) -> Result<UriOrOptions, E> {
                Ok(UriOrOptions::Uri(uri.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, options: A) -> Result<UriOrOptions, A::Error> {
                CertificateOptions::deserialize(de::value::MapAccessDeserializer::new(options))
                    .map(|options| UriOrOptions::Options(Box::new(options)))
            }
        }
        // Asked for as a struct, so that unknown keys in the table are told.
        deserializer.deserialize_struct("CertificateOptions", CERTIFICATE_OPTIONS, Visitor)
    }
}
