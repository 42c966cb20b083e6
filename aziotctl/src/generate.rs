//! From a device's settings to the services' configurations: which ids stand for which keys and certificates, and who may use them.
//!
//! Pure: it reads no file and asks nobody, so that the same settings give the same files on every machine. The ids are those of the public
//! tool, since other software and hand-written drop-ins name them.

mod edged;
mod material;

use std::collections::BTreeMap;

use aziot_certd_api::config as certd;
use aziot_edged_api::config as edged_api;
use aziot_http::{Endpoint, Glob, SecretBytes};
use aziot_identityd_api::config::{self as identityd, LocalId, ManualAuthentication, Payload, Subject};
use aziot_keyd_api::config as keyd;
use aziot_tpmd_api::config as tpmd;

use self::material::{DEVICE, Material};
use crate::finding::Findings;
use crate::layout::{Layout, Service};
use crate::named_files::EdgeFiles;
use crate::settings::{Attestation, Authentication, DeviceCertificate, EdgeUris, Provisioning, Settings};

/// The name of the module runtime at the identity service.
const EDGE_PRINCIPAL: &str = "aziot-edge";

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
    /// Uid of the module runtime; of no account where there is none.
    pub edged_uid: u32,
    /// Where the module runtime has the sockets that the settings do not name, if not where the layout puts them.
    pub edge_uris: EdgeUris,
    /// What was read for the module runtime.
    pub edge_files: EdgeFiles,
}

/// The services' configurations. Not to be shown: those of keyd, certd, tpmd and edged may hold PINs and passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Generated {
    /// Of the key service.
    pub keyd: keyd::Config,
    /// Of the certificate service.
    pub certd: certd::Config,
    /// Of the identity service.
    pub identityd: identityd::Config,
    /// Of the TPM service.
    pub tpmd: tpmd::Config,
    /// Of the module runtime; `None` for a tool that does not configure it.
    pub edged: Option<edged_api::Config>,
    /// Contents of [`Layout::device_key`], if the super-config holds a key itself.
    pub device_key: Option<SecretBytes>,
    /// Contents of [`Layout::master_key`], if there is one to write.
    pub master_key: Option<SecretBytes>,
}

/// The configurations for `settings`; `findings` gets what the user said that had to give way.
pub fn generate(settings: &Settings, surroundings: &Surroundings, findings: &mut Findings) -> Generated {
    let layout = &surroundings.layout;
    let material = material::material(settings, &surroundings.edge_files, layout, findings);
    let (keyd_principal, certd_principal) = principals(&material, surroundings);
    let Material { preloaded_keys, preloaded_certs, issuance, device_key, master_key, .. } = material;
    let parameters = settings.aziot_keys.iter();
    let mut aziot_keys: BTreeMap<_, _> =
        parameters.map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    aziot_keys.insert("homedir_path".to_owned(), layout.home(Service::Keyd).display().to_string());
    let [keyd_endpoint, certd_endpoint, identityd_endpoint, tpmd_endpoint] = endpoints(settings, layout);
    let hostname = settings.hostname.clone().unwrap_or_else(|| surroundings.hostname.clone());
    let edge_principal = settings.edge.as_ref().map(|_| identityd::Principal {
        uid: surroundings.edged_uid,
        name: EDGE_PRINCIPAL.to_owned(),
        idtype: None,
        localid: None,
    });
    let edged = settings.edge.as_ref().map(|edge| {
        let asked = [&keyd_endpoint, &certd_endpoint, &identityd_endpoint].map(Endpoint::clone);
        edged::config(edge, hostname.clone(), asked, surroundings)
    });
    Generated {
        keyd: keyd::Config {
            // A vendor's library comes with a drop-in of its own.
            keys_library: None,
            max_requests: settings.keyd_max_requests,
            aziot_keys,
            preloaded_keys,
            principal: keyd_principal,
            endpoints: keyd::Endpoints { aziot_keyd: keyd_endpoint.clone() },
        },
        certd: certd::Config {
            max_requests: settings.certd_max_requests,
            cert_issuance: issuance,
            preloaded_certs,
            principal: certd_principal,
            endpoints: certd::Endpoints { aziot_certd: certd_endpoint.clone(), aziot_keyd: keyd_endpoint.clone() },
            ..certd::Config::new(layout.home(Service::Certd))
        },
        identityd: identityd::Config {
            hostname,
            homedir: layout.home(Service::Identityd),
            prefer_module_identity_cache: settings.prefer_module_identity_cache,
            max_requests: settings.identityd_max_requests,
            cloud_timeout_sec: settings.cloud_timeout_sec,
            cloud_retries: settings.cloud_retries,
            provisioning: provisioning(settings),
            principal: Vec::from_iter(edge_principal),
            localid: settings.local_id_domain.clone().map(|domain| LocalId { domain }),
            endpoints: identityd::Endpoints {
                aziot_certd: certd_endpoint,
                aziot_identityd: identityd_endpoint,
                aziot_keyd: keyd_endpoint,
                aziot_tpmd: tpmd_endpoint.clone(),
            },
        },
        tpmd: tpmd::Config {
            max_requests: settings.tpmd_max_requests,
            tcti: settings.tpm.tcti.clone(),
            auth_key_index: settings.tpm.auth_key_index,
            hierarchy_authorization: settings.tpm.hierarchy_authorization.clone(),
            // Who may open the socket may use it, as in the public service; a drop-in narrows it.
            principal: None,
            endpoints: tpmd::Endpoints { aziot_tpmd: tpmd_endpoint },
        },
        edged,
        device_key,
        master_key,
    }
}

/// Who may use which keys, and who may change which certificates.
fn principals(material: &Material, surroundings: &Surroundings) -> (Vec<keyd::Principal>, Vec<certd::Principal>) {
    let Surroundings { certd_uid, identityd_uid, edged_uid, .. } = *surroundings;
    let keys = [
        (identityd_uid, &material.identityd_keys),
        (certd_uid, &material.certd_keys),
        (certd_uid, &material.certd_edge_keys),
        (edged_uid, &material.edged_keys),
    ];
    let certs = [(identityd_uid, &material.identityd_certs), (edged_uid, &material.edged_certs)];
    let keys = keys.into_iter().filter(|(_, ids)| !ids.is_empty());
    let certs = certs.into_iter().filter(|(_, ids)| !ids.is_empty());
    (
        keys.map(|(uid, ids)| keyd::Principal { uid, keys: globs(ids) }).collect(),
        certs.map(|(uid, ids)| certd::Principal { uid, certs: globs(ids) }).collect(),
    )
}

fn provisioning(settings: &Settings) -> identityd::Provisioning {
    match &settings.provisioning {
        Provisioning::Manual { iothub_hostname, device_id, authentication } => {
            identityd::Provisioning::Manual(identityd::Manual {
                local_gateway_hostname: settings.local_gateway_hostname.clone(),
                iothub_hostname: iothub_hostname.clone(),
                device_id: device_id.clone(),
                authentication: self::authentication(authentication, device_id),
            })
        }
        Provisioning::Dps { global_endpoint, id_scope, attestation, payload } => {
            identityd::Provisioning::Dps(identityd::Dps {
                global_endpoint: global_endpoint.clone(),
                scope_id: id_scope.clone(),
                attestation: self::attestation(attestation),
                payload: payload.as_ref().map(|uri| Payload { uri: uri.as_str().to_owned() }),
            })
        }
        Provisioning::None => identityd::Provisioning::None,
    }
}

fn authentication(authentication: &Authentication, device_id: &str) -> ManualAuthentication {
    match authentication {
        Authentication::Sas(_) => ManualAuthentication::Sas { device_id_pk: DEVICE.to_owned() },
        Authentication::X509(certificate) => {
            let (csr_subject, identity_auto_renew) = match certificate {
                DeviceCertificate::Preloaded { .. } => (None, None),
                DeviceCertificate::Issued(issued) => {
                    let attributes = issued.options.subject.as_ref();
                    (attributes.map(|attributes| subject(device_id, attributes)), issued.auto_renew)
                }
            };
            ManualAuthentication::X509 {
                identity_cert: DEVICE.to_owned(),
                identity_pk: DEVICE.to_owned(),
                csr_subject,
                identity_auto_renew,
            }
        }
    }
}

fn attestation(attestation: &Attestation) -> identityd::Attestation {
    match attestation {
        Attestation::SymmetricKey { registration_id, .. } => identityd::Attestation::SymmetricKey {
            registration_id: registration_id.clone(),
            symmetric_key: DEVICE.to_owned(),
        },
        Attestation::X509 { registration_id, certificate } => {
            let issued = match certificate {
                DeviceCertificate::Preloaded { .. } => None,
                DeviceCertificate::Issued(issued) => Some(issued),
            };
            let attributes = issued.and_then(|issued| issued.options.subject.as_ref());
            identityd::Attestation::X509 {
                registration_id: registration_id.as_ref().map(|id| match attributes {
                    Some(attributes) => subject(id, attributes),
                    None => Subject::CommonName(id.clone()),
                }),
                identity_cert: DEVICE.to_owned(),
                identity_pk: DEVICE.to_owned(),
                identity_auto_renew: issued.and_then(|issued| issued.auto_renew),
            }
        }
        Attestation::Tpm { registration_id } => {
            identityd::Attestation::Tpm { registration_id: registration_id.clone() }
        }
    }
}

/// What the device asks to be certified: the name by which the cloud knows it, and the user's other attributes.
fn subject(name: &str, attributes: &BTreeMap<String, String>) -> Subject {
    let mut subject: BTreeMap<String, String> =
        attributes.iter().map(|(attribute, value)| (attribute.to_uppercase(), value.clone())).collect();
    subject.insert("CN".to_owned(), name.to_owned());
    Subject::Attributes(subject)
}

fn globs(ids: &[&str]) -> Vec<Glob> {
    ids.iter().map(|&id| Glob::new(id)).collect()
}

/// Of the key service, the certificate service, the identity service and the TPM service.
fn endpoints(settings: &Settings, layout: &Layout) -> [Endpoint; 4] {
    let given = &settings.endpoints;
    [
        (&given.keyd, Service::Keyd),
        (&given.certd, Service::Certd),
        (&given.identityd, Service::Identityd),
        (&given.tpmd, Service::Tpmd),
    ]
    .map(|(given, service)| given.clone().unwrap_or_else(|| layout.endpoint(service)))
}
