//! Calls about the device's modules at the hub, and about local identities.
//!
//! `type` is text here and not an enum: who may not ask is refused before the service looks at what was asked for.

use aziot_http::{Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::identity::Identity;

/// Lists all modules of the device, also those that others made; without what proves them.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListModules {
    /// `aziot`.
    #[serde(default)]
    pub r#type: Option<String>,
}

impl Call for ListModules {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/identities/modules";
    const QUERY: &'static [&'static str] = &["type"];
    const BODY: Body = Body::Ignored;
    type Reply = Identities;
}

/// The modules of the device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identities {
    /// One for each, in the hub's order.
    pub identities: Vec<Identity>,
}

/// Makes a module at the hub, or takes over the one that is there: its keys are new, its generation stays.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateModule {
    /// `aziot` or `local`.
    pub r#type: String,
    /// Name of the module: 1 to 128 ASCII letters, digits or `- : . + % _ # * ? ! ( ) , = @ ; $ '`.
    pub module_id: String,
    /// What kind of certificate a local identity is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_id_opts: Option<Value>,
    /// Who looks after the module, told to the hub. An addition of ours; the public service ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

impl Call for CreateModule {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/identities/modules";
    type Reply = Identity;
}

/// Gives a module's identity.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetModule {
    /// Name of the module.
    pub module_id: String,
    /// `aziot` or `local`.
    #[serde(default)]
    pub r#type: Option<String>,
}

impl Call for GetModule {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/identities/modules/{moduleId}";
    const QUERY: &'static [&'static str] = &["type"];
    const BODY: Body = Body::Ignored;
    type Reply = Identity;
}

/// Gives a module keys of this device; needed for those that the hub makes without any (`$edgeAgent`, `$edgeHub`).
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateModule {
    /// Name of the module.
    pub module_id: String,
    /// `aziot`.
    #[serde(default)]
    pub r#type: Option<String>,
}

impl Call for UpdateModule {
    const METHOD: Method = Method::PUT;
    const PATH: &'static str = "/identities/modules/{moduleId}";
    const QUERY: &'static [&'static str] = &["type"];
    const BODY: Body = Body::Ignored;
    type Reply = Identity;
}

/// Deletes a module at the hub.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteModule {
    /// Name of the module.
    pub module_id: String,
    /// `aziot`.
    #[serde(default)]
    pub r#type: Option<String>,
}

impl Call for DeleteModule {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/identities/modules/{moduleId}";
    const QUERY: &'static [&'static str] = &["type"];
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}
