//! Which device this is, and whether it has become another one since the modules were made.
//!
//! The identity service knows; this waits for it for as long as it takes. Modules are kept when nothing has changed, also after the device
//! was provisioned anew, and only when none of the old device's is left is the new one remembered.

mod memory;

use std::time::Duration;

use aziot_edged_api::config::ReprovisioningMode;
use aziot_http::{Client, ClientError};
use aziot_identityd_api::{
    device::{GetDevice, Reprovision},
    identity::{AziotIdentity, Identity},
};
use aziot_log::{chain, fields};

pub(crate) use memory::{Error as MemoryError, Memory};

use crate::service_manager;

/// Between two questions for the device, with up to a fifth more.
const PAUSE: Duration = Duration::from_secs(5);
/// How the identity service says that the device has no identity, and that nobody is getting it one.
const NOT_PROVISIONED: u16 = 400;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The device has to be provisioned anew at each start, and was not.
    #[error("could not provision the device anew")]
    Reprovision(#[source] Box<ClientError>),
    /// The identity service has an identity for the local network in place of the device's.
    #[error("Invalid device identity")]
    InvalidIdentity,
}

/// A device at its hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) id: String,
    /// Host name of the hub.
    pub(crate) hub: String,
    /// Host name of the parent; without one the hub's.
    pub(crate) gateway: String,
}

impl Device {
    /// Whether a parent stands before the hub.
    pub(crate) fn is_nested(&self) -> bool {
        !self.gateway.eq_ignore_ascii_case(&self.hub)
    }
}

/// The device's identity from the identity service, for which this waits.
pub(crate) async fn device(identityd: &Client, mode: ReprovisioningMode) -> Result<Device, Error> {
    if mode == ReprovisioningMode::AlwaysOnStartup {
        service_manager::status("Provisioning the device");
        reprovision(identityd).await.map_err(|error| Error::Reprovision(Box::new(error)))?;
    }
    service_manager::status("Waiting for the identity of the device");
    loop {
        match identityd.send(&GetDevice { r#type: "aziot".to_owned() }).await {
            Ok(Identity::Aziot(AziotIdentity { device_id, hub_name, gateway_host, .. })) => {
                tracing::info!({ fields::DEVICE_ID } = device_id, { fields::HUB } = hub_name, "this is the device");
                return Ok(Device { id: device_id, hub: hub_name, gateway: gateway_host });
            }
            Ok(Identity::Local(_)) => return Err(Error::InvalidIdentity),
            Err(error) => {
                tracing::warn!({ fields::ERROR } = %chain(&error), "the device has no identity yet");
                if error.status().is_some_and(|status| status.as_u16() == NOT_PROVISIONED)
                    && let Err(error) = reprovision(identityd).await
                {
                    tracing::warn!({ fields::ERROR } = %chain(&error), "the device could not be provisioned");
                }
            }
        }
        tokio::time::sleep(PAUSE.mul_f64(1.0 + fastrand::f64() * 0.2)).await;
    }
}

/// Has the device provisioned anew. What is remembered stays: the next start compares.
pub(crate) async fn reprovision(identityd: &Client) -> Result<(), ClientError> {
    tracing::info!("provisioning the device anew");
    identityd.send(&Reprovision {}).await
}

#[cfg(test)]
mod tests;
