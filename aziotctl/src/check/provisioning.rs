//! `[provisioning]`: which of its shapes is meant, and whether that is complete.

use aziot_identityd_api::config::DpsEndpoint;
use aziot_keys::KeyUri;

use super::{key_uri, url, warn_if_empty};
use crate::finding::Findings;
use crate::settings::{Provisioning, SymmetricKey};
use crate::super_config::connection_string::ConnectionString;
use crate::super_config::{self, Attestation, Authentication, SuperConfig, symmetric_key};

pub(super) fn check(config: &SuperConfig, findings: &mut Findings) -> Option<Provisioning> {
    let provisioning = &config.provisioning;
    match provisioning.source.as_str() {
        "manual" => {
            warn_about_keys_of_other_sources(provisioning, "manual", findings);
            manual(provisioning, findings)
        }
        "dps" => {
            warn_about_keys_of_other_sources(provisioning, "dps", findings);
            refuse_gateway(config, findings);
            dps(provisioning, findings)
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

fn manual(provisioning: &super_config::Provisioning, findings: &mut Findings) -> Option<Provisioning> {
    const CONNECTION_STRING: [&str; 2] = ["provisioning", "connection_string"];
    let explicit_keys = [
        ("iothub_hostname", provisioning.iothub_hostname.is_some()),
        ("device_id", provisioning.device_id.is_some()),
        ("authentication", provisioning.authentication.is_some()),
    ];
    let given: Vec<&str> = explicit_keys.iter().filter(|(_, is_present)| *is_present).map(|(key, _)| *key).collect();
    let Some(text) = &provisioning.connection_string else { return explicit(provisioning, &given, findings) };
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
                key: SymmetricKey::Inline(parsed.key),
            })
        }
        Err(error) if given.len() == explicit_keys.len() => {
            let message = format!("{error}; `iothub_hostname`, `device_id` and `authentication` are used instead");
            findings.warn(&CONNECTION_STRING, message);
            explicit(provisioning, &given, findings)
        }
        Err(error) => {
            findings.error(&CONNECTION_STRING, error.to_string());
            None
        }
    }
}

fn explicit(
    provisioning: &super_config::Provisioning,
    given: &[&str],
    findings: &mut Findings,
) -> Option<Provisioning> {
    if given.is_empty() {
        let message = "manual provisioning needs either `connection_string`, or `iothub_hostname`, `device_id` and \
                       `[provisioning.authentication]`";
        findings.error(&["provisioning"], message);
        return None;
    }
    let iothub_hostname = required(provisioning.iothub_hostname.as_deref(), "iothub_hostname", findings);
    let device_id = required(provisioning.device_id.as_deref(), "device_id", findings);
    let key = required(provisioning.authentication.as_ref(), "authentication", findings)
        .and_then(|authentication| sas_key(authentication, findings));
    warn_if_empty(findings, &["provisioning", "iothub_hostname"], iothub_hostname);
    warn_if_empty(findings, &["provisioning", "device_id"], device_id);
    Some(Provisioning::Manual {
        iothub_hostname: iothub_hostname?.to_owned(),
        device_id: device_id?.to_owned(),
        key: key?,
    })
}

fn sas_key(authentication: &Authentication, findings: &mut Findings) -> Option<SymmetricKey> {
    const METHOD: [&str; 3] = ["provisioning", "authentication", "method"];
    let key_path = ["provisioning", "authentication", "device_id_pk"];
    match authentication.method.as_str() {
        "sas" => {
            if let Some(key) = &authentication.device_id_pk {
                symmetric_key(&key_path, key, findings)
            } else {
                let message =
                    "`method = \"sas\"` needs `device_id_pk = { value = \"BASE64\" }` or `{ uri = \"file:///PATH\" }`";
                findings.error(&METHOD, message);
                None
            }
        }
        "x509" => {
            let message = "this version does not have X.509 provisioning yet; use `method = \"sas\"`";
            findings.error(&METHOD, message);
            None
        }
        other => {
            findings.error(&METHOD, format!("`{other}` is no method of authentication; there are `sas` and `x509`"));
            None
        }
    }
}

fn dps(provisioning: &super_config::Provisioning, findings: &mut Findings) -> Option<Provisioning> {
    const GLOBAL_ENDPOINT: [&str; 2] = ["provisioning", "global_endpoint"];
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
    let attested = required(provisioning.attestation.as_ref(), "attestation", findings)
        .and_then(|attestation| attestation_key(attestation, findings));
    let (registration_id, key) = attested?;
    Some(Provisioning::Dps {
        global_endpoint: global_endpoint?,
        id_scope: id_scope?.to_owned(),
        registration_id,
        key,
        payload: match payload {
            Some(payload) => Some(payload?),
            None => None,
        },
    })
}

fn attestation_key(attestation: &Attestation, findings: &mut Findings) -> Option<(String, SymmetricKey)> {
    const METHOD: [&str; 3] = ["provisioning", "attestation", "method"];
    let registration_id_path = ["provisioning", "attestation", "registration_id"];
    warn_if_empty(findings, &registration_id_path, attestation.registration_id.as_deref());
    let missing = match attestation.method.as_str() {
        "symmetric_key" => {
            if attestation.registration_id.is_none() {
                findings.error(&METHOD, "`method = \"symmetric_key\"` needs `registration_id` beside it");
            }
            let key_path = ["provisioning", "attestation", "symmetric_key"];
            if let Some(key) = &attestation.symmetric_key {
                let key = symmetric_key(&key_path, key, findings);
                return Some((attestation.registration_id.clone()?, key?));
            }
            "`method = \"symmetric_key\"` needs `symmetric_key = { value = \"BASE64\" }` or `{ uri = \"file:///PATH\" }`".to_owned()
        }
        "x509" => "this version does not have X.509 provisioning yet; use `method = \"symmetric_key\"`".to_owned(),
        "tpm" => "this version does not have TPM provisioning yet; use `method = \"symmetric_key\"`".to_owned(),
        other => format!("`{other}` is no method of attestation; there are `symmetric_key`, `x509` and `tpm`"),
    };
    findings.error(&METHOD, missing);
    None
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
