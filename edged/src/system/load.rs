//! The load of the processors, between two looks at the kernel's counters.

use std::time::{Duration, Instant};

use super::{Machine, MachineError};

const FILE: &str = "proc/stat";
/// Counters move a hundred times a second: over a shorter time they say little.
const SHORTEST: Duration = Duration::from_millis(500);

/// Ticks of all processors since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    busy: u64,
    total: u64,
}

impl Sample {
    /// Blocks on a file.
    pub(super) fn read(machine: &Machine) -> Result<Self, MachineError> {
        let text = machine.read(FILE)?;
        Self::parse(&text).ok_or_else(|| MachineError::Unexpected { path: machine.path(FILE), what: "line `cpu`" })
    }

    /// user nice system idle iowait irq softirq steal; the two that follow are counted under the first two already.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|ticks| ticks.parse().ok()).collect();
        let total: u64 = ticks.iter().sum();
        let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
        Some(Self { busy: total - idle, total })
    }
}

/// What the last answer was, and what the next one is reckoned from.
#[derive(Debug)]
pub(super) struct Load {
    since: Sample,
    at: Option<Instant>,
    percent: f32,
}

impl Load {
    /// The first answer is the load since `sample`, which was taken at the start.
    pub(super) fn new(sample: Sample) -> Self {
        Self { since: sample, at: None, percent: 0.0 }
    }

    /// The load of all processors together since the last look, 0 to 100. Who asks again at once gets the same answer.
    pub(super) fn percent(&mut self, sample: Sample, now: Instant) -> f32 {
        let is_new = self.at.is_none_or(|at| now.saturating_duration_since(at) >= SHORTEST);
        let total = sample.total.saturating_sub(self.since.total);
        if is_new && total > 0 {
            let busy = sample.busy.saturating_sub(self.since.busy);
            self.percent = share(busy, total);
            (self.since, self.at) = (sample, Some(now));
        }
        self.percent
    }
}

/// In steps of a hundredth of a percent, which is finer than the counters.
fn share(busy: u64, total: u64) -> f32 {
    let hundredths = u128::from(busy.min(total)) * 10_000 / u128::from(total);
    f32::from(u16::try_from(hundredths).unwrap_or(10_000)) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str) -> Sample {
        Sample::parse(text).unwrap()
    }

    #[test]
    fn waiting_for_a_disk_is_idle_and_guests_are_not_counted_twice() {
        let sample = sample("cpu  100 10 50 800 40 5 5 2 90 9\ncpu0 1 1 1 1\n");
        assert_eq!(sample, Sample { busy: 172, total: 1012 });
        assert_eq!(Sample::parse("intr 1\n"), None);
        assert_eq!(Sample::parse("cpu 1 2 x\n"), None);
    }

    #[test]
    fn the_load_is_that_since_the_last_look() {
        let begun = Instant::now();
        let mut load = Load::new(Sample { busy: 100, total: 1_000 });
        assert_eq!(load.percent(Sample { busy: 150, total: 1_200 }, begun).to_string(), "25");
        let again = begun + Duration::from_millis(100);
        assert_eq!(load.percent(Sample { busy: 152, total: 1_202 }, again).to_string(), "25", "too soon");
        let later = begun + Duration::from_secs(10);
        assert_eq!(load.percent(Sample { busy: 153, total: 3_200 }, later).to_string(), "0.15");
        let unmoved = begun + Duration::from_secs(20);
        assert_eq!(load.percent(Sample { busy: 153, total: 3_200 }, unmoved).to_string(), "0.15");
    }
}
