//! When attempts at provisioning are made, and who learns of their end.
//!
//! One task makes all of them, one after the other: at the start, when somebody asks, when the settings change, and again and again, ever more
//! rarely, while something is unfinished. Whoever asks while an attempt is under way waits for that one.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use aziot_log::chain;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    device::Device,
    error::Error,
    identities::LONGEST_WAIT,
    provisioning::{Backup, Provisioned, Provisioner},
    settings::{Settings, Source},
};

/// Callers that may wait for a reprovisioning.
pub(crate) const WISHES: usize = 64;

/// Callers that ask again and again share one registration, or one failed attempt, per second at most.
const GAP: Duration = Duration::from_secs(1);
/// Time for one attempt: enough for DPS to decide and for a hub that is slow. What is unfinished then is left to the next.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(420);
const _: () = assert!(LONGEST_ATTEMPT.as_secs() < LONGEST_WAIT.as_secs(), "those who wait see the end of an attempt");
/// After DPS gave a device that its hub then refused, DPS is not asked again for so long, unless somebody wishes it.
const REGISTRATION_PAUSE: Duration = Duration::from_secs(60 * 60);
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What others want of the task.
pub(crate) enum Wish {
    /// Register anew, and say how it ended.
    Reprovision(oneshot::Sender<Result<(), Error>>),
    /// The settings have changed.
    Reload,
}

/// Why an attempt is made; the names appear in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    Startup,
    ConfigurationFileUpdate,
    Retry,
    Api,
}

/// How an attempt ended.
struct Outcome {
    result: Result<(), Error>,
    /// The settings by which the device was registered anew, or that was tried: what callers of R9 ask for.
    registered: Option<Arc<Settings>>,
}

/// Makes the attempts.
pub(crate) struct Schedule {
    provisioner: Provisioner,
    wishes: mpsc::Receiver<Wish>,
    /// The modules of the last reconciliation of the present device.
    reconciled: Option<BTreeSet<String>>,
    /// When DPS gave the present device, unless its hub has accepted it since.
    unaccepted_since: Option<Instant>,
    /// Time for one attempt.
    pub(crate) longest_attempt: Duration,
    backoff: Backoff,
}

impl Schedule {
    /// A schedule for this provisioner that listens to `wishes`.
    #[must_use]
    pub(crate) fn new(provisioner: Provisioner, wishes: mpsc::Receiver<Wish>) -> Self {
        Self {
            provisioner,
            wishes,
            reconciled: None,
            unaccepted_since: None,
            longest_attempt: LONGEST_ATTEMPT,
            backoff: Backoff::default(),
        }
    }

    /// Runs until nobody can have wishes any more.
    pub(crate) async fn run(mut self) {
        let mut waiting = Vec::new();
        let mut reload = false;
        let mut trigger = Trigger::Startup;
        loop {
            let outcome = self.attempt(trigger).await;
            self.provisioner.situation.send_modify(|situation| situation.first_attempt_ended = true);
            while let Ok(wish) = self.wishes.try_recv() {
                note(wish, &mut waiting, &mut reload);
            }
            let pause = self.judge(trigger, &outcome.result);
            if outcome.registered.as_deref().is_some_and(|used| self.is_in_force(used)) {
                for caller in waiting.drain(..) {
                    // The caller may have hung up.
                    let _: Result<(), _> = caller.send(outcome.result.clone());
                }
            }
            let due = pause.map(|pause| Instant::now() + pause);
            let spaced = outcome.registered.is_some() || outcome.result.is_err();
            let earliest = spaced.then(|| Instant::now() + GAP);
            trigger = loop {
                if !waiting.is_empty() && earliest.is_none_or(|earliest| earliest <= Instant::now()) {
                    break Trigger::Api;
                }
                if std::mem::take(&mut reload) && self.is_unfinished() {
                    break Trigger::ConfigurationFileUpdate;
                }
                tokio::select! {
                    wish = self.wishes.recv() => match wish {
                        Some(wish) => note(wish, &mut waiting, &mut reload),
                        None => return,
                    },
                    () = until(earliest), if !waiting.is_empty() => break Trigger::Api,
                    () = until(due) => break Trigger::Retry,
                }
            };
        }
    }

    async fn attempt(&mut self, trigger: Trigger) -> Outcome {
        let mut registered = None;
        let ended = timeout(self.longest_attempt, self.provision_and_reconcile(trigger, &mut registered)).await;
        Outcome { result: ended.unwrap_or(Err(Error::StillProvisioning)), registered }
    }

    async fn provision_and_reconcile(
        &mut self,
        trigger: Trigger,
        registered: &mut Option<Arc<Settings>>,
    ) -> Result<(), Error> {
        let device = match self.provisioner.device() {
            Some(device) if trigger != Trigger::Api => Some(device),
            _ => {
                let backup = if trigger == Trigger::Api { Backup::Forbidden } else { Backup::Allowed };
                self.provision(backup, registered).await?
            }
        };
        let Some(mut device) = device else { return Ok(()) };
        let mut reconciled = self.reconcile(&device).await;
        let rejected = reconciled.as_ref().is_err_and(Error::is_device_rejected);
        let lately = self.unaccepted_since.is_some_and(|since| since.elapsed() < REGISTRATION_PAUSE);
        if rejected && !lately && matches!(device.settings.source, Source::Dps(_)) {
            tracing::warn!("the hub does not know this device (any more): registering anew");
            let Some(new) = self.provision(Backup::Forbidden, registered).await? else { return Ok(()) };
            device = new;
            reconciled = self.reconcile(&device).await;
        }
        self.reconciled = Some(reconciled?);
        Ok(())
    }

    async fn reconcile(&mut self, device: &Device) -> Result<BTreeSet<String>, Error> {
        let reconciled = self.provisioner.reconcile(device).await;
        let accepted =
            reconciled.as_ref().map_or_else(|error| !error.is_device_rejected() && !error.is_offline(), |_| true);
        if accepted {
            self.unaccepted_since = None;
        }
        reconciled
    }

    async fn provision(
        &mut self,
        backup: Backup,
        registered: &mut Option<Arc<Settings>>,
    ) -> Result<Option<Arc<Device>>, Error> {
        let settings = self.provisioner.settings.load_full();
        // A failure too answers those who asked for a registration.
        *registered = Some(Arc::clone(&settings));
        let Provisioned { device, from_backup } = self.provisioner.provision(&settings, backup).await?;
        if from_backup {
            *registered = None;
        }
        self.unaccepted_since = (!from_backup).then(Instant::now);
        self.reconciled = None;
        Ok(device)
    }

    /// Whether an attempt with these settings is what callers ask for: one who asks after a change wants the change.
    fn is_in_force(&self, used: &Settings) -> bool {
        used.source == self.provisioner.settings.load().source
    }

    /// Whether the device lacks its identity, or the hub its modules.
    fn is_unfinished(&self) -> bool {
        let settings = self.provisioner.settings.load();
        match self.provisioner.device() {
            None => settings.source != Source::Off,
            Some(_) => self.reconciled.as_ref() != Some(settings.principals.hub_modules()),
        }
    }

    /// Logs how an attempt ended and says when the next is due, if any.
    fn judge(&mut self, trigger: Trigger, result: &Result<(), Error>) -> Option<Duration> {
        if result.is_ok() {
            self.backoff = Backoff::default();
        }
        let pause = self.is_unfinished().then(|| self.backoff.next());
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
        } else if self.provisioner.device().is_none() {
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

fn note(wish: Wish, waiting: &mut Vec<oneshot::Sender<Result<(), Error>>>, reload: &mut bool) {
    match wish {
        Wish::Reprovision(caller) => waiting.push(caller),
        Wish::Reload => *reload = true,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Pauses that grow from 5 s to 5 min, up to a fifth longer or shorter at random, so that a fleet does not come back in step.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let base = SHORTEST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        base.mul_f64(0.8 + fastrand::f64() * 0.4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_cap() {
        let mut backoff = Backoff::default();
        let pauses: Vec<f64> = (0..12).map(|_| backoff.next().as_secs_f64()).collect();
        for (pause, expected) in pauses.iter().zip([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]) {
            assert!((expected * 0.8..=expected * 1.2).contains(pause), "{pauses:?}");
        }
    }
}
