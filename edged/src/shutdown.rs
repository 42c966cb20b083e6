//! Ends the runtime in order: no more management calls, modules stopped while they can still use their sockets, then the sockets.
//!
//! Docker and the network are slow on a bad day, and the service manager waits 40 s before it kills: each part has a limit that leaves time for
//! the next one.

use std::{io, sync::Arc, time::Duration};

use aziot_http::Shutdown;
use aziot_log::{chain, fields};
use tokio::task::JoinSet;

use crate::{modules::Modules, service_manager, sockets::Sockets};

/// What each module has to end.
const GRACE: Duration = Duration::from_secs(25);
/// For an update of the agent that has begun.
const UPDATES: Duration = Duration::from_secs(1);

/// What has to be ended.
pub(crate) struct Running {
    /// Containers.
    pub(crate) modules: Arc<Modules>,
    /// Listeners of the workload API.
    pub(crate) sockets: Arc<Sockets>,
    /// Ends the management API.
    pub(crate) management: Shutdown,
    /// The one server of the management API, which then finishes the calls under way, for some seconds at most.
    pub(crate) server: JoinSet<io::Result<()>>,
}

/// Ends everything but the calls of this process to other services.
pub(crate) async fn stop(running: Running) {
    let Running { modules, sockets, management, mut server } = running;
    service_manager::status("Stopping the modules");
    management.cancel();
    modules.close();
    let stop = async {
        let (stopped, served) = tokio::join!(modules.stop_all(GRACE), server.join_next());
        match stopped {
            Ok(left) if left.is_empty() => tracing::info!("the modules are stopped"),
            // Each was told with its reason.
            Ok(left) => tracing::warn!("{} modules could not be stopped, and may go on", left.len()),
            Err(error) => {
                tracing::warn!({ fields::ERROR } = %chain(&error), "the modules could not be stopped, and go on");
            }
        }
        if !matches!(served, Some(Ok(Ok(())))) {
            tracing::warn!("the management API did not end in order");
        }
        if tokio::time::timeout(UPDATES, modules.settled()).await.is_err() {
            tracing::warn!("an update of the agent is interrupted; the next start ends it one way or the other");
        }
        sockets.close_all().await;
    };
    tokio::select! {
        () = stop => {}
        never = service_manager::stay_alive() => match never {},
    }
}
