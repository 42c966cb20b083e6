//! The order in which the runtime starts, and what ends it.
//!
//! Sockets are opened before anything takes time, so that callers wait instead of being refused. A signal ends the start at any point. The
//! service manager hears that the runtime is ready when every socket is served, and is asked for more time until then.

mod prepared;
mod settle;

use std::{sync::Arc, time::Duration};

use aziot_config::Sources;
use aziot_edged_api::config::{Config, Listen};
use aziot_http::{
    Activation, Client, DaemonError, Limits, Listener, Retry, Room, Server, Shutdown, SocketMode, client::NotCallable,
    daemon, listener::ListenerError,
};
use aziot_log::{chain, fields};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    agent::Agent,
    docker::Docker,
    edge_ca::EdgeCa,
    modules::Modules,
    provisioning, service_manager,
    settings::Settings,
    shutdown::{self, Running},
    watchdog::{ReprovisionRequested, Requests, Watchdog},
    workload::Services,
};
use prepared::Prepared;

/// Names of the descriptors that the packaged socket units hand over.
const MANAGEMENT_SOCKET: &str = "aziot-edged.mgmt.socket";
const WORKLOAD_SOCKET: &str = "aziot-edged.workload.socket";
/// Connections that the management API has room for, whatever modules do.
const MANAGEMENT_CONNECTIONS: usize = 32;
/// The device was provisioned anew: the service manager starts the runtime again.
const REPROVISIONED: u8 = 154;
/// How often the service manager is told how the runtime is.
const REPORT_PERIOD: Duration = Duration::from_secs(300);
/// What the key and the certificate service are granted, as the public daemon grants it.
const SERVICE_RETRY: Retry = Retry::local(1);
/// The identity service may be waiting for a hub that throttles.
const IDENTITY_RETRY: Retry =
    Retry { retries: 1, attempt: Duration::from_secs(600), total: Duration::from_secs(1_210) };

/// Clients of the other services; each has one pool of connections.
#[derive(Clone)]
struct Clients {
    identityd: Client,
    services: Services,
}

impl Clients {
    fn new(config: &Config) -> Result<Self, NotCallable> {
        let endpoints = &config.endpoints;
        Ok(Self {
            identityd: aziot_identityd_api::client(&endpoints.aziot_identityd_url, IDENTITY_RETRY)?,
            services: Services {
                keyd: aziot_keyd_api::client(&endpoints.aziot_keyd_url, SERVICE_RETRY)?,
                certd: aziot_certd_api::client(&endpoints.aziot_certd_url, SERVICE_RETRY)?,
            },
        })
    }
}

/// Sockets that callers can already connect to.
struct Listeners {
    management: Listener,
    workload: Listener,
}

impl Listeners {
    fn open(listen: &Listen, mut activation: Activation) -> Result<Self, ListenerError> {
        let mut open = |uri, name, mode| Listener::open_named(uri, &mut activation, name, mode);
        Ok(Self {
            management: open(&listen.management_uri, MANAGEMENT_SOCKET, SocketMode::Group)?,
            workload: open(&listen.workload_uri, WORKLOAD_SOCKET, SocketMode::Everybody)?,
        })
    }
}

/// Runs the service until `shutdown`, or until it has to start anew.
pub(crate) async fn run(sources: &Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    let settings = Settings::read(sources).map_err(|error| DaemonError::config(error.is_mistake(), error))?;
    let config = &settings.config;
    let agent = Agent::prepare(config, &settings.sockets()).map_err(DaemonError::settings)?;
    let docker = Docker::new(config.moby_runtime.uri.as_str()).map_err(DaemonError::settings)?;
    let clients = Clients::new(config).map_err(DaemonError::settings)?;
    let Listeners { management, workload } =
        Listeners::open(&config.listen, activation).map_err(DaemonError::service)?;
    let room = Room::new();
    let management = Server::new(management, Limits::new(config.iotedge_max_requests.management))
        .identify_processes()
        .sharing(&room, MANAGEMENT_CONNECTIONS);

    let requests = Arc::new(Requests::new(shutdown.clone()));
    // Boxed: it is some kilobytes, for the start alone.
    let prepare = Box::pin(async {
        let prepared =
            prepared::prepare(&settings, agent, docker, clients.clone(), room, Arc::clone(&requests)).await?;
        // Nobody can make a module yet.
        remove_stale_sockets(&settings, &prepared.modules).await;
        Ok::<_, prepared::Error>(prepared)
    });
    let prepared = tokio::select! {
        prepared = service_manager::without_start_limit(prepare) => prepared.map_err(DaemonError::service)?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let Prepared { modules, sockets, management_routes, workload_routes, edge_ca, renewals, collector, containers } =
        prepared;

    sockets.serve(workload_routes);
    sockets.serve_shared(workload);
    let stop_management = Shutdown::new();
    let mut server = JoinSet::new();
    server.spawn(management.serve(management_routes, stop_management.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(report(Arc::clone(&edge_ca)));
    tasks.spawn(async move { edge_ca.run().await });
    tasks.spawn(async move { collector.run().await });
    tasks.spawn(follow_renewals(renewals, Arc::clone(&requests)));
    let watchdog = Watchdog::new(containers, requests, config.watchdog.max_retries);
    daemon::ready();

    tokio::select! {
        () = shutdown.cancelled() => {
            shutdown::stop(Running { modules, sockets, management: stop_management, server }).await;
            Ok(())
        }
        ended = watchdog.run() => {
            let ReprovisionRequested = ended.map_err(DaemonError::service)?;
            shutdown::stop(Running { modules, sockets, management: stop_management, server }).await;
            reprovision(&clients, &shutdown).await
        }
        ended = server.join_next() => Err(match ended {
            Some(Ok(Err(error))) => DaemonError::service(error),
            _ => DaemonError::service("the management API has ended"),
        }),
        ended = tasks.join_next() => Err(match ended {
            Some(Err(error)) => DaemonError::service(error),
            _ => DaemonError::service("a task that lasts as long as the service has ended"),
        }),
    }
}

/// Removes the sockets of modules that are gone.
async fn remove_stale_sockets(settings: &Settings, modules: &Modules) {
    match modules.names().await {
        Ok(names) => settings.remove_stale_sockets(names).await,
        Err(error) => {
            tracing::warn!({ fields::ERROR } = %chain(&error), "sockets of modules that are gone stay until the next start");
        }
    }
}

/// The modules have been stopped. A signal that comes now ends the process as it would any other.
async fn reprovision(clients: &Clients, shutdown: &Shutdown) -> Result<(), DaemonError> {
    service_manager::status("Provisioning the device");
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        never = service_manager::stay_alive() => match never {},
        outcome = provisioning::reprovision(&clients.identityd) => Err(match outcome {
            Ok(()) => DaemonError::Restart {
                reason: "the device was provisioned anew; the next start finds out what has changed",
                exit_code: REPROVISIONED,
            },
            Err(error) => DaemonError::service(error),
        }),
    }
}

/// Has the modules restarted after each renewal of the CA.
async fn follow_renewals(mut renewals: watch::Receiver<u64>, requests: Arc<Requests>) {
    while renewals.changed().await.is_ok() {
        requests.restart_modules();
    }
    // The CA is not renewed, or no more.
    std::future::pending::<()>().await;
}

/// Tells the service manager how the runtime is, now and from time to time.
async fn report(edge_ca: Arc<EdgeCa>) {
    let mut period = interval(REPORT_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        period.tick().await;
        let problem = edge_ca.problem().await;
        if let Some(problem) = problem.as_ref().filter(|problem| known.as_ref() != Some(*problem)) {
            tracing::error!("modules may get no certificates: {problem}");
        }
        let text = problem.as_ref().map_or_else(|| "Running".to_owned(), |problem| format!("Running; {problem}"));
        service_manager::status(&text);
        known = problem;
    }
}
