//! `[edge_ca]`: the CA that signs the certificates of modules.

use std::collections::BTreeMap;

use aziot_certd_api::renewal::AutoRenew;
use serde::{Deserialize, Serialize};

/// Id of the CA's certificate and of its key pair unless configured otherwise.
pub const EDGE_CA: &str = "aziot-edged-ca";

/// Names of the CA's certificate and key, and how the certificate is requested and renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeCa {
    /// Certificate id in the certificate service.
    #[serde(default = "id", skip_serializing_if = "is_id")]
    pub cert: String,
    /// Id of the key pair in the key service.
    #[serde(default = "id", skip_serializing_if = "is_id")]
    pub key: String,
    /// Common name of the subject. Wins over `subject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// The subject: OpenSSL's attribute names, applied in the byte order of the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<BTreeMap<String, String>>,
    /// How it is renewed. Absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_renew: Option<AutoRenew>,
}

fn id() -> String {
    EDGE_CA.to_owned()
}

fn is_id(text: &str) -> bool {
    text == EDGE_CA
}

impl Default for EdgeCa {
    fn default() -> Self {
        Self { cert: id(), key: id(), common_name: None, subject: None, auto_renew: None }
    }
}
