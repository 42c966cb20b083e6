//! When attempts at provisioning are made, and who learns of their end.
//!
//! One task makes all of them, one after the other: at the start, when somebody asks, when the settings change, and again and again, ever more
//! rarely, while something is unfinished. Whoever asks while an attempt is under way waits for that one. Other provisioning settings end it.

use std::{sync::Arc, time::Duration};

use aziot_http::retry::LONGEST_RETRY_AFTER;
use aziot_log::chain;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    attempts::{Attempts, Outcome, Trigger},
    error::Error,
    provisioning::Provisioner,
    settings::Settings,
};

/// Callers that may wait for a reprovisioning.
pub(crate) const WISHES: usize = 64;

/// Callers that ask again and again share one registration, or one failed attempt, per second at most.
const GAP: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What others want of the task.
pub(crate) enum Wish {
    /// Register anew, and say how it ended.
    Reprovision(oneshot::Sender<Result<(), Error>>),
    /// Register anew: what DPS knows may not be what the device has.
    Register,
    /// The settings have changed.
    Reload,
}

/// Wishes that no attempt has fulfilled yet.
#[derive(Default)]
struct Wanted {
    /// Those who wait for a registration.
    callers: Vec<oneshot::Sender<Result<(), Error>>>,
    register: bool,
    reload: bool,
}

impl Wanted {
    fn note(&mut self, wish: Wish) {
        match wish {
            Wish::Reprovision(caller) => self.callers.push(caller),
            Wish::Register => self.register = true,
            Wish::Reload => self.reload = true,
        }
    }

    /// Tells those who wait for a registration how it ended.
    fn answer(&mut self, result: &Result<(), Error>) {
        for caller in self.callers.drain(..) {
            // The caller may have hung up.
            let _: Result<(), _> = caller.send(result.clone());
        }
    }

    /// The reason to register anew, if there is one.
    fn registration(&self) -> Option<Trigger> {
        if self.callers.is_empty() { self.register.then_some(Trigger::Renewal) } else { Some(Trigger::Api) }
    }
}

/// The cloud wants to be left alone: who asks for a registration with these settings meanwhile learns how the last one failed.
struct Rest {
    until: Instant,
    used: Arc<Settings>,
    error: Error,
}

impl Rest {
    /// What the cloud wished in an attempt that ended so, within reason.
    fn of(outcome: &Outcome) -> Option<Self> {
        let (used, error) = (outcome.registered.as_ref()?, outcome.result.as_ref().err()?);
        let until = Instant::now() + error.retry_after()?.min(LONGEST_RETRY_AFTER);
        Some(Self { until, used: Arc::clone(used), error: error.clone() })
    }
}

/// Decides when attempts are made.
pub(crate) struct Schedule {
    /// What makes them.
    pub(crate) attempts: Attempts,
    wishes: mpsc::Receiver<Wish>,
    wanted: Wanted,
    rest: Option<Rest>,
    backoff: Backoff,
}

impl Schedule {
    /// A schedule for this provisioner that listens to `wishes`.
    #[must_use]
    pub(crate) fn new(provisioner: Provisioner, wishes: mpsc::Receiver<Wish>) -> Self {
        let (attempts, wanted, backoff) = (Attempts::new(provisioner), Wanted::default(), Backoff::default());
        Self { attempts, wishes, wanted, rest: None, backoff }
    }

    /// Runs until nobody can have wishes any more.
    pub(crate) async fn run(mut self) {
        let credentials = Arc::clone(&self.attempts.provisioner.credentials);
        tokio::select! {
            () = self.make_attempts() => {}
            () = credentials.run() => {}
        }
    }

    async fn make_attempts(&mut self) {
        let mut trigger = Trigger::Startup;
        loop {
            let Some(outcome) = self.attempt(trigger).await else {
                tracing::info!("the provisioning settings have changed: beginning anew");
                trigger = Trigger::ConfigurationFileUpdate;
                continue;
            };
            self.attempts.provisioner.situation.send_modify(|situation| situation.first_attempt_ended = true);
            while let Ok(wish) = self.wishes.try_recv() {
                self.wanted.note(wish);
            }
            let pause = self.judge(trigger, &outcome.result);
            let due = pause.map(|pause| Instant::now() + pause);
            let spaced = outcome.registered.is_some() || outcome.result.is_err();
            if outcome.registered.is_some() {
                self.rest = Rest::of(&outcome);
            }
            self.answer(outcome);
            let Some(next) = self.next(due, spaced.then(|| Instant::now() + GAP)).await else { return };
            trigger = next;
        }
    }

    /// Makes an attempt; `None` if it was given up because other provisioning settings have come into force.
    async fn attempt(&mut self, trigger: Trigger) -> Option<Outcome> {
        let settings = Arc::clone(&self.attempts.provisioner.settings);
        let begun = settings.load_full();
        let mut attempt = std::pin::pin!(self.attempts.make(trigger));
        loop {
            tokio::select! {
                outcome = &mut attempt => return Some(outcome),
                Some(wish) = self.wishes.recv() => {
                    self.wanted.note(wish);
                    if self.wanted.reload && settings.load().source != begun.source {
                        self.wanted.reload = false;
                        return None;
                    }
                }
            }
        }
    }

    /// Tells those who wait for a registration how it ended.
    fn answer(&mut self, outcome: Outcome) {
        if outcome.registered.is_some_and(|used| self.attempts.is_in_force(&used)) {
            self.wanted.answer(&outcome.result);
        }
    }

    /// When the cloud can be asked again; those who wait for that are answered. `None` if it can be asked now.
    fn resting(&mut self) -> Option<Instant> {
        let Rest { until, used, error } = self.rest.as_ref()?;
        if *until <= Instant::now() || !self.attempts.is_in_force(used) {
            return None;
        }
        self.wanted.answer(&Err(error.clone()));
        Some(*until)
    }

    /// Waits for the next attempt: it is `due` if nobody wishes one before, and no registration is made before `spaced`, nor while the cloud wants to
    /// be left alone. `None` at the end.
    async fn next(&mut self, due: Option<Instant>, spaced: Option<Instant>) -> Option<Trigger> {
        loop {
            let earliest = spaced.max(self.resting());
            let registration = self.wanted.registration();
            if registration.is_some() && earliest.is_none_or(|earliest| earliest <= Instant::now()) {
                self.wanted.register = false;
                return registration;
            }
            if std::mem::take(&mut self.wanted.reload) {
                let provisioner = &self.attempts.provisioner;
                provisioner.adopt(&provisioner.settings.load_full());
                if self.attempts.is_unfinished() {
                    return Some(Trigger::ConfigurationFileUpdate);
                }
            }
            tokio::select! {
                wish = self.wishes.recv() => self.wanted.note(wish?),
                () = until(earliest), if registration.is_some() => {}
                () = until(due) => return Some(Trigger::Retry),
            }
        }
    }

    /// Logs how an attempt ended and says when the next is due, if any.
    fn judge(&mut self, trigger: Trigger, result: &Result<(), Error>) -> Option<Duration> {
        if result.is_ok() {
            self.backoff = Backoff::default();
        }
        let asked = result.as_ref().err().and_then(Error::retry_after);
        let pause = self.attempts.is_unfinished().then(|| self.backoff.next(asked));
        let Err(error) = result else {
            tracing::info!("{trigger:?} provisioning complete");
            return pause;
        };
        let delay_ms = pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        let chain = chain(error).to_string();
        if error.is_untrusted() {
            tracing::error!(
                delay_ms,
                error = chain,
                "the cloud's certificate is not trusted; check the clock, the host names in [provisioning] and the system's root certificates"
            );
        } else if self.attempts.provisioner.device().is_none() {
            tracing::error!(
                delay_ms,
                "Failed to provision with IoT Hub, and no valid device backup was found: {chain}"
            );
        } else if error.is_offline() {
            tracing::warn!(delay_ms, "could not reach the cloud, going on with the device that is known: {chain}");
        } else {
            tracing::error!(
                delay_ms,
                "{trigger:?} provisioning failed, going on with the device that is known: {chain}"
            );
        }
        pause
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Pauses that grow from 5 s to 5 min, up to a half longer or shorter at random, so that a fleet does not come back in step.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next pause; not shorter than the cloud has `asked` for within reason.
    fn next(&mut self, asked: Option<Duration>) -> Duration {
        let base = SHORTEST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        let pause = base.mul_f64(0.5 + fastrand::f64());
        asked.map_or(pause, |asked| pause.max(asked.min(LONGEST_PAUSE) + base.mul_f64(fastrand::f64())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap() {
        let mut backoff = Backoff::default();
        let pauses: Vec<f64> = (0..12).map(|_| backoff.next(None).as_secs_f64()).collect();
        for (pause, expected) in pauses.iter().zip([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]) {
            assert!((expected * 0.5..=expected * 1.5).contains(pause), "{pauses:?}");
        }
    }

    #[test]
    fn first_pauses_of_a_fleet_are_spread_and_the_clouds_wish_is_a_minimum() {
        let first = |asked: Option<u64>| {
            let pause = |_| Backoff::default().next(asked.map(Duration::from_secs)).as_secs_f64();
            let mut pauses: Vec<f64> = (0..1000).map(pause).collect();
            pauses.sort_by(f64::total_cmp);
            pauses
        };
        for (asked, least, cap) in [(None, 2.5, 7.5), (Some(20), 20.0, 25.0), (Some(1_000_000), 300.0, 305.0)] {
            let pauses = first(asked);
            assert!(pauses[0] >= least && pauses[999] <= cap, "{asked:?}: {} to {}", pauses[0], pauses[999]);
            assert!(pauses[900] - pauses[100] > 3.0, "{asked:?}: {} to {}", pauses[100], pauses[900]);
        }
    }
}
