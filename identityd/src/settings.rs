//! One snapshot of the settings: a request takes it when it begins and uses no other.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aziot_identityd_api::config::{
    Attestation, Config, Contradiction, DpsEndpoint, ManualAuthentication, Payload, Provisioning,
};

use crate::{principals::Principals, state::DeviceInfo};

/// The settings in force, shared and replaced as a whole.
pub(crate) type Shared = Arc<ArcSwap<Settings>>;

/// Where the device's identity comes from, as far as this version can get it. X.509 and TPM will come in here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It has none.
    Off,
    /// From the settings.
    Manual {
        /// The device.
        info: DeviceInfo,
        /// Id of its symmetric key in the key service.
        key_id: String,
    },
    /// From DPS.
    Dps(DpsSource),
}

/// What a device registers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DpsSource {
    /// Where DPS is.
    pub(crate) endpoint: DpsEndpoint,
    /// Scope of the DPS instance.
    pub(crate) scope_id: String,
    /// Name of the registration.
    pub(crate) registration_id: String,
    /// Id of the device's symmetric key in the key service.
    pub(crate) key_id: String,
    /// What is told to the operator's custom allocation.
    pub(crate) payload: Option<Payload>,
}

impl Source {
    fn of(provisioning: &Provisioning) -> Result<Self, Unusable> {
        let not_available = |key, value| Err(Unusable::NotAvailable { key, value });
        match provisioning {
            Provisioning::None => Ok(Self::Off),
            Provisioning::Manual(manual) => match &manual.authentication {
                ManualAuthentication::Sas { device_id_pk } => {
                    let hub_name = manual.iothub_hostname.clone();
                    let gateway = manual.local_gateway_hostname.clone();
                    let info = DeviceInfo {
                        local_gateway_hostname: gateway.unwrap_or_else(|| hub_name.clone()),
                        hub_name,
                        device_id: manual.device_id.clone(),
                    };
                    Ok(Self::Manual { info, key_id: device_id_pk.clone() })
                }
                ManualAuthentication::X509 { .. } => not_available("provisioning.authentication.method", "x509"),
            },
            Provisioning::Dps(dps) => match &dps.attestation {
                Attestation::SymmetricKey { registration_id, symmetric_key } => Ok(Self::Dps(DpsSource {
                    endpoint: dps.global_endpoint.clone(),
                    scope_id: dps.scope_id.clone(),
                    registration_id: registration_id.clone(),
                    key_id: symmetric_key.clone(),
                    payload: dps.payload.clone(),
                })),
                Attestation::X509 { .. } => not_available("provisioning.attestation.method", "x509"),
                Attestation::Tpm { .. } => not_available("provisioning.attestation.method", "tpm"),
            },
        }
    }
}

/// Checked settings and what is made of them.
#[derive(Debug)]
pub(crate) struct Settings {
    /// As the files have them.
    pub(crate) config: Config,
    /// Where the device's identity comes from.
    pub(crate) source: Source,
    /// Who may do what.
    pub(crate) principals: Principals,
}

/// Settings that are well written and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// They contradict each other.
    #[error("the settings contradict each other")]
    Contradiction(#[from] Contradiction),
    /// They ask for what this version does not have.
    #[error("{key} = {value:?} is not available in this version")]
    NotAvailable {
        /// Dotted key of the setting.
        key: &'static str,
        /// Its value.
        value: &'static str,
    },
}

impl Settings {
    /// Checks the configuration.
    pub(crate) fn new(config: Config) -> Result<Self, Unusable> {
        config.check()?;
        let source = Source::of(&config.provisioning)?;
        let principals = Principals::new(&config.principal);
        Ok(Self { config, source, principals })
    }

    /// The settings for everybody who shares them.
    #[must_use]
    pub(crate) fn share(self) -> Shared {
        Arc::new(ArcSwap::from_pointee(self))
    }

    /// Logs which of the differences to `new` do not act at once, and when they will.
    pub(crate) fn log_delayed(&self, new: &Self) {
        let (old, new) = (&self.config, &new.config);
        for (key, changed) in [
            ("homedir", old.homedir != new.homedir),
            ("max_requests", old.max_requests != new.max_requests),
            ("endpoints", old.endpoints != new.endpoints),
        ] {
            if changed {
                tracing::warn!("the changed setting `{key}` is used from the next start on");
            }
        }
        for (key, changed) in [
            ("provisioning", old.provisioning != new.provisioning),
            ("cloud_timeout_sec", old.cloud_timeout_sec != new.cloud_timeout_sec),
            ("cloud_retries", old.cloud_retries != new.cloud_retries),
        ] {
            if changed {
                tracing::warn!("the changed setting `{key}` is used from the next start or reprovisioning on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(provisioning: &str) -> Result<Settings, Unusable> {
        let text = format!("hostname = 'e'\nhomedir = '/h'\n[provisioning]\n{provisioning}");
        Settings::new(aziot_config::load_str("config.toml", &text).unwrap().value)
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        let dps = "source = 'dps'\nglobal_endpoint = 'https://g'\nscope_id = 's'\n[provisioning.attestation]\n";
        let manual = "source = 'manual'\niothub_hostname = 'h'\ndevice_id = 'd'\n[provisioning.authentication]\n";
        let x509 = "method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'";
        for (text, expected) in [
            (format!("{dps}{x509}"), "provisioning.attestation.method = \"x509\" is not available in this version"),
            (
                format!("{dps}method = 'tpm'\nregistration_id = 'r'"),
                "provisioning.attestation.method = \"tpm\" is not available in this version",
            ),
            (
                format!("{manual}{x509}"),
                "provisioning.authentication.method = \"x509\" is not available in this version",
            ),
        ] {
            assert_eq!(settings(&text).unwrap_err().to_string(), expected);
        }
        settings(&format!("{manual}method = 'sas'\ndevice_id_pk = 'k'")).unwrap();
        settings("source = 'none'").unwrap();
    }
}
