//! Keeps the agent running: looks at once, then each minute, and starts or makes it as needed. Between two rounds it restarts the modules when
//! their certificates have lost their issuer; a request to reprovision ends it at any time.
//!
//! Only the engine's word that there is no agent leads to a new one: a busy engine is asked again. An agent that ends as often as it is
//! started is started ever more seldom, up to a limit. What the agent does about other modules is not looked at.

mod containers;
mod requests;
mod restart;
mod round;

use std::{pin::pin, sync::Arc, time::Duration};

use aziot_edged_api::config::MaxRetries;
use aziot_log::{chain, fields};
use tokio::time::{Instant, sleep_until};

pub(crate) use containers::Containers;
pub(crate) use requests::Requests;
pub(crate) use round::{Runtime, Tended};

use crate::{error::BoxError, service_manager};

/// Time from the end of one round to the next one.
const PERIOD: Duration = Duration::from_secs(60);
/// Rounds in a row that may have to start the agent before the pauses grow.
const PATIENCE: u32 = 3;
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Too many rounds in a row have failed.
#[derive(Debug, thiserror::Error)]
#[error("Watchdog error count has exceeded allowed retries")]
pub(crate) struct GivenUp(#[source] BoxError);

/// The device is to be provisioned anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReprovisionRequested;

/// Keeps the agent running.
pub(crate) struct Watchdog<R> {
    runtime: R,
    requests: Arc<Requests>,
    max_retries: MaxRetries,
}

impl<R: Runtime> Watchdog<R> {
    /// Nothing is done yet.
    pub(crate) fn new(runtime: R, requests: Arc<Requests>, max_retries: MaxRetries) -> Self {
        Self { runtime, requests, max_retries }
    }

    /// Runs until somebody wants the device to be provisioned anew. A round under way is dropped then.
    pub(crate) async fn run(&self) -> Result<ReprovisionRequested, GivenUp> {
        tokio::select! {
            () = self.requests.reprovision_wanted() => Ok(ReprovisionRequested),
            given_up = self.watch() => Err(given_up),
            never = service_manager::stay_alive() => match never {},
        }
    }

    async fn watch(&self) -> GivenUp {
        let mut record = Record::default();
        loop {
            let outcome = self.runtime.tend().await;
            let is_over = record.add(outcome.as_ref().ok().copied(), self.max_retries);
            if let Err(error) = outcome {
                tracing::warn!(
                    { fields::ERROR } = %chain(&*error),
                    { fields::ATTEMPT } = record.failures,
                    "the agent could not be looked after"
                );
                if is_over {
                    return GivenUp(error);
                }
            }
            self.pause(record.pause()).await;
        }
    }

    /// Waits for the next round, and restarts the modules meanwhile if they have to. Where the engine does not tell which ones that are, it
    /// is asked again after that round.
    async fn pause(&self, pause: Duration) {
        let mut next_round = pin!(sleep_until(Instant::now() + pause));
        let mut may_restart = true;
        loop {
            tokio::select! {
                () = &mut next_round => return,
                () = self.requests.restart_wanted(), if may_restart => {
                    if restart::restart(&self.runtime).await.is_err() {
                        self.requests.restart_modules();
                        may_restart = false;
                    }
                }
            }
        }
    }
}

/// How the last rounds went.
#[derive(Debug, Default)]
struct Record {
    /// Rounds in a row that failed.
    failures: u32,
    /// Rounds in a row that had to start the agent.
    starts: u32,
}

impl Record {
    /// Notes a round, a failed one by `None`, and tells whether it was one failure too many.
    fn add(&mut self, outcome: Option<Tended>, max_retries: MaxRetries) -> bool {
        match outcome {
            Some(Tended::Running) => *self = Self::default(),
            Some(Tended::Started) => *self = Self { failures: 0, starts: self.starts.saturating_add(1) },
            Some(Tended::Busy) => {}
            None => self.failures = self.failures.saturating_add(1),
        }
        let is_failure = outcome.is_none();
        is_failure && matches!(max_retries, MaxRetries::Number(most) if self.failures >= most)
    }

    fn pause(&self) -> Duration {
        if self.failures == 0 && self.starts == 0 {
            return PERIOD;
        }
        let doublings = self.starts.saturating_sub(PATIENCE);
        let stretched = PERIOD.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        // Not all devices of a site that lost its registry or its power start or make their agents in the same second.
        stretched.min(LONGEST_PAUSE).mul_f64(1.0 - fastrand::f64() * 0.1)
    }
}

#[cfg(test)]
mod tests;
