//! The device as it is known now: its name, its hub, and the client that speaks for it there.

use std::sync::Arc;

use aziot_identityd_api::{
    config::Config,
    identity::{Authentication, AziotIdentity},
};
use aziot_identityd_cloud::{Exchange, Hub, Transport};
use aziot_keyd_api::key::KeyHandle;

use crate::{
    credentials::{Access, Credential},
    settings::Settings,
    state::{DeviceInfo, ModuleRecord},
};

/// A provisioned device. Never changed: a new provisioning makes a new one.
pub(crate) struct Device {
    /// Name and hub.
    pub(crate) info: DeviceInfo,
    /// What it proves itself with.
    pub(crate) credential: Credential,
    /// Its module registry.
    pub(crate) hub: Hub,
    /// The settings that it comes from, which may no longer be today's.
    pub(crate) settings: Arc<Settings>,
}

/// The way to the cloud with the patience that `config` grants.
pub(crate) fn transport(exchange: &Arc<dyn Exchange>, config: &Config) -> Transport {
    let patience = Transport::patience(config.cloud_timeout_sec.duration(), config.cloud_retries.0);
    Transport::new(Arc::clone(exchange), patience)
}

impl Device {
    /// A device that proves itself with this credential, which `access` uses.
    pub(crate) fn new(info: DeviceInfo, credential: Credential, access: Access, settings: &Arc<Settings>) -> Self {
        let DeviceInfo { hub_name, local_gateway_hostname, device_id } = &info;
        let transport = transport(&access.exchange, &settings.config);
        let hub = Hub::new(transport, hub_name, local_gateway_hostname, device_id, access.signer);
        Self { info, credential, hub, settings: Arc::clone(settings) }
    }

    /// The device's own identity.
    #[must_use]
    pub(crate) fn identity(&self, authentication: Authentication) -> AziotIdentity {
        AziotIdentity {
            hub_name: self.info.hub_name.clone(),
            gateway_host: self.info.local_gateway_hostname.clone(),
            device_id: self.info.device_id.clone(),
            module_id: None,
            gen_id: None,
            auth: Some(authentication),
            managed_by: None,
        }
    }

    /// The identity of one of its modules; lists have no key.
    #[must_use]
    pub(crate) fn module_identity(&self, module: ModuleRecord, key_handle: Option<KeyHandle>) -> AziotIdentity {
        AziotIdentity {
            hub_name: self.info.hub_name.clone(),
            gateway_host: self.info.local_gateway_hostname.clone(),
            device_id: module.device_id,
            module_id: Some(module.module_id),
            gen_id: module.generation_id,
            auth: key_handle.map(|key_handle| Authentication::Sas { key_handle }),
            managed_by: module.managed_by,
        }
    }
}
