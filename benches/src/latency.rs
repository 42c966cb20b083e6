//! Latencies, counted in buckets that are never more than 1.6% wide: the memory of a run does not grow with its length.

use std::time::Duration;

/// Buckets of one power of two.
const STEPS: usize = 64;
/// Nanoseconds up to 2^40, which is 18 minutes; what is longer counts as that.
const POWERS: usize = 35;

/// How often each latency was seen.
pub(crate) struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; STEPS * POWERS], total: 0 }
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let index = index(nanoseconds).min(self.counts.len() - 1);
        self.counts[index] += 1;
        self.total += 1;
    }

    /// How many were recorded.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The latency that `share` (0 to 1) of all requests did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among far fewer than 2^52 requests"
        )]
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_end(index));
            }
        }
        Duration::ZERO
    }
}

/// Below `STEPS` every nanosecond has its bucket; above, every power of two has `STEPS` of them.
fn index(nanoseconds: u64) -> usize {
    let steps = STEPS as u64;
    if nanoseconds < steps {
        return usize::try_from(nanoseconds).unwrap_or(0);
    }
    let power = nanoseconds.ilog2() - STEPS.ilog2();
    let step = (nanoseconds >> power) - steps;
    (power as usize + 1) * STEPS + usize::try_from(step).unwrap_or(0)
}

fn upper_end(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let (power, step) = (index / STEPS - 1, index % STEPS);
    (((STEPS + step + 1) as u64) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_a_sixtyfourth_wide() {
        for nanoseconds in (0..100_000).chain([1 << 30, (1 << 35) + 12_345, 1 << 39]) {
            let upper = upper_end(index(nanoseconds));
            assert!(upper >= nanoseconds && upper - nanoseconds <= nanoseconds / 64, "{nanoseconds} -> {upper}");
        }
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut latencies = Latencies::default();
        for microseconds in 1..=100 {
            latencies.record(Duration::from_micros(microseconds));
        }
        let near = |share, microseconds: u64| {
            let found = latencies.quantile(share).as_nanos();
            let wanted = u128::from(microseconds) * 1000;
            assert!(found >= wanted && found <= wanted + wanted / 64, "{share}: {found}");
        };
        near(0.5, 50);
        near(0.99, 99);
        near(1.0, 100);
        latencies.record(Duration::from_hours(24));
        assert_eq!(latencies.total(), 101);
    }
}
