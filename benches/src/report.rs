//! The figures of a run: one table for people, JSON for machines, and whether the targets were met.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Result;
use serde::Serialize;

use crate::{
    load::{Connections, Figures},
    operation::Operation,
    raw::{self, Rates},
    table::ROUNDS,
};

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) operation: Operation,
    pub(crate) connections: Connections,
    pub(crate) concurrency: usize,
    /// OpenSSL without a service.
    pub(crate) raw: Option<Rates>,
    /// What comes through of what all processors do raw, round by round; that of the round in the middle.
    pub(crate) share_of_raw: Option<f64>,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// The rate of the round in the middle, beside the best one of the other figures.
    pub(crate) median_requests_per_second: f64,
    /// Processor time of the service for each request, of all rounds.
    pub(crate) processor_us: f64,
    pub(crate) resident_before_kib: u64,
    pub(crate) resident_after_kib: u64,
}

/// What came of something that is not a line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) outcome: String,
    pub(crate) target: &'static str,
    pub(crate) met: bool,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    openssl: &'static str,
    cores: usize,
    /// How many processes wanted a processor, on average over a minute, when the run began. This run is alone at 0.
    load_at_start: f64,
    seconds: f64,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) scenarios: Vec<Scenario>,
}

impl Report {
    pub(crate) fn new(seconds: Duration) -> Self {
        Self {
            openssl: openssl::version::version(),
            cores: raw::cores(),
            load_at_start: load_average(),
            seconds: seconds.as_secs_f64(),
            measurements: Vec::new(),
            scenarios: Vec::new(),
        }
    }

    /// Prints a dot: a run takes minutes.
    #[expect(clippy::unused_self, reason = "all output is the report's")]
    pub(crate) fn progress(&self) -> Result<()> {
        let mut output = io::stderr().lock();
        write!(output, ".")?;
        Ok(output.flush()?)
    }

    pub(crate) fn print(&self) -> Result<()> {
        let _ = writeln!(io::stderr().lock());
        let mut output = io::stdout().lock();
        writeln!(
            output,
            "{}, {} processors, load {:.2} at the start, load generator on the same processors\n",
            self.openssl, self.cores, self.load_at_start
        )?;
        if !self.measurements.is_empty() {
            self.print_table(&mut output)?;
        }
        for scenario in self.all_scenarios() {
            let mark = if scenario.met { '✓' } else { '✗' };
            writeln!(output, "{mark} {}: {} (target: {})", scenario.name, scenario.outcome, scenario.target)?;
        }
        Ok(output.flush()?)
    }

    fn print_table(&self, output: &mut impl io::Write) -> Result<()> {
        writeln!(output, "best of {ROUNDS} rounds of {} s:\n", self.seconds / f64::from(ROUNDS))?;
        writeln!(
            output,
            "{:<18} {:>10} {:>11}  {:<5} {:>3} {:>10} {:>6} {:>8} {:>9} {:>9} {:>8} {:>15}",
            "operation",
            "raw 1 core",
            format!("raw {} cores", self.cores),
            "conn.",
            "at",
            "requests/s",
            "of raw",
            "median/s",
            "p50 us",
            "p99 us",
            "cpu us",
            "resident KiB"
        )?;
        for line in &self.measurements {
            let Figures { requests_per_second, p50_us, p99_us, .. } = line.figures;
            let raw =
                |rate: fn(Rates) -> f64| line.raw.map_or_else(|| "-".to_owned(), |raw| format!("{:.0}", rate(raw)));
            let share = line.share_of_raw.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0));
            let (one, all) = (raw(|rates| rates.one_core), raw(|rates| rates.all_cores));
            let (before, after) = (line.resident_before_kib, line.resident_after_kib);
            let kept = if line.connections == Connections::Kept { "kept" } else { "new" };
            let (name, at) = (line.operation.name(), line.concurrency);
            writeln!(
                output,
                "{name:<18} {one:>10} {all:>11}  {kept:<5} {at:>3} {requests_per_second:>10.0} {share:>6} {:>8.0} {p50_us:>9.1} {p99_us:>9.1} {:>8.1} {before:>6} -> {after:>5}",
                line.median_requests_per_second, line.processor_us
            )?;
        }
        Ok(writeln!(output)?)
    }

    pub(crate) fn targets_met(&self) -> bool {
        self.all_scenarios().all(|scenario| scenario.met)
    }

    fn all_scenarios(&self) -> impl Iterator<Item = Scenario> {
        let targets = Operation::ALL.into_iter().filter_map(|operation| self.target(operation));
        targets.chain(self.scenarios.iter().cloned())
    }

    fn busy(&self, operation: Operation) -> Option<&Measurement> {
        let mut lines = self.measurements.iter();
        lines.find(|line| line.operation == operation && line.connections == Connections::Kept && line.concurrency == 8)
    }

    /// What is asked of an operation at concurrency 8 over kept connections.
    fn target(&self, operation: Operation) -> Option<Scenario> {
        let line = self.busy(operation)?;
        let (raw, share) = (line.raw?, line.share_of_raw?);
        let reached = line.figures.requests_per_second;
        let at_least =
            |wanted: f64, target| (reached >= wanted, format!("{reached:.0}/s of the {wanted:.0}/s wanted"), target);
        let (met, outcome, target) = match operation {
            Operation::EcdsaP256 => {
                at_least((raw.one_core / 3.0).max(15_000.0), "15,000/s or a third of one core, whichever is higher")
            }
            // The only one that needs all processors as raw does, and so the only one for which it counts whether the host had them to give.
            Operation::Rsa2048 => (
                share >= 0.7,
                format!(
                    "{:.0}% of all cores round by round; {reached:.0}/s of {:.0}/s, each at its best",
                    share * 100.0,
                    raw.all_cores
                ),
                "70% of all cores",
            ),
            Operation::HmacSha256 | Operation::Aead1Kib => {
                let empty = self.busy(Operation::EmptyRoute)?.figures.requests_per_second;
                at_least((empty * 0.6).max(40_000.0), "40,000/s or 60% of the empty route, whichever is higher")
            }
            Operation::EmptyRoute | Operation::CreateKey | Operation::CreateKeyPair => return None,
        };
        Some(Scenario { name: operation.name(), outcome: format!("{outcome}, 8 kept connections"), target, met })
    }
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// Prints an error and its causes on standard error.
pub(crate) fn failure(error: &anyhow::Error) {
    let mut output = io::stderr().lock();
    let _ = writeln!(output, "\nerror: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(output, "    caused by: {cause}");
    }
}
