//! One attempt to give this device its identity: from the configuration, from the state, or from DPS; then the modules.
//!
//! Nothing that is there is given up before its successor is there. When attempts are made is decided in `schedule`.

use std::{collections::BTreeSet, sync::Arc};

use aziot_identityd_api::config::{Attestation, Dps, ManualAuthentication, Provisioning};
use aziot_identityd_cloud::{self as cloud, Exchange, Registration};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    device::{self, Device},
    error::{Error, Invalid},
    keys::Keys,
    modules::{Modules, on_disk},
    reconciliation,
    settings::{Settings, Shared},
    state::{DeviceInfo, Origin, State},
};

/// What everybody may know about the device.
#[derive(Clone, Default)]
pub(crate) struct Situation {
    /// The device, if it is provisioned.
    pub(crate) device: Option<Arc<Device>>,
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

    /// Gives the device its identity and publishes it. What was published before stays until this has succeeded.
    pub(crate) async fn provision(&self, backup: Backup) -> Result<Provisioned, Error> {
        let settings = self.settings.load_full();
        let mut from_backup = false;
        let device = match &settings.config.provisioning {
            Provisioning::None => {
                tracing::info!("provisioning is off: this device has no identity");
                None
            }
            Provisioning::Manual(manual) => {
                let info = DeviceInfo {
                    hub_name: manual.iothub_hostname.clone(),
                    local_gateway_hostname: manual
                        .local_gateway_hostname
                        .clone()
                        .unwrap_or_else(|| manual.iothub_hostname.clone()),
                    device_id: manual.device_id.clone(),
                };
                match &manual.authentication {
                    ManualAuthentication::Sas { device_id_pk } => Some(self.make(info, device_id_pk, &settings)),
                    ManualAuthentication::X509 { .. } => return Err(Error::NotAvailable("X.509 identities are")),
                }
            }
            Provisioning::Dps(dps) => match &dps.attestation {
                Attestation::SymmetricKey { registration_id, symmetric_key } => {
                    let known = match backup {
                        Backup::Allowed => self.backup(&settings).await,
                        Backup::Forbidden => None,
                    };
                    from_backup = known.is_some();
                    let info = match known {
                        Some(info) => info,
                        None => self.register(dps, registration_id, symmetric_key, &settings).await?,
                    };
                    Some(self.make(info, symmetric_key, &settings))
                }
                Attestation::X509 { .. } => return Err(Error::NotAvailable("X.509 identities are")),
                Attestation::Tpm { .. } => return Err(Error::NotAvailable("TPM identities are")),
            },
        };
        let device = device.map(Arc::new);
        if let Some(device) = &device {
            let info = device.info.clone();
            on_disk(&self.state, move |state| state.select_device(&info)).await.map_err(Error::state)?;
        }
        self.situation.send_modify(|situation| situation.device.clone_from(&device));
        Ok(Provisioned { device, from_backup })
    }

    fn make(&self, info: DeviceInfo, key_id: &str, settings: &Settings) -> Device {
        Device::with_key(info, key_id, &self.keys, &self.exchange, &settings.config)
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

    async fn register(
        &self,
        dps: &Dps,
        registration_id: &str,
        key_id: &str,
        settings: &Settings,
    ) -> Result<DeviceInfo, Error> {
        let registration = Registration {
            host: dps.global_endpoint.authority().to_owned(),
            scope_id: dps.scope_id.clone(),
            registration_id: registration_id.to_owned(),
            payload: payload(dps).await?,
        };
        let signer = crate::keys::DeviceKey { keys: self.keys.clone(), key_id: key_id.to_owned() };
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
        let listed = self.modules.refresh(device).await.map_err(Error::hub)?;
        let hub = listed.into_iter().map(|module| module.module_id).collect();
        let (recorded, previous) = on_disk(&self.state, |state| (state.device(), state.previous())).await;
        // What was made for another device says nothing about this one.
        let previous = previous.filter(|_| recorded.as_ref() == Some(&device.info));
        let previous = previous.as_ref().map(reconciliation::module_names).unwrap_or_default();
        let wanted = settings.principals.hub_modules();
        reconciliation::run(&self.modules, device, &hub, wanted, &previous).await?;
        let (config, info, origin) = (settings.config.clone(), device.info.clone(), Origin::of(&device.provisioning));
        on_disk(&self.state, move |state| state.commit(&config, &info, &origin)).await.map_err(Error::state)?;
        Ok(wanted.clone())
    }
}

/// What is told to custom allocation; read at each use, as operators change the file.
pub(crate) async fn payload(dps: &Dps) -> Result<Option<Value>, Error> {
    const LIMIT_BYTES: u64 = 1024 * 1024;
    let Some(payload) = &dps.payload else { return Ok(None) };
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
