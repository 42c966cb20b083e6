//! A stand-in for edgeAgent: the same calls on the management socket, the same environment and binds for its modules, no cloud.
//!
//! Each call has a connection of its own, as edgeAgent's have. It neither backs off nor updates itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Environment,
    http::{Connection, Response},
};

/// Variables that modules have from their agent.
const HANDED_DOWN: [&str; 4] =
    ["IOTEDGE_WORKLOADURI", "IOTEDGE_DEVICEID", "IOTEDGE_IOTHUBHOSTNAME", "IOTEDGE_APIVERSION"];

/// A module as a deployment describes it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Name of the module and its container.
    pub name: String,
    /// Image.
    pub image: String,
    /// `on-create` or `never`.
    #[serde(default = "never")]
    pub pull: String,
    /// Environment besides the agent's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Docker create options.
    #[serde(default = "nothing")]
    pub create_options: Value,
}

fn never() -> String {
    "never".to_owned()
}

fn nothing() -> Value {
    json!({})
}

impl Wanted {
    /// A module of an image that is there already.
    #[must_use]
    pub fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            pull: never(),
            environment: BTreeMap::new(),
            create_options: nothing(),
        }
    }

    /// The module's name in the cloud.
    #[must_use]
    pub fn identity(&self) -> String {
        let is_system = self.name == "edgeAgent" || self.name == "edgeHub";
        if is_system { format!("${}", self.name) } else { self.name.clone() }
    }
}

/// The management API, called as the agent.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
    environment: Environment,
}

impl Agent {
    /// An agent with this environment, whose calls go to `socket`.
    #[must_use]
    pub fn new(socket: &Path, environment: Environment) -> Self {
        Self { socket: socket.to_owned(), environment }
    }

    /// The agent's environment.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// A call; the api-version is added.
    pub fn call(&self, method: &str, target: &str, body: Option<&Value>) -> Result<Response> {
        let separator = if target.contains('?') { '&' } else { '?' };
        let target = format!("{target}{separator}api-version={}", self.environment.version());
        let body = body.map(Value::to_string);
        let mut headers = vec![("Connection", "close")];
        if body.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        Connection::unix(&self.socket)?.call(method, &target, &headers, body.as_deref().map(str::as_bytes))
    }

    /// Status of each module by its name.
    pub fn modules(&self) -> Result<BTreeMap<String, String>> {
        let answer = self.call("GET", "/modules", None)?.expect(&[200])?.json()?;
        let modules = answer["modules"].as_array().context("no list of modules")?;
        let pair = |module: &Value| {
            let status = module.pointer("/status/runtimeStatus/status")?.as_str()?;
            Some((module["name"].as_str()?.to_owned(), status.to_owned()))
        };
        modules.iter().map(|module| pair(module).with_context(|| format!("no name or status: {module}"))).collect()
    }

    /// Generation of each identity by its module id.
    pub fn identities(&self) -> Result<BTreeMap<String, String>> {
        let answer = self.call("GET", "/identities/", None)?.expect(&[200])?.json()?;
        let identities = answer["identities"].as_array().context("no list of identities")?;
        let pair = |identity: &Value| {
            Some((identity["moduleId"].as_str()?.to_owned(), identity["generationId"].as_str()?.to_owned()))
        };
        identities
            .iter()
            .map(|identity| pair(identity).with_context(|| format!("half an identity: {identity}")))
            .collect()
    }

    /// Creates an identity, or re-keys one that is there, and returns its generation.
    pub fn identity(&self, module: &str) -> Result<String> {
        let path = utf8_percent_encode(module, NON_ALPHANUMERIC);
        let answer = if self.identities()?.contains_key(module) {
            let body = json!({ "generationId": "", "managedBy": "IotEdge" });
            self.call("PUT", &format!("/identities/{path}"), Some(&body))?
        } else {
            self.call("POST", "/identities/", Some(&json!({ "moduleId": module, "managedBy": "IotEdge" })))?
        };
        let answer = answer.expect(&[200])?.json()?;
        Ok(answer["generationId"].as_str().context("an identity without generation")?.to_owned())
    }

    /// The body that creates a module.
    pub fn specification(&self, wanted: &Wanted, generation: &str) -> Result<Value> {
        let mut environment = wanted.environment.clone();
        for name in HANDED_DOWN {
            environment.insert(name.to_owned(), self.environment.get(name)?.to_owned());
        }
        environment.insert("IOTEDGE_AUTHSCHEME".to_owned(), "sasToken".to_owned());
        environment.insert("IOTEDGE_MODULEID".to_owned(), wanted.identity());
        environment.insert("IOTEDGE_MODULEGENERATIONID".to_owned(), generation.to_owned());
        let gateway = self.environment.get("EdgeDeviceHostName")?;
        environment.insert("IOTEDGE_GATEWAYHOSTNAME".to_owned(), gateway.to_owned());
        if wanted.identity().starts_with('$') {
            environment.insert("EdgeDeviceHostName".to_owned(), gateway.to_owned());
        }
        let environment: Vec<Value> =
            environment.into_iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        let settings = json!({
            "image": wanted.image, "digest": null, "auth": null, "createOptions": self.create_options(wanted)?,
        });
        Ok(json!({
            "name": wanted.name, "type": "docker", "imagePullPolicy": wanted.pull,
            "config": { "settings": settings, "env": environment },
        }))
    }

    /// The deployment's create options, the module's socket, and the network unless they name one.
    fn create_options(&self, wanted: &Wanted) -> Result<Value> {
        let mounted = self.environment.path("IOTEDGE_WORKLOADLISTEN_MNTURI")?.join(format!("{}.sock", wanted.name));
        let inside = self.environment.path("IOTEDGE_WORKLOADURI")?;
        let mut binds = vec![json!(format!("{}:{}", mounted.display(), inside.display()))];
        let mut options = wanted.create_options.clone();
        let named = options.pointer("/HostConfig/NetworkMode").is_some() || options.get("NetworkingConfig").is_some();
        if !named {
            let endpoints = json!({ (self.environment.get("NetworkId")?): {} });
            options["NetworkingConfig"] = json!({ "EndpointsConfig": endpoints });
        }
        if let Some(own) = options.pointer("/HostConfig/Binds").and_then(Value::as_array) {
            binds.extend(own.iter().cloned());
        }
        if options.get("HostConfig").is_none() {
            options["HostConfig"] = json!({});
        }
        options["HostConfig"]["Binds"] = Value::Array(binds);
        Ok(options)
    }

    /// Creates a module that is not there, with its identity.
    pub fn create(&self, wanted: &Wanted) -> Result<()> {
        let generation = self.identity(&wanted.identity())?;
        let specification = self.specification(wanted, &generation)?;
        let _ = self.call("POST", "/modules", Some(&specification))?.expect(&[201])?;
        Ok(())
    }

    /// Starts a module.
    pub fn start(&self, name: &str) -> Result<()> {
        let _ = self.call("POST", &format!("/modules/{name}/start"), None)?.expect(&[204])?;
        Ok(())
    }

    /// Removes a module; its identity stays.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _ = self.call("DELETE", &format!("/modules/{name}"), None)?.expect(&[204])?;
        Ok(())
    }

    /// One round: creates what is missing, starts what does not run, removes what is not wanted. What was done, and each module's status before.
    pub fn reconcile(&self, wanted: &[Wanted]) -> Result<Value> {
        let there = self.modules()?;
        let names: BTreeSet<&str> = wanted.iter().map(|wanted| wanted.name.as_str()).chain(["edgeAgent"]).collect();
        let (mut done, mut failures) = (Vec::new(), Vec::new());
        let mut note = |what: String, outcome: Result<()>| match outcome {
            Ok(()) => done.push(what),
            Err(error) => failures.push(format!("{what}: {error:#}")),
        };
        for name in there.keys().filter(|name| !names.contains(name.as_str())) {
            note(format!("remove {name}"), self.remove(name));
        }
        for wanted in wanted {
            let name = &wanted.name;
            if !there.contains_key(name) {
                note(format!("create {name}"), self.create(wanted));
            }
            if there.get(name).is_none_or(|status| status != "running") {
                note(format!("start {name}"), self.start(name));
            }
        }
        Ok(json!({ "modules": there, "done": done, "failures": failures }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Agent {
        let lines = [
            "IOTEDGE_WORKLOADURI=unix:///run/workload.sock",
            "IOTEDGE_WORKLOADLISTEN_MNTURI=unix:///var/mnt",
            "IOTEDGE_DEVICEID=pump",
            "IOTEDGE_IOTHUBHOSTNAME=hub",
            "IOTEDGE_APIVERSION=2022-08-03",
            "EdgeDeviceHostName=gateway",
            "NetworkId=edge",
        ];
        Agent::new(Path::new("/none"), Environment::of_lines(lines))
    }

    #[test]
    fn a_module_gets_its_socket_its_network_and_its_environment() {
        let mut wanted = Wanted::new("sampler", "image:1");
        wanted.create_options = json!({ "Tty": true, "HostConfig": { "Binds": ["/a:/a"] } });
        let made = agent().specification(&wanted, "7").unwrap();
        let options = &made["config"]["settings"]["createOptions"];
        assert_eq!(options["HostConfig"]["Binds"], json!(["/var/mnt/sampler.sock:/run/workload.sock", "/a:/a"]));
        assert_eq!(options["NetworkingConfig"], json!({ "EndpointsConfig": { "edge": {} } }));
        assert_eq!(options["Tty"], true);
        let environment = made["config"]["env"].as_array().unwrap();
        for (key, value) in [("IOTEDGE_MODULEID", "sampler"), ("IOTEDGE_MODULEGENERATIONID", "7")] {
            assert!(environment.contains(&json!({ "key": key, "value": value })), "{made}");
        }
        // Its own name, which is the hub's for system modules; a network of its own stays.
        wanted = Wanted::new("edgeHub", "image:1");
        wanted.create_options = json!({ "HostConfig": { "NetworkMode": "host" } });
        let made = agent().specification(&wanted, "7").unwrap();
        assert!(
            made["config"]["env"]
                .as_array()
                .unwrap()
                .contains(&json!({ "key": "IOTEDGE_MODULEID", "value": "$edgeHub" }))
        );
        assert!(made["config"]["settings"]["createOptions"].get("NetworkingConfig").is_none());
    }
}
