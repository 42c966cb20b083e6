//! A whole simulator: its settings, its start, its life until somebody ends it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use http::StatusCode;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::behaviour::{Behaviour, OffsetError};
use crate::certificates::{self, Authority, Identity};
use crate::cloud::{Cloud, Trust};
use crate::control::{self, Control};
use crate::enrollments::{self, Enrollments};
use crate::est::{self, Est};
use crate::faults::Faults;
use crate::folder::{self, Folder};
use crate::front::{self, Front};
use crate::hubs::{self, Hubs};
use crate::journal::Journal;
use crate::nonces::Nonces;
use crate::registry::{self, SystemModules};
use crate::server::{self, Appearance, AskClients, Ends, TlsError};
use crate::state::{self, Store};
use crate::throttle::Throttle;
use crate::{dps, hub};

/// So many modules the public hub lets a device have.
const PUBLIC_MAX_MODULES: usize = 50;

/// Why a simulator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a folder nor a certificate is given.
    #[error("there is no certificate to serve with: give a folder, or a certificate and its key")]
    NoCertificate,
    /// The folder cannot be used.
    #[error("could not open the simulator's folder")]
    Folder(#[from] folder::Error),
    /// There is no usable certificate.
    #[error("could not get the server certificate")]
    Certificate(#[from] certificates::Error),
    /// The EST server has nowhere to keep its authorities.
    #[error("an EST server needs a folder")]
    EstWithoutFolder,
    /// The authorities of the EST server cannot be read or made.
    #[error("could not set up the EST server")]
    Est(#[source] certificates::Error),
    /// TLS cannot work with the certificate.
    #[error("could not set up TLS")]
    Tls(#[from] TlsError),
    /// The state cannot be read or kept.
    #[error("could not open the simulator's state")]
    State(#[from] state::Error),
    /// A device of the enrollments cannot be registered.
    #[error("could not register the device {device_id:?}: {reason}")]
    Device {
        /// Its name.
        device_id: String,
        /// What the registry says.
        reason: String,
    },
    /// The authorities of enrollments cannot be read.
    #[error("could not read the authorities that are enrolled")]
    Enrollments(#[from] enrollments::Error),
    /// Hubs and gateways do not fit together.
    #[error("could not set up the hubs")]
    Hubs(#[from] hubs::Error),
    /// The clock would be too far off.
    #[error("could not set the clock")]
    Clock(#[from] OffsetError),
    /// The address cannot be listened on.
    #[error("could not listen on {listen}")]
    Listen {
        /// As it was given.
        listen: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The process is ending.
    #[error("the start was given up")]
    Ending,
}

/// A certificate that the operator brings.
#[derive(Clone, Debug)]
pub struct ServerCertificate {
    /// PEM, from leaf to root.
    pub chain: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// How a simulator is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HOST:PORT`; port 0 takes any free one.
    pub listen: String,
    /// Where everything is kept. Without one, nothing is kept and no credential is checked, as with the public mock server.
    pub folder: Option<PathBuf>,
    /// Host names and addresses in the server certificate.
    pub names: Vec<String>,
    /// Name of the hub, which devices put into their tokens; `localhost:PORT` if absent.
    pub hub_name: Option<String>,
    /// Names of further hubs, each with a registry of its own. One without a port gets the simulator's, unless that is 443.
    pub further_hub_names: Vec<String>,
    /// Names of parent gateways, `NAME` or `NAME=HUB`: requests there are for the hub, by default the first one, with its name in tokens.
    pub gateway_names: Vec<String>,
    /// The one id scope of DPS; any if absent.
    pub id_scope: Option<String>,
    /// Who may register.
    pub enrollments: Enrollments,
    /// Shown instead of a certificate by the simulator's own authority.
    pub server_certificate: Option<ServerCertificate>,
    /// An EST server beside the hub; none if absent. Needs a folder.
    pub est: Option<est::Settings>,
    /// Seconds for which an expired token is still taken.
    pub clock_skew_seconds: u32,
    /// So many polls of a registration say `assigning`.
    pub assigning_polls: u32,
    /// `retry-after` of pending registrations, in seconds.
    pub retry_after_seconds: u32,
    /// So many modules a device may have, `$edgeAgent` and `$edgeHub` included.
    pub max_modules: usize,
    /// More requests to DPS and hubs in a second are answered 429; no limit if absent.
    pub requests_per_second: Option<u32>,
    /// The same for each registration and each device.
    pub requests_per_second_per_device: Option<u32>,
    /// By so much the simulator's clock is ahead of the system's: for tokens and client certificates at DPS and hubs, and in `date`. Its own
    /// certificate and the EST server keep the system's time.
    pub clock_offset_seconds: i64,
}

impl Default for Settings {
    /// Any free port of 127.0.0.1, no folder, one hub with the public limits, five minutes of clock skew, one pending poll.
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            folder: None,
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            hub_name: None,
            further_hub_names: Vec::new(),
            gateway_names: Vec::new(),
            id_scope: None,
            enrollments: Enrollments::default(),
            server_certificate: None,
            est: None,
            clock_skew_seconds: 300,
            assigning_polls: 1,
            retry_after_seconds: 1,
            max_modules: PUBLIC_MAX_MODULES,
            requests_per_second: None,
            requests_per_second_per_device: None,
            clock_offset_seconds: 0,
        }
    }
}

/// A simulator that listens. Connections wait until [`Simulator::run`].
pub struct Simulator {
    address: SocketAddr,
    cloud: Arc<Cloud>,
    devices: TcpListener,
    control: Option<(UnixListener, Router)>,
    appearance: Arc<Appearance>,
    faults: Arc<Faults>,
    est: Option<Arc<Est>>,
    /// Last, so that the folder is free when all else is gone.
    folder: Option<Folder>,
}

impl Simulator {
    /// Makes or reads what it needs, and listens; the folder's `address` file tells where.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        let listen = settings.listen.clone();
        let listen_error = |source| Error::Listen { listen: listen.clone(), source };
        let prepared = blocking(move || prepare(settings)).await?;
        let Prepared { settings, folder, store, authority, identity, est } = prepared;
        let devices = TcpListener::bind(&listen).await.map_err(listen_error)?;
        let address = devices.local_addr().map_err(listen_error)?;

        // The public mock server does not ask.
        let clients = if folder.is_some() { AskClients::ForCertificates } else { AskClients::ForNothing };
        let good = server::tls_config(identity, clients)?;
        let takes_plain_http = est.as_ref().is_some_and(|est| est.settings().plain_http);
        let appearance = Arc::new(Appearance::new(Arc::clone(&good), takes_plain_http));
        let faults = Arc::new(Faults::default());
        let behaviour = behaviour(&settings);
        behaviour.check()?;
        let (further, gateways) = (&settings.further_hub_names, &settings.gateway_names);
        let cloud = Arc::new(Cloud {
            trust: if folder.is_some() { Trust::Verify } else { Trust::Permissive },
            hubs: Hubs::new(settings.hub_name.as_deref(), further, gateways, address.port())?,
            id_scope: settings.id_scope,
            behaviour: ArcSwap::from_pointee(behaviour),
            enrollments: settings.enrollments,
            nonces: Nonces::default(),
            throttle: Throttle::default(),
            store,
            journal: Journal::default(),
        });
        register_manual_devices(&cloud).await?;
        let control = match &folder {
            None => None,
            Some(folder) => {
                let control = Control {
                    cloud: Arc::clone(&cloud),
                    faults: Arc::clone(&faults),
                    appearance: Arc::clone(&appearance),
                    good,
                    authority,
                    names: settings.names,
                    est: est.clone(),
                    clients,
                };
                Some((folder.listen()?, control::routes(Arc::new(control))))
            }
        };
        let folder = match folder {
            None => None,
            Some(folder) => Some(
                blocking(move || {
                    folder.write_address(&address.to_string())?;
                    Ok(folder)
                })
                .await?,
            ),
        };
        Ok(Self { address, cloud, devices, control, appearance, faults, est, folder })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name of the first hub, which devices put into their tokens.
    #[must_use]
    pub fn hub_name(&self) -> &str {
        &self.cloud.hubs.first().name
    }

    /// Serves until `shutdown`, then answers what is under way for at most five seconds.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { address, cloud, devices, control, appearance, faults, est, folder } = self;
        let (ends, has_est) = (Ends::new(shutdown), est.is_some());
        let router = Router::new()
            .merge(dps::routes())
            .merge(hub::routes())
            .merge(est.map(est::routes).unwrap_or_default())
            .fallback(async || front::refuse(StatusCode::NOT_FOUND, "there is no such path"))
            .method_not_allowed_fallback(async || {
                front::refuse(StatusCode::METHOD_NOT_ALLOWED, "the path has no such method")
            })
            // `front` has limited the body already; axum's own limit would add a second answer.
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&cloud));
        let front = Arc::new(Front::new(router, Arc::clone(&cloud), Arc::clone(&faults), ends.clone()));
        if has_est {
            tracing::info!("certificates are issued under /.well-known/est");
        }
        for hub in &cloud.hubs.all()[1..] {
            tracing::info!(hub_name = hub.name, "a further hub");
        }
        match cloud.trust {
            Trust::Verify => tracing::info!(%address, hub_name = cloud.hubs.first().name, "ready"),
            Trust::Permissive => tracing::warn!(
                %address,
                hub_name = cloud.hubs.first().name,
                "ready, but without --dir: no credential is checked and nothing is kept"
            ),
        }
        let devices = server::serve_devices(devices, appearance, faults, front, ends.clone());
        match control {
            Some((listener, router)) => {
                tokio::join!(devices, server::serve_control(listener, router, ends.clone()));
            }
            None => devices.await,
        }
        tracing::info!("shutting down");
        ends.drained().await;
        drop(folder);
    }
}

struct Prepared {
    settings: Settings,
    folder: Option<Folder>,
    store: Store,
    authority: Option<Authority>,
    identity: Identity,
    est: Option<Arc<Est>>,
}

/// All that touches files, before anything listens.
fn prepare(mut settings: Settings) -> Result<Prepared, Error> {
    let folder = settings.folder.as_deref().map(Folder::open).transpose()?;
    let store = match &folder {
        None => Store::in_memory(),
        Some(folder) => Store::open(folder.path().join("state.json"))?,
    };
    for name in hubs::hosts(&settings.further_hub_names, &settings.gateway_names) {
        if !settings.names.contains(&name) {
            settings.names.push(name);
        }
    }
    let (authority, identity) = match (&settings.server_certificate, &folder) {
        (Some(brought), _) => (None, Identity::read(&brought.chain, &brought.key)?),
        (None, Some(folder)) => {
            let authority = Authority::open(folder.path())?;
            let identity = authority.server(folder.path(), &settings.names)?;
            (Some(authority), identity)
        }
        (None, None) => return Err(Error::NoCertificate),
    };
    let est = match (settings.est.take(), &folder) {
        (None, _) => None,
        (Some(_), None) => return Err(Error::EstWithoutFolder),
        (Some(est), Some(folder)) => Some(Arc::new(Est::open(&folder.path().join("est"), est).map_err(Error::Est)?)),
    };
    // Last: an authority may be one of the EST server's.
    settings.enrollments.load_authorities()?;
    Ok(Prepared { settings, folder, store, authority, identity, est })
}

fn behaviour(settings: &Settings) -> Behaviour {
    Behaviour {
        assigning_polls: settings.assigning_polls,
        retry_after_seconds: settings.retry_after_seconds,
        clock_skew_seconds: settings.clock_skew_seconds,
        clock_offset_seconds: settings.clock_offset_seconds,
        max_modules: settings.max_modules,
        requests_per_second: settings.requests_per_second,
        requests_per_second_per_device: settings.requests_per_second_per_device,
    }
}

async fn register_manual_devices(cloud: &Cloud) -> Result<(), Error> {
    let devices = cloud.enrollments.manual_devices();
    if devices.is_empty() {
        return Ok(());
    }
    let register = |state: &mut state::State| {
        devices.iter().try_for_each(|device| {
            let unknown = |hub: &String| hubs::Error::UnknownHub { of: device.device_id.clone(), hub: hub.clone() };
            let hub = device.hub.as_ref();
            let hub = hub.map_or(Ok(cloud.hubs.first()), |hub| cloud.hubs.named(hub).ok_or_else(|| unknown(hub)))?;
            let system_modules = if device.iot_edge { SystemModules::Preset } else { SystemModules::Absent };
            let registry = state.registries.of_mut(&hub.key);
            let registered = registry.put_device(&device.device_id, device.attestation.without_dps(), system_modules);
            registered.map_err(|error: registry::Error| Error::Device {
                device_id: device.device_id.clone(),
                reason: error.to_string(),
            })
        })
    };
    cloud.store.change(register).await?
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Ending)?
}
