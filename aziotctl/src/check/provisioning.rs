//! `[provisioning]`: which of its shapes is meant, and whether that is complete.

use aziot_identityd_api::config::DpsEndpoint;
use aziot_keys::KeyUri;

use super::certificates::{self, CloudName};
use super::{key_uri, url, warn_if_empty};
use crate::finding::Findings;
use crate::settings::{Attestation, Authentication, DeviceCertificate, Provisioning, SymmetricKey};
use crate::super_config::connection_string::ConnectionString;
use crate::super_config::{self, SuperConfig, symmetric_key};

const AUTHENTICATION: [&str; 2] = ["provisioning", "authentication"];
const ATTESTATION: [&str; 2] = ["provisioning", "attestation"];

pub(super) fn check(config: &SuperConfig, findings: &mut Findings) -> Option<Provisioning> {
    let provisioning = &config.provisioning;
    match provisioning.source.as_str() {
        "manual" => {
            warn_about_keys_of_other_sources(provisioning, "manual", findings);
            manual(config, findings)
        }
        "dps" => {
            warn_about_keys_of_other_sources(provisioning, "dps", findings);
            refuse_gateway(config, findings);
            dps(config, findings)
        }
        "none" => {
            warn_about_keys_of_other_sources(provisioning, "none", findings);
            Some(Provisioning::None)
        }
        other => {
            let message = format!("`{other}` is no source of provisioning; there are `manual`, `dps` and `none`");
            findings.error(&["provisioning", "source"], message);
            None
        }
    }
}

fn warn_about_keys_of_other_sources(provisioning: &super_config::Provisioning, source: &str, findings: &mut Findings) {
    let keys = [
        ("connection_string", "manual", provisioning.connection_string.is_some()),
        ("iothub_hostname", "manual", provisioning.iothub_hostname.is_some()),
        ("device_id", "manual", provisioning.device_id.is_some()),
        ("authentication", "manual", provisioning.authentication.is_some()),
        ("global_endpoint", "dps", provisioning.global_endpoint.is_some()),
        ("id_scope", "dps", provisioning.id_scope.is_some()),
        ("attestation", "dps", provisioning.attestation.is_some()),
        ("payload", "dps", provisioning.payload.is_some()),
    ];
    for (key, _, _) in keys.into_iter().filter(|(_, of, is_present)| *is_present && *of != source) {
        let message = format!("means nothing with `source = \"{source}\"` and is ignored");
        findings.warn(&["provisioning", key], message);
    }
}

fn refuse_gateway(config: &SuperConfig, findings: &mut Findings) {
    for (key, gateway) in
        [("local_gateway_hostname", &config.local_gateway_hostname), ("parent_hostname", &config.parent_hostname)]
    {
        if gateway.is_some() {
            findings.error(&[key], "cannot go with DPS: a device behind a gateway needs `source = \"manual\"`");
        }
    }
}

fn manual(config: &SuperConfig, findings: &mut Findings) -> Option<Provisioning> {
    const CONNECTION_STRING: [&str; 2] = ["provisioning", "connection_string"];
    let provisioning = &config.provisioning;
    let explicit_keys = [
        ("iothub_hostname", provisioning.iothub_hostname.is_some()),
        ("device_id", provisioning.device_id.is_some()),
        ("authentication", provisioning.authentication.is_some()),
    ];
    let given: Vec<&str> = explicit_keys.iter().filter(|(_, is_present)| *is_present).map(|(key, _)| *key).collect();
    let Some(text) = &provisioning.connection_string else { return explicit(config, &given, findings) };
    match ConnectionString::parse(text.expose()) {
        Ok(parsed) => {
            for key in given {
                findings.warn(&["provisioning", key], "is ignored, because `connection_string` wins");
            }
            for (part, value) in [("HostName", &parsed.iothub_hostname), ("DeviceId", &parsed.device_id)] {
                if value.is_empty() {
                    findings.warn(&CONNECTION_STRING, format!("`{part}=` of the connection string is empty"));
                }
            }
            warn_if_no_key(&CONNECTION_STRING, parsed.key.expose(), findings);
            Some(Provisioning::Manual {
                iothub_hostname: parsed.iothub_hostname,
                device_id: parsed.device_id,
                authentication: Authentication::Sas(SymmetricKey::Inline(parsed.key)),
            })
        }
        Err(error) if given.len() == explicit_keys.len() => {
            let message = format!("{error}; `iothub_hostname`, `device_id` and `authentication` are used instead");
            findings.warn(&CONNECTION_STRING, message);
            explicit(config, &given, findings)
        }
        Err(error) => {
            findings.error(&CONNECTION_STRING, error.to_string());
            None
        }
    }
}

fn explicit(config: &SuperConfig, given: &[&str], findings: &mut Findings) -> Option<Provisioning> {
    let provisioning = &config.provisioning;
    if given.is_empty() {
        let message = "manual provisioning needs either `connection_string`, or `iothub_hostname`, `device_id` and \
                       `[provisioning.authentication]`";
        findings.error(&["provisioning"], message);
        return None;
    }
    let iothub_hostname = required(provisioning.iothub_hostname.as_deref(), "iothub_hostname", findings);
    let device_id = required(provisioning.device_id.as_deref(), "device_id", findings);
    let authentication = required(provisioning.authentication.as_ref(), "authentication", findings)
        .and_then(|authentication| self::authentication(authentication, device_id, config, findings));
    warn_if_empty(findings, &["provisioning", "iothub_hostname"], iothub_hostname);
    warn_if_empty(findings, &["provisioning", "device_id"], device_id);
    Some(Provisioning::Manual {
        iothub_hostname: iothub_hostname?.to_owned(),
        device_id: device_id?.to_owned(),
        authentication: authentication?,
    })
}

fn authentication(
    written: &super_config::Authentication,
    device_id: Option<&str>,
    config: &SuperConfig,
    findings: &mut Findings,
) -> Option<Authentication> {
    let [provisioning, table] = AUTHENTICATION;
    let keys = [
        ("device_id_pk", "sas", written.device_id_pk.is_some()),
        ("identity_cert", "x509", written.identity_cert.is_some()),
        ("identity_pk", "x509", written.identity_pk.is_some()),
    ];
    match written.method.as_str() {
        "sas" => {
            warn_about_keys_of_other_methods(AUTHENTICATION, &keys, "sas", findings);
            let Some(key) = &written.device_id_pk else {
                let message =
                    "`method = \"sas\"` needs `device_id_pk = { value = \"BASE64\" }` or `{ uri = \"file:///PATH\" }`";
                findings.error(&[provisioning, table, "method"], message);
                return None;
            };
            symmetric_key(&[provisioning, table, "device_id_pk"], key, findings).map(Authentication::Sas)
        }
        "x509" => {
            warn_about_keys_of_other_methods(AUTHENTICATION, &keys, "x509", findings);
            let certificate = (written.identity_cert.as_ref(), written.identity_pk.as_ref());
            let name = device_id.map(CloudName::DeviceId);
            certificates::device(AUTHENTICATION, certificate, name, config, findings).map(Authentication::X509)
        }
        other => {
            let message = format!("`{other}` is no method of authentication; there are `sas` and `x509`");
            findings.error(&[provisioning, table, "method"], message);
            None
        }
    }
}

/// `keys`: name, the method that it belongs to, whether it is written.
fn warn_about_keys_of_other_methods(
    [provisioning, table]: [&str; 2],
    keys: &[(&str, &str, bool)],
    method: &str,
    findings: &mut Findings,
) {
    for (key, _, _) in keys.iter().filter(|(_, of, is_present)| *is_present && *of != method) {
        let message = format!("means nothing with `method = \"{method}\"` and is ignored");
        findings.warn(&[provisioning, table, key], message);
    }
}

fn dps(config: &SuperConfig, findings: &mut Findings) -> Option<Provisioning> {
    const GLOBAL_ENDPOINT: [&str; 2] = ["provisioning", "global_endpoint"];
    let provisioning = &config.provisioning;
    let global_endpoint = required(provisioning.global_endpoint.as_deref(), "global_endpoint", findings)
        .and_then(|text| findings.value(&GLOBAL_ENDPOINT, DpsEndpoint::try_from(text.to_owned())));
    let id_scope = required(provisioning.id_scope.as_deref(), "id_scope", findings);
    warn_if_empty(findings, &["provisioning", "id_scope"], id_scope);
    let payload = provisioning.payload.as_ref().map(|payload| {
        let payload = url(&["provisioning", "payload", "uri"], &payload.uri, findings)?;
        if payload.scheme() != "file" {
            let message = format!("the payload is read from a `file:` URI only, not from `{}:`", payload.scheme());
            findings.warn(&["provisioning", "payload", "uri"], message);
        }
        Some(payload)
    });
    let attestation = required(provisioning.attestation.as_ref(), "attestation", findings)
        .and_then(|attestation| self::attestation(attestation, config, findings));
    Some(Provisioning::Dps {
        global_endpoint: global_endpoint?,
        id_scope: id_scope?.to_owned(),
        attestation: attestation?,
        payload: match payload {
            Some(payload) => Some(payload?),
            None => None,
        },
    })
}

fn attestation(
    written: &super_config::Attestation,
    config: &SuperConfig,
    findings: &mut Findings,
) -> Option<Attestation> {
    let [provisioning, table] = ATTESTATION;
    let method = [provisioning, table, "method"];
    let keys = [
        ("symmetric_key", "symmetric_key", written.symmetric_key.is_some()),
        ("identity_cert", "x509", written.identity_cert.is_some()),
        ("identity_pk", "x509", written.identity_pk.is_some()),
    ];
    let registration_id = written.registration_id.as_deref();
    warn_if_empty(findings, &[provisioning, table, "registration_id"], registration_id);
    let needed = |findings: &mut Findings| {
        if registration_id.is_none() {
            findings.error(&method, format!("`method = \"{}\"` needs `registration_id` beside it", written.method));
        }
        registration_id.map(str::to_owned)
    };
    match written.method.as_str() {
        "symmetric_key" => {
            warn_about_keys_of_other_methods(ATTESTATION, &keys, "symmetric_key", findings);
            let registration_id = needed(findings);
            let Some(key) = &written.symmetric_key else {
                let message = "`method = \"symmetric_key\"` needs `symmetric_key = { value = \"BASE64\" }` or `{ uri = \"file:///PATH\" }`";
                findings.error(&method, message);
                return None;
            };
            let key = symmetric_key(&[provisioning, table, "symmetric_key"], key, findings);
            Some(Attestation::SymmetricKey { registration_id: registration_id?, key: key? })
        }
        "x509" => {
            warn_about_keys_of_other_methods(ATTESTATION, &keys, "x509", findings);
            let certificate = (written.identity_cert.as_ref(), written.identity_pk.as_ref());
            let name = registration_id.map(CloudName::RegistrationId);
            let certificate = certificates::device(ATTESTATION, certificate, name, config, findings)?;
            if registration_id.is_none() && matches!(certificate, DeviceCertificate::Issued(_)) {
                let message =
                    "without `registration_id` beside it the device has no name to request this certificate for";
                findings.warn(&[provisioning, table, "identity_cert"], message);
            }
            Some(Attestation::X509 { registration_id: registration_id.map(str::to_owned), certificate })
        }
        "tpm" => {
            warn_about_keys_of_other_methods(ATTESTATION, &keys, "tpm", findings);
            Some(Attestation::Tpm { registration_id: needed(findings)? })
        }
        other => {
            let message = format!("`{other}` is no method of attestation; there are `symmetric_key`, `x509` and `tpm`");
            findings.error(&method, message);
            None
        }
    }
}

/// A valid `value` wins; where it is invalid, a valid `uri` does.
fn symmetric_key(key_path: &[&str], key: &super_config::SymmetricKey, findings: &mut Findings) -> Option<SymmetricKey> {
    let value_path = [key_path, &["value"]].concat();
    let uri_path = [key_path, &["uri"]].concat();
    match (&key.value, &key.uri) {
        (None, None) => {
            findings.error(key_path, "needs either `value` (base64) or `uri` (`file:` or `pkcs11:`)");
            None
        }
        (None, Some(uri)) => key_uri(&uri_path, uri, findings).map(SymmetricKey::At),
        (Some(value), uri) => match symmetric_key::decode(value.expose()) {
            Ok(bytes) => {
                if uri.is_some() {
                    findings.warn(&uri_path, "is ignored, because `value` wins");
                }
                warn_if_no_key(&value_path, bytes.expose(), findings);
                Some(SymmetricKey::Inline(bytes))
            }
            Err(error) => {
                if let Some(Ok(uri)) = uri.as_ref().map(|uri| uri.expose().parse::<KeyUri>()) {
                    findings.warn(&value_path, format!("this is not base64: {error}; `uri` is used instead"));
                    Some(SymmetricKey::At(uri))
                } else {
                    findings.error(&value_path, format!("this is not base64: {error}"));
                    None
                }
            }
        },
    }
}

fn warn_if_no_key(key_path: &[&str], key: &[u8], findings: &mut Findings) {
    if key.is_empty() {
        findings.warn(key_path, "the key is empty");
    }
}

fn required<'v, T: ?Sized>(value: Option<&'v T>, key: &str, findings: &mut Findings) -> Option<&'v T> {
    if value.is_none() {
        findings.error(&["provisioning"], format!("`{key}` is missing"));
    }
    value
}
