//! From a device's settings to the services' configurations: which ids stand for which keys and certificates, and who may use them.
//!
//! Pure: it reads no file and asks nobody, so that the same settings give the same files on every machine. The ids are those of the public
//! tool, since other software and hand-written drop-ins name them.

use std::collections::BTreeMap;
use std::path::Path;

use aziot_certd_api::config::{self as certd, EstAuth, Issuance, KeyPair, Preloaded};
use aziot_certd_api::renewal::AutoRenew;
use aziot_http::{Endpoint, Glob, SecretBytes};
use aziot_identityd_api::config::{self as identityd, Attestation, LocalId, ManualAuthentication, Payload};
use aziot_keyd_api::config as keyd;
use aziot_keys::KeyUri;
use url::Url;

use crate::finding::Findings;
use crate::layout::{Layout, Service};
use crate::settings::{Est, EstIdentity, LocalCa, Provisioning, Settings, SymmetricKey};

/// The key from which the identity service derives the keys of modules.
const MASTER_KEY: &str = "aziot_identityd_master_id";
/// The device's own key.
const DEVICE: &str = "device-id";
/// The EST client's certificate and key, the one that it starts with, and its next key while that is exchanged.
const EST: &str = "est-id";
const EST_BOOTSTRAP: &str = "est-bootstrap-id";
const EST_NEXT: &str = "est-id-temp";
/// The device's own CA, certificate and key.
const LOCAL_CA: &str = "local-ca";

/// What the files depend on besides the settings.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Where everything lies.
    pub layout: Layout,
    /// The machine's host name, for settings without one.
    pub hostname: String,
    /// Uid of the certificate service.
    pub certd_uid: u32,
    /// Uid of the identity service.
    pub identityd_uid: u32,
}

/// The services' configurations. Not to be shown: those of keyd and certd may hold PINs and passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Generated {
    /// Of the key service.
    pub keyd: keyd::Config,
    /// Of the certificate service.
    pub certd: certd::Config,
    /// Of the identity service.
    pub identityd: identityd::Config,
    /// Contents of [`Layout::device_key`], if the super-config holds a key itself.
    pub device_key: Option<SecretBytes>,
}

/// The configurations for `settings`; `findings` gets what the user said that had to give way.
pub fn generate(settings: &Settings, surroundings: &Surroundings, findings: &mut Findings) -> Generated {
    let layout = &surroundings.layout;
    let mut keys = Preloads::new("preloaded_keys", canonical_uris(&settings.preloaded_keys), findings);
    let device_key = match device_key(&settings.provisioning) {
        None => None,
        Some(SymmetricKey::At(uri)) => {
            keys.insert(DEVICE, canonical_uri(uri));
            None
        }
        Some(SymmetricKey::Inline(bytes)) => {
            keys.insert(DEVICE, file_uri(&layout.device_key()).into());
            Some(bytes.clone())
        }
    };
    let identityd_keys = match settings.provisioning {
        Provisioning::Manual { .. } | Provisioning::Dps { .. } => vec![MASTER_KEY, DEVICE],
        Provisioning::None => vec![MASTER_KEY],
    };
    let mut certd_keys = Vec::new();
    let mut issuance = Issuance::default();
    if let Some(est) = &settings.est {
        issuance.est = Some(est_keys(est, &mut keys, &mut certd_keys));
    }
    if let Some(local_ca) = &settings.local_ca {
        certd_keys.push(LOCAL_CA);
        issuance.local_ca = Some(certd::LocalCa { cert: LOCAL_CA.to_owned(), pk: LOCAL_CA.to_owned() });
        match local_ca {
            LocalCa::Preloaded { key, .. } => keys.insert(LOCAL_CA, canonical_uri(key)),
            LocalCa::Issued(options) => {
                issuance.certificates.insert(LOCAL_CA.to_owned(), (**options).clone());
            }
        }
    }
    let preloaded_keys = keys.entries;
    let mut certs = Preloads::new("preloaded_certs", settings.preloaded_certs.clone(), findings);
    if let Some(est) = &settings.est {
        est_certs(est, &mut certs);
    }
    if let Some(LocalCa::Preloaded { cert, .. }) = &settings.local_ca {
        certs.insert(LOCAL_CA, Preloaded::Uri(cert.clone()));
    }

    let mut principal = vec![keyd_principal(surroundings.identityd_uid, &identityd_keys)];
    if !certd_keys.is_empty() {
        principal.push(keyd_principal(surroundings.certd_uid, &certd_keys));
    }
    let parameters = settings.aziot_keys.iter();
    let mut aziot_keys: BTreeMap<_, _> =
        parameters.map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    aziot_keys.insert("homedir_path".to_owned(), layout.home(Service::Keyd).display().to_string());
    let [keyd_endpoint, certd_endpoint, identityd_endpoint] = endpoints(settings, layout);
    Generated {
        keyd: keyd::Config {
            // A vendor's library comes with a drop-in of its own.
            keys_library: None,
            max_requests: settings.keyd_max_requests,
            aziot_keys,
            preloaded_keys,
            principal,
            endpoints: keyd::Endpoints { aziot_keyd: keyd_endpoint.clone() },
        },
        certd: certd::Config {
            max_requests: settings.certd_max_requests,
            cert_issuance: issuance,
            preloaded_certs: certs.entries,
            endpoints: certd::Endpoints { aziot_certd: certd_endpoint.clone(), aziot_keyd: keyd_endpoint.clone() },
            ..certd::Config::new(layout.home(Service::Certd))
        },
        identityd: identityd::Config {
            hostname: settings.hostname.clone().unwrap_or_else(|| surroundings.hostname.clone()),
            homedir: layout.home(Service::Identityd),
            prefer_module_identity_cache: settings.prefer_module_identity_cache,
            max_requests: settings.identityd_max_requests,
            cloud_timeout_sec: settings.cloud_timeout_sec,
            cloud_retries: settings.cloud_retries,
            provisioning: provisioning(settings),
            principal: Vec::new(),
            localid: settings.local_id_domain.clone().map(|domain| LocalId { domain }),
            endpoints: identityd::Endpoints {
                aziot_certd: certd_endpoint,
                aziot_identityd: identityd_endpoint,
                aziot_keyd: keyd_endpoint,
                aziot_tpmd: Endpoint::Unix(layout.sockets().join("tpmd.sock")),
            },
        },
        device_key,
    }
}

fn provisioning(settings: &Settings) -> identityd::Provisioning {
    match &settings.provisioning {
        Provisioning::Manual { iothub_hostname, device_id, .. } => identityd::Provisioning::Manual(identityd::Manual {
            local_gateway_hostname: settings.local_gateway_hostname.clone(),
            iothub_hostname: iothub_hostname.clone(),
            device_id: device_id.clone(),
            authentication: ManualAuthentication::Sas { device_id_pk: DEVICE.to_owned() },
        }),
        Provisioning::Dps { global_endpoint, id_scope, registration_id, payload, .. } => {
            identityd::Provisioning::Dps(identityd::Dps {
                global_endpoint: global_endpoint.clone(),
                scope_id: id_scope.clone(),
                attestation: Attestation::SymmetricKey {
                    registration_id: registration_id.clone(),
                    symmetric_key: DEVICE.to_owned(),
                },
                payload: payload.as_ref().map(|uri| Payload { uri: uri.as_str().to_owned() }),
            })
        }
        Provisioning::None => identityd::Provisioning::None,
    }
}

fn device_key(provisioning: &Provisioning) -> Option<&SymmetricKey> {
    match provisioning {
        Provisioning::Manual { key, .. } | Provisioning::Dps { key, .. } => Some(key),
        Provisioning::None => None,
    }
}

/// The user's entries of `[preloaded_keys]` or `[preloaded_certs]`, over which the generated ones are laid.
struct Preloads<'f, T> {
    table: &'static str,
    entries: BTreeMap<String, T>,
    findings: &'f mut Findings,
}

impl<'f, T> Preloads<'f, T> {
    fn new(table: &'static str, entries: BTreeMap<String, T>, findings: &'f mut Findings) -> Self {
        Self { table, entries, findings }
    }

    fn insert(&mut self, id: &str, value: T) {
        if self.entries.insert(id.to_owned(), value).is_some() {
            let message = "is ignored, because the id is reserved for what other keys of this file set";
            self.findings.warn(&[self.table, id], message);
        }
    }
}

fn est_keys(est: &Est, keys: &mut Preloads<'_, String>, certd_keys: &mut Vec<&'static str>) -> certd::Est {
    let pair = |id: &str| KeyPair { cert: id.to_owned(), pk: id.to_owned() };
    let (identity, bootstrap_identity) = match &est.identity {
        None => (None, None),
        Some(EstIdentity::Lasting { key, .. }) => {
            keys.insert(EST, canonical_uri(key));
            certd_keys.push(EST);
            (Some(pair(EST)), None)
        }
        // The lasting identity is not there yet: the certificate service makes its key and has it certified.
        Some(EstIdentity::Bootstrap { key, .. }) => {
            keys.insert(EST_BOOTSTRAP, canonical_uri(key));
            certd_keys.extend([EST_BOOTSTRAP, EST]);
            if est.identity_auto_renew.rotate_key {
                certd_keys.push(EST_NEXT);
            }
            (Some(pair(EST)), Some(pair(EST_BOOTSTRAP)))
        }
    };
    let is_open = est.basic.is_none() && identity.is_none();
    certd::Est {
        trusted_certs: (1..=est.trusted_certs.len()).map(est_server_ca).collect(),
        auth: (!is_open).then(|| EstAuth { basic: est.basic.clone(), identity, bootstrap_identity }),
        identity_auto_renew: Some(est.identity_auto_renew).filter(|renewal| *renewal != AutoRenew::default()),
        urls: est.urls.clone(),
        ..certd::Est::default()
    }
}

fn est_certs(est: &Est, certs: &mut Preloads<'_, Preloaded>) {
    match &est.identity {
        None => {}
        Some(EstIdentity::Lasting { cert, .. }) => certs.insert(EST, Preloaded::Uri(cert.clone())),
        Some(EstIdentity::Bootstrap { cert, .. }) => certs.insert(EST_BOOTSTRAP, Preloaded::Uri(cert.clone())),
    }
    for (number, cert) in (1..).zip(&est.trusted_certs) {
        certs.insert(&est_server_ca(number), Preloaded::Uri(cert.clone()));
    }
}

fn est_server_ca(number: usize) -> String {
    format!("est-server-ca-{number}")
}

fn keyd_principal(uid: u32, keys: &[&str]) -> keyd::Principal {
    keyd::Principal { uid, keys: keys.iter().map(|&key| Glob::new(key)).collect() }
}

/// Of the key service, the certificate service and the identity service.
fn endpoints(settings: &Settings, layout: &Layout) -> [Endpoint; 3] {
    let given = &settings.endpoints;
    [(&given.keyd, Service::Keyd), (&given.certd, Service::Certd), (&given.identityd, Service::Identityd)]
        .map(|(given, service)| given.clone().unwrap_or_else(|| layout.endpoint(service)))
}

fn canonical_uris(uris: &BTreeMap<String, KeyUri>) -> BTreeMap<String, String> {
    uris.iter().map(|(id, uri)| (id.clone(), canonical_uri(uri))).collect()
}

fn canonical_uri(uri: &KeyUri) -> String {
    match uri {
        KeyUri::File(path) => file_uri(path).into(),
        KeyUri::Pkcs11(uri) => uri.to_text().to_string(),
    }
}

fn file_uri(path: &Path) -> Url {
    Url::from_file_path(path).expect("paths of layouts and of file URIs are absolute")
}
