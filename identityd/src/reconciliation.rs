//! Making the hub's modules those of the principals: missing ones are made, ones that left the configuration are deleted.
//!
//! Modules that somebody else made are left alone, unless a principal has their name: such a one is taken over with its generation, twin and
//! tags, never deleted and made anew. Every step may be repeated, so a run that failed halfway is simply run again; what is ours is written
//! down as steps end, so that a run that was cut off is not forgotten.
//!
//! The hub counts calls: a run takes one for the list, two for each module that is made or taken over, one for each that is deleted, and none for
//! the others. It ends early when the hub is out of reach.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aziot_identityd_api::config::{Config, IdType, Principal};
use aziot_log::{chain, fields};
use futures_util::{StreamExt as _, stream};

use crate::{
    device::Device,
    error::Error,
    modules::{Calls, Modules, on_disk},
    principals::with_module,
    state::State,
};

/// Modules that are worked on at once.
const PARALLEL: usize = 4;
/// So many steps in a row that found the hub out of reach end a run: more than fail where single modules are to blame.
const OUT_OF_REACH: usize = 2 * PARALLEL;

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

/// What a run has done, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    made: usize,
    taken_over: usize,
    deleted: usize,
    kept: usize,
    /// Steps that failed, or that were not begun.
    left: usize,
}

impl Summary {
    fn done(&mut self, step: Step) {
        *match step {
            Step::Create => &mut self.made,
            Step::TakeOver => &mut self.taken_over,
            Step::Delete => &mut self.deleted,
        } += 1;
        self.left -= 1;
    }

    fn log(&self, calls: &Calls) {
        let Self { made, taken_over, deleted, kept, left } = *self;
        tracing::info!(
            { fields::HUB_CALLS } = calls.count(),
            { fields::MADE } = made,
            { fields::TAKEN_OVER } = taken_over,
            { fields::DELETED } = deleted,
            { fields::KEPT } = kept,
            { fields::LEFT } = left,
            "compared the modules at the hub with the principals"
        );
    }
}

/// Runs the steps that lead from what one call to `hub` has listed to what is `wanted`, and writes what is ours into `record` as they end. One that
/// fails does not keep the others from being done; the first failure is returned.
pub(crate) async fn run(
    modules: &Arc<Modules>,
    device: &Device,
    hub: &BTreeSet<String>,
    wanted: &BTreeSet<String>,
    ours: &mut Ours,
    record: Option<&Arc<State>>,
) -> Result<(), Error> {
    let steps = steps(hub, wanted, &ours.names());
    let changed = steps.iter().filter(|(step, _)| *step != Step::Delete).count();
    let mut summary = Summary { kept: wanted.len() - changed, left: steps.len(), ..Summary::default() };
    let calls = &Calls::of_a_list();
    // Those that have ended together are written down together.
    let mut outcomes = stream::iter(steps)
        .map(|(step, name)| async move {
            let outcome = carry_out(step, modules, device, &name, calls).await;
            (step, name, outcome)
        })
        .buffer_unordered(PARALLEL)
        .ready_chunks(PARALLEL);
    let (mut first, mut out_of_reach) = (None, 0);
    while let Some(ended) = outcomes.next().await {
        let mut done = false;
        for (step, module_id, outcome) in ended {
            let Err(error) = outcome else {
                ours.done(step, &module_id);
                summary.done(step);
                (done, out_of_reach) = (true, 0);
                continue;
            };
            out_of_reach = if error.is_offline() { out_of_reach + 1 } else { 0 };
            tracing::warn!(
                { fields::MODULE_ID } = module_id,
                { fields::ERROR } = %chain(&error),
                "could not bring the module in order"
            );
            first.get_or_insert(error);
        }
        if done && let Err(error) = write(record, ours.settings()).await {
            tracing::warn!({ fields::ERROR } = %chain(&error), "could not write down which modules are ours");
            first.get_or_insert(error);
        }
        if out_of_reach >= OUT_OF_REACH {
            tracing::warn!("the hub is out of reach, the other modules are left for later");
            break;
        }
    }
    summary.log(calls);
    first.map_or(Ok(()), Err)
}

async fn carry_out(
    step: Step,
    modules: &Arc<Modules>,
    device: &Device,
    name: &str,
    calls: &Calls,
) -> Result<(), Error> {
    match step {
        Step::Create => modules.create(device, name, None, calls).await.map(drop),
        Step::TakeOver => modules.update(device, name, calls).await.map(drop),
        Step::Delete => match modules.delete(device, name, calls).await {
            // Somebody else was faster.
            Err(Error::Hub(error)) if error.is_module_missing() => Ok(()),
            deleted => deleted,
        },
    }
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
