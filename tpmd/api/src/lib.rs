//! What the TPM service understands: its calls, its configuration, and a client.
//!
//! Anybody may depend on this crate; it knows no TPM and links no library of one.

use aziot_http::{ApiVersion, Base64, Body, Call, Client, Endpoint, Method, Retry, SecretBytes, client::NotCallable};
use serde::{Deserialize, Serialize};

pub mod config;

/// The api-versions that the service answers.
pub const VERSIONS: &[ApiVersion] = &[ApiVersion::V2020_09_01];

/// A client of the TPM service at `endpoint` that repeats calls as `retry` says.
pub fn client(endpoint: &Endpoint, retry: Retry) -> Result<Client, NotCallable> {
    Client::new(endpoint, ApiVersion::V2020_09_01, retry)
}

/// Asks for the public keys by which DPS knows this TPM.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct GetTpmKeys {}

impl Call for GetTpmKeys {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/get_tpm_keys";
    const BODY: Body = Body::Ignored;
    type Reply = TpmKeys;
}

/// Public parts of the TPM's own keys, each a marshaled `TPM2B_PUBLIC` (TPM 2.0 Library, Part 2, 12.2.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmKeys {
    /// The endorsement key: what an enrollment of this TPM names.
    pub endorsement_key: Base64,
    /// The storage root key, below which imported keys lie.
    pub storage_root_key: Base64,
}

/// Replaces the key that signs. Only DPS makes one that this TPM takes.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImportAuthKey {
    /// What DPS calls `authenticationKey`: five marshaled structures, back to back, of which only this TPM can make a key.
    pub key: SecretBytes,
}

impl Call for ImportAuthKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/import_auth_key";
    type Reply = Imported;
}

/// The key was imported: an empty object.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Imported {}

/// Signs with the imported key: HMAC-SHA256.
#[derive(Debug, Serialize, Deserialize)]
pub struct SignWithAuthKey {
    /// What is signed: any length that a request can have, 0 bytes too.
    pub data: Base64,
}

impl Call for SignWithAuthKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/sign_with_auth_key";
    type Reply = Digest;
}

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Its 32 bytes.
    pub digest: Base64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tpm.md`, section 3.
    #[test]
    fn members_are_named_as_the_public_service_names_them() {
        let keys = TpmKeys { endorsement_key: Base64(vec![1]), storage_root_key: Base64(vec![2]) };
        let text = serde_json::to_string(&keys).unwrap();
        assert_eq!(text, r#"{"endorsement_key":"AQ==","storage_root_key":"Ag=="}"#);
        assert_eq!(serde_json::to_string(&Imported {}).unwrap(), "{}");
        let import: ImportAuthKey = serde_json::from_str(r#"{"key":"AQ=="}"#).unwrap();
        assert_eq!(import.key.expose(), [1]);
        assert!(serde_json::from_str::<SignWithAuthKey>("{}").is_err());
    }
}
