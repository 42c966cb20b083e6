//! One attempt after the other: to give the device its identity where it lacks it, and the hub its modules.
//!
//! An attempt may be dropped at any of its waits; what it leaves then is what a crash would leave.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    device::Device,
    error::Error,
    provisioning::{Backup, Provisioned, Provisioner},
    settings::{LONGEST_WAIT, Settings, Source},
};

/// Time for one attempt: enough for DPS to decide and for a hub that is slow. What is unfinished then is left to the next.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(420);
const _: () = assert!(LONGEST_ATTEMPT.as_secs() < LONGEST_WAIT.as_secs(), "those who wait see the end of an attempt");
/// After DPS gave a device that its hub then refused, DPS is not asked again for so long, unless somebody wishes it.
const REGISTRATION_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Why an attempt is made; the names appear in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    Startup,
    ConfigurationFileUpdate,
    Retry,
    Renewal,
    Api,
}

impl Trigger {
    /// Whether the device is registered anew in any case.
    fn registers(self) -> bool {
        matches!(self, Self::Renewal | Self::Api)
    }
}

/// How an attempt ended.
pub(crate) struct Outcome {
    /// What came of it.
    pub(crate) result: Result<(), Error>,
    /// The settings by which the device was registered anew, or that was tried: what callers of R9 ask for.
    pub(crate) registered: Option<Arc<Settings>>,
}

/// Makes the attempts, and remembers what is left to do.
pub(crate) struct Attempts {
    /// What does the work.
    pub(crate) provisioner: Provisioner,
    /// The modules of the last reconciliation of the present device.
    reconciled: Option<BTreeSet<String>>,
    /// When DPS gave the present device, unless its hub has accepted it since.
    unaccepted_since: Option<Instant>,
    /// Time for one attempt.
    pub(crate) longest: Duration,
}

impl Attempts {
    /// None made yet.
    #[must_use]
    pub(crate) fn new(provisioner: Provisioner) -> Self {
        Self { provisioner, reconciled: None, unaccepted_since: None, longest: LONGEST_ATTEMPT }
    }

    /// Makes one.
    pub(crate) async fn make(&mut self, trigger: Trigger) -> Outcome {
        let mut registered = None;
        let ended = timeout(self.longest, self.provision_and_reconcile(trigger, &mut registered)).await;
        Outcome { result: ended.unwrap_or(Err(Error::StillProvisioning)), registered }
    }

    async fn provision_and_reconcile(
        &mut self,
        trigger: Trigger,
        registered: &mut Option<Arc<Settings>>,
    ) -> Result<(), Error> {
        self.provisioner.adopt(&self.provisioner.settings.load_full());
        let device = match self.provisioner.device().filter(|device| self.is_in_force(&device.settings)) {
            Some(device) if !trigger.registers() && !self.provisioner.has_lost_key(&device.settings).await => {
                Some(device)
            }
            _ => {
                let backup = if trigger.registers() { Backup::Forbidden } else { Backup::Allowed };
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
        if reconciled.as_ref().map_or_else(is_answer_to_ours, |_| true) {
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
        // If this fails halfway, DPS or the TPM may not have what the present device has: its hub must be asked.
        self.reconciled = None;
        let Provisioned { device, from_backup } = self.provisioner.provision(&settings, backup).await?;
        if from_backup {
            *registered = None;
        }
        self.unaccepted_since = (!from_backup).then(Instant::now);
        Ok(device)
    }

    /// Whether these settings provision the device as those that are in force now: one who asks after a change wants the change.
    pub(crate) fn is_in_force(&self, used: &Settings) -> bool {
        used.source == self.provisioner.settings.load().source
    }

    /// Whether the device lacks its identity, or the hub its modules.
    pub(crate) fn is_unfinished(&self) -> bool {
        let settings = self.provisioner.settings.load();
        match self.provisioner.device() {
            None => settings.source != Source::Off,
            Some(device) => {
                !self.is_in_force(&device.settings)
                    || self.reconciled.as_ref() != Some(settings.principals.hub_modules())
            }
        }
    }
}

/// Whether the hub itself has answered, and as to a device of its own. What cannot be proved or trusted on this side says nothing about that.
fn is_answer_to_ours(error: &Error) -> bool {
    match error {
        Error::Hub(answer) => answer.status().is_some() && !error.is_offline(),
        Error::ModuleUnavailable(unavailable) => unavailable.source.status().is_some() && !error.is_offline(),
        _ => false,
    }
}
