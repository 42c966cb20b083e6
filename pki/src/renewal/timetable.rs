//! When a certificate is renewed and how long one waits after a failure: the arithmetic of the public system, to the second.
//!
//! All times are seconds since 1970 by the wall clock, all divisions are those of integers. Jitter is not added here.

use aziot_certd_api::renewal::{AutoRenew, Period};

use crate::certificate::Validity;

/// Counts in place of a threshold that is longer than the lifetime: by it each certificate would be due as soon as it is
/// there, and renewed for ever.
const SUBSTITUTE_PERCENT: u8 = 80;

/// The dates that follow from a leaf and its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timetable {
    validity: Validity,
    threshold: Threshold,
    retry_period: i64,
    substituted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Threshold {
    Percent(i64),
    SecondsBeforeEnd(i64),
}

/// The certificate has no time left in which it could be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is over, or ends before it begins")]
pub struct Over;

impl Timetable {
    /// For a leaf with these dates.
    #[must_use]
    pub fn new(validity: Validity, policy: &AutoRenew) -> Self {
        let lifetime = lifetime(validity);
        let wanted = match policy.threshold {
            Period::Percent(percent) => Threshold::Percent(percent.into()),
            Period::Minutes(minutes) => Threshold::SecondsBeforeEnd(seconds(minutes.get())),
        };
        let substituted = matches!(wanted, Threshold::SecondsBeforeEnd(seconds) if lifetime > 0 && seconds >= lifetime);
        let retry_period = match policy.retry {
            Period::Percent(percent) => part(lifetime, percent.into()),
            Period::Minutes(minutes) => seconds(minutes.get()),
        };
        let threshold = if substituted { Threshold::Percent(SUBSTITUTE_PERCENT.into()) } else { wanted };
        Self { validity, threshold, retry_period: retry_period.max(1), substituted }
    }

    /// Whether the policy's threshold is as long as the lifetime or longer, so that 80 % counts in its place.
    #[must_use]
    pub fn is_substituted(&self) -> bool {
        self.substituted
    }

    /// When it is renewed.
    #[must_use]
    pub fn deadline(&self) -> i64 {
        let (lifetime, not_after) = (lifetime(self.validity), self.validity.not_after);
        match self.threshold {
            Threshold::Percent(percent) => not_after.saturating_sub(lifetime - part(lifetime, percent)),
            Threshold::SecondsBeforeEnd(seconds) => not_after.saturating_sub(seconds),
        }
    }

    /// Time from a failed attempt to the next one, at least a second.
    #[must_use]
    pub fn retry_period(&self) -> i64 {
        self.retry_period
    }

    /// The deadline, or a retry period from now if that has passed.
    pub fn next_renewal(&self, now: i64) -> Result<i64, Over> {
        if self.validity.is_over(now) {
            return Err(Over);
        }
        let deadline = self.deadline();
        Ok(if deadline <= now { now.saturating_add(self.retry_period) } else { deadline })
    }
}

fn lifetime(validity: Validity) -> i64 {
    validity.not_after.saturating_sub(validity.not_before)
}

fn part(lifetime: i64, percent: i64) -> i64 {
    lifetime.saturating_mul(percent) / 100
}

fn seconds(minutes: u64) -> i64 {
    i64::try_from(minutes.saturating_mul(60)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(not_before: i64, not_after: i64, (threshold, retry): (&str, &str)) -> Timetable {
        let policy =
            AutoRenew { rotate_key: true, threshold: threshold.parse().unwrap(), retry: retry.parse().unwrap() };
        Timetable::new(Validity { not_before, not_after }, &policy)
    }

    /// The unit cases of the specification, at 0; its second case is in seconds, which configuration cannot say.
    #[test]
    fn the_next_renewal_is_the_deadline_or_a_retry_period_away() {
        for (from, to, threshold, retry, next, period) in
            [(-5, 5, "60%", "20%", 1, 2), (-60, 40, "50%", "4%", 4, 4), (-50, 50, "80%", "4%", 30, 4)]
        {
            let table = table_of(from, to, (threshold, retry));
            assert_eq!((table.next_renewal(0), table.retry_period()), (Ok(next), period), "{from} to {to}");
        }
        let seconds = Timetable {
            validity: Validity { not_before: -5, not_after: 5 },
            threshold: Threshold::SecondsBeforeEnd(1),
            retry_period: 1,
            substituted: false,
        };
        assert_eq!(seconds.next_renewal(0), Ok(4));
        for (from, to) in [(5, 1), (-10, -5), (5, 5), (-5, 0)] {
            let table = table_of(from, to, ("80%", "4%"));
            assert_eq!(table.next_renewal(0), Err(Over), "{from} to {to}");
        }
    }

    #[test]
    fn a_percentage_is_truncated() {
        let table = table_of(0, 7, ("80%", "20%"));
        assert_eq!((table.deadline(), table.retry_period()), (5, 1));
        assert_eq!(table_of(0, 20, ("80%", "4%")).retry_period(), 1, "0 is raised to 1");
    }

    #[test]
    fn absolute_times_count_from_the_end() {
        const DAY: i64 = 86_400;
        let table = table_of(0, 30 * DAY, ("10day", "60min"));
        assert_eq!((table.deadline(), table.retry_period()), (20 * DAY, 3600));
        assert!(!table.is_substituted());
    }

    #[test]
    fn a_threshold_longer_than_the_lifetime_counts_as_80_percent() {
        const DAY: i64 = 86_400;
        for threshold in ["45day", "30day", "307445734561825860min"] {
            let table = table_of(0, 30 * DAY, (threshold, "1day"));
            assert!(table.is_substituted());
            assert_eq!((table.deadline(), table.retry_period()), (24 * DAY, DAY));
        }
    }

    #[test]
    fn no_date_and_no_clock_overflows() {
        for (from, to) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (0, i64::MAX), (i64::MIN, 0)] {
            for threshold in ["1%", "99%", "1min", "307445734561825860min"] {
                let table = table_of(from, to, (threshold, "99%"));
                for now in [i64::MIN, 0, i64::MAX] {
                    let _ = (table.deadline(), table.next_renewal(now));
                }
            }
        }
    }
}
