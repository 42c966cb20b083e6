//! Renewal of the device's certificate: DPS learns of the new one before it takes the place of the old one, so that the hub accepts the one
//! that is shown.
//!
//! The device and its modules are kept. If DPS has moved the device to another hub on that occasion, or knows a certificate that then could not
//! be stored, the device registers once more with the one that is in force. A crash between the two ends in the same way: the hub refuses the
//! old certificate, and a device that its hub refuses registers anew.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aziot_certd_api::renewal::AutoRenew;
use aziot_log::fields;
use aziot_pki::{
    certificate::Chain,
    renewal::{
        Credential, Doing, Failure, Renewed,
        issued::{self, Issued, Observer},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Services,
    certificate::{CertificateError, DeviceCertificate},
    issuance::PREFERRED_ALGORITHMS,
    pair::Shown,
};
use crate::{
    provisioning::Situation,
    registration::register_certificate,
    schedule::Wish,
    settings::{CertificateSettings, DpsSource, Shared},
    state::DeviceInfo,
};

/// Time for those who register with the old certificate. This and the next together are well below what the engine grants a replacement, 600 s.
const TURN: Duration = Duration::from_secs(150);
/// Time for the registration of a renewed one.
const REGISTRATION: Duration = Duration::from_secs(330);

/// Registers a renewed certificate.
pub(super) struct Registrar {
    /// Where, and as what.
    pub(super) dps: DpsSource,
    /// For the patience that the cloud is granted.
    pub(super) settings: Shared,
    /// The device as it is known.
    pub(super) situation: watch::Receiver<Situation>,
    /// The way to the task that provisions.
    pub(super) wishes: mpsc::WeakSender<Wish>,
}

impl Registrar {
    async fn register(&self, shown: &Shown) -> Result<DeviceInfo, Failure> {
        let config = &self.settings.load_full().config;
        register_certificate(&self.dps, config, shown).await.map_err(|error| match error.retry_after() {
            Some(pause) => Failure::Busy(pause, error.into()),
            None => Failure::retryable(error),
        })
    }

    /// Has the device registered with what is in force.
    fn register_again(&self) {
        if let Some(wishes) = self.wishes.upgrade()
            && wishes.try_send(Wish::Register).is_err()
        {
            tracing::warn!("could not ask for another registration; so many have asked that one will be made anyway");
        }
    }
}

/// The device's certificate, as the engine renews it.
pub(super) struct Renewal {
    issued: Issued,
    part: Arc<Part>,
}

/// Our part in it.
struct Part {
    certificate: Weak<DeviceCertificate>,
    registrar: Option<Arc<Registrar>>,
    /// DPS knows a certificate that is not stored yet.
    is_registered: AtomicBool,
    /// DPS has given the device another hub or name.
    is_moved: AtomicBool,
}

impl Renewal {
    /// Renews `certificate`, if it is still in use then.
    #[must_use]
    pub(super) fn new(
        certificate: Weak<DeviceCertificate>,
        settings: &CertificateSettings,
        policy: AutoRenew,
        registrar: Option<Arc<Registrar>>,
        services: &Services,
    ) -> Self {
        let settings = issued::Settings {
            certificate_id: settings.certificate_id.clone(),
            key_id: settings.key_id.clone(),
            policy,
            subject: None,
            extensions: Vec::new(),
            preferred_algorithms: PREFERRED_ALGORITHMS.to_owned(),
        };
        let (is_registered, is_moved) = (AtomicBool::new(false), AtomicBool::new(false));
        let part = Arc::new(Part { certificate, registrar, is_registered, is_moved });
        let issued = Issued::new(services.certd.clone(), services.keyd.clone(), settings);
        Self { issued: issued.with_observer(Arc::clone(&part) as _), part }
    }
}

impl Observer for Part {
    fn before_commit<'a>(&'a self, new: &'a Renewed) -> Doing<'a, ()> {
        Box::pin(async move {
            let (Some(registrar), Some(certificate)) = (&self.registrar, self.certificate.upgrade()) else {
                return Ok(());
            };
            let shown = certificate.shown_as(&new.chain, &new.key_id).await.map_err(Failure::retryable)?;
            // From the first byte on it is not known what DPS knows.
            self.is_registered.store(true, Ordering::Relaxed);
            let id = certificate.certificate_id();
            let too_late = |_| {
                Failure::retryable(CertificateError::NotRegisteredInTime { id: id.to_owned(), limit: REGISTRATION })
            };
            let assigned = timeout(REGISTRATION, registrar.register(&shown)).await.map_err(too_late)??;
            let known = registrar.situation.borrow().device.as_ref().map(|device| device.info.clone());
            let is_moved = known.is_some_and(|known| known != assigned);
            self.is_moved.store(is_moved, Ordering::Relaxed);
            tracing::info!(
                { fields::CERTIFICATE_ID } = id,
                { fields::DEVICE_ID } = assigned.device_id,
                { fields::HUB } = assigned.hub_name,
                "registered the renewed certificate"
            );
            Ok(())
        })
    }

    fn committed(&self, _new: &Chain) {
        if let Some(certificate) = self.certificate.upgrade() {
            certificate.outdate();
        }
    }
}

impl Credential for Renewal {
    fn certificate_id(&self) -> &str {
        self.issued.certificate_id()
    }

    fn key_id(&self) -> &str {
        self.issued.key_id()
    }

    fn policy(&self) -> AutoRenew {
        self.issued.policy()
    }

    fn repair(&self) -> Doing<'_, ()> {
        self.issued.repair()
    }

    fn current(&self) -> Doing<'_, Chain> {
        self.issued.current()
    }

    fn renew(&self, old: Chain) -> Doing<'_, Renewed> {
        if self.part.certificate.upgrade().is_none_or(|certificate| certificate.is_ended()) {
            return Box::pin(async { Err(Failure::fatal(CertificateError::Ended)) });
        }
        self.issued.renew(old)
    }

    fn commit(&self, old: Chain, new: Renewed) -> Doing<'_, ()> {
        Box::pin(async move {
            let ended = || Failure::retryable(CertificateError::Ended);
            let certificate = self.part.certificate.upgrade().ok_or_else(ended)?;
            let too_late = |_| {
                let id = certificate.certificate_id().to_owned();
                Failure::retryable(CertificateError::Registering { id, limit: TURN })
            };
            let _replacing = timeout(TURN, certificate.begin_replacement()).await.map_err(too_late)?;
            if certificate.is_ended() {
                return Err(ended());
            }
            let mut end = End { part: &self.part, certificate: &certificate, is_committed: false };
            let committed = self.issued.commit(old, new).await;
            end.is_committed = committed.is_ok();
            committed
        })
    }
}

/// The end of a replacement, also of one that is cut off.
struct End<'a> {
    part: &'a Part,
    certificate: &'a DeviceCertificate,
    is_committed: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let is_registered = self.part.is_registered.swap(false, Ordering::Relaxed);
        let is_moved = self.part.is_moved.swap(false, Ordering::Relaxed);
        // Settings that are not in force register when they come into force.
        if (is_moved || (is_registered && !self.is_committed)) && self.certificate.is_in_force() {
            self.part.registrar.iter().for_each(|registrar| registrar.register_again());
        }
    }
}
