//! The module runtime: modules as containers, each with its own identity, keys and certificates through a workload socket of its own.
//!
//! `start` wires the rooms together, `watchdog` keeps the agent running, and the agent has the runtime do the rest: `http` routes its calls and
//! those of modules to `modules`, `identities`, `workload` and `system`. `docker` is the engine, `sockets` and `caller` tell modules apart.
//! Whose device this is, and what it proves itself with, is the business of the identity, key and certificate services.

mod agent;
mod caller;
mod docker;
mod edge_ca;
mod error;
mod http;
mod identities;
mod images;
mod modules;
mod places;
mod provisioning;
mod service_manager;
mod settings;
mod shared;
mod shutdown;
mod sockets;
mod specification;
mod start;
mod support_bundle;
mod system;
mod trust_bundle;
mod watchdog;
mod workload;

use aziot_config::Sources;
use aziot_http::{Activation, DaemonError, Shutdown};

/// Runs the service until `shutdown`, or until it has to start anew.
pub async fn run(sources: Sources, activation: Activation, shutdown: Shutdown) -> Result<(), DaemonError> {
    start::run(&sources, activation, shutdown).await
}

/// The version, with the commit behind it in parentheses where the build knows it (`AZIOT_COMMIT`).
#[must_use]
pub fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    option_env!("AZIOT_COMMIT").map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
}

#[cfg(test)]
mod tests;
