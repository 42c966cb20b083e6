//! The environment of a module: from the specification and from its create options.

use std::collections::BTreeMap;

use aziot_edged_api::module::EnvironmentVariable;
use serde_json::Value;

use super::{CreateOptions, Invalid};

/// The variables of a specification, none of them twice or without a name.
pub(super) fn unique(variables: &[EnvironmentVariable]) -> Result<BTreeMap<String, String>, Invalid> {
    let mut unique = BTreeMap::new();
    for EnvironmentVariable { key, value } in variables {
        if key.is_empty() {
            return Err(Invalid::UnnamedVariable);
        }
        if unique.insert(key.clone(), value.clone()).is_some() {
            return Err(Invalid::DuplicateVariable(key.clone()));
        }
    }
    Ok(unique)
}

/// Puts `variables` into the create options. What stands there already wins; the result is sorted by name.
pub(super) fn merge(options: &mut CreateOptions, variables: &BTreeMap<String, String>) {
    let own = options.strings("Env");
    let own = own.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let given = variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let merged: BTreeMap<&str, &str> = given.chain(own).collect();
    let merged: Vec<Value> = merged.into_iter().map(|(name, value)| format!("{name}={value}").into()).collect();
    options.set("Env", merged);
}
