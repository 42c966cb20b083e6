//! One attempt to give this device its identity: from the configuration, from the state, or from DPS; then the modules.
//!
//! Nothing that is there is given up before its successor is there, and what is there is in the state: a kill loses nothing. When attempts are
//! made is decided in `schedule`.

use std::{collections::BTreeSet, sync::Arc};

use aziot_identityd_api::config::{Config, Origin, Payload};
use aziot_identityd_cloud::{self as cloud, Exchange, Registration};
use aziot_log::chain;
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    device::{self, Device},
    error::{Error, Invalid},
    keys::Keys,
    modules::{Modules, on_disk},
    reconciliation::{self, Ours},
    settings::{DpsSource, Settings, Shared, Source},
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
    /// The key service.
    pub(crate) keys: Keys,
    /// The modules.
    pub(crate) modules: Arc<Modules>,
    /// The state on disk.
    pub(crate) state: Arc<State>,
    /// The way to the cloud.
    pub(crate) exchange: Arc<dyn Exchange>,
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
        let mut from_backup = false;
        let device = match &settings.source {
            Source::Off => {
                tracing::info!("provisioning is off: this device has no identity");
                None
            }
            Source::Manual { info, key_id } => Some(self.make(info.clone(), key_id, settings)),
            Source::Dps(dps) => {
                let known = match backup {
                    Backup::Allowed => self.backup(settings).await,
                    Backup::Forbidden => None,
                };
                from_backup = known.is_some();
                let info = match known {
                    Some(info) => info,
                    None => self.register(dps, settings).await?,
                };
                Some(self.make(info, &dps.key_id, settings))
            }
        };
        let device = device.map(Arc::new);
        let mut is_known = false;
        if let Some(device) = &device {
            let recorded = on_disk(&self.state, State::device).await;
            is_known = recorded.as_ref() == Some(&device.info);
            // What DPS assigned is ours. Of what a person configured the hub is asked first.
            if matches!(settings.source, Source::Dps(_))
                && let Err(error) = self.record(device).await
            {
                tracing::warn!(error = %chain(&error), "could not record the device, a restart will need the cloud");
            }
            let info = device.info.clone();
            on_disk(&self.state, move |state| state.select_device(&info)).await.map_err(Error::state)?;
        }
        self.situation.send_modify(|situation| {
            situation.device.clone_from(&device);
            situation.is_known = is_known;
        });
        Ok(Provisioned { device, from_backup })
    }

    fn make(&self, info: DeviceInfo, key_id: &str, settings: &Arc<Settings>) -> Device {
        Device::with_key(info, key_id, &self.keys, &self.exchange, settings)
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
        tracing::info!(device_id = info.device_id, hub = info.hub_name, "took the device from the state");
        Some(info)
    }

    async fn register(&self, dps: &DpsSource, settings: &Settings) -> Result<DeviceInfo, Error> {
        let DpsSource { endpoint, scope_id, registration_id, key_id, payload: file } = dps;
        let registration = Registration {
            host: endpoint.authority().to_owned(),
            scope_id: scope_id.clone(),
            registration_id: registration_id.clone(),
            payload: payload(file.as_ref()).await?,
        };
        let signer = crate::keys::DeviceKey { keys: self.keys.clone(), key_id: key_id.clone() };
        let transport = device::transport(&self.exchange, &settings.config);
        let assigned = cloud::dps::register(&transport, &registration, &signer).await.map_err(Error::dps)?;
        let cloud::Assignment { hub, device_id } = assigned;
        tracing::info!(registration_id, device_id, hub, "DPS assigned this device to its hub");
        Ok(DeviceInfo { hub_name: hub.clone(), local_gateway_hostname: hub, device_id })
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

/// What is told to custom allocation; read at each use, as operators change the file.
pub(crate) async fn payload(file: Option<&Payload>) -> Result<Option<Value>, Error> {
    const LIMIT_BYTES: u64 = 1024 * 1024;
    let Some(payload) = file else { return Ok(None) };
    let invalid = |source| Error::invalid("provisioning.payload", source);
    let path = url::Url::parse(&payload.uri).ok().filter(|uri| uri.scheme() == "file");
    let Some(path) = path.and_then(|uri| uri.to_file_path().ok()) else {
        return Err(invalid(Invalid::PayloadUri(payload.uri.clone())));
    };
    let read = tokio::task::spawn_blocking(move || aziot_files::read_limited(path, LIMIT_BYTES)).await;
    let bytes = read.expect("reading a file does not panic");
    let bytes = bytes.map_err(|error| invalid(Invalid::PayloadFile(Arc::new(error))))?;
    let json = serde_json::from_slice(&bytes).map_err(|error| invalid(Invalid::PayloadJson(Arc::new(error))))?;
    Ok(Some(json))
}
