//! Making the hub's modules those of the principals: missing ones are made, ones that left the configuration are deleted.
//!
//! Modules that somebody else made are left alone, unless a principal has their name: such a one is taken over with its generation, twin and
//! tags, never deleted and made anew. Every step may be repeated, so a run that failed halfway is simply run again.

use std::collections::BTreeSet;

use aziot_identityd_api::config::{Config, IdType};
use aziot_log::chain;
use futures_util::{StreamExt as _, stream};

use crate::{device::Device, error::Error, modules::Modules};

/// Modules that are worked on at once.
const PARALLEL: usize = 4;

/// What is to be done about one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    TakeOver,
    Delete,
}

/// Names of the modules that a configuration wants at the hub.
pub(crate) fn module_names(config: &Config) -> BTreeSet<String> {
    config
        .principal
        .iter()
        .filter(|principal| principal.has(IdType::Module))
        .map(|principal| principal.name.clone())
        .collect()
}

/// What leads from the modules at the hub to the wanted ones; `previous` are those that this device has made its own before.
fn steps(hub: &BTreeSet<String>, wanted: &BTreeSet<String>, previous: &BTreeSet<String>) -> Vec<(Step, String)> {
    let step = |name: &String| match (hub.contains(name), wanted.contains(name), previous.contains(name)) {
        (true, false, true) => Some(Step::Delete),
        (true, true, false) => Some(Step::TakeOver),
        (false, true, _) => Some(Step::Create),
        (true, true, true) | (_, false, _) => None,
    };
    hub.union(wanted).filter_map(|name| Some((step(name)?, name.clone()))).collect()
}

/// Runs the steps. One that fails does not keep the others from being done; the first failure is returned.
pub(crate) async fn run(
    modules: &Modules,
    device: &Device,
    hub: &BTreeSet<String>,
    wanted: &BTreeSet<String>,
    previous: &BTreeSet<String>,
) -> Result<(), Error> {
    let mut outcomes = stream::iter(steps(hub, wanted, previous))
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
            (name, outcome)
        })
        .buffer_unordered(PARALLEL);
    let mut first = None;
    while let Some((module_id, outcome)) = outcomes.next().await {
        if let Err(error) = outcome {
            tracing::warn!(module_id, error = %chain(&error), "could not bring the module in order");
            first.get_or_insert(error);
        }
    }
    first.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn steps_follow_the_specifications_table() {
        let hub = set(&["$edgeAgent", "gone", "kept", "taken"]);
        let steps = steps(&hub, &set(&["kept", "taken", "new"]), &set(&["gone", "kept", "long-gone"]));
        let expected = [(Step::Delete, "gone"), (Step::Create, "new"), (Step::TakeOver, "taken")];
        assert_eq!(steps, expected.map(|(step, name)| (step, name.to_owned())));
    }
}
