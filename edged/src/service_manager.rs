//! What the service manager is told beside readiness: what is going on, that a start takes longer, that the process is alive.
//!
//! Without a service manager nothing happens.

use std::{convert::Infallible, pin::pin, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// How often a long start asks for more time, and how much it asks for.
const EXTENSION_PERIOD: Duration = Duration::from_secs(20);
const EXTENSION: Duration = Duration::from_secs(90);

/// Says in a few words what is going on; `systemctl status` shows it.
pub(crate) fn status(text: &str) {
    notify(&NotifyState::Status(text));
}

/// Runs a part of the start that may take as long as it likes.
pub(crate) async fn without_start_limit<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut period = interval(EXTENSION_PERIOD);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = period.tick() => {
                let microseconds = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
                notify(&NotifyState::ExtendTimeoutUsec(microseconds));
            }
        }
    }
}

/// Tells, for as long as it is polled, that the process is alive, if the service manager wants to know.
pub(crate) async fn stay_alive() -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut period = interval((limit / 2).max(Duration::from_millis(1)));
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        notify(&NotifyState::Watchdog);
    }
}

fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, "could not notify the service manager");
    }
}
