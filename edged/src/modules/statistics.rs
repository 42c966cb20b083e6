//! Statistics of all modules, as the engine writes them. It takes a second or two for each, so they are asked for side by side.

use std::{collections::BTreeMap, time::Duration};

use aziot_log::{chain, fields};
use futures_util::{StreamExt as _, future::ready, stream};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    docker::{Docker, Listed},
    error::Error,
};

/// Modules that are asked about at once. The engine takes a second for each, nearly all of which it waits for its own next sample: asking about
/// half as many at once takes twice as long and spares it nothing.
const AT_ONCE: usize = 32;
/// How long one of them may take. It is left out then: the others are worth having.
const LIMIT: Duration = Duration::from_secs(10);

/// A JSON array of the statistics of `modules`.
pub(super) async fn of(docker: &Docker, modules: &[Listed]) -> Result<String, Error> {
    let asked: Vec<_> = modules
        .iter()
        .map(|module| async move {
            let reason = match tokio::time::timeout(LIMIT, docker.stats(&module.id)).await {
                Ok(Ok(statistics)) => return Some(named(statistics, module.name().unwrap_or_default())),
                Ok(Err(error)) => chain(&error).to_string(),
                Err(_) => format!("no answer within {} s", LIMIT.as_secs()),
            };
            tracing::debug!(
                { fields::MODULE_ID } = module.name(),
                { fields::ERROR } = reason,
                "there are no statistics of the module"
            );
            None
        })
        .collect();
    let statistics: Vec<Box<RawValue>> = stream::iter(asked).buffered(AT_ONCE).filter_map(ready).collect().await;
    serde_json::to_string(&statistics).map_err(|error| Error::ContainerRuntime(error.into()))
}

/// The statistics with the `/` before the module's name that Docker writes and Podman does not. The agent cuts the first letter off.
fn named(statistics: Box<RawValue>, name: &str) -> Box<RawValue> {
    let Ok(mut members) = serde_json::from_str::<BTreeMap<&str, &RawValue>>(statistics.get()) else {
        return statistics;
    };
    let wanted = format!("/{name}");
    let present = members.get("name").and_then(|name| serde_json::from_str::<String>(name.get()).ok());
    if present.as_deref() != Some(name) {
        return statistics;
    }
    let Ok(name) = to_raw_value(&wanted) else { return statistics };
    members.insert("name", &name);
    to_raw_value(&members).unwrap_or_else(|_| statistics.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn only_a_name_without_slash_is_changed_and_nothing_else() {
        let docker = r#"{"read":"x", "name":"/m", "big":123456789012345678901234567890 }"#;
        assert_eq!(named(raw(docker), "m").get(), docker);
        let podman = r#"{"name":"m","big":123456789012345678901234567890}"#;
        assert_eq!(named(raw(podman), "m").get(), r#"{"big":123456789012345678901234567890,"name":"/m"}"#);
        assert_eq!(named(raw("[]"), "m").get(), "[]");
    }
}
