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

use std::{fs::File, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::{
    load::{Connections, Figures, Load},
    operation::Operation,
    report::{Measurement, Report},
    service::Service,
};

/// Measures `aziot-keyd` over its socket.
#[derive(Parser)]
#[command(name = "aziot-load")]
struct Arguments {
    /// The `aziotd` to measure; all other programs lie beside it.
    #[arg(long)]
    aziotd: PathBuf,
    /// How long each line of the table is measured, in five rounds of which the best counts.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures only operations whose name contains this, and no scenarios.
    #[arg(long)]
    only: Option<String>,
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

/// Each line is measured so often, and the best counts: what other tenants of a shared host take away is not the service's.
pub(crate) const ROUNDS: u32 = 5;

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
    let service = Service::start(&arguments.aziotd)?;
    for operation in Operation::ALL {
        if arguments.only.as_ref().is_none_or(|only| operation.name().contains(only.as_str())) {
            measure(report, &service, operation, seconds)?;
        }
    }
    if arguments.only.is_none() {
        report.scenarios.push(scenario::key_generation(&service, seconds)?);
    }
    service.stop()?;
    if arguments.only.is_none() {
        report.scenarios.push(scenario::memory(&arguments.aziotd)?);
        report.scenarios.extend(scenario::many_keys(&arguments.aziotd)?);
    }
    if arguments.only.as_ref().is_none_or(|only| "certificates".contains(only.as_str())) {
        report.scenarios.push(issuing::issuing(&arguments.aziotd, seconds)?);
        report.scenarios.extend(issuing::hung_server(&arguments.aziotd, seconds)?);
    }
    if arguments.only.as_ref().is_none_or(|only| "identities".contains(only.as_str())) {
        report.scenarios.extend(identities::slow_hub(&arguments.aziotd, seconds)?);
    }
    if arguments.only.as_ref().is_none_or(|only| "edge".contains(only.as_str())) {
        let scenarios = edge::signatures(&arguments.aziotd, seconds).context("no signatures of modules")?;
        report.scenarios.extend(scenarios);
    }
    Ok(())
}

fn measure(report: &mut Report, service: &Service, operation: Operation, seconds: Duration) -> Result<()> {
    let raw = raw::rates(operation, service.folder(), seconds)?;
    let mut requests = operation.requests(service.socket())?;
    for connections in [Connections::Kept, Connections::New] {
        for concurrency in [1, 8] {
            let before = service.resident_kib()?;
            let load = Load { socket: service.socket(), connections, concurrency, seconds: seconds / ROUNDS };
            let mut best: Option<(Figures, f64)> = None;
            for _ in 0..ROUNDS {
                let worked_before = service.processor_time()?;
                let outcome = load.run(&mut requests)?;
                let worked = service.processor_time()?.saturating_sub(worked_before);
                let figures = outcome.figures();
                if best.is_none_or(|(best, _)| best.requests_per_second < figures.requests_per_second) {
                    best = Some((figures, outcome.share(worked)));
                }
            }
            let (figures, processor_us) = best.context("nothing was measured")?;
            let after = service.resident_kib()?;
            report.add(Measurement {
                operation,
                connections,
                concurrency,
                raw,
                figures,
                processor_us,
                resident_before_kib: before,
                resident_after_kib: after,
            })?;
        }
    }
    Ok(())
}
