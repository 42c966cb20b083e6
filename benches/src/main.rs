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
    operation::{Operation, Requests},
    raw::{Rates, Raw},
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
    /// How long each line of the table is measured, in twenty rounds of which the best counts.
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

/// Each line is measured so often, for a share of its time, and the best counts: what other tenants of a shared host take away is not the
/// service's. The rounds of an operation's lines, and those of OpenSSL alone, take turns, so that all see the same of the host.
pub(crate) const ROUNDS: u32 = 20;

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

/// The loads of each operation.
const LOADS: [(Connections, usize); 4] =
    [(Connections::Kept, 1), (Connections::Kept, 8), (Connections::New, 1), (Connections::New, 8)];

fn measure(report: &mut Report, service: &Service, operation: Operation, seconds: Duration) -> Result<()> {
    let mut raw = Raw::new(operation, service.folder())?;
    let mut requests = operation.requests(service.socket())?;
    let mut lines = LOADS.map(|_| Line::default());
    for _ in 0..ROUNDS {
        if let Some(raw) = &mut raw {
            raw.round(seconds / ROUNDS / 2)?;
        }
        for (line, (connections, concurrency)) in lines.iter_mut().zip(LOADS) {
            let load = Load { socket: service.socket(), connections, concurrency, seconds: seconds / ROUNDS };
            line.round(service, load, &mut requests)?;
        }
    }
    let raw = raw.map(Raw::best);
    for (line, (connections, concurrency)) in lines.into_iter().zip(LOADS) {
        report.add(line.measurement(operation, connections, concurrency, raw)?)?;
    }
    Ok(())
}

/// What the rounds of a line have come to.
#[derive(Default)]
struct Line {
    rounds: Vec<Figures>,
    requests: u64,
    worked: Duration,
    /// KiB before the first round and after the last.
    resident: Option<(u64, u64)>,
}

impl Line {
    fn round(&mut self, service: &Service, load: Load<'_>, requests: &mut Requests) -> Result<()> {
        let (resident, worked) = (service.resident_kib()?, service.processor_time()?);
        let outcome = load.run(requests)?;
        self.worked += service.processor_time()?.saturating_sub(worked);
        self.requests += outcome.requests();
        self.rounds.push(outcome.figures());
        let before = self.resident.map_or(resident, |(before, _)| before);
        self.resident = Some((before, service.resident_kib()?));
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
    fn measurement(
        mut self,
        operation: Operation,
        connections: Connections,
        concurrency: usize,
        raw: Option<Rates>,
    ) -> Result<Measurement> {
        self.rounds.sort_by(|one, other| one.requests_per_second.total_cmp(&other.requests_per_second));
        let figures = *self.rounds.last().context("nothing was measured")?;
        let (resident_before_kib, resident_after_kib) = self.resident.context("nothing was measured")?;
        Ok(Measurement {
            operation,
            connections,
            concurrency,
            raw,
            figures,
            median_requests_per_second: self.rounds[self.rounds.len() / 2].requests_per_second,
            processor_us: self.worked.as_secs_f64() * 1e6 / self.requests as f64,
            resident_before_kib,
            resident_after_kib,
        })
    }
}
