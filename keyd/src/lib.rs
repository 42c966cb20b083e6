//! The key service: owns every key of the device and lets other programs use them over a Unix socket, without ever handing out a private one.
//!
//! This crate decides who may use which key and what a handle is worth. Key files and cryptography are `aziot-keys`, sockets
//! and the HTTP rules that all services share are `aziot-http`, wire types are `aziot-keyd-api`.

mod blocking;
mod compute_pool;
mod error;
mod handle;
mod http;
mod keys;
mod principals;
mod reload;
mod settings;
#[cfg(test)]
mod test_vectors;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod wire_tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use aziot_config::{Live, Sources};
use aziot_http::{Activation, DaemonError, Limits, Listener, Server, Shutdown, daemon};
use aziot_keyd_api::config::Config;
use aziot_keys::{KeyLibrary, LEFTOVER_AGE};

use crate::keys::Keys;
use crate::principals::Principals;

/// Serves keys until `shutdown`, with the configuration in `sources`.
///
/// The socket is open before the key library starts, so that early callers wait instead of being refused.
pub async fn run(sources: Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    let (config, live) = Live::<Config>::start(sources.clone())
        .map_err(|error| DaemonError::config(error.problem().is_some(), error))?;
    let listener = Listener::open(&config.endpoints.aziot_keyd, activation).map_err(DaemonError::service)?;
    let library = tokio::select! {
        library = library(&config, sources) => library?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let keys = Arc::new(Keys::new(Arc::clone(&library), Principals::new(&config.principal)));
    let server = Server::new(listener, Limits::new(config.max_requests));
    daemon::ready();
    tokio::select! {
        outcome = server.serve(http::routes(Arc::clone(&keys)), shutdown) => outcome.map_err(DaemonError::service),
        () = reload::follow(live, config, keys) => Ok(()),
        never = tidy(library) => match never {},
    }
}

/// Has the library clear away what a crash left, beside the service, whose start is not to depend on the number of keys. Twice: what a
/// crash left a moment ago in an operator's folder cannot be told at first from what somebody else is writing there.
async fn tidy(library: Arc<dyn KeyLibrary>) -> Infallible {
    for pause in [Duration::ZERO, LEFTOVER_AGE] {
        tokio::time::sleep(pause).await;
        let library = Arc::clone(&library);
        let tidying = tokio::task::spawn_blocking(move || {
            library.tidy().unwrap_or_else(|error| tracing::warn!("{}", aziot_log::chain(&error)));
        });
        if let Err(error) = tidying.await {
            tracing::warn!("{}", aziot_log::chain(&error));
        }
    }
    std::future::pending().await
}

/// Gets the key library ready, on a thread that may block.
async fn library(config: &Config, sources: Sources) -> Result<Arc<dyn KeyLibrary>, DaemonError> {
    let config = config.clone();
    match tokio::task::spawn_blocking(move || settings::library(&config, &sources)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(DaemonError::service(error)),
    }
}
