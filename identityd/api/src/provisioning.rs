//! The call that tells how this device gets its identity. Anybody who reaches the socket may make it.

use aziot_http::{ApiVersion, Body, Call, Method};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Gives the provisioning settings in force.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetProvisioning {}

impl Call for GetProvisioning {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/identities/provisioning";
    const SINCE: ApiVersion = ApiVersion::V2021_12_01;
    const BODY: Body = Body::Ignored;
    type Reply = ProvisioningInfo;
}

/// How the device gets its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum ProvisioningInfo {
    /// From DPS.
    Dps {
        /// How the device proves itself to DPS.
        auth: DpsAuthentication,
        /// URL of DPS, normalized.
        endpoint: String,
        /// Scope of the DPS instance.
        scope_id: String,
        /// Name of the registration.
        registration_id: String,
        /// What is told to the operator's custom allocation; null if nothing is.
        payload: Option<Value>,
    },
    /// From the configuration.
    Manual {
        /// How the device proves itself to the hub.
        auth: ManualAuthentication,
    },
    /// Not at all.
    None,
}

/// How a device proves itself to DPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DpsAuthentication {
    /// With a symmetric key.
    SymmetricKey,
    /// With a certificate.
    X509,
    /// With its TPM.
    Tpm,
}

/// How a device proves itself to its hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManualAuthentication {
    /// With a symmetric key.
    Sas,
    /// With a certificate.
    X509,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_flat_and_keeps_null() {
        let dps = ProvisioningInfo::Dps {
            auth: DpsAuthentication::SymmetricKey,
            endpoint: "https://localhost:8443/".into(),
            scope_id: "s".into(),
            registration_id: "r".into(),
            payload: None,
        };
        assert_eq!(
            serde_json::to_string(&dps).unwrap(),
            r#"{"source":"dps","auth":"symmetric_key","endpoint":"https://localhost:8443/","scope_id":"s","registration_id":"r","payload":null}"#
        );
        let manual = ProvisioningInfo::Manual { auth: ManualAuthentication::Sas };
        assert_eq!(serde_json::to_string(&manual).unwrap(), r#"{"source":"manual","auth":"sas"}"#);
        assert_eq!(serde_json::to_string(&ProvisioningInfo::None).unwrap(), r#"{"source":"none"}"#);
    }
}
