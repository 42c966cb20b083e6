//! The program `aziot-simulator`: flags in, a running simulator, an exit code out.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use aziot_simulator::{Enrollments, ServerCertificate, Settings, Simulator, est};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const AFTER_HELP: &str = "\
FILES
  DIR/ca.pem             what clients must trust; made on the first start
  DIR/enrollments.toml   who may register, unless --enrollments names another file
  DIR/est.toml           settings of an EST server (RFC 7030), which is there if this file or the one of --est is
  DIR/est/               its authorities: ca.pem, issuing-ca.pem, bootstrap-ca.pem, each with its key
  DIR/state.json         devices, modules and registrations, with their keys; written whole on each change
  DIR/address            IP:PORT it listens on; there while it runs
  DIR/control.sock       journal and faults on demand; `curl --unix-socket DIR/control.sock http://simulator/` lists the calls

ENROLLMENTS (each entry names exactly one of the ways to prove oneself)
  [[enrollment]]                  # one device
  registration_id = \"device-7\"
  symmetric_key = \"BASE64\"        # tokens; also: secondary_key
  # certificate_thumbprint = \"HEX\"  # SHA-256 or SHA-1 of the certificate; its common name is the registration id; also: secondary_thumbprint
  # certificate_authority = \"est/issuing-ca.pem\"   # PEM, from this file's folder; the common name is the registration id
  # endorsement_key = \"BASE64\"     # TPM2B_PUBLIC of a TPM, or \"any\": the first that proves itself
  # also: device_id, assigned_hub, disabled, fail_with, unassigned, assigning_polls, iot_edge
  [[group]]                       # any number of devices: keys are HMAC-SHA256(key, registration id)
  name = \"factory\"
  symmetric_key = \"BASE64\"        # or certificate_authority; also: assigned_hub, disabled, iot_edge
  [[device]]                      # at the hub from the start: manual provisioning
  device_id = \"device-8\"
  symmetric_key = \"BASE64\"        # or certificate_thumbprint or certificate_authority; also: hub, iot_edge

EST (each key may be left out)
  lifetime_seconds = 2592000      # also: identity_lifetime_seconds (a request for client authentication alone), backdate_seconds
  authentication = \"any\"          # basic, certificate or both
  bootstrap = \"identity\"          # what a certificate of the bootstrap CA may obtain; or \"anything\"
  labels = [\"devices\"]            # served as /.well-known/est/devices/... too
  [users]                         # for basic authentication
  device-7 = \"PASSWORD\"
  # also: pending_polls, retry_after_seconds, protect_cacerts, send_chain, insist_on_reenroll, allow_ca, plain_http

EXAMPLES
  A hub on a fixed port, so that devices find it again after a restart:
    aziot-simulator --dir sim --listen 127.0.0.1:8443 --id-scope 0ne00ABCDEF
  A hub under a name of its own, for containers:
    aziot-simulator --dir sim --listen 0.0.0.0:443 --hostname hub.test --hub-name hub.test
  Two hubs, and a device that moves to the second one:
    aziot-simulator --dir sim --listen 127.0.0.1:8443 --hub 127.0.0.1
    curl --unix-socket sim/control.sock -X PUT http://simulator/registrations/device-7 \\
      -d '{\"assignedHub\":\"127.0.0.1:8443\",\"migrate\":true}'
  Three throttled answers for module calls, and what came of it:
    curl --unix-socket sim/control.sock -X PUT http://simulator/fault \\
      -d '{\"kind\":\"status\",\"status\":429,\"retryAfter\":2,\"matching\":\"/modules\",\"count\":3}'
    curl --unix-socket sim/control.sock http://simulator/journal
  As the public mock server, which checks no credential and keeps nothing:
    aziot-simulator --port 8443 --server-cert-chain chain.pem --server-key key.pem

EXIT CODES
  0  ended by SIGTERM or SIGINT (a second one ends it at once)
  1  it could not start; the log says why
  2  wrong usage

AZIOT_LOG chooses what is logged on stderr: one line per request, never a token or key.";

/// An Azure IoT Hub with its device provisioning service, for development without the cloud.
///
/// Speaks real TLS under its own certification authority, and checks tokens, etags and limits as the cloud does. For development
/// only: its keys lie in its folder, readable by their owner.
#[derive(Parser)]
#[command(name = "aziot-simulator", version, after_long_help = AFTER_HELP)]
struct Arguments {
    /// Folder for certificates, state and the control socket; made if missing
    #[arg(long, value_name = "DIR", required_unless_present_all = ["server_cert_chain", "server_key", "port"])]
    dir: Option<PathBuf>,

    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    listen: String,

    /// Listen on this port of localhost
    #[arg(long, value_name = "PORT", conflicts_with = "listen")]
    port: Option<u16>,

    /// Host name or IP address for the server certificate; repeat it for several [default: localhost, 127.0.0.1]
    #[arg(long, value_name = "NAME", conflicts_with = "server_cert_chain")]
    hostname: Vec<String>,

    /// Name of the hub, which devices put into their tokens [default: localhost:PORT]
    #[arg(long, value_name = "NAME")]
    hub_name: Option<String>,

    /// Name of a further hub with a registry of its own; the port is added if the name has none. Repeat it for several
    #[arg(long, value_name = "NAME")]
    hub: Vec<String>,

    /// Name by which devices call a parent gateway of a hub, by default the first one. Repeat it for several
    #[arg(long, value_name = "NAME[=HUB]")]
    gateway_name: Vec<String>,

    /// The only id scope to answer for [default: any]
    #[arg(long, value_name = "SCOPE")]
    id_scope: Option<String>,

    /// File of enrollments, TOML or JSON (*.json) [default: DIR/enrollments.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    enrollments: Option<PathBuf>,

    /// One more enrollment; others on this machine can see the key, so prefer --enrollments
    #[arg(long, value_name = "REGISTRATION_ID:BASE64_KEY", requires = "dir")]
    enrollment: Vec<String>,

    /// File of settings for an EST server, TOML [default: DIR/est.toml, if it is there]
    #[arg(long, value_name = "FILE", requires = "dir")]
    est: Option<PathBuf>,

    /// How many polls of a registration say `assigning`
    #[arg(long, value_name = "N", default_value_t = 1)]
    assigning_polls: u32,

    /// What `retry-after` says while a registration is pending
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    retry_after: u32,

    /// For how long an expired token is still taken
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    clock_skew: u32,

    /// By how many seconds its clock is ahead of the system's, or behind it
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_hyphen_values = true)]
    clock_offset: i64,

    /// How many modules a device may have
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_modules: usize,

    /// Answer 429 to more requests than these in a second [default: no limit]
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u32>,

    /// The same for each registration and each device [default: no limit]
    #[arg(long, value_name = "N")]
    requests_per_second_per_device: Option<u32>,

    /// Server certificate with its chain, PEM, from leaf to root, instead of one of its own
    #[arg(long, value_name = "FILE", requires = "server_key")]
    server_cert_chain: Option<PathBuf>,

    /// Key of --server-cert-chain, PEM
    #[arg(long, value_name = "FILE", requires = "server_cert_chain")]
    server_key: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    aziot_log::init();
    match start(arguments) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<ExitCode> {
    let settings = settings(arguments)?;
    raise_file_limit();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start the runtime")?;
    let code = runtime.block_on(run(settings));
    // A write that hangs on a dead disk must not keep the process.
    runtime.shutdown_background();
    code
}

/// A thousand devices are more connections than a process may usually open.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "could not raise the limit of open files");
    }
}

async fn run(settings: Settings) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;
    let simulator = Simulator::start(settings).await.context("could not start the simulator")?;
    let shutdown = CancellationToken::new();
    let mut running = std::pin::pin!(simulator.run(shutdown.clone()));
    for _ in 0..2 {
        tokio::select! {
            () = running.as_mut() => break,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(arguments: Arguments) -> Result<Settings> {
    let defaults = Settings::default();
    let in_folder = |name| arguments.dir.as_ref().map(|dir| dir.join(name)).filter(|path| path.exists());
    let of_est = arguments.est.clone().or_else(|| in_folder("est.toml"));
    let of_enrollments = arguments.enrollments.clone().or_else(|| in_folder("enrollments.toml"));
    for path in of_est.iter().chain(&of_enrollments) {
        if let Ok(Some(warning)) = aziot_files::mode_warning(path) {
            tracing::warn!("{warning}");
        }
    }
    let est = of_est.map(|path| est::Settings::read(&path)).transpose()?;
    let mut enrollments = of_enrollments.map_or_else(|| Ok(Enrollments::default()), |path| Enrollments::read(&path))?;
    for enrollment in &arguments.enrollment {
        enrollments.add_argument(enrollment)?;
    }
    if arguments.dir.is_some() && est.is_none() && enrollments.is_empty() {
        tracing::warn!("there are no enrollments: only devices from earlier runs are known; --help shows the file");
    }
    let server_certificate = match (arguments.server_cert_chain, arguments.server_key) {
        (Some(chain), Some(key)) => Some(ServerCertificate { chain, key }),
        _ => None,
    };
    Ok(Settings {
        listen: arguments.port.map_or(arguments.listen, |port| format!("localhost:{port}")),
        folder: arguments.dir,
        names: if arguments.hostname.is_empty() { defaults.names } else { arguments.hostname },
        hub_name: arguments.hub_name,
        further_hub_names: arguments.hub,
        gateway_names: arguments.gateway_name,
        id_scope: arguments.id_scope,
        enrollments,
        server_certificate,
        est,
        clock_skew_seconds: arguments.clock_skew,
        assigning_polls: arguments.assigning_polls,
        retry_after_seconds: arguments.retry_after,
        max_modules: arguments.max_modules,
        requests_per_second: arguments.requests_per_second,
        requests_per_second_per_device: arguments.requests_per_second_per_device,
        clock_offset_seconds: arguments.clock_offset,
    })
}
