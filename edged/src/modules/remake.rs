//! The create options of a container that is there, for making it anew.
//!
//! An engine that was killed while it started a container may leave that in its lower layers and refuse to start it for ever. All that helps is
//! another container of the same image and options; what the old one wrote outside its volumes is lost, as in an update.

use serde_json::{Map, Value, json};

use crate::docker::{Container, Error};

/// Networks that every engine has. Nobody is connected to them by name.
const BUILT_IN: [&str; 5] = ["bridge", "default", "host", "none", "podman"];
/// What of a connection to a network was asked for; the rest the engine has added.
const ASKED_FOR: [&str; 4] = ["Aliases", "DriverOpts", "IPAMConfig", "Links"];

/// Whether the engine will never start this container again.
pub(super) fn is_stuck(container: &Container, error: &Error) -> bool {
    let Error::Refused { message, .. } = error else { return false };
    let message = message.to_ascii_lowercase();
    let names_task = message.contains(&format!("task {}", container.id)) && message.contains("already exists");
    names_task
        || message.contains("container with given id already exists")
        || message.contains("container with id exists")
}

/// The create options, from all that the engine says of a container. `None` where it cannot be made in one step.
pub(super) fn options(inspected: &Value) -> Option<Value> {
    let id = inspected.get("Id")?.as_str()?;
    let short = id.get(..12)?;
    let mut options = inspected.get("Config")?.as_object()?.clone();
    let host = inspected.get("HostConfig")?;
    // The name may stand for another image by now.
    options.insert("Image".to_owned(), inspected.get("Image")?.clone());
    let shares = |member: &str, beginning: &str| {
        host.get(member).and_then(Value::as_str).is_some_and(|value| value.starts_with(beginning))
    };
    let is_given = options.get("Hostname").and_then(Value::as_str).is_some_and(|name| name != short);
    if !is_given || shares("NetworkMode", "container:") || shares("UTSMode", "host") {
        options.remove("Hostname");
    }
    let empty = Map::new();
    let connected = inspected.pointer("/NetworkSettings/Networks").and_then(Value::as_object).unwrap_or(&empty);
    let endpoints: Map<String, Value> = connected
        .iter()
        .filter(|(name, _)| !BUILT_IN.contains(&name.as_str()))
        .map(|(name, endpoint)| (name.clone(), asked_for(endpoint, short)))
        .collect();
    // Older engines make a container in one network only.
    if endpoints.len() > 1 {
        return None;
    }
    options.insert("NetworkingConfig".to_owned(), json!({ "EndpointsConfig": endpoints }));
    options.insert("HostConfig".to_owned(), host_config(host, inspected.get("Mounts"))?);
    Some(Value::Object(options))
}

fn asked_for(endpoint: &Value, short_id: &str) -> Value {
    let members = ASKED_FOR.iter().filter_map(|name| Some(((*name).to_owned(), endpoint.get(*name)?.clone())));
    let mut endpoint: Map<String, Value> = members.collect();
    if let Some(Value::Array(aliases)) = endpoint.get_mut("Aliases") {
        aliases.retain(|alias| alias != short_id);
    }
    Value::Object(endpoint)
}

/// The host's part, with the volumes that the engine made for want of a name: the new container goes on with what they hold.
fn host_config(host: &Value, mounts: Option<&Value>) -> Option<Value> {
    let mut host = host.as_object()?.clone();
    let text = |mount: &Value, member: &str| mount.get(member).and_then(Value::as_str).map(str::to_owned);
    let mut binds: Vec<Value> = host.get("Binds").and_then(Value::as_array).cloned().unwrap_or_default();
    let asked = host.get("Mounts").and_then(Value::as_array).cloned().unwrap_or_default();
    for mount in mounts.and_then(Value::as_array).into_iter().flatten() {
        let (Some(name), Some(target)) = (text(mount, "Name"), text(mount, "Destination")) else { continue };
        let is_bound = binds.iter().filter_map(Value::as_str).any(|bind| bind.split(':').nth(1) == Some(&target));
        let is_asked = asked.iter().any(|asked| text(asked, "Target").as_deref() == Some(&target));
        if text(mount, "Type").as_deref() == Some("volume") && !is_bound && !is_asked {
            binds.push(format!("{name}:{target}").into());
        }
    }
    if !binds.is_empty() {
        host.insert("Binds".to_owned(), binds.into());
    }
    Some(Value::Object(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn inspected() -> Value {
        json!({
            "Id": ID,
            "Image": "sha256:01",
            "Config": { "Hostname": "0123456789ab", "Image": "x:latest", "Env": ["A=1"], "Labels": { "l": "v" }, "Unknown": 1 },
            "HostConfig": { "NetworkMode": "net", "Binds": ["named:/n"], "Mounts": [{ "Type": "volume", "Target": "/m" }], "Unknown": {} },
            "NetworkSettings": { "Networks": {
                "net": { "Aliases": ["a", "0123456789ab"], "IPAMConfig": { "IPv4Address": "172.20.0.9" }, "NetworkID": "x", "IPAddress": "y" },
                "bridge": { "IPAddress": "z" },
            } },
            "Mounts": [
                { "Type": "volume", "Name": "named", "Destination": "/n" },
                { "Type": "volume", "Name": "other", "Destination": "/m" },
                { "Type": "volume", "Name": "ffff", "Destination": "/anonymous" },
                { "Type": "bind", "Source": "/b", "Destination": "/b" },
            ],
        })
    }

    #[test]
    fn what_was_asked_for_is_asked_for_again() {
        assert_eq!(
            options(&inspected()).unwrap(),
            json!({
                "Image": "sha256:01", "Env": ["A=1"], "Labels": { "l": "v" }, "Unknown": 1,
                "HostConfig": { "NetworkMode": "net", "Binds": ["named:/n", "ffff:/anonymous"],
                    "Mounts": [{ "Type": "volume", "Target": "/m" }], "Unknown": {} },
                "NetworkingConfig": { "EndpointsConfig": { "net": { "Aliases": ["a"], "IPAMConfig": { "IPv4Address": "172.20.0.9" } } } },
            })
        );
        let mut named = inspected();
        named["Config"]["Hostname"] = json!("mine");
        assert_eq!(options(&named).unwrap()["Hostname"], "mine");
        named["HostConfig"]["NetworkMode"] = json!("container:other");
        assert!(options(&named).unwrap().get("Hostname").is_none());
    }

    #[test]
    fn what_cannot_be_made_in_one_step_is_not_made() {
        let mut two = inspected();
        two["NetworkSettings"]["Networks"]["second"] = json!({});
        assert!(options(&two).is_none());
        assert!(options(&json!({})).is_none());
        assert!(options(&json!({ "Id": "short", "Image": "x", "Config": {}, "HostConfig": {} })).is_none());
    }
}
