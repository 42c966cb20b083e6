//! What a change of `[provisioning]` means for a device that the identity service knows already.
//!
//! That service remembers which source, DPS endpoint, scope and registration id gave the device its identity. When one of them differs at its
//! start, it registers anew by itself; with all else new it goes on with the device until it is asked to register.

use std::path::Path;

use aziot_identityd_api::config::{Origin, Provisioning};

use crate::generate::Generated;
use crate::layout::{Layout, Service};

/// A configuration of a service is small; a file larger than this is none.
const LARGEST_CONFIG_BYTES: u64 = 1024 * 1024;

/// What the identity service makes of the settings that are to be put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reprovisioning {
    /// It has no device yet, or the same settings for it, or none to register with.
    None,
    /// It registers anew when it restarts.
    AtRestart,
    /// It goes on with the device that it has until it is asked to register.
    OnRequest,
}

/// Compares `generated` with the configuration in place. A file that cannot be read counts as absent.
#[must_use]
pub fn reprovisioning(generated: &Generated, layout: &Layout) -> Reprovisioning {
    let new = &generated.identityd.provisioning;
    let record = |name: &str| layout.on_disk(&layout.home(Service::Identityd).join(name)).exists();
    let Some(old) = provisioning(&layout.on_disk(&layout.service_config(Service::Identityd))) else {
        return Reprovisioning::None;
    };
    if !matches!(new, Provisioning::Dps(_)) || old == *new || !record("device_info") {
        Reprovisioning::None
    } else if Origin::of(&old) != Origin::of(new) && record("device_origin") {
        Reprovisioning::AtRestart
    } else {
        Reprovisioning::OnRequest
    }
}

fn provisioning(config: &Path) -> Option<Provisioning> {
    #[derive(serde::Deserialize)]
    struct Provisioned {
        provisioning: Provisioning,
    }
    let bytes = aziot_files::read_limited(config, LARGEST_CONFIG_BYTES).ok()?;
    toml::from_slice(&bytes).ok().map(|Provisioned { provisioning }| provisioning)
}
