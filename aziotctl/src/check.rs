//! From what is written to what is meant: every value checked, all findings collected before anything is said.
//!
//! What the public tool accepts is never refused, only warned about; refused is what it refuses, and what this version cannot do yet. Looks at
//! the super-config alone: no file, user or network of the device is touched, so that a file can be checked on another machine.

mod certificates;
mod edge;
mod provisioning;

use std::collections::BTreeMap;

use aziot_certd_api::config::Preloaded;
use aziot_http::server::MaxRequests;
use aziot_identityd_api::config::{CloudRetries, CloudTimeout};
use aziot_keys::{KeyUri, Pkcs11Uri};
use url::Url;

use crate::finding::Findings;
use crate::settings::{self, Settings};
use crate::super_config::edge::EdgeConfig;
use crate::super_config::foreign::EDGE_KEYS;
use crate::super_config::{SuperConfig, UriOrIds};
use aziot_http::SecretText;

/// The settings, unless something makes the file unusable, and all that is to be said. Without `edge` nobody looks into what is for IoT Edge.
#[must_use]
pub fn check(config: SuperConfig, edge: Option<EdgeConfig>, top_level_keys: &[String]) -> (Option<Settings>, Findings) {
    let mut findings = Findings::default();
    if edge.is_none() {
        note_edge_keys(top_level_keys, &mut findings);
    }
    let settings = settings(config, edge, &mut findings);
    let settings = if findings.has_errors() { None } else { settings };
    (settings, findings)
}

fn note_edge_keys(top_level_keys: &[String], findings: &mut Findings) {
    let given: Vec<&str> =
        EDGE_KEYS.into_iter().filter(|edge_key| top_level_keys.iter().any(|key| key == edge_key)).collect();
    if let Some(first) = given.first() {
        let names = given.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        let message = format!(
            "this tool does not apply what is for IoT Edge ({names}); `iotedge config apply` applies the whole file"
        );
        findings.note(&[first], message);
    }
}

fn settings(config: SuperConfig, edge: Option<EdgeConfig>, findings: &mut Findings) -> Option<Settings> {
    warn_if_empty(findings, &["hostname"], config.hostname.as_deref());
    let local_gateway_hostname = gateway(&config, findings);
    let provisioning = provisioning::check(&config, findings);
    let has_library = config.aziot_keys.contains_key("pkcs11_lib_path");
    let preloaded_keys = preloaded_keys(&config.preloaded_keys, has_library, findings);
    let preloaded_certs = preloaded_certs(&config.preloaded_certs, findings);
    let issuance = &config.cert_issuance;
    let est = issuance.est.as_ref().map(|est| certificates::est(est, findings));
    let local_ca = issuance.local_ca.as_ref().and_then(|local_ca| {
        certificates::local_ca(local_ca, certificates::Issuers::of(&config, "local-ca"), findings)
    });
    check_aziot_keys(&config.aziot_keys, findings);
    if config.update.is_some() {
        findings.warn(&["update"], "this version has no update service yet; the table is ignored");
    }
    let max_requests = &config.aziot_max_requests;
    let mut limit =
        |service, requests| limit(findings, &["aziot_max_requests", service], requests, MaxRequests::default());
    let [keyd_max_requests, certd_max_requests, identityd_max_requests, tpmd_max_requests] = [
        limit("keyd", max_requests.keyd),
        limit("certd", max_requests.certd),
        limit("identityd", max_requests.identityd),
        limit("tpmd", max_requests.tpmd),
    ];
    let edge = edge.map(|edge| self::edge::check(edge, &config, findings));
    Some(Settings {
        hostname: config.hostname,
        local_gateway_hostname,
        cloud_timeout_sec: cloud_timeout(config.cloud_timeout_sec, findings),
        cloud_retries: config.cloud_retries.map_or_else(CloudRetries::default, CloudRetries),
        prefer_module_identity_cache: config.prefer_module_identity_cache,
        provisioning: provisioning?,
        local_id_domain: config.localid.map(|local_id| local_id.domain),
        aziot_keys: config.aziot_keys,
        preloaded_keys,
        preloaded_certs,
        est,
        local_ca,
        tpm: settings::Tpm {
            tcti: config.tpm.tcti,
            auth_key_index: config.tpm.auth_key_index,
            hierarchy_authorization: config.tpm.hierarchy_authorization,
        },
        keyd_max_requests,
        certd_max_requests,
        identityd_max_requests,
        tpmd_max_requests,
        endpoints: settings::Endpoints {
            keyd: config.endpoints.aziot_keyd,
            certd: config.endpoints.aziot_certd,
            identityd: config.endpoints.aziot_identityd,
            tpmd: config.endpoints.aziot_tpmd,
        },
        edge: match edge {
            Some(edge) => Some(edge?),
            None => None,
        },
    })
}

fn gateway(config: &SuperConfig, findings: &mut Findings) -> Option<String> {
    let gateways =
        [("local_gateway_hostname", &config.local_gateway_hostname), ("parent_hostname", &config.parent_hostname)];
    for (key, gateway) in gateways {
        warn_if_empty(findings, &[key], gateway.as_deref());
    }
    if gateways.iter().all(|(_, gateway)| gateway.is_some()) {
        let message = "`parent_hostname` is another name of `local_gateway_hostname`; remove one of the two";
        findings.error(&["parent_hostname"], message);
    }
    gateways.into_iter().find_map(|(_, gateway)| gateway.clone())
}

fn cloud_timeout(seconds: Option<u32>, findings: &mut Findings) -> CloudTimeout {
    let Some(seconds) = seconds else { return CloudTimeout::default() };
    CloudTimeout::from_seconds(seconds).unwrap_or_else(|| {
        let message = format!("{seconds} s is too short; at least {} s are needed", CloudTimeout::LEAST_SECONDS);
        findings.error(&["cloud_timeout_sec"], message);
        CloudTimeout::default()
    })
}

/// Zero would shut everybody out and is refused by the services themselves, so it is not passed on.
fn limit(findings: &mut Findings, key_path: &[&str], limit: Option<u64>, default: MaxRequests) -> MaxRequests {
    let Some(limit) = limit else { return default };
    // More than that is as good as none.
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    MaxRequests::try_from(limit).unwrap_or_else(|_| {
        let message =
            format!("no request at all would be let in; the default of {} is used instead", u32::from(default));
        findings.warn(key_path, message);
        default
    })
}

const NEEDS_LIBRARY: &str = "a token is reached through a PKCS#11 library: set `pkcs11_lib_path` in [aziot_keys]";

fn check_aziot_keys(parameters: &BTreeMap<String, SecretText>, findings: &mut Findings) {
    let has_library = parameters.contains_key("pkcs11_lib_path");
    for (name, uri) in parameters {
        let key_path = ["aziot_keys", name];
        match name.as_str() {
            "homedir_path" => {
                findings.warn(&key_path, "the home of the key service is fixed; this value is replaced");
            }
            "pkcs11_lib_path" => {}
            "pkcs11_base_slot" => {
                findings.value(&key_path, uri.expose().parse::<Pkcs11Uri>());
                if !has_library {
                    findings.warn(&key_path, NEEDS_LIBRARY);
                }
            }
            _ => findings.warn(&key_path, "the key library has no parameter of this name and will refuse to start"),
        }
    }
}

fn preloaded_keys(
    keys: &BTreeMap<String, SecretText>,
    has_library: bool,
    findings: &mut Findings,
) -> BTreeMap<String, KeyUri> {
    let mut checked = BTreeMap::new();
    for (id, uri) in keys {
        if id.is_empty() {
            findings.error(&["preloaded_keys", id], "a key needs an id");
        }
        let uri = key_uri(&["preloaded_keys", id], uri, findings);
        if matches!(uri, Some(KeyUri::Pkcs11(_))) && !has_library {
            findings.warn(&["preloaded_keys", id], NEEDS_LIBRARY);
        }
        checked.extend(uri.map(|uri| (id.clone(), uri)));
    }
    checked
}

fn preloaded_certs(certs: &BTreeMap<String, UriOrIds>, findings: &mut Findings) -> BTreeMap<String, Preloaded> {
    let mut checked = BTreeMap::new();
    for (id, cert) in certs {
        let cert = match cert {
            UriOrIds::Uri(uri) => cert_uri(&["preloaded_certs", id], uri, findings).map(Preloaded::Uri),
            UriOrIds::Ids(ids) => Some(Preloaded::List(ids.clone())),
        };
        checked.extend(cert.map(|cert| (id.clone(), cert)));
    }
    checked
}

fn key_uri(key_path: &[&str], uri: &SecretText, findings: &mut Findings) -> Option<KeyUri> {
    findings.value(key_path, uri.expose().parse())
}

fn cert_uri(key_path: &[&str], uri: &str, findings: &mut Findings) -> Option<Url> {
    let url = url(key_path, uri, findings)?;
    if url.scheme() != "file" {
        findings.warn(key_path, format!("certificates are read from `file:` URIs only, not from `{}:`", url.scheme()));
    }
    Some(url)
}

fn url(key_path: &[&str], url: &str, findings: &mut Findings) -> Option<Url> {
    Url::parse(url)
        .map_err(|error| {
            let hint = if url.starts_with('/') { " (of a file it would start with `file://`)" } else { "" };
            findings.error(key_path, format!("this is not a URL: {error}{hint}"));
        })
        .ok()
}

fn warn_if_empty(findings: &mut Findings, key_path: &[&str], value: Option<&str>) {
    if value == Some("") {
        findings.warn(key_path, "the value is empty");
    }
}
