//! What of the settings decides which device this is: the identity service remembers it beside the device, and the CLI
//! foretells by it what a change of the settings will do.

use serde::{Deserialize, Serialize};

use super::{Attestation, Provisioning, Subject};

/// The settings that gave the device its identity. When they differ from those in force, that identity is another device's.
///
/// Written as TOML to `device_origin` in the identity service's home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    global_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registration_id: Option<String>,
    /// How the device proves itself, where that is not by a symmetric key: DPS must learn of a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attestation: Option<String>,
    /// The certificate: another one may be of another device, and DPS must learn of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity_cert: Option<String>,
}

impl Origin {
    /// The deciding part of these settings.
    #[must_use]
    pub fn of(provisioning: &Provisioning) -> Self {
        let of = |source: &str| Self {
            source: source.to_owned(),
            global_endpoint: None,
            scope_id: None,
            registration_id: None,
            attestation: None,
            identity_cert: None,
        };
        match provisioning {
            Provisioning::None => of("none"),
            Provisioning::Manual(_) => of("manual"),
            Provisioning::Dps(dps) => {
                let (registration_id, attestation, identity_cert) = match &dps.attestation {
                    Attestation::SymmetricKey { registration_id, .. } => (Some(registration_id.clone()), None, None),
                    Attestation::X509 { registration_id, identity_cert, .. } => {
                        let registration_id = registration_id.as_ref().map(|id: &Subject| id.common_name().to_owned());
                        (registration_id, Some("x509".to_owned()), Some(identity_cert.clone()))
                    }
                    Attestation::Tpm { registration_id } => {
                        (Some(registration_id.clone()), Some("tpm".to_owned()), None)
                    }
                };
                Self {
                    global_endpoint: Some(dps.global_endpoint.as_str().to_owned()),
                    scope_id: Some(dps.scope_id.clone()),
                    registration_id,
                    attestation,
                    identity_cert,
                    ..of("dps")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn origin(provisioning: &str) -> Origin {
        let text = format!("hostname = 'e'\nhomedir = '/h'\n[provisioning]\n{provisioning}");
        Origin::of(&aziot_config::load_str::<Config>("config.toml", &text).unwrap().value.provisioning)
    }

    #[test]
    fn what_makes_another_device_is_another_origin() {
        let dps = "source = 'dps'\nscope_id = 's'\nglobal_endpoint = 'https://g'\n[provisioning.attestation]\n";
        let sas = |id: &str| format!("{dps}method = 'symmetric_key'\nregistration_id = '{id}'\nsymmetric_key = 'k'");
        let x509 = |certificate: &str, more: &str| {
            format!("{dps}method = 'x509'\nidentity_cert = '{certificate}'\nidentity_pk = 'k'\n{more}")
        };
        let tpm = format!("{dps}method = 'tpm'\nregistration_id = 'r'");
        let all = [
            "source = 'none'".to_owned(),
            sas("r"),
            sas("other"),
            x509("c", ""),
            x509("other", ""),
            x509("c", "registration_id = 'r'"),
            tpm,
        ];
        for (place, one) in all.iter().enumerate() {
            for (other_place, other) in all.iter().enumerate() {
                assert_eq!(origin(one) == origin(other), place == other_place, "{one}\n{other}");
            }
            let written = toml::to_string(&origin(one)).unwrap();
            assert_eq!(toml::from_str::<Origin>(&written).unwrap(), origin(one));
        }
        // As it was written before there were other kinds.
        assert_eq!(
            toml::to_string(&origin(&sas("r"))).unwrap(),
            "source = \"dps\"\nglobal_endpoint = \"https://g/\"\nscope_id = \"s\"\nregistration_id = \"r\"\n"
        );
        let renewed = x509("c", "identity_auto_renew = { rotate_key = true, threshold = '80%', retry = '4%' }");
        assert_eq!(origin(&x509("c", "")), origin(&renewed), "it is the same device");
    }
}
