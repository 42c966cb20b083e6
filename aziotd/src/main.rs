//! The daemons in one executable: the file name of `argv[0]` picks the service. One copy of every library on disk and in
//! memory, however many services run.

mod process_protection;

use std::{env, ffi::OsString, path::Path, pin::pin, process::ExitCode};

use anyhow::{Context as _, anyhow};
use aziot_config::Sources;
use aziot_http::{Activation, DaemonError, Shutdown, daemon};
use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    aziot_log::init();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.downcast_ref::<DaemonError>().map_or(1, DaemonError::exit_code);
            aziot_log::log_chain(tracing::Level::ERROR, error.as_ref());
            ExitCode::from(code)
        }
    }
}

fn start() -> anyhow::Result<()> {
    // Descriptors are adopted before the first thread starts.
    let activation = Activation::from_environment().context("could not use the handed-over sockets")?;
    let service = Service::from_process_name(env::args_os().next()).context("could not read argv[0]")?;
    process_protection::no_core_dumps().context("could not turn core dumps off")?;
    if service == Service::Keys {
        process_protection::no_debuggers().context("could not shut debuggers out")?;
    }
    raise_file_limit();
    tracing::info!("Starting service...");
    tracing::info!("Version - {}", env!("CARGO_PKG_VERSION"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start the runtime")?;
    let result = runtime.block_on(run(service, activation));
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

/// Runs the service until it fails or is told to stop. A second signal does not wait for requests under way.
async fn run(service: Service, activation: Activation) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("could not listen for signals")?;
    let shutdown = Shutdown::new();
    let mut running = pin!(service.run(activation, shutdown.clone()));
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Keys,
    Certificates,
    Identity,
}

impl Service {
    fn from_process_name(argument: Option<OsString>) -> anyhow::Result<Self> {
        let argument = argument.ok_or_else(|| anyhow!("the process has no name"))?;
        let name = Path::new(&argument).file_name().unwrap_or_default().to_string_lossy();
        match name.as_ref() {
            "aziot-keyd" => Ok(Self::Keys),
            "aziot-certd" => Ok(Self::Certificates),
            "aziot-identityd" => Ok(Self::Identity),
            _ => Err(anyhow!(
                "unrecognized process name {name}: start it as aziot-keyd, aziot-certd or aziot-identityd (symbolic links will do)"
            )),
        }
    }

    async fn run(self, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
        match self {
            Self::Keys => aziot_keyd::run(Sources::for_service("keyd"), activation, shutdown).await,
            Self::Certificates => aziot_certd::run(Sources::for_service("certd"), activation, shutdown).await,
            Self::Identity => aziot_identityd::run(Sources::for_service("identityd"), activation, shutdown).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Service;

    #[test]
    fn the_file_name_picks_the_service() {
        for (name, service) in [
            ("aziot-keyd", Service::Keys),
            ("/usr/libexec/aziot-identity-service/aziot-certd", Service::Certificates),
            ("./aziot-identityd", Service::Identity),
        ] {
            assert_eq!(Service::from_process_name(Some(name.into())).unwrap(), service);
        }
        for name in ["aziotd", "foo", "", "/"] {
            let error = Service::from_process_name(Some(name.into())).unwrap_err();
            assert!(error.to_string().starts_with("unrecognized process name"), "{error}");
        }
    }
}
