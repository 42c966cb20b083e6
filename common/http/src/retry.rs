//! When a call that got no answer is sent again: jittered, capped, and within the time that its caller can wait.

use std::time::Duration;

/// How often and how long one call is tried.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Attempts after the first one.
    pub retries: u32,
    /// Time for one attempt, body included.
    pub attempt: Duration,
    /// Time for all attempts and the pauses between them.
    pub total: Duration,
}

/// Pause before a repetition where the server asks for none.
const PAUSE: Duration = Duration::from_secs(3);
/// Longest pause that a server may ask for.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

impl Retry {
    /// What daemons grant one another: 30 s for an attempt, and `retries` repetitions.
    #[must_use]
    pub const fn local(retries: u32) -> Self {
        Self { retries, attempt: Duration::from_secs(30), total: Duration::from_secs(30 * (retries as u64 + 1) + 10) }
    }

    /// The pause before the next attempt, or `None` when the call has failed for good.
    ///
    /// `done` counts the attempts made, `spent` the time since the first one, and `asked` is the server's Retry-After.
    #[must_use]
    pub fn pause(&self, done: u32, spent: Duration, asked: Option<Duration>) -> Option<Duration> {
        if done > self.retries {
            return None;
        }
        let base = asked.map_or(PAUSE, |asked| asked.clamp(Duration::from_millis(100), LONGEST_RETRY_AFTER));
        let pause = base.mul_f64(1.0 + fastrand::f64() * 0.2);
        (spent + pause < self.total).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_jittered_bounded_and_counted() {
        let retry = Retry { retries: 1, attempt: Duration::from_secs(30), total: Duration::from_secs(70) };
        let pause = retry.pause(1, Duration::ZERO, None).unwrap();
        assert!((3.0..3.6).contains(&pause.as_secs_f64()), "{pause:?}");
        assert!(retry.pause(2, Duration::ZERO, None).is_none(), "no second repetition");
        assert!(retry.pause(1, Duration::from_secs(68), None).is_none(), "no time left");
        let asked = retry.pause(1, Duration::ZERO, Some(Duration::from_secs(7))).unwrap();
        assert!((7.0..8.5).contains(&asked.as_secs_f64()), "{asked:?}");
        assert!(
            retry.pause(1, Duration::ZERO, Some(Duration::from_secs(3600))).is_none_or(|pause| pause.as_secs() <= 72)
        );
    }
}
