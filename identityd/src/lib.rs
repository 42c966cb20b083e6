//! The identity service: who this device is, who its modules are, and what proves it.
//!
//! `http` routes to `identities`, which authorizes and answers from `provisioning` and `modules`; `schedule` decides when the cloud is asked; `state`
//! keeps what must outlive a restart. Keys stay in the key service. X.509, TPM and local identities are read from the settings and
//! refused with a clear error; their places are `settings`, `provisioning` and `identities`.

mod device;
mod error;
mod http;
mod identities;
mod keys;
mod modules;
mod principals;
mod provisioning;
mod reconciliation;
mod reload;
mod schedule;
mod settings;
mod state;

use std::{path::Path, sync::Arc};

use aziot_config::{Live, Sources};
use aziot_http::{Activation, DaemonError, Limits, Listener, Retry, Server, Shutdown, daemon};
use aziot_identityd_api::config::Config;
use aziot_identityd_cloud::{Exchange, Roots, TlsExchange};
use aziot_pki::tls::Proxy;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    identities::Identities,
    keys::Keys,
    modules::Modules,
    provisioning::{Provisioner, Situation},
    schedule::{Schedule, WISHES},
    settings::{Settings, Shared},
    state::State,
};

/// Repetitions of a call to the key service, as the public service makes them.
const KEY_SERVICE_RETRIES: u32 = 1;

/// Runs the service until `shutdown`.
pub async fn run(sources: Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    let (config, live) =
        Live::<Config>::start(sources).map_err(|error| DaemonError::config(error.problem().is_some(), error))?;
    let settings = Settings::new(config).map_err(DaemonError::settings)?;
    let (endpoints, max_requests) = (settings.config.endpoints.clone(), settings.config.max_requests);
    let listener = Listener::open(&endpoints.aziot_identityd, activation).map_err(DaemonError::service)?;
    let proxy = Proxy::from_environment().map_err(DaemonError::settings)?;
    if let Some(proxy) = &proxy {
        tracing::info!("Detected HTTPS proxy server {proxy}");
    }
    let keys = aziot_keyd_api::client(&endpoints.aziot_keyd, Retry::local(KEY_SERVICE_RETRIES));
    let keys = Keys::new(keys.map_err(DaemonError::settings)?);
    let state = open_state(&settings.config.homedir).await?;

    let settings = settings.share();
    let (identities, schedule) =
        assemble(Arc::clone(&settings), keys, state, Arc::new(TlsExchange::new(Roots::System, proxy)));
    let mut tasks = JoinSet::new();
    let wishes = identities.wishes.clone();
    tasks.spawn(schedule.run());
    tasks.spawn(reload::run(live, settings, wishes));

    let server = Server::new(listener, Limits::new(max_requests));
    let routes = http::service(Arc::new(identities)).into_routes();
    daemon::ready();
    tokio::select! {
        outcome = server.serve(routes, shutdown) => outcome.map_err(DaemonError::service),
        ended = tasks.join_next() => Err(match ended {
            Some(Err(error)) => DaemonError::service(error),
            _ => DaemonError::service("a task that lasts as long as the service has ended"),
        }),
    }
}

async fn open_state(folder: &Path) -> Result<State, DaemonError> {
    let folder = folder.to_owned();
    let opened = tokio::task::spawn_blocking(move || State::open(&folder)).await;
    opened.map_err(DaemonError::service)?.map_err(DaemonError::service)
}

/// Wires the rooms together: what answers callers, and what provisions behind it.
fn assemble(settings: Shared, keys: Keys, state: State, exchange: Arc<dyn Exchange>) -> (Identities, Schedule) {
    let state = Arc::new(state);
    let modules = Arc::new(Modules::new(keys.clone(), Arc::clone(&state)));
    let (publish, situation) = watch::channel(Situation::default());
    let (wishes, received) = mpsc::channel(WISHES);
    let provisioner = Provisioner {
        settings: Arc::clone(&settings),
        keys: keys.clone(),
        modules: Arc::clone(&modules),
        state,
        exchange,
        situation: publish,
    };
    (Identities { settings, keys, modules, situation, wishes }, Schedule::new(provisioner, received))
}

#[cfg(test)]
mod tests;
