//! Calls on modules, for the agent and the CLI: the containers that the runtime has, and making, replacing, starting and stopping them.
//!
//! The JSON is the public package's. What a module is made of stays JSON here ([`ModuleConfig::settings`]): members that nobody here knows
//! must reach the engine. Settings and environments hold secrets, so `Debug` shows neither.

use std::fmt;

use aziot_http::{ApiVersion, Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The label that makes a container a module.
pub const OWNER_LABEL: &str = "net.azure-devices.edge.owner";
/// Its value.
pub const OWNER: &str = "Microsoft.Azure.Devices.Edge.Agent";

/// What a module is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleSpecification {
    /// Name of the module and of its container.
    pub name: String,
    /// `docker`; there is no other.
    pub r#type: String,
    /// `on-create` (also when absent) or `never`, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// Image, options, environment.
    pub config: ModuleConfig,
}

/// What a module's container is made of.
#[derive(Clone, Serialize, Deserialize)]
pub struct ModuleConfig {
    /// An object with `image`, `createOptions` as the engine's API has them, and `auth` for the registry.
    pub settings: Value,
    /// Variables; `createOptions` may hold more. Empty where an existing container is described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<EnvironmentVariable>>,
}

impl fmt::Debug for ModuleConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ModuleConfig").field("image", &self.settings.get("image")).finish_non_exhaustive()
    }
}

/// One variable of a module's environment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentVariable {
    /// Its name.
    pub key: String,
    /// Its value, perhaps a secret.
    pub value: String,
}

impl fmt::Debug for EnvironmentVariable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EnvironmentVariable").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What a module is and does. The agent's client insists on every member that is not optional here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModuleDetails {
    /// Always `id`.
    pub id: String,
    /// Name of the module.
    pub name: String,
    /// Always `docker`.
    pub r#type: String,
    /// For an existing container its image and labels; after a request what was asked for, without credentials for the registry.
    pub config: ModuleConfig,
    /// What it does.
    pub status: ModuleStatus,
}

/// What a module does, and did before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleStatus {
    /// When it was started last, RFC 3339 with a final `Z`: the hub misreads an offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// How it ended last; there as well while it runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<ExitStatus>,
    /// Whether it runs.
    pub runtime_status: RuntimeStatus,
}

/// How a module ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitStatus {
    /// When, as [`ModuleStatus::start_time`].
    pub exit_time: String,
    /// The exit code, as text.
    pub status_code: String,
}

/// Whether a module runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeStatus {
    /// In one word.
    pub status: Status,
    /// In more words; the runtime sends none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Whether a module runs, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The engine does not tell, or something else than is known here.
    Unknown,
    /// It runs.
    Running,
    /// It was never started, was paused, or ended with exit code 0.
    Stopped,
    /// It ended with another exit code.
    Failed,
    /// The engine could not remove it.
    Dead,
}

/// Lists all modules. The workload API has the call too.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ListModules {}

impl Call for ListModules {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/modules";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = Modules;
}

/// All modules.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Modules {
    /// One for each, running or not.
    pub modules: Vec<ModuleDetails>,
}

/// Makes a module, after pulling its image where the policy says so, and does not start it. 409 if the name is taken.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CreateModule {
    /// What it is to be.
    pub specification: ModuleSpecification,
}

impl Call for CreateModule {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const SUCCESS: StatusCode = StatusCode::CREATED;
    const IDEMPOTENT: bool = false;
    type Reply = ModuleDetails;
}

/// Describes one module; 404 for a container that is none.
#[derive(Debug, Serialize, Deserialize)]
pub struct GetModule {
    /// Name of the module.
    pub module: String,
}

impl Call for GetModule {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/modules/{module}";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = ModuleDetails;
}

/// Replaces a module by what the body describes; the old one goes on until its image is there and the new one can be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct UpdateModule {
    /// Name of the module; the body's must be the same.
    pub module: String,
    /// `true` to start it as well; absent: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// What it is to be.
    #[serde(flatten)]
    pub specification: ModuleSpecification,
}

impl Call for UpdateModule {
    const METHOD: Method = Method::PUT;
    const PATH: &'static str = "/modules/{module}";
    const QUERY: &'static [&'static str] = &["start"];
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const SUCCESS: StatusCode = StatusCode::CREATED;
    type Reply = ModuleDetails;
}

/// Removes a module, running or not; its volumes stay.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeleteModule {
    /// Name of the module.
    pub module: String,
}

impl Call for DeleteModule {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/modules/{module}";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// Starts a module; one that runs goes on.
#[derive(Debug, Serialize, Deserialize)]
pub struct StartModule {
    /// Name of the module.
    pub module: String,
}

impl Call for StartModule {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{module}/start";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// Stops a module, in the time that its container has for that; one that does not run stays so.
#[derive(Debug, Serialize, Deserialize)]
pub struct StopModule {
    /// Name of the module.
    pub module: String,
}

impl Call for StopModule {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{module}/stop";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// Stops a module, if it runs, and starts it.
#[derive(Debug, Serialize, Deserialize)]
pub struct RestartModule {
    /// Name of the module.
    pub module: String,
}

impl Call for RestartModule {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{module}/restart";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// Pulls the image of a coming update where the policy says so, and changes nothing else.
#[derive(Debug, Serialize, Deserialize)]
pub struct PrepareUpdate {
    /// Name of the module; the body's must be the same.
    pub module: String,
    /// What it is to be.
    #[serde(flatten)]
    pub specification: ModuleSpecification,
}

impl Call for PrepareUpdate {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{module}/prepareupdate";
    const SINCE: ApiVersion = ApiVersion::V2019_01_30;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret_settings() -> Value {
        json!({ "image": "i", "auth": { "password": "hunter2" } })
    }

    #[test]
    fn details_are_the_public_packages_json() {
        let details = ModuleDetails {
            id: "id".to_owned(),
            name: "m".to_owned(),
            r#type: "docker".to_owned(),
            config: ModuleConfig { settings: json!({ "image": "i" }), env: Some(Vec::new()) },
            status: ModuleStatus {
                start_time: Some("2024-05-01T10:00:00Z".to_owned()),
                exit_status: Some(ExitStatus {
                    exit_time: "2024-05-01T09:59:00Z".to_owned(),
                    status_code: "137".to_owned(),
                }),
                runtime_status: RuntimeStatus { status: Status::Running, description: None },
            },
        };
        assert_eq!(
            serde_json::to_string(&details).unwrap(),
            r#"{"id":"id","name":"m","type":"docker","config":{"settings":{"image":"i"},"env":[]},"status":{"startTime":"2024-05-01T10:00:00Z","exitStatus":{"exitTime":"2024-05-01T09:59:00Z","statusCode":"137"},"runtimeStatus":{"status":"running"}}}"#
        );
    }

    #[test]
    fn a_specification_demands_name_type_and_config_and_ignores_the_unknown() {
        let whole = json!({ "name": "m", "type": "docker", "config": { "settings": {}, "more": 1 }, "more": 1 });
        let read: ModuleSpecification = serde_json::from_value(whole.clone()).unwrap();
        assert!(read.config.env.is_none() && read.image_pull_policy.is_none());
        for missing in ["name", "type", "config"] {
            let mut part = whole.clone();
            part.as_object_mut().unwrap().remove(missing);
            let error = serde_json::from_value::<ModuleSpecification>(part).unwrap_err().to_string();
            assert_eq!(error, format!("missing field `{missing}`"));
        }
        let null =
            json!({ "name": "m", "type": "docker", "imagePullPolicy": null, "config": { "settings": 1, "env": null } });
        assert!(serde_json::from_value::<ModuleSpecification>(null).unwrap().config.env.is_none());
    }

    #[test]
    fn an_update_holds_both_names() {
        let body =
            json!({ "module": "m", "start": "true", "name": "n", "type": "docker", "config": { "settings": {} } });
        let update: UpdateModule = serde_json::from_value(body.clone()).unwrap();
        assert_eq!((update.module.as_str(), update.specification.name.as_str()), ("m", "n"));
        assert_eq!(serde_json::to_value(&update).unwrap(), body);
    }

    #[test]
    fn debug_shows_no_secret() {
        let env = vec![EnvironmentVariable { key: "KEY".to_owned(), value: "hunter2".to_owned() }];
        let specification = ModuleSpecification {
            name: "m".to_owned(),
            r#type: "docker".to_owned(),
            image_pull_policy: None,
            config: ModuleConfig { settings: secret_settings(), env: Some(env.clone()) },
        };
        assert!(!format!("{specification:?} {env:?}").contains("hunter2"));
    }
}
