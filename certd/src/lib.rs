//! The certificate service: keeps the device's certificates and has new ones issued, with keys that only the key service has.
//!
//! Issued are self-signed certificates and those of a local CA; enrolment over EST and renewal are not there yet. X.509 itself
//! is `aziot-pki`, sockets and the HTTP rules that all services share are `aziot-http`, wire types are `aziot-certd-api`.

mod aliases;
mod certificates;
mod http;
mod issuance;
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

use crate::{certificates::Certificates, reload::Fixed, settings::Settings};

/// How long one answer of the key service is waited for: a hung one is told before the 30 s are over that callers wait for us.
const KEY_SERVICE: Retry = Retry { retries: 1, attempt: Duration::from_secs(12), total: Duration::from_secs(25) };

/// Serves certificates until `shutdown`, with the configuration in `sources`.
///
/// Nothing is asked of the key service before a caller wants something issued, so the two may start in any order.
pub async fn run(sources: Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    let (config, live) =
        Live::<Config>::start(sources).map_err(|error| DaemonError::config(error.problem().is_some(), error))?;
    let listener = Listener::open(&config.endpoints.aziot_certd, activation).map_err(DaemonError::service)?;
    let keyd = aziot_keyd_api::client(&config.endpoints.aziot_keyd, KEY_SERVICE).map_err(DaemonError::settings)?;
    let server = Server::new(listener, Limits::new(config.max_requests));
    let fixed = Fixed::of(&config);
    let settings = Settings::new(&fixed.homedir, config);
    if let Err(error) = settings.store.prepare() {
        // Reading goes on; each call that stores something tries again.
        tracing::warn!("{}; certificates cannot be stored", aziot_log::chain(&error));
    }
    let certificates = Arc::new(Certificates::new(settings, keyd));
    daemon::ready();
    tokio::select! {
        outcome = server.serve(http::routes(Arc::clone(&certificates)), shutdown) => outcome.map_err(DaemonError::service),
        () = reload::follow(live, fixed, certificates) => Ok(()),
    }
}
