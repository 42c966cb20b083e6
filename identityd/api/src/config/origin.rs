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
        };
        match provisioning {
            Provisioning::None => of("none"),
            Provisioning::Manual(_) => of("manual"),
            Provisioning::Dps(dps) => {
                let registration_id = match &dps.attestation {
                    Attestation::SymmetricKey { registration_id, .. } | Attestation::Tpm { registration_id } => {
                        Some(registration_id.clone())
                    }
                    Attestation::X509 { registration_id, .. } => {
                        registration_id.as_ref().map(|subject: &Subject| subject.common_name().to_owned())
                    }
                };
                Self {
                    global_endpoint: Some(dps.global_endpoint.as_str().to_owned()),
                    scope_id: Some(dps.scope_id.clone()),
                    registration_id,
                    ..of("dps")
                }
            }
        }
    }
}
