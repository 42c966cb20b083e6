//! The registries of all hubs of this simulator, and a device's way from one to another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::registry::{Error, Registry};

/// Where a hub's registry lies. Not its whole name: the port in that may differ after a restart.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub(crate) struct HubKey(Option<String>);

impl HubKey {
    /// The hub that is there even if nobody names one.
    pub(crate) const FIRST: Self = Self(None);

    /// A further hub, by its name as the settings have it.
    pub(crate) fn further(name: &str) -> Self {
        Self(Some(name.to_lowercase()))
    }
}

/// What becomes of a device's modules when it moves.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Baggage {
    /// They come along, keys and generations unchanged.
    Migrated,
    /// They are lost.
    Reset,
}

impl Baggage {
    /// The substatus by which DPS tells the device.
    pub(crate) fn substatus(self) -> &'static str {
        match self {
            Self::Migrated => "deviceDataMigrated",
            Self::Reset => "deviceDataReset",
        }
    }
}

/// All registries.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registries {
    #[serde(default)]
    registry: Registry,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    hubs: BTreeMap<String, Registry>,
}

impl Registries {
    pub(crate) fn of(&self, hub: &HubKey) -> &Registry {
        static EMPTY: Registry = Registry::new();
        match &hub.0 {
            None => &self.registry,
            Some(name) => self.hubs.get(name).unwrap_or(&EMPTY),
        }
    }

    pub(crate) fn of_mut(&mut self, hub: &HubKey) -> &mut Registry {
        match &hub.0 {
            None => &mut self.registry,
            Some(name) => self.hubs.entry(name.clone()).or_default(),
        }
    }

    /// Takes a device away from a hub, and to another one with its baggage; to `None` it only leaves. It stays where it is if there is no room.
    pub(crate) fn move_device(
        &mut self,
        device_id: &str,
        from: &HubKey,
        to: Option<&HubKey>,
        baggage: Baggage,
    ) -> Result<(), Error> {
        if let Some(to) = to
            && self.of(from).devices().contains_key(device_id)
        {
            self.of(to).check_room(device_id)?;
        }
        let device = self.of_mut(from).take_device(device_id)?;
        if let Some(to) = to
            && baggage == Baggage::Migrated
        {
            self.of_mut(to).adopt_device(device_id, device);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::{Authentication, KeyPair};
    use crate::registry::{MAX_DEVICES, SystemModules};

    fn with_device() -> Registries {
        let mut registries = Registries::default();
        let keys = Authentication::sas(KeyPair::random());
        registries.of_mut(&HubKey::FIRST).put_device("d", keys, SystemModules::Preset).unwrap();
        registries
    }

    #[test]
    fn a_device_moves_with_or_without_its_modules() {
        let other = HubKey::further("Other");
        for (baggage, arrives) in [(Baggage::Migrated, true), (Baggage::Reset, false)] {
            let mut registries = with_device();
            let before = registries.of(&HubKey::FIRST).device("d").unwrap().modules.clone();
            registries.move_device("d", &HubKey::FIRST, Some(&other), baggage).unwrap();
            assert!(registries.of(&HubKey::FIRST).devices().is_empty());
            let after = registries.of(&other).device("d").map(|device| device.modules.clone()).ok();
            assert_eq!(after, arrives.then_some(before));
            assert!(registries.move_device("d", &HubKey::FIRST, None, baggage).is_err());
        }
    }

    #[test]
    fn a_device_stays_where_it_is_if_its_destination_is_full() {
        let other = HubKey::further("other");
        let mut registries = with_device();
        for number in 0..MAX_DEVICES {
            let name = format!("d{number}");
            registries.of_mut(&other).put_device(&name, Authentication::none(), SystemModules::Absent).unwrap();
        }
        for baggage in [Baggage::Migrated, Baggage::Reset] {
            let moved = registries.move_device("d", &HubKey::FIRST, Some(&other), baggage);
            assert_eq!(moved, Err(Error::TooManyDevices));
            assert_eq!(registries.of(&HubKey::FIRST).device("d").unwrap().modules.len(), 2);
        }
        let moved = registries.move_device("nobody", &HubKey::FIRST, Some(&other), Baggage::Migrated);
        assert_eq!(moved, Err(Error::UnknownDevice("nobody".to_owned())));
    }

    #[test]
    fn a_hub_nobody_used_is_empty_and_leaves_no_trace() {
        let registries = with_device();
        assert!(registries.of(&HubKey::further("nobody")).devices().is_empty());
        assert!(!serde_json::to_string(&registries).unwrap().contains("hubs"));
    }
}
