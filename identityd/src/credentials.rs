//! What the device proves itself with, to DPS and to its hub: a symmetric key, a certificate, or its TPM.
//!
//! Private and symmetric keys stay where they are, in the key service or the TPM. Which of the three it is, the settings say; when
//! something is proved to whom is decided by `provisioning`.

mod certificate;
mod expiry;
mod issuance;
mod pair;
mod renewal;
mod subject;
mod tpm;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aziot_http::{Client, ClientError};
use aziot_identityd_api::identity::Authentication;
use aziot_identityd_cloud::{Exchange, Exchanges, Signer};
use aziot_pki::renewal::{Engine, SystemClock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    keys::{DeviceKey, Keys},
    provisioning::Situation,
    schedule::Wish,
    settings::{CertificateSettings, DpsSource, Proof, Settings, Shared, Source},
    state::State,
};

pub(crate) use certificate::{CertificateError, DeviceCertificate};
pub(crate) use pair::Shown;
use pair::{Pair, Pairs};
pub(crate) use subject::{CertificateSubject, SubjectError};
pub(crate) use tpm::{Tpm, TpmFailure};

/// What a device proves itself with, by the names that others know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A symmetric key.
    SymmetricKey {
        /// Its id in the key service.
        key_id: String,
    },
    /// A certificate.
    X509 {
        /// Its id in the certificate service.
        certificate_id: String,
        /// Id of its key pair in the key service.
        key_id: String,
    },
    /// The TPM.
    Tpm,
}

impl From<&Proof> for Credential {
    fn from(proof: &Proof) -> Self {
        match proof {
            Proof::SymmetricKey { key_id } => Self::SymmetricKey { key_id: key_id.clone() },
            Proof::X509(CertificateSettings { certificate_id, key_id, .. }) => {
                Self::X509 { certificate_id: certificate_id.clone(), key_id: key_id.clone() }
            }
            Proof::Tpm => Self::Tpm,
        }
    }
}

impl Credential {
    /// What proves the device, for callers of this service.
    pub(crate) async fn authentication(&self, keys: &Keys) -> Result<Authentication, Error> {
        let failed = |error: Arc<ClientError>| Error::DeviceKey(error);
        Ok(match self {
            Self::SymmetricKey { key_id } => {
                Authentication::Sas { key_handle: keys.load(key_id).await.map_err(failed)? }
            }
            Self::X509 { certificate_id, key_id } => Authentication::X509 {
                key_handle: keys.load_pair(key_id).await.map_err(failed)?,
                cert_id: certificate_id.clone(),
            },
            Self::Tpm => Authentication::Tpm,
        })
    }
}

/// The services behind the credentials.
#[derive(Clone)]
pub(crate) struct Services {
    /// The key service, for key pairs.
    pub(crate) keyd: Client,
    /// The certificate service.
    pub(crate) certd: Client,
    /// The TPM service.
    pub(crate) tpmd: Client,
    /// Ways to the cloud, one for each client certificate.
    pub(crate) exchanges: Arc<dyn Exchanges>,
}

/// How a device's requests are carried, and what signs their tokens.
pub(crate) struct Access {
    /// The way.
    pub(crate) exchange: Arc<dyn Exchange>,
    /// Absent where the way itself shows who we are.
    pub(crate) signer: Option<Arc<dyn Signer>>,
}

/// All credentials of this device: those in use, and those that new settings want.
pub(crate) struct Credentials {
    settings: Shared,
    keys: Keys,
    services: Services,
    state: Arc<State>,
    /// One pool of connections for all requests with tokens.
    plain: Arc<dyn Exchange>,
    engine: Engine,
    certificates: Mutex<Certificates>,
    /// Ends with the service.
    ended: CancellationToken,
    situation: watch::Receiver<Situation>,
    wishes: mpsc::WeakSender<Wish>,
}

/// The device's certificates.
#[derive(Default)]
struct Certificates {
    /// Of the settings that gave the device its identity.
    in_force: Option<Arc<DeviceCertificate>>,
    /// Of newer settings, which may be taken back before they come into force.
    wanted: Option<Arc<DeviceCertificate>>,
    pairs: Pairs,
}

impl Credentials {
    /// Nothing is asked of any service yet.
    #[must_use]
    pub(crate) fn new(
        settings: Shared,
        keys: Keys,
        services: Services,
        state: Arc<State>,
        situation: watch::Receiver<Situation>,
        wishes: mpsc::WeakSender<Wish>,
    ) -> Self {
        let plain = services.exchanges.exchange(None);
        let (engine, certificates) = (Engine::new(SystemClock::new()), Mutex::default());
        let ended = CancellationToken::new();
        Self { settings, keys, services, state, plain, engine, certificates, ended, situation, wishes }
    }

    /// Renews what is due and warns of what will end, for ever. With this ends all that is under way for a certificate.
    pub(crate) async fn run(&self) {
        let _ended = self.ended.clone().drop_guard();
        tokio::join!(self.engine.run(), expiry::watch(|| self.current()));
    }

    /// The way to the cloud for a device of these settings.
    #[must_use]
    pub(crate) fn access(&self, proof: &Proof, settings: &Settings) -> Access {
        match proof {
            Proof::SymmetricKey { key_id } => {
                let signer = DeviceKey { keys: self.keys.clone(), key_id: key_id.clone() };
                Access { exchange: Arc::clone(&self.plain), signer: Some(Arc::new(signer)) }
            }
            Proof::X509(certificate) => Access { exchange: self.certificate(certificate, settings), signer: None },
            Proof::Tpm => Access { exchange: Arc::clone(&self.plain), signer: Some(Arc::new(self.tpm())) },
        }
    }

    /// The TPM.
    #[must_use]
    pub(crate) fn tpm(&self) -> Tpm {
        Tpm::new(self.services.tpmd.clone(), Arc::clone(&self.state))
    }

    /// The certificate of these settings, the same for all who ask with the same settings one after the other. That of the settings in force
    /// stays until others [`settle`](Self::settle).
    #[must_use]
    pub(crate) fn certificate(&self, certificate: &CertificateSettings, settings: &Settings) -> Arc<DeviceCertificate> {
        let dps = match &settings.source {
            Source::Dps(dps) => Some(dps.clone()),
            Source::Off | Source::Manual { .. } => None,
        };
        let mut present = self.certificates();
        let known = [&present.in_force, &present.wanted].into_iter().flatten();
        if let Some(known) = known.into_iter().find(|known| known.is_of(certificate, dps.as_ref())) {
            return Arc::clone(known);
        }
        let new = self.new_certificate(certificate, dps, present.pairs.of(certificate));
        if let Some(displaced) = present.wanted.replace(Arc::clone(&new)) {
            displaced.end();
            self.renew_only(present.in_force.as_deref(), true);
        }
        new
    }

    fn new_certificate(
        &self,
        certificate: &CertificateSettings,
        dps: Option<DpsSource>,
        pair: Arc<Pair>,
    ) -> Arc<DeviceCertificate> {
        let registrar = dps.map(|dps| renewal::Registrar {
            dps,
            settings: Arc::clone(&self.settings),
            situation: self.situation.clone(),
            wishes: self.wishes.clone(),
        });
        let (services, engine) = (self.services.clone(), self.engine.clone());
        DeviceCertificate::new(certificate.clone(), registrar, services, engine, pair, self.ended.child_token())
    }

    /// The common name of the certificate that is stored: the name of a registration that has no other.
    pub(crate) async fn stored_common_name(&self, certificate_id: &str) -> Result<String, CertificateError> {
        let stored = issuance::stored(&self.services.certd, certificate_id).await?;
        let stored = stored.ok_or_else(|| CertificateError::Absent(certificate_id.to_owned()))?;
        let common_name = stored.leaf().and_then(issuance::common_name);
        common_name.ok_or_else(|| CertificateError::Nameless(certificate_id.to_owned()))
    }

    /// These settings have given the device its identity: what only others need ends, and is not renewed any more.
    pub(crate) fn settle(&self, settings: &Settings) {
        let new = match settings.source.proof() {
            Some(Proof::X509(certificate)) => Some(self.certificate(certificate, settings)),
            Some(Proof::SymmetricKey { .. } | Proof::Tpm) | None => None,
        };
        let mut present = self.certificates();
        let mut anew = false;
        for old in [present.in_force.take(), present.wanted.take()].into_iter().flatten() {
            if !new.as_ref().is_some_and(|new| Arc::ptr_eq(&old, new)) {
                old.end();
                anew = true;
            }
        }
        present.in_force = new;
        self.renew_only(present.in_force.as_deref(), anew);
    }

    fn renew_only(&self, certificate: Option<&DeviceCertificate>, anew: bool) {
        match certificate {
            Some(certificate) => certificate.renew_alone(anew),
            None => drop(self.engine.replace(Vec::new())),
        }
    }

    /// Ids of the certificates that are kept renewed.
    #[cfg(test)]
    pub(crate) fn renewed(&self) -> Vec<String> {
        self.engine.status().into_iter().map(|one| one.certificate_id).collect()
    }

    fn current(&self) -> Option<Arc<DeviceCertificate>> {
        self.certificates().in_force.clone()
    }

    fn certificates(&self) -> MutexGuard<'_, Certificates> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
