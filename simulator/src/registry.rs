//! The hub's identity registry: devices, their modules, and what each of them proves itself with.
//!
//! Decides what may be created, replaced and deleted as the public hub does. Knows no HTTP and no files; who may ask is checked by `hub.rs`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::authentication::Authentication;
use crate::random;

/// So many devices the simulator keeps: a bound for its memory and its state file.
pub(crate) const MAX_DEVICES: usize = 10_000;

/// Why the registry refuses something.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("the device {0:?} is not registered")]
    UnknownDevice(String),
    #[error("the device {0:?} is disabled")]
    DisabledDevice(String),
    #[error("the module {module:?} of the device {device:?} is not registered")]
    UnknownModule { device: String, module: String },
    #[error("the module {module:?} of the device {device:?} exists already")]
    ModuleExists { device: String, module: String },
    #[error("the module {module:?} of the device {device:?} has another etag than If-Match names")]
    EtagMismatch { device: String, module: String },
    #[error("the device {device:?} has {limit} modules already")]
    TooManyModules { device: String, limit: usize },
    #[error("there are {MAX_DEVICES} devices already")]
    TooManyDevices,
    #[error("{0:?} is no identity name: 1 to 128 ASCII letters, digits or - : . + % _ # * ? ! ( ) , = @ ; $ '")]
    InvalidName(String),
}

/// A module as the registry keeps it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Module {
    /// New with each creation, kept by each update; module keys are derived from it.
    pub(crate) generation_id: String,
    /// New with each change; without quotes.
    pub(crate) etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) managed_by: Option<String>,
    pub(crate) authentication: Authentication,
}

/// What a client wants a module to be.
#[derive(Clone, Debug)]
pub(crate) struct ModuleChange {
    pub(crate) managed_by: Option<String>,
    pub(crate) authentication: Authentication,
}

/// A device as the registry keeps it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub(crate) generation_id: String,
    pub(crate) etag: String,
    #[serde(default)]
    pub(crate) disabled: bool,
    pub(crate) authentication: Authentication,
    #[serde(default)]
    pub(crate) modules: BTreeMap<String, Module>,
}

/// Whether a new device gets the two system modules of IoT Edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SystemModules {
    Preset,
    Absent,
}

/// What a request says about the version it wants to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precondition<'a> {
    /// No `If-Match`: a creation must not replace, a deletion may delete anything.
    Absent,
    /// `If-Match: *`: any version, but there must be one.
    AnyVersion,
    /// `If-Match` with this etag, without quotes.
    Etag(&'a str),
}

/// All devices of a hub.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registry {
    #[serde(default)]
    devices: BTreeMap<String, Device>,
    /// The last generation id given out, so that none is given twice even when the clock stands still.
    #[serde(default)]
    last_generation: i64,
}

impl Registry {
    /// A registry without devices.
    pub(crate) const fn new() -> Self {
        Self { devices: BTreeMap::new(), last_generation: 0 }
    }

    pub(crate) fn devices(&self) -> &BTreeMap<String, Device> {
        &self.devices
    }

    /// A device that is there and not disabled.
    pub(crate) fn device(&self, device_id: &str) -> Result<&Device, Error> {
        let device = self.devices.get(device_id).ok_or_else(|| Error::UnknownDevice(device_id.to_owned()))?;
        if device.disabled { Err(Error::DisabledDevice(device_id.to_owned())) } else { Ok(device) }
    }

    pub(crate) fn module(&self, device_id: &str, module_id: &str) -> Result<&Module, Error> {
        let module = self.device(device_id)?.modules.get(module_id);
        module.ok_or_else(|| Error::UnknownModule { device: device_id.to_owned(), module: module_id.to_owned() })
    }

    /// What a device is known by, or a module if one is named.
    pub(crate) fn authentication(&self, device_id: &str, module_id: Option<&str>) -> Result<&Authentication, Error> {
        Ok(match module_id {
            None => &self.device(device_id)?.authentication,
            Some(module_id) => &self.module(device_id, module_id)?.authentication,
        })
    }

    /// Makes a device, or gives the one that is there these credentials; its modules stay.
    pub(crate) fn put_device(
        &mut self,
        device_id: &str,
        authentication: Authentication,
        system_modules: SystemModules,
    ) -> Result<(), Error> {
        check_name(device_id)?;
        if let Some(device) = self.devices.get_mut(device_id) {
            if device.authentication != authentication {
                device.authentication = authentication;
                device.etag = random::etag();
            }
            return Ok(());
        }
        self.check_room(device_id)?;
        let generation_id = self.next_generation();
        let mut modules = BTreeMap::new();
        if system_modules == SystemModules::Preset {
            for name in ["$edgeAgent", "$edgeHub"] {
                let module = Module {
                    generation_id: self.next_generation(),
                    etag: random::etag(),
                    managed_by: None,
                    authentication: Authentication::none(),
                };
                modules.insert(name.to_owned(), module);
            }
        }
        let device = Device { generation_id, etag: random::etag(), disabled: false, authentication, modules };
        self.devices.insert(device_id.to_owned(), device);
        Ok(())
    }

    /// Lets a device in, or keeps it and its modules out.
    pub(crate) fn set_disabled(&mut self, device_id: &str, disabled: bool) -> Result<(), Error> {
        let device = self.devices.get_mut(device_id).ok_or_else(|| Error::UnknownDevice(device_id.to_owned()))?;
        device.disabled = disabled;
        device.etag = random::etag();
        Ok(())
    }

    /// Forgets a device and its modules, and returns what they were.
    pub(crate) fn take_device(&mut self, device_id: &str) -> Result<Device, Error> {
        self.devices.remove(device_id).ok_or_else(|| Error::UnknownDevice(device_id.to_owned()))
    }

    /// Refuses a device for which there is no room; one that is there already has its own.
    pub(crate) fn check_room(&self, device_id: &str) -> Result<(), Error> {
        if self.devices.len() < MAX_DEVICES || self.devices.contains_key(device_id) {
            Ok(())
        } else {
            Err(Error::TooManyDevices)
        }
    }

    /// Takes a device over from another hub, its modules with their keys and generations included. Whether there is room was checked before.
    pub(crate) fn adopt_device(&mut self, device_id: &str, mut device: Device) {
        device.etag = random::etag();
        self.devices.insert(device_id.to_owned(), device);
    }

    /// Creates a module, or replaces it when the precondition says so, and returns it as it is now. `max_modules` counts all of the device's.
    pub(crate) fn put_module(
        &mut self,
        device_id: &str,
        module_id: &str,
        precondition: Precondition<'_>,
        change: ModuleChange,
        max_modules: usize,
    ) -> Result<Module, Error> {
        check_name(module_id)?;
        let device = self.device(device_id)?;
        let name = || (device_id.to_owned(), module_id.to_owned());
        let present = device.modules.get(module_id);
        match (present, precondition) {
            (Some(_), Precondition::Absent) => {
                let (device, module) = name();
                return Err(Error::ModuleExists { device, module });
            }
            (None, Precondition::AnyVersion | Precondition::Etag(_)) => {
                let (device, module) = name();
                return Err(Error::UnknownModule { device, module });
            }
            (None, Precondition::Absent) if device.modules.len() >= max_modules => {
                return Err(Error::TooManyModules { device: device_id.to_owned(), limit: max_modules });
            }
            (Some(present), precondition) => check_etag(device_id, module_id, present, precondition)?,
            (None, Precondition::Absent) => {}
        }
        let generation_id = match present {
            Some(present) => present.generation_id.clone(),
            None => self.next_generation(),
        };
        let ModuleChange { managed_by, authentication } = change;
        let module = Module { generation_id, etag: random::etag(), managed_by, authentication };
        if let Some(device) = self.devices.get_mut(device_id) {
            device.modules.insert(module_id.to_owned(), module.clone());
        }
        Ok(module)
    }

    /// Deletes a module if the precondition allows it.
    pub(crate) fn delete_module(
        &mut self,
        device_id: &str,
        module_id: &str,
        precondition: Precondition<'_>,
    ) -> Result<(), Error> {
        check_etag(device_id, module_id, self.module(device_id, module_id)?, precondition)?;
        if let Some(device) = self.devices.get_mut(device_id) {
            device.modules.remove(module_id);
        }
        Ok(())
    }

    /// Ticks of 100 ns since the year 1, as the public hub counts generations, and never the same twice.
    fn next_generation(&mut self) -> String {
        const TICKS_TO_1970: i64 = 621_355_968_000_000_000;
        let ticks = Timestamp::now().as_microsecond().saturating_mul(10).saturating_add(TICKS_TO_1970);
        self.last_generation = ticks.max(self.last_generation.saturating_add(1));
        self.last_generation.to_string()
    }
}

fn check_etag(device: &str, module: &str, present: &Module, precondition: Precondition<'_>) -> Result<(), Error> {
    match precondition {
        Precondition::Etag(etag) if etag != present.etag => {
            Err(Error::EtagMismatch { device: device.to_owned(), module: module.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Refuses a name that the hub would not take for a device or module.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte);
    if (1..=128).contains(&name.len()) && name.bytes().all(fits) {
        Ok(())
    } else {
        Err(Error::InvalidName(name.chars().take(140).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::{Demand, KeyPair};
    use crate::key::SymmetricKey;

    const DEVICE: &str = "device-7";
    const MAX_MODULES: usize = 50;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.put_device(DEVICE, Authentication::sas(KeyPair::random()), SystemModules::Preset).unwrap();
        registry
    }

    fn change() -> ModuleChange {
        ModuleChange { managed_by: None, authentication: Authentication::sas(KeyPair::random()) }
    }

    fn keys(registry: &Registry, module: Option<&str>) -> Result<Vec<SymmetricKey>, Error> {
        registry.authentication(DEVICE, module).map(|authentication| match authentication.demand() {
            Demand::Token(keys) => keys,
            other => panic!("{other:?}"),
        })
    }

    fn missing(module: &str) -> Error {
        Error::UnknownModule { device: DEVICE.to_owned(), module: module.to_owned() }
    }

    #[test]
    fn a_module_is_created_once_and_replaced_only_with_if_match() {
        let mut registry = registry();
        let put = |registry: &mut Registry, precondition| {
            registry.put_module(DEVICE, "m", precondition, change(), MAX_MODULES)
        };
        assert_eq!(put(&mut registry, Precondition::AnyVersion).unwrap_err(), missing("m"));
        assert_eq!(put(&mut registry, Precondition::Etag("x")).unwrap_err(), missing("m"));
        let created = put(&mut registry, Precondition::Absent).unwrap();
        assert!(matches!(put(&mut registry, Precondition::Absent).unwrap_err(), Error::ModuleExists { .. }));
        assert!(matches!(put(&mut registry, Precondition::Etag("x")).unwrap_err(), Error::EtagMismatch { .. }));
        let replaced = put(&mut registry, Precondition::Etag(&created.etag)).unwrap();
        assert_eq!(replaced.generation_id, created.generation_id);
        assert_ne!(replaced.etag, created.etag);
        assert!(matches!(put(&mut registry, Precondition::Etag(&created.etag)), Err(Error::EtagMismatch { .. })));
        put(&mut registry, Precondition::AnyVersion).unwrap();
    }

    #[test]
    fn a_module_created_anew_is_of_another_generation() {
        let mut registry = registry();
        let first = registry.put_module(DEVICE, "m", Precondition::Absent, change(), MAX_MODULES).unwrap();
        assert!(matches!(
            registry.delete_module(DEVICE, "m", Precondition::Etag("x")),
            Err(Error::EtagMismatch { .. })
        ));
        registry.delete_module(DEVICE, "m", Precondition::AnyVersion).unwrap();
        assert_eq!(registry.delete_module(DEVICE, "m", Precondition::Absent).unwrap_err(), missing("m"));
        let second = registry.put_module(DEVICE, "m", Precondition::Absent, change(), MAX_MODULES).unwrap();
        assert_ne!(first.generation_id, second.generation_id);
    }

    #[test]
    fn the_fifty_first_module_is_refused() {
        let mut registry = registry(); // has the two system modules
        for number in 2..MAX_MODULES {
            registry.put_module(DEVICE, &format!("m{number}"), Precondition::Absent, change(), MAX_MODULES).unwrap();
        }
        let error = registry.put_module(DEVICE, "last", Precondition::Absent, change(), MAX_MODULES).unwrap_err();
        assert_eq!(error, Error::TooManyModules { device: DEVICE.to_owned(), limit: MAX_MODULES });
        registry.put_module(DEVICE, "m2", Precondition::AnyVersion, change(), MAX_MODULES).unwrap();
    }

    #[test]
    fn a_disabled_device_is_out_with_its_modules() {
        let mut registry = registry();
        registry.put_module(DEVICE, "m", Precondition::Absent, change(), MAX_MODULES).unwrap();
        registry.set_disabled(DEVICE, true).unwrap();
        assert_eq!(keys(&registry, Some("m")).unwrap_err(), Error::DisabledDevice(DEVICE.to_owned()));
        registry.set_disabled(DEVICE, false).unwrap();
        assert_eq!(keys(&registry, Some("m")).unwrap().len(), 2);
        assert_eq!(registry.set_disabled("other", true).unwrap_err(), Error::UnknownDevice("other".to_owned()));
    }

    #[test]
    fn a_device_registered_again_keeps_its_modules_and_takes_the_new_keys() {
        let mut registry = registry();
        registry.put_module(DEVICE, "m", Precondition::Absent, change(), MAX_MODULES).unwrap();
        let before = registry.device(DEVICE).unwrap().clone();
        let pair = KeyPair::random();
        registry.put_device(DEVICE, Authentication::sas(pair.clone()), SystemModules::Absent).unwrap();
        let after = registry.device(DEVICE).unwrap();
        assert_eq!((&after.generation_id, &after.modules), (&before.generation_id, &before.modules));
        assert_eq!(keys(&registry, None).unwrap(), pair.to_vec());
    }

    #[test]
    fn system_modules_have_no_keys() {
        assert_eq!(keys(&registry(), Some("$edgeAgent")).unwrap(), []);
    }

    #[test]
    fn names_are_the_hubs() {
        for name in ["a", "$edgeAgent", "A-z:0.+%_#*?!(),=@;$'", &"x".repeat(128)] {
            check_name(name).unwrap();
        }
        for name in ["", "a/b", "a b", "ä", "a\\b", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
