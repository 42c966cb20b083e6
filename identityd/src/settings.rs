//! One snapshot of the settings: a request takes it when it begins and uses no other.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aziot_certd_api::renewal::AutoRenew;
use aziot_identityd_api::config::{
    Attestation, Config, Contradiction, Dps, DpsEndpoint, Manual, ManualAuthentication, Payload, Provisioning,
};

use crate::{
    credentials::{CertificateSubject, SubjectError},
    principals::Principals,
    state::DeviceInfo,
};

/// How long a caller waits at most: a little less than the 600 s of the public client. An attempt at provisioning ends sooner.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(570);

/// The settings in force, shared and replaced as a whole.
pub(crate) type Shared = Arc<ArcSwap<Settings>>;

/// Where the device's identity comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It has none.
    Off,
    /// From the settings.
    Manual {
        /// The device.
        info: DeviceInfo,
        /// What it proves itself with to the hub.
        proof: Proof,
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
    pub(crate) registration_id: RegistrationId,
    /// What the device proves itself with, to DPS and to the hub.
    pub(crate) proof: Proof,
    /// What is told to the operator's custom allocation.
    pub(crate) payload: Option<Payload>,
}

/// Where the name of a registration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RegistrationId {
    /// From the settings.
    Set(String),
    /// It is the common name of the certificate with this id.
    OfCertificate(String),
}

/// What a device proves itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// A symmetric key.
    SymmetricKey {
        /// Its id in the key service.
        key_id: String,
    },
    /// A certificate.
    X509(CertificateSettings),
    /// Its TPM.
    Tpm,
}

/// A certificate that the device shows, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateSettings {
    /// Its id in the certificate service.
    pub(crate) certificate_id: String,
    /// Id of its key pair in the key service.
    pub(crate) key_id: String,
    /// Whom it names when it is requested; absent: it must be there already.
    pub(crate) subject: Option<CertificateSubject>,
    /// When it is renewed; absent: never.
    pub(crate) auto_renew: Option<AutoRenew>,
}

impl Source {
    fn of(provisioning: &Provisioning) -> Result<Self, SubjectError> {
        match provisioning {
            Provisioning::None => Ok(Self::Off),
            Provisioning::Manual(manual) => Self::of_manual(manual),
            Provisioning::Dps(dps) => Self::of_dps(dps),
        }
    }

    fn of_manual(manual: &Manual) -> Result<Self, SubjectError> {
        let hub_name = manual.iothub_hostname.clone();
        let gateway = manual.local_gateway_hostname.clone();
        let info = DeviceInfo {
            local_gateway_hostname: gateway.unwrap_or_else(|| hub_name.clone()),
            hub_name,
            device_id: manual.device_id.clone(),
        };
        let proof = match &manual.authentication {
            ManualAuthentication::Sas { device_id_pk } => Proof::SymmetricKey { key_id: device_id_pk.clone() },
            ManualAuthentication::X509 { identity_cert, identity_pk, csr_subject, identity_auto_renew } => {
                Proof::X509(CertificateSettings {
                    certificate_id: identity_cert.clone(),
                    key_id: identity_pk.clone(),
                    subject: Some(CertificateSubject::of_manual(&manual.device_id, csr_subject.as_ref())?),
                    auto_renew: *identity_auto_renew,
                })
            }
        };
        Ok(Self::Manual { info, proof })
    }

    fn of_dps(dps: &Dps) -> Result<Self, SubjectError> {
        let (registration_id, proof) = match &dps.attestation {
            Attestation::SymmetricKey { registration_id, symmetric_key } => {
                (RegistrationId::Set(registration_id.clone()), Proof::SymmetricKey { key_id: symmetric_key.clone() })
            }
            Attestation::X509 { registration_id, identity_cert, identity_pk, identity_auto_renew } => {
                let subject = registration_id.as_ref().map(CertificateSubject::of_dps).transpose()?;
                let settings = CertificateSettings {
                    certificate_id: identity_cert.clone(),
                    key_id: identity_pk.clone(),
                    subject,
                    auto_renew: *identity_auto_renew,
                };
                let set = registration_id.as_ref().map(|id| RegistrationId::Set(id.common_name().to_owned()));
                let name = set.unwrap_or_else(|| RegistrationId::OfCertificate(identity_cert.clone()));
                (name, Proof::X509(settings))
            }
            Attestation::Tpm { registration_id } => (RegistrationId::Set(registration_id.clone()), Proof::Tpm),
        };
        Ok(Self::Dps(DpsSource {
            endpoint: dps.global_endpoint.clone(),
            scope_id: dps.scope_id.clone(),
            registration_id,
            proof,
            payload: dps.payload.clone(),
        }))
    }

    /// What the device proves itself with, if it is to have an identity.
    #[must_use]
    pub(crate) fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Off => None,
            Self::Manual { proof, .. } => Some(proof),
            Self::Dps(dps) => Some(&dps.proof),
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
    /// The certificate that they ask for cannot be requested.
    #[error("the device's certificate cannot be requested")]
    Subject(#[from] SubjectError),
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

    /// Logs which of the differences to `new` act only after a restart.
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
    fn every_kind_is_taken() {
        let dps = "source = 'dps'\nglobal_endpoint = 'https://g'\nscope_id = 's'\n[provisioning.attestation]\n";
        let manual = "source = 'manual'\niothub_hostname = 'h'\ndevice_id = 'd'\n[provisioning.authentication]\n";
        let x509 = "method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'\n";
        let renew = "identity_auto_renew = { rotate_key = true, threshold = '80%', retry = '4%' }\n";
        let proof = |text: &str| settings(text).unwrap().source.proof().cloned();
        assert_eq!(proof("source = 'none'"), None);
        let key = Some(Proof::SymmetricKey { key_id: "k".into() });
        assert_eq!(proof(&format!("{manual}method = 'sas'\ndevice_id_pk = 'k'")), key);
        assert_eq!(proof(&format!("{dps}method = 'symmetric_key'\nregistration_id = 'r'\nsymmetric_key = 'k'")), key);
        assert_eq!(proof(&format!("{dps}method = 'tpm'\nregistration_id = 'r'")), Some(Proof::Tpm));
        for text in [format!("{manual}{x509}{renew}"), format!("{dps}{x509}{renew}")] {
            let Some(Proof::X509(certificate)) = proof(&text) else { panic!("{text}") };
            assert_eq!((certificate.certificate_id.as_str(), certificate.key_id.as_str()), ("c", "k"));
            assert_eq!(certificate.auto_renew, Some(AutoRenew::default()));
            assert_eq!(certificate.subject.is_some(), text.contains("manual"));
        }
    }

    #[test]
    fn a_subject_that_no_certificate_can_have_is_refused_by_its_setting() {
        let dps = "source = 'dps'\nglobal_endpoint = 'https://g'\nscope_id = 's'\n[provisioning.attestation]\n\
                   method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'\n";
        let refused = |id: &str| {
            let error = settings(&format!("{dps}registration_id = {id}")).unwrap_err();
            aziot_log::chain(&error).to_string()
        };
        let long = "x".repeat(65);
        let text = refused(&format!("{{ cn = '{long}', o = 'org' }}"));
        assert!(text.contains("provisioning.attestation.registration_id") && text.contains("64"), "{text}");
        let text = refused("{ cn = 'd', nonsense = 'x' }");
        assert!(text.contains("provisioning.attestation.registration_id") && text.contains("NONSENSE"), "{text}");
        // One that is there already may have any name.
        settings(&format!("{dps}registration_id = '{long}'")).unwrap();
    }
}
