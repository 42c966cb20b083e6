//! The certificate service: keeps the device's certificates and has new ones issued, with keys that only the key service has.
//!
//! Issued are self-signed certificates, those of a local CA, and those of EST servers; the identities that EST needs are renewed.
//! X.509 itself and the schedule of renewals are `aziot-pki`, sockets and the HTTP rules that all services share are
//! `aziot-http`, wire types are `aziot-certd-api`.

mod aliases;
mod certificates;
mod est;
mod http;
mod issuance;
mod policy;
mod reload;
mod settings;
mod store;
#[cfg(test)]
mod test_vectors;
#[cfg(test)]
mod wire_tests;

use std::{sync::Arc, time::Duration};

use aziot_certd_api::config::Config;
use aziot_config::{Live, Sources};
use aziot_http::{Activation, DaemonError, Limits, Listener, Retry, Server, Shutdown, daemon};
use aziot_pki::{
    renewal::{Engine, SystemClock},
    tls::Proxy,
};

use crate::{
    certificates::Certificates,
    est::{Surroundings, enrolment::Patience, servers},
    reload::Fixed,
    settings::Settings,
};

/// How long one answer of the key service is waited for: a hung one is told before the 30 s are over that callers wait for us.
const KEY_SERVICE: Retry = Retry { retries: 1, attempt: Duration::from_secs(12), total: Duration::from_secs(25) };

/// How long enrolments that outlast their calls are waited for at the end; those that wait for a server are cut off.
const LAST_ENROLMENTS: Duration = Duration::from_secs(1);

/// Serves certificates until `shutdown`, with the configuration in `sources`.
///
/// Neither the key service nor a network is needed to start and to serve what is stored; renewals that fail are repeated.
pub async fn run(sources: Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    let (config, live) =
        Live::<Config>::start(sources).map_err(|error| DaemonError::config(error.problem().is_some(), error))?;
    let listener = Listener::open(&config.endpoints.aziot_certd, activation).map_err(DaemonError::service)?;
    let keyd = aziot_keyd_api::client(&config.endpoints.aziot_keyd, KEY_SERVICE).map_err(DaemonError::settings)?;
    let server = Server::new(listener, Limits::new(config.max_requests));
    let proxy = Proxy::from_environment().map_err(DaemonError::settings)?;
    if let Some(proxy) = &proxy {
        tracing::info!("Detected HTTPS proxy server {proxy}");
    }
    let fixed = Fixed::of(&config);
    let proxy = proxy.map(Arc::new);
    let surroundings = Surroundings::new(keyd, proxy, servers::Limits::default());
    let settings = Settings::new(&fixed.homedir, config, &surroundings);
    if let Err(error) = settings.store.prepare() {
        // Reading goes on; each call that stores something tries again.
        tracing::warn!("{}; certificates cannot be stored", aziot_log::chain(&error));
    }
    if let Err(error) = settings.est.prepare().await {
        // The next enrolment looks again.
        tracing::warn!("{}; nothing can be enrolled over EST", aziot_log::chain(&error));
    }
    let engine = Engine::new(SystemClock::new());
    let certificates = Arc::new(Certificates::new(settings, &surroundings, engine.clone(), Patience::default()));
    certificates.look_after().await;
    daemon::ready();
    let outcome = tokio::select! {
        outcome = server.serve(http::routes(Arc::clone(&certificates)), shutdown) => outcome.map_err(DaemonError::service),
        () = reload::follow(live, fixed, surroundings, Arc::clone(&certificates)) => Ok(()),
        () = engine.run() => Ok(()),
    };
    certificates.enrolments().finish(LAST_ENROLMENTS).await;
    outcome
}
