//! The bootstrap agent: the container that the runtime makes by itself where there is no agent.
//!
//! Prepared at the start, so that a mistake in `[agent]` ends the start; what depends on the device's identity is added when the container is
//! made. An agent that is there is never compared with the configuration: from its first deployment on it updates itself.

use std::path::Path;

use aziot_edged_api::{
    config::{AGENT, Config, PullPolicy},
    module::{EnvironmentVariable, ModuleConfig, ModuleSpecification},
};
use aziot_http::{ApiVersion, Endpoint};
use serde_json::{Map, Value, json};

use crate::{
    provisioning::Device,
    specification::{CreateOptions, Invalid, Specification},
};

/// Name of the agent's identity at the hub.
pub(crate) const IDENTITY: &str = "$edgeAgent";
/// The start of an image or registry that stands for the gateway's host name.
const UPSTREAM: &str = "$upstream";
/// The user that owns the packaged management socket, and that the agent's image runs its program as.
const AGENT_USER: &str = "13622";
/// Labels by which the agent notices changes of its own configuration.
const EMPTY_LABELS: [&str; 2] = ["net.azure-devices.edge.create-options", "net.azure-devices.edge.env"];

/// A mistake in `[agent]`, which the schema alone does not show.
#[derive(Debug, thiserror::Error)]
#[error("`agent` in the configuration cannot be used")]
pub(crate) struct Unusable(#[from] Invalid);

/// The agent as it is made, but for what the device's identity gives.
pub(crate) struct Agent {
    image: String,
    pull_policy: PullPolicy,
    auth: Option<Map<String, Value>>,
    options: CreateOptions,
    variables: Vec<(String, String)>,
}

impl Agent {
    /// Prepares the agent: its sockets are mounted, it is in the network, and it is told about both. `sockets` is the resolved folder of the
    /// modules' sockets.
    pub(crate) fn prepare(config: &Config, sockets: &Path) -> Result<Self, Unusable> {
        let agent = &config.agent;
        let mut options = CreateOptions::new(Some(Value::Object(agent.config.create_options.0.clone())))?;
        let management = config.connect.management_uri.path().display();
        options.add_bind(&format!("{management}:{management}"));
        let socket = sockets.join(format!("{AGENT}.sock"));
        options.add_bind(&format!("{}:{}", socket.display(), config.connect.workload_uri.path().display()));
        options.add_network(&config.moby_runtime.network.name);
        for label in EMPTY_LABELS {
            options.object("Labels").insert(label.to_owned(), json!("{}"));
        }
        if must_name_user(config, &mut options) {
            options.set("User", AGENT_USER);
        }
        let mut variables: Vec<(String, String)> = agent.env.0.clone().into_iter().collect();
        variables.extend([
            ("EdgeDeviceHostName".to_owned(), config.hostname.clone()),
            ("IOTEDGE_APIVERSION".to_owned(), ApiVersion::V2022_08_03.to_string()),
            ("IOTEDGE_AUTHSCHEME".to_owned(), "sasToken".to_owned()),
            ("IOTEDGE_MODULEID".to_owned(), IDENTITY.to_owned()),
            ("IOTEDGE_WORKLOADURI".to_owned(), config.connect.workload_uri.to_string()),
            ("IOTEDGE_MANAGEMENTURI".to_owned(), config.connect.management_uri.to_string()),
            ("IOTEDGE_WORKLOADLISTEN_MNTURI".to_owned(), format!("unix://{}", sockets.display())),
            ("Mode".to_owned(), "iotedged".to_owned()),
            ("NetworkId".to_owned(), config.moby_runtime.network.name.clone()),
        ]);
        let auth = agent.config.auth.as_ref().map(|auth| {
            let members = auth.0.iter().map(|(name, value)| (name.clone(), json!(value)));
            members.collect()
        });
        let image = agent.config.image.to_string();
        let prepared = Self { image, pull_policy: agent.image_pull_policy, auth, options, variables };
        // Whatever is wrong is told now. The names are of no device.
        let anybody =
            Device { id: "d".to_owned(), hub: "hub.invalid".to_owned(), gateway: "gateway.invalid".to_owned() };
        prepared.specification(&anybody, "0")?;
        Ok(prepared)
    }

    /// The image for a device, whose gateway may stand in the image's name.
    pub(crate) fn image(&self, device: &Device) -> String {
        below(&self.image, device)
    }

    /// The agent for a device, with this generation of its identity.
    pub(crate) fn specification(&self, device: &Device, generation: &str) -> Result<Specification, Invalid> {
        let mut variables = self.variables.clone();
        variables.extend([
            ("IOTEDGE_DEVICEID".to_owned(), device.id.clone()),
            ("IOTEDGE_IOTHUBHOSTNAME".to_owned(), device.hub.clone()),
            ("IOTEDGE_MODULEGENERATIONID".to_owned(), generation.to_owned()),
        ]);
        if device.is_nested() {
            variables.push(("IOTEDGE_GATEWAYHOSTNAME".to_owned(), device.gateway.clone()));
        }
        // What is told later is the runtime's and wins over `[agent.env]`.
        let variables: std::collections::BTreeMap<String, String> = variables.into_iter().collect();
        let mut settings = json!({
            "image": self.image(device),
            "createOptions": self.options.clone().into_value(),
        });
        if let Some(auth) = &self.auth {
            let mut auth = auth.clone();
            if let Some(Value::String(address)) = auth.get_mut("serveraddress") {
                *address = below(address, device);
            }
            settings["auth"] = Value::Object(auth);
        }
        let env = variables.into_iter().map(|(key, value)| EnvironmentVariable { key, value }).collect();
        let policy = match self.pull_policy {
            PullPolicy::OnCreate => "on-create",
            PullPolicy::Never => "never",
        };
        Specification::new(ModuleSpecification {
            name: AGENT.to_owned(),
            r#type: crate::specification::TYPE.to_owned(),
            image_pull_policy: Some(policy.to_owned()),
            config: ModuleConfig { settings, env: Some(env) },
        })
    }
}

/// The text with a leading `$upstream` replaced by the gateway's host name.
fn below(text: &str, device: &Device) -> String {
    text.strip_prefix(UPSTREAM).map_or_else(|| text.to_owned(), |rest| format!("{}{rest}", device.gateway))
}

/// Whether the agent's container must start as the agent's user: its image changes to that user by itself, for which it needs rights that are
/// taken away where elevated ones are not allowed. Where the runtime binds the management socket itself, that user could not open it.
fn must_name_user(config: &Config, options: &mut CreateOptions) -> bool {
    let may_switch = config.allow_elevated_docker_permissions || {
        let added = options.object("HostConfig").get("CapAdd").and_then(Value::as_array).cloned().unwrap_or_default();
        let names = |capability: &str| {
            added.iter().filter_map(Value::as_str).any(|name| {
                let name = name.to_ascii_uppercase();
                name.strip_prefix("CAP_").unwrap_or(&name) == capability
            })
        };
        names("CHOWN") && names("SETUID")
    };
    let has_user = options.get("User").and_then(Value::as_str).is_some_and(|user| !user.is_empty());
    let is_packaged_socket = matches!(config.listen.management_uri, Endpoint::Descriptor(_));
    if !may_switch && !has_user && !is_packaged_socket {
        tracing::warn!(
            "elevated permissions are off and the management socket is not systemd's: the agent needs `User`, or CHOWN and SETUID in `CapAdd`, in `agent.config.createOptions`"
        );
    }
    !may_switch && !has_user && is_packaged_socket
}

#[cfg(test)]
mod tests {
    use aziot_edged_api::config::Hidden;

    use super::*;
    use crate::{settings::tests::config, specification::Privileges};

    fn device(gateway: &str) -> Device {
        Device { id: "dev1".to_owned(), hub: "hub.example".to_owned(), gateway: gateway.to_owned() }
    }

    fn body(config: &Config, device: &Device) -> Value {
        let agent = Agent::prepare(config, Path::new("/home/mnt")).unwrap();
        agent.specification(device, "638").unwrap().body(&Privileges::Elevated).0
    }

    #[test]
    fn the_container_is_the_public_daemons() {
        let mut config = config(Path::new("/home"));
        config
            .agent
            .env
            .0
            .extend([("Mode".to_owned(), "overridden".to_owned()), ("UpstreamProtocol".to_owned(), "Amqp".to_owned())]);
        assert_eq!(
            body(&config, &device("HUB.example")),
            json!({
                "Image": "agent:1",
                "Env": [
                    "EdgeDeviceHostName=gw-7",
                    "IOTEDGE_APIVERSION=2022-08-03",
                    "IOTEDGE_AUTHSCHEME=sasToken",
                    "IOTEDGE_DEVICEID=dev1",
                    "IOTEDGE_IOTHUBHOSTNAME=hub.example",
                    "IOTEDGE_MANAGEMENTURI=unix:///var/run/iotedge/mgmt.sock",
                    "IOTEDGE_MODULEGENERATIONID=638",
                    "IOTEDGE_MODULEID=$edgeAgent",
                    "IOTEDGE_WORKLOADLISTEN_MNTURI=unix:///home/mnt",
                    "IOTEDGE_WORKLOADURI=unix:///var/run/iotedge/workload.sock",
                    "Mode=iotedged",
                    "NetworkId=azure-iot-edge",
                    "UpstreamProtocol=Amqp",
                ],
                "HostConfig": {
                    "Binds": [
                        "/var/run/iotedge/mgmt.sock:/var/run/iotedge/mgmt.sock",
                        "/home/mnt/edgeAgent.sock:/var/run/iotedge/workload.sock",
                    ],
                },
                "NetworkingConfig": { "EndpointsConfig": { "azure-iot-edge": {} } },
                "Labels": {
                    "net.azure-devices.edge.create-options": "{}",
                    "net.azure-devices.edge.env": "{}",
                    "net.azure-devices.edge.original-image": "agent:1",
                    "net.azure-devices.edge.owner": "Microsoft.Azure.Devices.Edge.Agent",
                },
            })
        );
    }

    #[test]
    fn a_parent_is_named_in_image_registry_and_environment() {
        let mut config = config(Path::new("/home"));
        config.agent.config.image = "$upstream:443/agent:1".to_owned().try_into().unwrap();
        let auth =
            [("serveraddress".to_owned(), "$upstream:443".to_owned()), ("identitytoken".to_owned(), "t".to_owned())];
        config.agent.config.auth = Some(Hidden(auth.into()));
        let agent = Agent::prepare(&config, Path::new("/home/mnt")).unwrap();
        let device = device("parent.example");
        assert_eq!(agent.image(&device), "parent.example:443/agent:1");
        let specification = agent.specification(&device, "1").unwrap();
        assert_eq!(specification.auth(), Some(&json!({ "serveraddress": "parent.example:443", "identitytoken": "t" })));
        let body = specification.body(&Privileges::Elevated).0;
        assert!(body["Env"].as_array().unwrap().contains(&json!("IOTEDGE_GATEWAYHOSTNAME=parent.example")));
    }

    #[test]
    fn what_the_options_have_already_is_not_doubled_and_their_environment_wins() {
        let mut config = config(Path::new("/home"));
        let options = json!({
            "hostconfig": { "binds": ["/var/run/iotedge/mgmt.sock:/var/run/iotedge/mgmt.sock"], "Unknown": 1 },
            "NetworkingConfig": { "EndpointsConfig": { "azure-iot-edge": { "Aliases": ["a"] } } },
            "Env": ["Mode=mine"],
        });
        config.agent.config.create_options.0 = options.as_object().unwrap().clone();
        let body = body(&config, &device("hub.example"));
        assert_eq!(body["HostConfig"]["Binds"].as_array().unwrap().len(), 2);
        assert_eq!(body["HostConfig"]["Unknown"], 1);
        assert_eq!(body["NetworkingConfig"]["EndpointsConfig"]["azure-iot-edge"], json!({ "Aliases": ["a"] }));
        assert!(body["Env"].as_array().unwrap().contains(&json!("Mode=mine")));
    }

    #[test]
    fn mistakes_in_the_options_end_the_start() {
        let mut config = config(Path::new("/home"));
        config.agent.config.create_options.0 = json!({ "HostConfig": 1 }).as_object().unwrap().clone();
        let error = Agent::prepare(&config, Path::new("/home/mnt")).err().unwrap();
        let text = aziot_log::chain(&error).to_string();
        assert!(text.contains("createOptions.HostConfig"), "{text}");
    }

    #[test]
    fn without_elevated_rights_the_agent_starts_as_its_user() {
        let mut config = config(Path::new("/home"));
        config.allow_elevated_docker_permissions = false;
        assert_eq!(body(&config, &device("h"))["User"], "13622");
        let user = |config: &Config| body(config, &device("h")).get("User").cloned();
        let mut capable = config.clone();
        let options = json!({ "HostConfig": { "CapAdd": ["CAP_CHOWN", "setuid"] } });
        capable.agent.config.create_options.0 = options.as_object().unwrap().clone();
        assert_eq!(user(&capable), None);
        config.listen.management_uri = Endpoint::Unix("/m.sock".into());
        assert_eq!(user(&config), None);
        config.agent.config.create_options.0 = json!({ "User": "7" }).as_object().unwrap().clone();
        assert_eq!(user(&config), Some(json!("7")));
    }
}
