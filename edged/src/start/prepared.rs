//! What takes time at the start: the device's identity, the engine, the Edge CA, modules of an earlier run.

use std::{sync::Arc, time::Duration};

use aziot_http::{Room, service::Routes};
use aziot_log::{chain, fields};
use tokio::sync::watch;

use super::{Clients, settle};
use crate::{
    agent::Agent,
    caller::Callers,
    docker::{self, Docker},
    edge_ca::{self, EdgeCa},
    http::{Management, WorkloadApi},
    identities::Identities,
    images::{Collector, Images, Use},
    modules::Modules,
    provisioning::{self, Memory},
    service_manager,
    settings::Settings,
    shared::Shared,
    sockets::Sockets,
    specification::{Invalid, Name, OwnFiles, Privileges},
    system::System,
    trust_bundle::{self, TrustBundles},
    watchdog::{Containers, Requests},
    workload::{self, Workload},
};

/// What modules of an earlier run have to end.
const GRACE: Duration = Duration::from_secs(30);
/// How often that is tried, and the least pause between, which grows.
const STOP_ATTEMPTS: u32 = 3;
const STOP_PAUSE: Duration = Duration::from_secs(2);

/// Why the runtime did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no device.
    #[error(transparent)]
    Provisioning(#[from] provisioning::Error),
    /// The network of the modules is not there.
    #[error("could not prepare the network {name} of the modules")]
    Network {
        /// Its name.
        name: String,
        /// What the engine said.
        source: docker::Error,
    },
    /// Modules would get no certificates.
    #[error("could not prepare the Edge CA")]
    EdgeCa(#[from] edge_ca::Error),
    /// Modules of another device are there, or it is not known.
    #[error("could not make sure that all modules belong to this device")]
    Settle(#[from] settle::Error),
    /// The agent cannot be made.
    #[error("the agent cannot be made")]
    Agent(#[from] Invalid),
}

/// All that serves and watches.
pub(super) struct Prepared {
    pub(super) modules: Arc<Modules>,
    pub(super) sockets: Arc<Sockets>,
    pub(super) management_routes: Routes,
    pub(super) workload_routes: Routes,
    pub(super) edge_ca: Arc<EdgeCa>,
    /// Renewals of it that running modules do not know of.
    pub(super) renewals: watch::Receiver<u64>,
    pub(super) collector: Collector,
    pub(super) containers: Containers,
}

/// Prepares everything, in the order of the public daemon. It may be dropped at any point; the next start does it again.
pub(super) async fn prepare(
    settings: &Settings,
    agent: Agent,
    docker: Docker,
    clients: Clients,
    room: Room,
    requests: Arc<Requests>,
) -> Result<Prepared, Error> {
    let config = &settings.config;
    let Clients { identityd, services } = clients;
    let usage = Arc::new(Use::open(&settings.image_use()).await);
    let images = Images::new(docker.clone(), Arc::clone(&usage));
    let sockets = Sockets::new(settings.sockets(), config.iotedge_max_requests.workload).sharing(room);
    let sockets = Arc::new(sockets);
    let modules = Modules::new(docker.clone(), images, Arc::clone(&sockets), privileges(settings));
    let modules = Arc::new(modules);

    let system = System::new(settings, docker.clone(), Arc::clone(&modules), identityd.clone());
    let device = provisioning::device(&identityd, config.auto_reprovisioning_mode);
    let (system, device) = tokio::join!(system, device);
    let device = device?;

    service_manager::status("Connecting to the container engine");
    let network = &config.moby_runtime.network;
    let failed = |source| Error::Network { name: network.name.clone(), source };
    docker.ensure_network(network).await.map_err(failed)?;

    service_manager::status("Preparing the Edge CA");
    let edge_ca = EdgeCa::start(services.clone(), &config.edge_ca, &device.id).await?;

    service_manager::status("Stopping the modules of an earlier run");
    let mut renewals = edge_ca.renewals();
    if stop_earlier(&modules).await {
        // Whatever starts from now on gets certificates of the CA as it is.
        renewals.mark_unchanged();
    } else {
        // They hold the sockets of a process that is gone, and would for ever.
        requests.restart_modules();
    }
    settle::settle(&Memory::new(&settings.cache()), &*modules, &device).await?;
    open_sockets(&modules, &sockets).await;

    let callers = Arc::new(Callers::new(docker.clone()));
    let identities = Arc::new(Identities::new(identityd, Arc::<Modules>::clone(&modules)));
    let hub_device = workload::Device { hub_name: device.hub.clone(), device_id: device.id.clone() };
    let workload = Workload::new(Arc::clone(&identities), Arc::clone(&edge_ca), services.clone(), hub_device);
    let ids = trust_bundle::Ids {
        trust_bundle: config.trust_bundle_cert.clone(),
        manifest_trust_bundle: config.manifest_trust_bundle_cert.clone(),
    };
    let workload_api = WorkloadApi {
        callers: Arc::clone(&callers),
        modules: Arc::clone(&modules),
        workload: Arc::new(workload),
        trust_bundles: Arc::new(TrustBundles::new(services.certd, ids)),
        lists: Shared::default(),
    };
    let management = Management {
        callers,
        modules: Arc::clone(&modules),
        identities: Arc::clone(&identities),
        system: Arc::new(system),
        requests,
    };
    let collector = Collector::new(docker, usage, config.image_garbage_collection, agent.image(&device));
    Ok(Prepared {
        management_routes: management.routes(),
        workload_routes: workload_api.routes(),
        containers: Containers::new(Arc::clone(&modules), identities, agent, device)?,
        modules,
        sockets,
        edge_ca,
        renewals,
        collector,
    })
}

fn privileges(settings: &Settings) -> Privileges {
    let config = &settings.config;
    match (config.allow_elevated_docker_permissions, config.allow_host_access) {
        (true, _) => Privileges::Elevated,
        (false, true) => Privileges::Filtered,
        (false, false) => Privileges::Confined(OwnFiles::new(config, &settings.sockets())),
    }
}

/// After a crash modules hold the sockets of a process that is gone: they are stopped, and the agent starts them again.
/// Whether none of them runs any more.
async fn stop_earlier(modules: &Modules) -> bool {
    if let Err(error) = modules.mend().await {
        tracing::warn!({ fields::ERROR } = %chain(&error), "what interrupted updates have left is not in order");
    }
    for attempt in 1..=STOP_ATTEMPTS {
        match modules.stop_all(GRACE).await {
            Ok(left) if left.is_empty() => return true,
            // Each was told with its reason.
            Ok(_) => {}
            Err(error) => {
                tracing::warn!({ fields::ERROR } = %chain(&error), "the modules of an earlier run are not stopped");
            }
        }
        if attempt < STOP_ATTEMPTS {
            tokio::time::sleep(STOP_PAUSE.mul_f64(f64::from(attempt) + fastrand::f64())).await;
        }
    }
    false
}

/// A container that the engine itself starts finds its socket. Each start makes sure of it again.
async fn open_sockets(modules: &Modules, sockets: &Arc<Sockets>) {
    let names = match modules.names().await {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!({ fields::ERROR } = %chain(&error), "the modules' sockets are not open yet");
            return;
        }
    };
    for name in names.iter().filter_map(|name| Name::new(name).ok()) {
        if let Err(error) = sockets.ensure(&name).await {
            tracing::warn!({ fields::MODULE_ID } = %name, { fields::ERROR } = %chain(&error), "the module has no socket");
        }
    }
}
