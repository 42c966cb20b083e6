//! The device's certificate: obtained where there is none, shown to the cloud, and exchanged for a renewed one while requests go on.
//!
//! The certificate is in the certificate service and its key in the key service; here is the pool of TLS connections that shows it, made at the
//! first request. A request that was refused because the certificate was being replaced waits for the new one and is sent once more.

mod error;

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use aziot_identityd_cloud::{
    Error as CloudError, Exchange,
    exchange::{Answer, Exchanging, Request},
};
use aziot_log::{chain, fields};
use aziot_pki::{
    certificate::{Chain, Validity},
    renewal::{Engine, Held, NotAvailable, Status},
    tls::ClientIdentity,
};
use tokio::sync::MutexGuard;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Services, issuance,
    pair::{Pair, Present, Replacing, Shown},
    renewal::{Registrar, Renewal},
};
use crate::{
    error::Error,
    settings::{CertificateSettings, DpsSource},
};

pub(crate) use error::CertificateError;

/// A certificate of the device with its key, for all who make requests.
pub(crate) struct DeviceCertificate {
    settings: CertificateSettings,
    registrar: Option<Arc<Registrar>>,
    services: Services,
    engine: Engine,
    pair: Arc<Pair>,
    /// Somebody wants it renewed.
    is_wanted: AtomicBool,
    /// The engine has it from here, and not from other settings for the same pair.
    is_enlisted: AtomicBool,
    /// The device has its identity by these settings.
    is_in_force: AtomicBool,
    /// Other settings have taken its place, or the service ends.
    ended: CancellationToken,
    tasks: TaskTracker,
    this: Weak<Self>,
}

/// The right to register with a certificate, which stays as it is until this is dropped.
pub(crate) struct Turn<'a> {
    /// The certificate.
    pub(crate) shown: Arc<Shown>,
    _registration: MutexGuard<'a, ()>,
}

/// What a refusal may have come from.
enum Doubtful {
    Certificate,
    Key,
}

impl Doubtful {
    fn of_outcome(outcome: &Result<Answer, CloudError>) -> Option<Self> {
        match outcome {
            Ok(answer) => [401, 403].contains(&answer.status().as_u16()).then_some(Self::Certificate),
            Err(error) => Self::of_error(error),
        }
    }

    fn of_error(error: &CloudError) -> Option<Self> {
        match error {
            CloudError::Signing(_) => Some(Self::Key),
            CloudError::CertificateRefused { .. } => Some(Self::Certificate),
            error => {
                let status = error.status().map(|status| status.as_u16());
                status.is_some_and(|status| [401, 403].contains(&status)).then_some(Self::Certificate)
            }
        }
    }

    fn of_registration(error: &Error) -> Option<Self> {
        match error {
            Error::Dps(error) => Self::of_error(error),
            Error::DeviceKey(error) => error.downcast_ref().and_then(Self::of_error),
            _ => None,
        }
    }
}

impl DeviceCertificate {
    /// Nothing is read yet. `registrar` registers a renewed certificate before it is used.
    #[must_use]
    pub(super) fn new(
        settings: CertificateSettings,
        registrar: Option<Registrar>,
        services: Services,
        engine: Engine,
        pair: Arc<Pair>,
        ended: CancellationToken,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            settings,
            registrar: registrar.map(Arc::new),
            services,
            engine,
            pair,
            is_wanted: AtomicBool::new(false),
            is_enlisted: AtomicBool::new(false),
            is_in_force: AtomicBool::new(false),
            ended,
            tasks: TaskTracker::new(),
            this: Weak::clone(this),
        })
    }

    /// Whether it is the one of these settings.
    pub(super) fn is_of(&self, settings: &CertificateSettings, dps: Option<&DpsSource>) -> bool {
        self.settings == *settings && self.registrar.as_ref().map(|registrar| &registrar.dps) == dps
    }

    /// Its id in the certificate service.
    pub(super) fn certificate_id(&self) -> &str {
        &self.settings.certificate_id
    }

    /// Whether it is renewed by itself.
    pub(super) fn is_renewed(&self) -> bool {
        self.settings.auto_renew.is_some()
    }

    /// Ends what is under way for it alone. What is left is what a crash would leave, and the next user of the pair repairs it.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// Whether it is not to be used or replaced any more.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Whether the device has its identity by these settings.
    pub(super) fn is_in_force(&self) -> bool {
        self.is_in_force.load(Ordering::Relaxed) && !self.is_ended()
    }

    /// Fingerprint and dates of the certificate that is shown, if one is.
    pub(super) fn shown(&self) -> Option<([u8; 32], Validity)> {
        self.pair.present.borrow().shown.as_ref().map(|shown| (shown.fingerprint, shown.validity))
    }

    /// The certificate as it is shown. It is requested if there is none, and renewed if that is due.
    pub(crate) async fn show(&self) -> Result<Arc<Shown>, CertificateError> {
        if let Some(shown) = self.pair.present.borrow().shown.clone() {
            return Ok(shown);
        }
        let this = self.this.upgrade().filter(|this| !this.is_ended()).ok_or(CertificateError::Ended)?;
        let ended = self.ended.clone();
        // A task of its own: whoever waits may give up, and a renewal should not be cut off for that.
        let build = self.tasks.spawn(async move {
            ended.run_until_cancelled(this.build()).await.unwrap_or(Err(CertificateError::Ended))
        });
        build.await.map_err(|_| CertificateError::Ended)?
    }

    async fn build(&self) -> Result<Arc<Shown>, CertificateError> {
        let _building = self.pair.building.lock().await;
        loop {
            let Present { generation, shown, .. } = self.pair.present.borrow().clone();
            if let Some(shown) = shown {
                return Ok(shown);
            }
            // Held until its key has been read, which a renewal may move.
            let (chain, _held) = self.chain().await?;
            let shown = Arc::new(Shown { generation, ..self.shown_as(&chain, &self.settings.key_id).await? });
            let mut is_current = false;
            self.pair.present.send_modify(|present| {
                is_current = present.generation == generation;
                if is_current {
                    present.shown = Some(Arc::clone(&shown));
                }
            });
            if is_current {
                return Ok(shown);
            }
        }
    }

    /// Connections that show this chain and sign with this key.
    pub(super) async fn shown_as(&self, chain: &Chain, key_id: &str) -> Result<Shown, CertificateError> {
        let id = || self.settings.certificate_id.clone();
        let key = issuance::key(&self.services.keyd, key_id).await?;
        let identity = ClientIdentity::new(chain, key).map_err(|source| CertificateError::Identity {
            id: id(),
            key_id: key_id.to_owned(),
            source,
        })?;
        let (Some(leaf), Some(fingerprint), Some(validity)) = (chain.leaf(), chain.fingerprint(), chain.validity())
        else {
            return Err(CertificateError::Empty(id()));
        };
        let common_name = issuance::common_name(leaf);
        let exchange = self.services.exchanges.exchange(Some(identity));
        Ok(Shown { generation: 0, exchange, fingerprint, validity, common_name })
    }

    /// The stored certificate with its chain, kept renewed if so configured.
    async fn chain(&self) -> Result<(Chain, Option<Held>), CertificateError> {
        let stored = match issuance::stored(&self.services.certd, &self.settings.certificate_id).await? {
            Some(chain) => chain,
            None => issuance::issue(&self.services, &self.settings).await?,
        };
        let CertificateSettings { certificate_id, key_id, auto_renew: Some(_), .. } = &self.settings else {
            return Ok((stored, None));
        };
        self.is_wanted.store(true, Ordering::Relaxed);
        let mut held = self.engine.hold(certificate_id, key_id).await;
        // Of no use to the settings in force either: their way to renew it is not the one.
        let is_other = |held: &_| matches!(held, Err(NotAvailable::Unknown { .. } | NotAvailable::Unusable { .. }));
        if is_other(&held) && !self.is_enlisted.load(Ordering::Relaxed) {
            self.enlist();
            held = self.engine.hold(certificate_id, key_id).await;
        }
        let not_available = |source| CertificateError::NotAvailable { id: certificate_id.clone(), source };
        let held = held.map_err(not_available)?;
        Ok((held.chain().clone(), Some(held)))
    }

    fn renewal(&self) -> Option<Renewal> {
        let policy = self.settings.auto_renew?;
        Some(Renewal::new(Weak::clone(&self.this), &self.settings, policy, self.registrar.clone(), &self.services))
    }

    /// Has the certificate renewed from now on, in place of any other with its names.
    fn enlist(&self) {
        let generation = self.engine.generation();
        // In this order: whoever ends it removes it from the engine afterwards.
        if let Some(renewal) = self.renewal().filter(|_| !self.is_ended()) {
            let taken = self.engine.add(Arc::new(renewal), generation);
            self.is_enlisted.store(taken, Ordering::Relaxed);
        }
    }

    /// These settings are in force. From now on nothing but this is renewed, and this only if so configured and once somebody has wanted it.
    /// `anew`: the engine may have others, or have them soon.
    pub(super) fn renew_alone(&self, anew: bool) {
        self.is_in_force.store(true, Ordering::Relaxed);
        let is_wanted = self.is_wanted.load(Ordering::Relaxed) || self.shown().is_some();
        let renewal = self.renewal().filter(|_| is_wanted);
        let is_ours =
            |one: &Status| (&one.certificate_id, &one.key_id) == (&self.settings.certificate_id, &self.settings.key_id);
        let is_so = match (self.engine.status().as_slice(), &renewal) {
            ([], None) => true,
            ([one], Some(_)) => is_ours(one) && self.is_enlisted.load(Ordering::Relaxed),
            _ => false,
        };
        if anew || !is_so {
            self.is_enlisted.store(renewal.is_some(), Ordering::Relaxed);
            self.engine.replace(renewal.map(|renewal| Arc::new(renewal) as _).into_iter().collect());
        }
    }

    /// The certificate to register with, which is not replaced meanwhile.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, CertificateError> {
        loop {
            // Before the turn: a renewal that is due waits for it.
            let shown = self.show().await?;
            let registration = self.pair.registration.lock().await;
            if self.pair.present.borrow().generation == shown.generation {
                return Ok(Turn { shown, _registration: registration });
            }
        }
    }

    /// The right to replace the certificate, for the engine.
    pub(super) async fn begin_replacement(&self) -> (MutexGuard<'_, ()>, Replacing<'_>) {
        let registration = self.pair.registration.lock().await;
        (registration, self.pair.begin_replacement())
    }

    /// Another certificate is stored, or another key: the next request shows it.
    pub(super) fn outdate(&self) {
        self.pair.outdate();
    }

    /// Looks whether somebody has stored another certificate than the one that is shown.
    pub(super) async fn look_again(&self) {
        let Some(shown) = self.pair.present.borrow().shown.clone() else { return };
        self.is_outdated(&shown).await;
    }

    /// Whether another certificate is stored than `shown`, which then is not shown any more.
    async fn is_outdated(&self, shown: &Shown) -> bool {
        match issuance::stored(&self.services.certd, &self.settings.certificate_id).await {
            Ok(stored) if stored.as_ref().and_then(Chain::fingerprint) != Some(shown.fingerprint) => {
                self.outdate();
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!({ fields::ERROR } = %chain(&error), "could not see whether the certificate was replaced");
                false
            }
        }
    }

    /// Whether a registration that failed with `shown` should be made once more, with what there is now. Nobody's turn may go on meanwhile.
    pub(crate) async fn is_worth_another_registration(&self, shown: &Shown, error: &Error) -> bool {
        let doubtful = Doubtful::of_registration(error);
        self.is_worth_another_try(shown, doubtful).await
    }

    /// Whether a request that failed with `shown` should be made once more, with what there is now.
    async fn is_worth_another_try(&self, shown: &Shown, doubtful: Option<Doubtful>) -> bool {
        let Some(doubtful) = doubtful else { return false };
        let mut present = self.pair.present.subscribe();
        let replaced = present.wait_for(|present| !present.is_being_replaced).await;
        if replaced.is_ok_and(|present| present.generation != shown.generation) {
            return true;
        }
        if matches!(doubtful, Doubtful::Key) {
            let CertificateSettings { certificate_id, key_id, .. } = &self.settings;
            self.engine.doubt(certificate_id, key_id);
            self.outdate();
            return true;
        }
        self.is_outdated(shown).await
    }
}

impl Exchange for DeviceCertificate {
    fn exchange(&self, request: Request) -> Exchanging<'_> {
        Box::pin(async move {
            let unusable = |error: CertificateError| CloudError::Certificate(error.into());
            let shown = self.show().await.map_err(unusable)?;
            let outcome = shown.exchange.exchange(request.clone()).await;
            if !self.is_worth_another_try(&shown, Doubtful::of_outcome(&outcome)).await {
                return outcome;
            }
            tracing::info!(
                { fields::CERTIFICATE_ID } = self.settings.certificate_id,
                "the device's certificate or key was replaced: the request is made again"
            );
            self.show().await.map_err(unusable)?.exchange.exchange(request).await
        })
    }
}
