//! The identity service: who this device is, who its modules are, and what proves it.
//!
//! `http` routes to `identities`, which authorizes and answers from `provisioning` and `modules`; `schedule` decides when the cloud is asked; `state`
//! keeps what must outlive a restart. What the device proves itself with is in `credentials`; its keys stay in the key service or in the TPM.

mod attempts;
mod blocking;
mod credentials;
mod device;
mod error;
mod flight;
mod http;
mod identities;
mod info;
mod keys;
mod local;
mod modules;
mod principals;
mod provisioning;
mod reconciliation;
mod registration;
mod reload;
mod schedule;
mod settings;
mod state;

use std::{path::Path, sync::Arc};

use aziot_config::{Live, Sources};
use aziot_http::{Activation, DaemonError, Limits, Listener, Retry, Server, Shutdown, daemon};
use aziot_identityd_api::config::{Config, Endpoints};
use aziot_identityd_cloud::{Exchanges, Roots, TlsExchanges};
use aziot_pki::tls::Proxy;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    credentials::{Credentials, Services},
    identities::Identities,
    keys::Keys,
    local::LocalIdentities,
    modules::Modules,
    provisioning::{Provisioner, Situation},
    schedule::{Schedule, WISHES},
    settings::{Settings, Shared},
    state::State,
};

/// Repetitions of a call to the key and the certificate service, as the public service makes them.
const SERVICE_RETRIES: u32 = 1;
/// The TPM service's work is not repeated unseen.
const TPM_SERVICE_RETRIES: u32 = 0;

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
    let exchanges = Arc::new(TlsExchanges::new(Roots::System, proxy));
    let services = services(&endpoints, SERVICE_RETRIES, exchanges)?;
    let state = open_state(&settings.config.homedir).await?;

    let settings = settings.share();
    let (identities, schedule) = assemble(Arc::clone(&settings), services, state);
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

/// Clients of the services at these sockets.
fn services(endpoints: &Endpoints, retries: u32, exchanges: Arc<dyn Exchanges>) -> Result<Services, DaemonError> {
    let retry = Retry::local(retries);
    Ok(Services {
        keyd: aziot_keyd_api::client(&endpoints.aziot_keyd, retry).map_err(DaemonError::settings)?,
        certd: aziot_certd_api::client(&endpoints.aziot_certd, retry).map_err(DaemonError::settings)?,
        tpmd: aziot_tpmd_api::client(&endpoints.aziot_tpmd, Retry::local(TPM_SERVICE_RETRIES))
            .map_err(DaemonError::settings)?,
        exchanges,
    })
}

/// Wires the rooms together: what answers callers, and what provisions behind it.
fn assemble(settings: Shared, services: Services, state: State) -> (Identities, Schedule) {
    let state = Arc::new(state);
    let keys = Keys::new(services.keyd.clone());
    let modules = Arc::new(Modules::new(keys.clone(), Arc::clone(&state)));
    let local = LocalIdentities::new(services.certd.clone());
    let (publish, situation) = watch::channel(Situation::default());
    let (wishes, received) = mpsc::channel(WISHES);
    let credentials = Credentials::new(
        Arc::clone(&settings),
        keys.clone(),
        services,
        Arc::clone(&state),
        situation.clone(),
        wishes.downgrade(),
    );
    let credentials = Arc::new(credentials);
    let provisioner = Provisioner {
        settings: Arc::clone(&settings),
        modules: Arc::clone(&modules),
        state,
        credentials: Arc::clone(&credentials),
        situation: publish,
    };
    let identities = Identities { settings, keys, credentials, modules, local, situation, wishes };
    (identities, Schedule::new(provisioner, received))
}

#[cfg(test)]
mod tests;
