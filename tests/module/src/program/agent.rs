//! The agent: keeps the modules that a file wants.

use std::{
    fs,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aziot_test_module::{Agent, Environment, Wanted, Workload};
use serde_json::{Value, json};

use super::output;

const PERIOD: Duration = Duration::from_secs(1);

/// Reconciles once a second until told to end, and prints each round that was not like the last.
pub(crate) fn run(environment: &Environment, desired: Option<&Path>, end: &Receiver<()>) -> Result<()> {
    // edgeAgent does not start without it.
    let trusts = Workload::connect(environment)?.trust_bundle()?.contains("BEGIN CERTIFICATE");
    output::line(&json!({ "agent": environment.module()?, "trustBundle": trusts }))?;
    let agent = Agent::new(&environment.path("IOTEDGE_MANAGEMENTURI")?, environment.clone());
    let mut last = Value::Null;
    loop {
        // As long as nobody has said what is wanted, everything stays as it is.
        if let Some(file) = desired.filter(|file| file.exists()) {
            let seen = round(&agent, file).unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
            if seen != last {
                output::line(&seen)?;
                last = seen;
            }
        }
        match end.recv_timeout(PERIOD) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return Ok(()),
        }
    }
}

fn round(agent: &Agent, file: &Path) -> Result<Value> {
    let text = fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
    let wanted: Vec<Wanted> = serde_json::from_slice(&text).context("not a list of modules")?;
    agent.reconcile(&wanted)
}
