//! Making the hub's modules those of the principals: missing ones are made, ones that left the configuration are deleted.
//!
//! Modules that somebody else made are left alone, unless a principal has their name: such a one is taken over with its generation, twin and
//! tags, never deleted and made anew. Every step may be repeated, so a run that failed halfway is simply run again; what is ours is written
//! down after each step, so that a run that was cut off is not forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aziot_identityd_api::config::{Config, IdType, Principal};
use aziot_log::chain;
use futures_util::{StreamExt as _, stream};

use crate::{
    device::Device,
    error::Error,
    modules::{Modules, on_disk},
    principals::with_module,
    state::State,
};

/// Modules that are worked on at once.
const PARALLEL: usize = 4;

/// What is to be done about one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    TakeOver,
    Delete,
}

/// Which modules of the device are ours so far, in the form in which the state has it: as settings whose principals have these modules.
pub(crate) struct Ours {
    settings: Config,
    principals: BTreeMap<String, Principal>,
}

impl Ours {
    /// Begins with those of `previous`. `settings` are those of the device, with the principals of today.
    #[must_use]
    pub(crate) fn new(settings: Config, previous: &[Principal]) -> Self {
        let principals = with_module(previous).map(|principal| (principal.name.clone(), bare(principal))).collect();
        Self { settings, principals }
    }

    fn names(&self) -> BTreeSet<String> {
        self.principals.keys().cloned().collect()
    }

    fn done(&mut self, step: Step, name: &str) {
        match step {
            Step::Delete => drop(self.principals.remove(name)),
            Step::Create | Step::TakeOver => {
                let principal = with_module(&self.settings.principal).find(|principal| principal.name == name);
                self.principals.extend(principal.map(|principal| (name.to_owned(), bare(principal))));
            }
        }
    }

    /// Settings that pass all checks, and whose principals with modules are those whose modules are ours.
    #[must_use]
    pub(crate) fn settings(&self) -> Config {
        let mut settings = self.settings.clone();
        settings.principal.retain(|one| !one.has(IdType::Module) && !self.principals.contains_key(&one.name));
        settings.principal.extend(self.principals.values().cloned());
        settings
    }
}

/// A principal without what today's settings might contradict.
fn bare(principal: &Principal) -> Principal {
    Principal { idtype: Some(vec![IdType::Module]), localid: None, ..principal.clone() }
}

/// What leads from the modules at the hub to the wanted ones; `ours` are those that this device has made its own before.
fn steps(hub: &BTreeSet<String>, wanted: &BTreeSet<String>, ours: &BTreeSet<String>) -> Vec<(Step, String)> {
    let step = |name: &String| match (hub.contains(name), wanted.contains(name), ours.contains(name)) {
        (true, false, true) => Some(Step::Delete),
        (true, true, false) => Some(Step::TakeOver),
        (false, true, _) => Some(Step::Create),
        (true, true, true) | (_, false, _) => None,
    };
    hub.union(wanted).filter_map(|name| Some((step(name)?, name.clone()))).collect()
}

/// Runs the steps, and writes what is ours into `record` after each. One that fails does not keep the others from being done; the first
/// failure is returned.
pub(crate) async fn run(
    modules: &Modules,
    device: &Device,
    hub: &BTreeSet<String>,
    wanted: &BTreeSet<String>,
    ours: &mut Ours,
    record: Option<&Arc<State>>,
) -> Result<(), Error> {
    let mut outcomes = stream::iter(steps(hub, wanted, &ours.names()))
        .map(|(step, name)| async move {
            let outcome = match step {
                Step::Create => modules.create(device, &name, None).await.map(drop),
                Step::TakeOver => modules.update(device, &name).await.map(drop),
                Step::Delete => match modules.delete(device, &name).await {
                    // Somebody else was faster.
                    Err(Error::Hub(error)) if error.is_module_missing() => Ok(()),
                    deleted => deleted,
                },
            };
            (step, name, outcome)
        })
        .buffer_unordered(PARALLEL);
    let mut first = None;
    while let Some((step, module_id, outcome)) = outcomes.next().await {
        let outcome = match outcome {
            Ok(()) => {
                ours.done(step, &module_id);
                write(record, ours.settings()).await
            }
            failed => failed,
        };
        if let Err(error) = outcome {
            tracing::warn!(module_id, error = %chain(&error), "could not bring the module in order");
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

/// Writes down settings whose principals have the modules that are ours.
pub(crate) async fn write(record: Option<&Arc<State>>, settings: Config) -> Result<(), Error> {
    let Some(state) = record else { return Ok(()) };
    on_disk(state, move |state| state.commit_settings(&settings)).await.map_err(Error::state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_ours_is_written_as_settings_that_are_read_back() {
        let principals = |text: &str| {
            let text = format!(
                "hostname = 'e'\nhomedir = '/h'\nprovisioning = {{ source = 'manual', iothub_hostname = 'h', device_id = 'd', authentication = {{ method = 'sas', device_id_pk = 'k' }} }}\n{text}"
            );
            aziot_config::load_str::<Config>("config.toml", &text).unwrap().value
        };
        let previous = principals(
            "localid.domain = 'd'\n[[principal]]\nuid = 1\nname = 'gone'\nidtype = ['module', 'local']\nlocalid = { type = 'x509' }\n\
             [[principal]]\nuid = 2\nname = 'changed'\nidtype = ['module']\n[[principal]]\nuid = 3\nname = 'device'\nidtype = ['device']\n",
        );
        let today = principals(
            "[[principal]]\nuid = 2\nname = 'changed'\nidtype = ['device']\n[[principal]]\nuid = 4\nname = 'new'\nidtype = ['module']\n\
             [[principal]]\nuid = 5\nname = 'later'\nidtype = ['module', 'device']\n",
        );
        let mut ours = Ours::new(today, &previous.principal);
        let names = |ours: &Ours| {
            let settings = ours.settings();
            settings.check().unwrap();
            with_module(&settings.principal).map(|principal| principal.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&ours), ["changed", "gone"]);
        ours.done(Step::Create, "new");
        ours.done(Step::Delete, "gone");
        assert_eq!(names(&ours), ["changed", "new"]);
    }

    #[test]
    fn steps_follow_the_specifications_table() {
        let hub = set(&["$edgeAgent", "gone", "kept", "taken"]);
        let steps = steps(&hub, &set(&["kept", "taken", "new"]), &set(&["gone", "kept", "long-gone"]));
        let expected = [(Step::Delete, "gone"), (Step::Create, "new"), (Step::TakeOver, "taken")];
        assert_eq!(steps, expected.map(|(step, name)| (step, name.to_owned())));
    }
}
