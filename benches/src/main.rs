//! Measures the key service, and the certificate and identity services and the module runtime over it, as their callers feel them: a load
//! generator over the socket, beside what OpenSSL does on the same machine.
//!
//! Started by `cargo xtask bench`, which builds it and the daemon. It shares the processors with the daemon, so that it counts every
//! microsecond of its own against the figures: one thread, one `epoll`, requests written beforehand. Says nothing about correctness.

mod connection;
mod edge;
mod identities;
mod issuing;
mod latency;
mod load;
mod operation;
mod raw;
mod report;
mod scenario;
mod service;
mod table;

use std::{fs::File, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::{operation::Operation, report::Report, service::Service};

/// Measures `aziot-keyd` over its socket.
#[derive(Parser)]
#[command(name = "aziot-load")]
struct Arguments {
    /// The `aziotd` to measure; all other programs lie beside it.
    #[arg(long)]
    aziotd: PathBuf,
    /// How long each line of the table is measured, in twenty rounds of which the best counts.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures only what has one of these in its name: an operation of the table, `generation`, `memory`, `many keys`, `certificates`,
    /// `identities` or `edge`. Separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::failure(&error);
            ExitCode::FAILURE
        }
    }
}

/// Whether every target was met. What was measured before a failure is told first.
fn run(arguments: &Arguments) -> Result<bool> {
    let seconds = Duration::from_secs(arguments.seconds.max(1));
    let mut report = Report::new(seconds);
    let outcome = fill(&mut report, arguments, seconds);
    report.print()?;
    if let Some(path) = &arguments.json {
        let file = File::create(path).with_context(|| format!("could not write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &report).context("could not write the figures")?;
    }
    outcome.map(|()| report.targets_met())
}

fn fill(report: &mut Report, arguments: &Arguments, seconds: Duration) -> Result<()> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| name.contains(only));
    let operations = Operation::ALL.into_iter().filter(|operation| wanted(operation.name())).collect::<Vec<_>>();
    if !operations.is_empty() {
        let service = Service::start(&arguments.aziotd)?;
        table::measure(report, &service, operations, seconds)?;
        service.stop()?;
    }
    if wanted("generation") {
        report.scenarios.push(scenario::key_generation(&arguments.aziotd, seconds)?);
    }
    if wanted("memory") {
        report.scenarios.push(scenario::memory(&arguments.aziotd)?);
    }
    if wanted("many keys") {
        report.scenarios.extend(scenario::many_keys(&arguments.aziotd)?);
    }
    if wanted("certificates") {
        report.scenarios.push(issuing::issuing(&arguments.aziotd, seconds)?);
        report.scenarios.extend(issuing::hung_server(&arguments.aziotd, seconds)?);
    }
    if wanted("identities") {
        report.scenarios.extend(identities::slow_hub(&arguments.aziotd, seconds)?);
    }
    if wanted("edge") {
        let scenarios = edge::signatures(&arguments.aziotd, seconds).context("no signatures of modules")?;
        report.scenarios.extend(scenarios);
    }
    Ok(())
}
