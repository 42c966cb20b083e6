//! Calls on keys derived from other keys: HMAC-SHA256 of the base key over the derivation data.

use aziot_http::{Base64, Call, Method, SecretBytes};
use serde::{Deserialize, Serialize};

use crate::key::{Handle, KeyHandle};

/// Makes a handle of a derived key. Nothing is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateDerivedKey {
    /// Handle of the key to derive from, itself not a derived one.
    pub base_key_handle: KeyHandle,
    /// What sets this key apart from others of the same base, base64; may be empty.
    pub derivation_data: Base64,
}

impl Call for CreateDerivedKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/derivedkey";
    type Reply = Handle;
}

/// Reads the bytes of a derived key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportDerivedKey {
    /// Handle of the derived key.
    pub key_handle: KeyHandle,
}

impl Call for ExportDerivedKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/derivedkey/export";
    type Reply = ExportedKey;
}

/// Bytes of a derived key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportedKey {
    /// The 32 bytes, base64.
    pub key: SecretBytes,
}
