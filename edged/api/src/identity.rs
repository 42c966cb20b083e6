//! Calls on the identities of modules, for the agent: which there are at the hub, and making, re-keying and deleting them.

use aziot_http::{ApiVersion, Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};

/// A module's identity, as the agent sees it. All members are always there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Name of the module at the hub.
    pub module_id: String,
    /// Who looks after it. The agent compares it with `IotEdge`, ignoring case, and deletes none that says something else.
    pub managed_by: String,
    /// The hub's generation of it.
    pub generation_id: String,
    /// How it proves itself.
    pub auth_type: AuthType,
}

/// How an identity proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthType {
    /// By tokens signed with its key; the only way that modules have.
    Sas,
}

/// Lists the identities of all modules that the device has at the hub.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ListIdentities {}

impl Call for ListIdentities {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/identities";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = Identities;
}

/// Identities of modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// One for each, in the hub's order.
    pub identities: Vec<Identity>,
}

/// Makes an identity, or takes over the one that is there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateIdentity {
    /// Name of the module at the hub.
    pub module_id: String,
    /// Who looks after it, told to the hub; absent or null: `iotedge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

impl Call for CreateIdentity {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/identities";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    type Reply = Identity;
}

/// Gives an identity new keys. The body that clients send says nothing more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateIdentity {
    /// Name of the module at the hub.
    pub module_id: String,
}

impl Call for UpdateIdentity {
    const METHOD: Method = Method::PUT;
    const PATH: &'static str = "/identities/{moduleId}";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = Identity;
}

/// Deletes an identity at the hub; 404 if there is none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteIdentity {
    /// Name of the module at the hub.
    pub module_id: String,
}

impl Call for DeleteIdentity {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/identities/{moduleId}";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_the_public_packages() {
        let identity = Identity {
            module_id: "$edgeHub".to_owned(),
            managed_by: "iotedge".to_owned(),
            generation_id: "637".to_owned(),
            auth_type: AuthType::Sas,
        };
        assert_eq!(
            serde_json::to_string(&Identities { identities: vec![identity] }).unwrap(),
            r#"{"identities":[{"moduleId":"$edgeHub","managedBy":"iotedge","generationId":"637","authType":"sas"}]}"#
        );
        let bare = serde_json::from_str::<CreateIdentity>(r#"{"moduleId":"m1"}"#).unwrap();
        assert_eq!(bare.managed_by, None);
        let null = serde_json::from_str::<CreateIdentity>(r#"{"moduleId":"m1","managedBy":null}"#).unwrap();
        assert_eq!(null.managed_by, None);
    }
}
