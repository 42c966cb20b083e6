//! The TPM service: keeps the key of the device's cloud identity in a TPM 2.0 and signs with it.
//!
//! The key comes from DPS, encrypted to this TPM; it is in the clear inside the chip alone. Wire types and settings are `aziot-tpmd-api`,
//! sockets and the HTTP rules that all services share are `aziot-http`. `http` parses, `tpm` authorizes and queues, `worker` is the one thread
//! that talks to the TPM, `chip` is what is said. Nothing is kept on disk.

pub mod blob;
mod chip;
mod error;
mod http;
mod principals;
mod reload;
mod tpm;
mod worker;

use std::sync::Arc;
use std::time::Instant;

use aziot_config::{Live, Sources};
use aziot_http::{Activation, DaemonError, Limits, Listener, Server, Shutdown, daemon};
use aziot_tpmd_api::config::Config;

use crate::chip::Chip;
use crate::principals::Principals;
use crate::tpm::Tpm;
use crate::worker::Worker;

/// Serves the TPM until `shutdown`, with the configuration in `sources`.
///
/// The socket answers from the start: callers wait while the TPM is being opened and its keys are made, which can take a minute.
pub async fn run(sources: Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    let (config, live) =
        Live::<Config>::start(sources).map_err(|error| DaemonError::config(error.problem().is_some(), error))?;
    let listener = Listener::open(&config.endpoints.aziot_tpmd, activation).map_err(DaemonError::service)?;
    let (worker, watch) = Worker::start(Chip::new(&config)).map_err(DaemonError::service)?;
    // Queued before any call.
    let opened = worker.queue("open the TPM", Chip::open).map_err(DaemonError::service)?;
    let prepared = worker
        .queue("make the TPM's keys", |chip| chip.public_keys(Instant::now() + worker::LONGEST))
        .map_err(DaemonError::service)?;
    let tpm = Arc::new(Tpm::new(worker, Principals::new(config.principal.as_deref())));
    let server = Server::new(listener, Limits::new(config.max_requests));
    let start = async {
        if let Ok(outcome) = opened.await {
            outcome.map_err(|error| DaemonError::config(error.is_mistake(), error))?;
            daemon::ready();
            if let Ok(Err(error)) = prepared.await {
                // A call tries again, and so tells its caller.
                tracing::error!("could not get the TPM's keys: {}", aziot_log::chain(&error));
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        outcome = server.serve(http::routes(Arc::clone(&tpm)), shutdown) => outcome.map_err(DaemonError::service),
        failure = start => failure,
        () = reload::follow(live, config, tpm) => Ok(()),
        failure = watch.failure() => Err(DaemonError::service(failure)),
    }
}
