//! One attempt to give this device its identity: from the configuration, from the state, or from DPS; then the modules.
//!
//! Nothing that is there is given up before its successor is there, and what is there is in the state: a kill loses nothing. When attempts are
//! made is decided in `schedule`.

use std::{collections::BTreeSet, sync::Arc};

use aziot_identityd_api::config::{Config, Origin};
use aziot_log::chain;
use tokio::sync::watch;

use crate::{
    credentials::Credentials,
    device::Device,
    error::Error,
    modules::{Modules, on_disk},
    reconciliation::{self, Ours},
    registration,
    settings::{DpsSource, Proof, Settings, Shared, Source},
    state::{self, DeviceInfo, State},
};

/// What everybody may know about the device.
#[derive(Clone, Default)]
pub(crate) struct Situation {
    /// The device, if it is provisioned.
    pub(crate) device: Option<Arc<Device>>,
    /// Whether the state had that device before: its modules need not wait for the first attempt.
    pub(crate) is_known: bool,
    /// Whether the first attempt has ended, in whatever way.
    pub(crate) first_attempt_ended: bool,
}

/// Whether a device may come from the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backup {
    Allowed,
    Forbidden,
}

/// A device as it was just published.
pub(crate) struct Provisioned {
    /// None if provisioning is off.
    pub(crate) device: Option<Arc<Device>>,
    /// Whether it is the one of the state: nobody was asked.
    pub(crate) from_backup: bool,
}

/// Everything that an attempt needs.
pub(crate) struct Provisioner {
    /// The settings in force.
    pub(crate) settings: Shared,
    /// The modules.
    pub(crate) modules: Arc<Modules>,
    /// The state on disk.
    pub(crate) state: Arc<State>,
    /// What the device proves itself with.
    pub(crate) credentials: Arc<Credentials>,
    /// Where the outcome is published.
    pub(crate) situation: watch::Sender<Situation>,
}

impl Provisioner {
    /// The device as published.
    pub(crate) fn device(&self) -> Option<Arc<Device>> {
        self.situation.borrow().device.clone()
    }

    /// Gives the device the identity of these settings and publishes it. What was published before stays until this has succeeded.
    pub(crate) async fn provision(&self, settings: &Arc<Settings>, backup: Backup) -> Result<Provisioned, Error> {
        let recorded = on_disk(&self.state, State::device).await;
        let (info, from_backup) = match &settings.source {
            Source::Off => {
                tracing::info!("provisioning is off: this device has no identity");
                (None, false)
            }
            Source::Manual { info, proof } => {
                let is_told = recorded.as_ref() == Some(info) && self.tell(info, settings).await;
                let prepared = self.prepare(proof, settings).await;
                unless_told(prepared, is_told)?;
                (Some(info.clone()), false)
            }
            Source::Dps(dps) => {
                let (info, from_backup) = self.dps_device(dps, settings, backup).await?;
                (Some(info), from_backup)
            }
        };
        let is_known = recorded.is_some() && recorded == info;
        let device = info.and_then(|info| self.make(info, settings));
        // What DPS assigned is ours. Of what a person configured the hub is asked first.
        if let (Some(device), Source::Dps(dps)) = (&device, &settings.source) {
            if let Err(error) = self.record(device).await {
                tracing::warn!(error = %chain(&error), "could not record the device, a restart will need the cloud");
            }
            if dps.proof == Proof::Tpm
                && !from_backup
                && let Err(error) = on_disk(&self.state, State::end_tpm_import).await
            {
                tracing::warn!(
                    error = %chain(&error),
                    "could not note that the TPM has the device's key: the device will register once more than it must"
                );
            }
        }
        self.publish(device.clone(), is_known, settings).await;
        Ok(Provisioned { device, from_backup })
    }

    /// The device that DPS assigned before, or assigns now.
    async fn dps_device(
        &self,
        dps: &DpsSource,
        settings: &Arc<Settings>,
        backup: Backup,
    ) -> Result<(DeviceInfo, bool), Error> {
        let known = match backup {
            Backup::Allowed => self.backup(settings).await,
            Backup::Forbidden => None,
        };
        let Some(known) = known else {
            return Ok((registration::register(dps, settings, &self.credentials).await?, false));
        };
        let is_told = self.tell(&known, settings).await;
        if self.has_lost_key(settings).await {
            tracing::warn!("the key in the TPM may not be the device's: registering anew");
            return Ok((registration::register(dps, settings, &self.credentials).await?, false));
        }
        let prepared = self.prepare(&dps.proof, settings).await;
        unless_told(prepared, is_told)?;
        tracing::info!(device_id = known.device_id, hub = known.hub_name, "took the device from the state");
        Ok((known, true))
    }

    /// Whether the device proves itself by the TPM, which may have another key than the device's.
    pub(crate) async fn has_lost_key(&self, settings: &Settings) -> bool {
        settings.source.proof() == Some(&Proof::Tpm) && on_disk(&self.state, State::has_unfinished_tpm_import).await
    }

    /// Publishes a device that is known, unless another one would have to go for it; whether it did. Its modules have keys of their own: they
    /// need neither its certificate nor its TPM, nor the cloud.
    async fn tell(&self, known: &DeviceInfo, settings: &Arc<Settings>) -> bool {
        if self.device().is_some() {
            return false;
        }
        self.publish(self.make(known.clone(), settings), true, settings).await;
        true
    }

    /// Makes what the device proves itself with ready to be used.
    async fn prepare(&self, proof: &Proof, settings: &Settings) -> Result<(), Error> {
        if let Proof::X509(certificate) = proof {
            self.credentials.certificate(certificate, settings).show().await?;
        }
        Ok(())
    }

    fn make(&self, info: DeviceInfo, settings: &Arc<Settings>) -> Option<Arc<Device>> {
        let proof = settings.source.proof()?;
        let access = self.credentials.access(proof, settings);
        Some(Arc::new(Device::new(info, proof.into(), access, settings)))
    }

    async fn publish(&self, device: Option<Arc<Device>>, is_known: bool, settings: &Settings) {
        if let Some(device) = &device {
            let info = device.info.clone();
            if let Err(error) = on_disk(&self.state, move |state| state.select_device(&info)).await {
                tracing::warn!(error = %chain(&error), "could not make room for the device's modules: no copies are kept of them");
            }
        }
        self.situation.send_modify(|situation| {
            situation.device = device;
            situation.is_known = is_known;
        });
        self.credentials.settle(settings);
    }

    /// Lets these settings act on the device that others of the same source have made.
    pub(crate) fn adopt(&self, settings: &Arc<Settings>) {
        let Some(device) = self.device().filter(|device| device.settings.source == settings.source) else { return };
        if Arc::ptr_eq(&device.settings, settings) {
            return;
        }
        if let Some(device) = self.make(device.info.clone(), settings) {
            self.situation.send_modify(|situation| situation.device = Some(device));
        }
        self.credentials.settle(settings);
    }

    /// Records the device and where it comes from; another device than the one before has no modules of ours yet.
    async fn record(&self, device: &Device) -> Result<(), state::Error> {
        let (info, origin) = (device.info.clone(), Origin::of(&device.settings.config.provisioning));
        let nothing = Ours::new(device.settings.config.clone(), &[]).settings();
        let record = move |state: &State| match state.device() {
            Some(recorded) if recorded == info => state.commit_origin(&origin),
            _ => state.commit(&nothing, &info, &origin),
        };
        on_disk(&self.state, record).await
    }

    /// The device of the state, unless other settings made it.
    async fn backup(&self, settings: &Settings) -> Option<DeviceInfo> {
        let (info, origin) = on_disk(&self.state, |state| (state.device(), state.origin())).await;
        let info = info?;
        if origin.is_some_and(|origin| origin != Origin::of(&settings.config.provisioning)) {
            tracing::info!("the provisioning settings have changed: the device of the state is not used");
            return None;
        }
        Some(info)
    }

    /// Brings the modules in order and records that. Returns the names that the hub now has for the principals.
    pub(crate) async fn reconcile(&self, device: &Device) -> Result<BTreeSet<String>, Error> {
        let settings = self.settings.load_full();
        // First, and apart from the rest: its answer tells whether the hub still knows the device.
        let listed = self.modules.refresh(device).await.map_err(Error::list)?;
        let hub = listed.into_iter().map(|module| module.module_id).collect();
        let recorded = self.record(device).await;
        // Beside the record of another device, what is ours at this one must not be written down: it would be deleted there.
        let record = recorded.is_ok().then_some(&self.state);
        let previous = match record {
            Some(state) => on_disk(state, State::previous).await,
            None => None,
        };
        let previous = previous.map(|settings| settings.principal).unwrap_or_default();
        let provisioning = device.settings.config.provisioning.clone();
        let mut ours = Ours::new(Config { provisioning, ..settings.config.clone() }, &previous);
        let wanted = settings.principals.hub_modules();
        reconciliation::run(&self.modules, device, &hub, wanted, &mut ours, record).await?;
        recorded.map_err(Error::state)?;
        reconciliation::write(record, settings.config.clone()).await?;
        Ok(wanted.clone())
    }
}

/// A device that was told to all stays also while its certificate cannot be had.
fn unless_told(prepared: Result<(), Error>, is_told: bool) -> Result<(), Error> {
    match prepared {
        Err(error) if is_told => {
            tracing::warn!(error = %chain(&error), "the device is known, but cannot prove itself yet");
            Ok(())
        }
        prepared => prepared,
    }
}
