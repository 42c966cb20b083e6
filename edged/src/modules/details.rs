//! What the engine says of a container, in the words of the management API.

use aziot_edged_api::module::{ExitStatus, ModuleConfig, ModuleDetails, ModuleStatus, RuntimeStatus, Status};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use crate::{
    docker::{Container, Listed, State},
    specification::{ORIGINAL_IMAGE, TYPE},
};

/// A module as its container shows it. Its environment is not shown.
pub(super) fn of_container(container: &Container) -> ModuleDetails {
    let State { status, exit_code, started_at, finished_at, .. } = &container.state;
    let exit_time = finished_at.as_deref().and_then(time);
    let exit_status =
        exit_time.zip(*exit_code).map(|(exit_time, code)| ExitStatus { exit_time, status_code: code.to_string() });
    let status = ModuleStatus {
        start_time: started_at.as_deref().and_then(time),
        exit_status,
        runtime_status: runtime_status(status.as_deref(), *exit_code),
    };
    details(container.name(), container.labels(), &container.image, status)
}

/// A module as a list shows it: without times.
pub(super) fn of_listed(name: &str, module: &Listed) -> ModuleDetails {
    let exit_code = module.status.as_deref().and_then(exit_code);
    let status = ModuleStatus {
        start_time: None,
        exit_status: None,
        runtime_status: runtime_status(module.state.as_deref(), exit_code),
    };
    details(name, module.labels(), &module.image_id, status)
}

fn details(name: &str, labels: &BTreeMap<String, String>, image_id: &str, status: ModuleStatus) -> ModuleDetails {
    let image = labels.get(ORIGINAL_IMAGE).map_or(name, String::as_str);
    let all: Map<String, Value> = labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let settings = json!({ "image": image, "imageHash": image_id, "createOptions": { "Labels": all } });
    ModuleDetails {
        id: "id".to_owned(),
        name: name.to_owned(),
        r#type: TYPE.to_owned(),
        config: ModuleConfig { settings, env: Some(Vec::new()) },
        status,
    }
}

/// The state of a container in one word of the API.
pub(super) fn runtime_status(state: Option<&str>, exit_code: Option<i64>) -> RuntimeStatus {
    let status = match (state, exit_code) {
        (Some("created" | "paused" | "restarting"), _) | (Some("exited" | "removing"), Some(0)) => Status::Stopped,
        (Some("running"), _) => Status::Running,
        (Some("exited" | "removing"), Some(_)) => Status::Failed,
        (Some("dead"), _) => Status::Dead,
        _ => Status::Unknown,
    };
    RuntimeStatus { status, description: None }
}

/// The exit code in what a list says for people: `Exited (137) 2 hours ago`.
fn exit_code(text: &str) -> Option<i64> {
    text.split_once('(')?.1.split_once(')')?.0.parse().ok()
}

/// A time with a final `Z` and 0, 3, 6 or 9 digits of a second; none where the engine means never.
fn time(text: &str) -> Option<String> {
    let time: Timestamp = text.parse().ok()?;
    if time < Timestamp::UNIX_EPOCH {
        return None;
    }
    let nanoseconds = time.subsec_nanosecond();
    let digits = match nanoseconds {
        0 => 0,
        some if some % 1_000_000 == 0 => 3,
        some if some % 1_000 == 0 => 6,
        _ => 9,
    };
    Some(format!("{time:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_the_hub_reads_them() {
        for (text, expected) in [
            ("2024-05-01T10:00:00.123456789Z", Some("2024-05-01T10:00:00.123456789Z")),
            ("2024-05-01T12:00:00.5+02:00", Some("2024-05-01T10:00:00.500Z")),
            ("2024-05-01T10:00:00.1234567Z", Some("2024-05-01T10:00:00.123456700Z")),
            ("2024-05-01T10:00:00.12345Z", Some("2024-05-01T10:00:00.123450Z")),
            ("2024-05-01T10:00:00Z", Some("2024-05-01T10:00:00Z")),
            ("0001-01-01T00:00:00Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(time(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn states_are_the_public_daemons() {
        let status = |state, code| runtime_status(state, code).status;
        for state in ["created", "paused", "restarting"] {
            assert_eq!(status(Some(state), Some(0)), Status::Stopped);
        }
        assert_eq!(status(Some("running"), Some(0)), Status::Running);
        for state in ["exited", "removing"] {
            assert_eq!(status(Some(state), Some(0)), Status::Stopped);
            assert_eq!(status(Some(state), Some(137)), Status::Failed);
            assert_eq!(status(Some(state), None), Status::Unknown);
        }
        assert_eq!(status(Some("dead"), Some(0)), Status::Dead);
        assert_eq!(status(Some("new"), None), Status::Unknown);
        assert_eq!(status(None, None), Status::Unknown);
        assert_eq!(exit_code("Exited (137) 2 hours ago"), Some(137));
        assert_eq!(exit_code("Up 5 seconds"), None);
    }
}
