//! Calls on asymmetric key pairs.

use aziot_http::{Body, Call, Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::key::{Handle, KeyHandle};

/// Makes a key pair, or gives the one that is there, whatever its algorithm.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateKeyPair {
    /// Name of the pair on this device.
    pub key_id: String,
    /// Algorithms by preference, separated by colons: `ec-p256`, `rsa-2048`, `rsa-4096`, `*`. Absent or null: `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_algorithms: Option<String>,
}

impl Call for CreateKeyPair {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/keypair";
    type Reply = Handle;
}

/// Gives a handle of a pair that exists; 400 if it does not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadKeyPair {
    /// Name of the pair.
    pub key_id: String,
}

impl Call for LoadKeyPair {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/keypair/{keyId}";
    const BODY: Body = Body::Ignored;
    type Reply = Handle;
}

/// Renames a pair; one that has the new name is replaced.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveKeyPair {
    /// Name the pair gets.
    pub key_id: String,
    /// Name it has.
    pub from: String,
}

impl Call for MoveKeyPair {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/keypair/{keyId}";
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    // A second move finds no source and fails.
    const IDEMPOTENT: bool = false;
    type Reply = ();
}

/// Deletes a pair; one that is not there is no error.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteKeyPair {
    /// Handle of the pair.
    pub key_handle: KeyHandle,
}

impl Call for DeleteKeyPair {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/keypair";
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// Reads one public parameter of a pair.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetParameter {
    /// `algorithm`, `ec-curve-oid`, `ec-point`, `rsa-modulus` or `rsa-exponent`.
    pub name: String,
    /// Handle of the pair.
    pub key_handle: KeyHandle,
}

impl Call for GetParameter {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/parameters/{name}";
    type Reply = Parameter;
}

/// Value of a public parameter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parameter {
    /// `ECDSA` or `RSA` for `algorithm`, otherwise base64 of the bytes.
    pub value: String,
}
