//! The lines of the table: each operation, at each load, beside what OpenSSL does alone.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    load::{Connections, Figures, Load},
    operation::{Operation, Requests},
    raw::{Rates, Raw},
    report::{Measurement, Report},
    service::Service,
};

/// Each line is measured so often, for a share of its time, and the best counts: what other tenants of a shared host take away is not the
/// service's. All lines take turns, OpenSSL alone too, there and back: what is compared has seen the same of the host, which may be slower after
/// an operation that was hard work.
pub(crate) const ROUNDS: u32 = 20;
const _: () = assert!(ROUNDS.is_multiple_of(4), "there and back, each with OpenSSL alone first and last");

/// The loads of each operation.
const LOADS: [(Connections, usize); 4] =
    [(Connections::Kept, 1), (Connections::Kept, 8), (Connections::New, 1), (Connections::New, 8)];

/// Measures each line for `seconds`.
pub(crate) fn measure(
    report: &mut Report,
    service: &Service,
    operations: Vec<Operation>,
    seconds: Duration,
) -> Result<()> {
    let subject = |operation| Subject::new(operation, service);
    let mut subjects = operations.into_iter().map(subject).collect::<Result<Vec<_>>>()?;
    for number in 0..ROUNDS {
        let raw = if number % 2 == 0 { Turn::First } else { Turn::Last };
        for subject in &mut subjects {
            subject.round(service, seconds / ROUNDS, raw)?;
        }
        if number % 2 == 1 {
            subjects.reverse();
        }
        report.progress()?;
    }
    // Back in their order, as the number of rounds is what it is.
    for subject in subjects {
        subject.tell(report)?;
    }
    Ok(())
}

/// When OpenSSL alone is measured in a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Last,
}

/// An operation, its key made, and what was measured of it so far.
struct Subject {
    operation: Operation,
    requests: Requests,
    raw: Option<Raw>,
    lines: [Line; LOADS.len()],
}

impl Subject {
    fn new(operation: Operation, service: &Service) -> Result<Self> {
        Ok(Self {
            operation,
            requests: operation.requests(service.socket())?,
            raw: Raw::new(operation, service.folder())?,
            lines: LOADS.map(|_| Line::default()),
        })
    }

    fn round(&mut self, service: &Service, seconds: Duration, raw: Turn) -> Result<()> {
        if raw == Turn::First {
            self.raw_round(seconds)?;
        }
        for (line, (connections, concurrency)) in self.lines.iter_mut().zip(LOADS) {
            let load = Load { socket: service.socket(), connections, concurrency, seconds };
            line.round(service, load, &mut self.requests)?;
        }
        if raw == Turn::Last { self.raw_round(seconds) } else { Ok(()) }
    }

    fn raw_round(&mut self, seconds: Duration) -> Result<()> {
        self.raw.as_mut().map_or(Ok(()), |raw| raw.round(seconds))
    }

    fn tell(self, report: &mut Report) -> Result<()> {
        for (line, (connections, concurrency)) in self.lines.into_iter().zip(LOADS) {
            report.measurements.push(line.measurement(self.operation, connections, concurrency, self.raw.as_ref())?);
        }
        Ok(())
    }
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

    /// What comes through of what all processors do raw, in the round in the middle: the two lie so close together that the host was the same.
    fn share_of(&self, raw: &Raw) -> f64 {
        let share = |(ours, raw): (&Figures, &Rates)| ours.requests_per_second / raw.all_cores;
        let mut shares: Vec<_> = self.rounds.iter().zip(raw.rounds()).map(share).collect();
        shares.sort_by(f64::total_cmp);
        shares[shares.len() / 2]
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
    fn measurement(
        mut self,
        operation: Operation,
        connections: Connections,
        concurrency: usize,
        raw: Option<&Raw>,
    ) -> Result<Measurement> {
        let share_of_raw = raw.map(|raw| self.share_of(raw));
        self.rounds.sort_by(|one, other| one.requests_per_second.total_cmp(&other.requests_per_second));
        let figures = *self.rounds.last().context("nothing was measured")?;
        let (resident_before_kib, resident_after_kib) = self.resident.context("nothing was measured")?;
        Ok(Measurement {
            operation,
            connections,
            concurrency,
            raw: raw.map(Raw::best),
            share_of_raw,
            figures,
            median_requests_per_second: self.rounds[self.rounds.len() / 2].requests_per_second,
            processor_us: self.worked.as_secs_f64() * 1e6 / self.requests as f64,
            resident_before_kib,
            resident_after_kib,
        })
    }
}
