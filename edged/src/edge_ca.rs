//! The Edge CA: it signs the certificates of modules. Its key is in the key service and its certificate in the certificate service.
//!
//! At the start both are made if they are not there, and mended if they do not belong together; afterwards they are renewed by the engine that
//! the device's own certificate has. Only what a service says to be absent is made: one that fails is asked again. Who must know of a renewal
//! is told by a counter: certificates of modules end with the certificate that has signed them.

mod error;
mod making;
mod request;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use aziot_certd_api::certificate::Issuer;
use aziot_edged_api::config;
use aziot_keyd_api::{is_absent, key_pair::LoadKeyPair};
use aziot_log::fields;
use aziot_pki::{
    certificate::Chain,
    renewal::{
        Clock, Engine, Held, NotAvailable, SystemClock,
        issued::{self, Issued, Observer},
    },
};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

pub(crate) use error::Error;

use crate::workload::Services;
use making::Making;

/// What the key is, as the key service names it: the public runtime's choice.
const PREFERRED_ALGORITHMS: &str = "rsa-2048:*";
/// How often the services are asked at the start, and the least pause between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);
/// Least time between two looks that failures of the certificate service cause: while certificate and key are compared nobody issues.
const DOUBT_PERIOD: Duration = Duration::from_secs(10);

/// The CA, kept renewed if so configured.
pub(crate) struct EdgeCa {
    making: Making,
    engine: Engine,
    renewals: watch::Receiver<u64>,
    handle: Arc<Handle>,
    doubted: Mutex<Option<Instant>>,
}

/// The handle of the CA's key, for as long as nobody has put another key in its place. The certificate service knows keys by their handles:
/// with ever new ones it would read the key anew for each certificate.
#[derive(Default)]
struct Handle {
    known: ArcSwapOption<String>,
    /// Those who find nothing share one call.
    loading: tokio::sync::Mutex<()>,
}

impl Handle {
    fn forget(&self) {
        self.known.store(None);
    }
}

/// The CA at work: certificate and key stay as they are until this is dropped. Keep it for one issuance.
pub(crate) struct Issuing {
    /// For the certificate service.
    pub(crate) issuer: Issuer,
    _held: Option<Held>,
}

impl EdgeCa {
    /// Makes sure that the CA can issue, or tells why it cannot. A service that does not answer has several chances, which takes minutes.
    ///
    /// A CA that is not renewed and has ended, or does not belong to its key, is asked for anew; if the certificate service has no way to issue
    /// it, the runtime goes on without certificates for modules, and says so.
    pub(crate) async fn start(
        services: Services,
        config: &config::EdgeCa,
        device_id: &str,
    ) -> Result<Arc<Self>, Error> {
        let mut attempt = 1;
        loop {
            let started = Self::start_with(services.clone(), config, device_id, SystemClock::new()).await;
            match started {
                Err(error) if error.is_passing() && attempt < ATTEMPTS => {
                    let pause = PAUSE.mul_f64(1.0 + fastrand::f64());
                    tracing::warn!(
                        { fields::ATTEMPT } = attempt,
                        { fields::DELAY_MILLISECONDS } = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                        { fields::ERROR } = %aziot_log::chain(&error),
                        "the Edge CA is not ready, will be tried again"
                    );
                    tokio::time::sleep(pause).await;
                    attempt += 1;
                }
                ended => return ended,
            }
        }
    }

    async fn start_with(
        services: Services,
        config: &config::EdgeCa,
        device_id: &str,
        clock: impl Clock + 'static,
    ) -> Result<Arc<Self>, Error> {
        let (renewed, renewals) = watch::channel(0);
        let extensions = request::extensions().map_err(Error::Extensions)?;
        let making = Making {
            services: services.clone(),
            config: config.clone(),
            subject: request::subject(config, device_id).map_err(Error::Subject)?,
            extensions: extensions.clone(),
        };
        let issued = Issued::new(
            services.certd,
            services.keyd,
            issued::Settings {
                certificate_id: config.cert.clone(),
                key_id: config.key.clone(),
                policy: config.auto_renew.unwrap_or_default(),
                subject: None,
                extensions,
                preferred_algorithms: PREFERRED_ALGORITHMS.to_owned(),
            },
        );
        let handle = Arc::new(Handle::default());
        let issued = issued.with_observer(Arc::new(Notice { renewed, handle: Arc::clone(&handle) }));
        let engine = Engine::new(clock);
        if config.auto_renew.is_some() {
            making.make_if_absent().await?;
            let generation = engine.generation();
            engine.add(Arc::new(issued), generation);
            engine.hold(&config.cert, &config.key).await.map_err(Error::NotAvailable)?;
        } else {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = config.cert,
                "the Edge CA will not be renewed: there is no [edge_ca.auto_renew] in the configuration"
            );
            making.make_or_mend(&issued).await?;
        }
        Ok(Arc::new(Self { making, engine, renewals, handle, doubted: Mutex::default() }))
    }

    /// Renews the CA when it is time, for ever.
    pub(crate) async fn run(&self) {
        self.engine.run().await;
    }

    /// How often the CA was renewed since the start. Modules that run when this changes have certificates of the old one.
    pub(crate) fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.clone()
    }

    /// The CA, for one issuance.
    pub(crate) async fn issuer(&self) -> Result<Issuing, Error> {
        let config::EdgeCa { cert, key, auto_renew, .. } = &self.making.config;
        let held = match self.engine.hold(cert, key).await {
            Ok(held) => Some(held),
            Err(NotAvailable::Unknown { .. }) if auto_renew.is_none() => None,
            Err(error) => return Err(Error::NotAvailable(error)),
        };
        let private_key_handle = self.key_handle().await?;
        Ok(Issuing { issuer: Issuer { cert_id: cert.clone(), private_key_handle }, _held: held })
    }

    async fn key_handle(&self) -> Result<String, Error> {
        if let Some(known) = self.handle.known.load_full() {
            return Ok(String::clone(&known));
        }
        let _loading = self.handle.loading.lock().await;
        if let Some(known) = self.handle.known.load_full() {
            return Ok(String::clone(&known));
        }
        let key_id = &self.making.config.key;
        match self.making.services.keyd.send(&LoadKeyPair { key_id: key_id.clone() }).await {
            Ok(loaded) => {
                self.handle.known.store(Some(Arc::new(loaded.key_handle.0.clone())));
                Ok(loaded.key_handle.0)
            }
            Err(source) => {
                if is_absent(&source) {
                    self.doubt();
                }
                Err(Error::Key { action: "load", id: key_id.clone(), source })
            }
        }
    }

    /// The certificate service would not issue: certificate and key are looked at again, unless that was just done.
    pub(crate) fn doubt(&self) {
        self.handle.forget();
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        if doubted.is_none_or(|doubted| doubted.elapsed() >= DOUBT_PERIOD) {
            *doubted = Some(Instant::now());
            self.engine.doubt(&self.making.config.cert, &self.making.config.key);
        }
    }

    /// What is wrong with the CA, for people; `None` if all is well. Where the renewal does not know, certificate and key are looked at.
    pub(crate) async fn problem(&self) -> Option<String> {
        if let Some(status) = self.engine.status().into_iter().next() {
            let end = status.not_after.and_then(|end| Timestamp::from_second(end).ok());
            let ended = end
                .filter(|end| *end <= Timestamp::now())
                .map(|end| format!("the Edge CA certificate {} ended on {end}", status.certificate_id));
            let failed = status.last_error.map(|error| format!("the Edge CA was not renewed: {error}"));
            return ended.or(failed);
        }
        match self.making.look().await {
            Ok(problem) => problem.map(|problem| format!("the Edge CA is of no use: {problem}")),
            Err(error) => Some(format!("the Edge CA cannot be looked at: {}", aziot_log::chain(&error))),
        }
    }
}

/// Counts renewals.
struct Notice {
    renewed: watch::Sender<u64>,
    handle: Arc<Handle>,
}

impl Observer for Notice {
    fn committed(&self, _new: &Chain) {
        self.handle.forget();
        self.renewed.send_modify(|renewals| *renewals = renewals.wrapping_add(1));
    }
}
