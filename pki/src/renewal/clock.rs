//! The wall clock, and word of when it is set.
//!
//! Certificates end by the wall clock, while a sleep counts time that runs evenly. A device without a clock of its own starts
//! in 1970 and learns the date later; one that was suspended, or whose operator sets the clock, jumps as well.

use std::{
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::OnceCell,
};

/// Time and chance, as the engine sees them.
pub trait Clock: Send + Sync {
    /// The date.
    fn now(&self) -> SystemTime;

    /// Waits until the clock is set, if that can be told; otherwise for ever. Only one task may wait.
    fn wait_until_set(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Which part of the longest jitter is added to a wait, from 0 to 1: drawn anew each time.
    fn jitter(&self) -> f64 {
        fastrand::f64()
    }
}

/// The clock of this system.
#[derive(Debug, Default)]
pub struct SystemClock {
    /// Made at the first wait, which is in a runtime.
    timer: OnceCell<Option<AsyncFd<OwnedFd>>>,
}

impl SystemClock {
    /// The clock of this system.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    async fn wait(&self) {
        let timer = self.timer.get_or_init(|| async { timer().inspect_err(unknowable).ok() }).await;
        let Some(timer) = timer else { return std::future::pending().await };
        loop {
            let mut ready = match timer.readable().await {
                Ok(ready) => ready,
                Err(error) => {
                    unknowable(&error);
                    return std::future::pending().await;
                }
            };
            let mut expirations = [0; 8];
            match rustix::io::read(timer.get_ref(), &mut expirations) {
                Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                // Cancelled, because the clock was set; or it has come to the timer's own date, at the end of time.
                _ => return,
            }
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn wait_until_set(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.wait())
    }
}

fn unknowable(error: &std::io::Error) {
    tracing::info!({ aziot_log::fields::ERROR } = %error, "cannot tell when the clock is set; looking at it each minute");
}

/// A timer that never ends, and that the kernel cancels when the clock is set or the system resumes: `timerfd_create(2)`.
fn timer() -> std::io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 },
    };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
    #[expect(deprecated, reason = "what its unsafe successor asks of the caller, an OwnedFd guarantees")]
    AsyncFd::with_interest(timer, Interest::READABLE)
}

/// Whole seconds since 1970, rounded down; before 1970 negative.
pub(super) fn seconds(time: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => {
            let before = before.duration();
            (-whole(before)).saturating_sub(i64::from(before.subsec_nanos() > 0))
        }
    }
}

/// Time from `now` until the clock shows `until`; zero if it has passed.
pub(super) fn remaining(now: SystemTime, until: i64) -> Duration {
    let seconds_left = until.saturating_sub(seconds(now));
    let fraction = match now.duration_since(UNIX_EPOCH) {
        Ok(since) => Duration::from_nanos(since.subsec_nanos().into()),
        Err(_) => Duration::ZERO,
    };
    Duration::from_secs(u64::try_from(seconds_left).unwrap_or(0)).saturating_sub(fraction)
}

/// A date as people read it, in UTC.
pub(super) fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |date| date.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_nobody_sets_says_nothing() {
        let clock = SystemClock::new();
        let waited = tokio::time::timeout(Duration::from_secs(3600), clock.wait_until_set()).await;
        assert!(waited.is_err(), "said to be set");
        assert!(clock.timer.get().is_some_and(Option::is_some), "the kernel made no timer");
    }

    #[test]
    fn seconds_are_rounded_down_on_both_sides_of_1970() {
        let (second, half) = (Duration::from_secs(1), Duration::from_millis(500));
        for (time, expected) in [
            (UNIX_EPOCH, 0),
            (UNIX_EPOCH + second + half, 1),
            (UNIX_EPOCH - half, -1),
            (UNIX_EPOCH - second, -1),
            (UNIX_EPOCH - second - half, -2),
        ] {
            assert_eq!(seconds(time), expected, "{time:?}");
        }
        assert_eq!(remaining(UNIX_EPOCH + half, 1), half);
        assert_eq!(remaining(UNIX_EPOCH + second, 1), Duration::ZERO);
        assert_eq!(remaining(UNIX_EPOCH + second, i64::MIN), Duration::ZERO);
        assert_eq!(date(1_767_225_600), "2026-01-01T00:00:00Z");
    }
}
