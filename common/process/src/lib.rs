//! The life of a daemon's process: logging first, descriptors adopted before any thread starts, memory kept out of files, one
//! runtime, an orderly end on a signal, and the exit code.
//!
//! What the process serves is its `main`'s business. Only executables depend on this crate: linking it replaces the allocator.

mod protection;

use std::{pin::pin, process::ExitCode};

use anyhow::{Context as _, Result, anyhow};
use aziot_http::{Activation, DaemonError, Shutdown, daemon};
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use protection::no_debuggers;

/// What a daemon's `main` does. `start` gets the sockets that the service manager handed over; what it fails with is logged.
pub fn main(start: impl FnOnce(Activation) -> Result<()>) -> ExitCode {
    aziot_log::init();
    // Descriptors are adopted before the first thread starts.
    let activation = Activation::from_environment().context("could not use the handed-over sockets");
    match activation.and_then(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let ended = error.downcast_ref::<DaemonError>();
            let is_failure = ended.is_none_or(DaemonError::is_failure);
            let level = if is_failure { tracing::Level::ERROR } else { tracing::Level::INFO };
            aziot_log::log_chain(level, error.as_ref());
            ExitCode::from(ended.map_or(1, DaemonError::exit_code))
        }
    }
}

/// Runs a service on this thread until it fails or is told to stop. A second signal does not wait for requests under way.
pub fn serve<F>(service: impl FnOnce(Shutdown) -> F) -> Result<()>
where
    F: Future<Output = Result<(), DaemonError>>,
{
    protection::no_core_dumps().context("could not turn core dumps off")?;
    raise_file_limit();
    tracing::info!("Starting service...");
    tracing::info!("Version - {}", env!("CARGO_PKG_VERSION"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start the runtime")?;
    let result = runtime.block_on(until_signal(service));
    // A blocking task that outlived the drain, such as a key generation, is not waited for.
    runtime.shutdown_background();
    result
}

/// Makes room for the connections of many users. The soft limit is low for the sake of programs that use `select`.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

async fn until_signal<F>(service: impl FnOnce(Shutdown) -> F) -> Result<()>
where
    F: Future<Output = Result<(), DaemonError>>,
{
    let mut signals = Signals::new().context("could not listen for signals")?;
    let shutdown = Shutdown::new();
    let mut running = pin!(service(shutdown.clone()));
    tokio::select! {
        result = &mut running => return Ok(result?),
        () = signals.received() => {}
    }
    daemon::stopping();
    shutdown.cancel();
    tokio::select! {
        result = &mut running => Ok(result?),
        () = signals.received() => Err(anyhow!("stopped before requests under way were finished")),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
