//! Calls on symmetric keys.

use std::{fmt, str::FromStr};

use aziot_http::{Body, Call, Method, SecretBytes, StatusCode};
use serde::{Deserialize, Serialize};

/// A bearer token for one key: whoever holds it may use the key. It goes into JSON as it is and never into a log.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyHandle(pub String);

impl fmt::Debug for KeyHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[key handle]")
    }
}

/// The answer of each call that makes or finds a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handle {
    /// Handle of the key.
    pub key_handle: KeyHandle,
}

/// Makes a symmetric key or imports one. Without bytes a key that is already there is kept; an import overwrites.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateKey {
    /// Name of the key on this device; `[[principal]]` tables decide who may use it.
    pub key_id: String,
    /// What the key is for; required on import too.
    pub usage: KeyUsage,
    /// Bytes to import, standard base64. Absent or null: the service makes 32 random bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_bytes: Option<SecretBytes>,
}

impl Call for CreateKey {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/key";
    type Reply = Handle;
}

/// Gives a handle of a key that exists; 400 if it does not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadKey {
    /// Name of the key.
    pub key_id: String,
}

impl Call for LoadKey {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/key/{keyId}";
    const BODY: Body = Body::Ignored;
    type Reply = Handle;
}

/// Deletes a symmetric key; one that is not there is no error.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteKey {
    /// Handle of the key.
    pub key_handle: KeyHandle,
}

impl Call for DeleteKey {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/key";
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// `POST /key/{id}`, which the public service routes to its move call and always refuses with 400: only pairs move.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveKey {
    /// Name the key would get.
    pub key_id: String,
    /// Name it has.
    pub from: String,
}

impl Call for MoveKey {
    const METHOD: Method = Method::POST;
    // The same template as LoadKey: a router knows one name for one place.
    const PATH: &'static str = "/key/{keyId}";
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

/// What a symmetric key is for: a comma list of `derive`, `sign` and `encrypt`.
///
/// `derive` and `sign` are one and the same to the key library, but both are written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyUsage {
    /// Keys may be derived from it.
    pub derive: bool,
    /// It encrypts and decrypts (AES-256-GCM).
    pub encrypt: bool,
    /// It signs (HMAC-SHA256).
    pub sign: bool,
}

impl KeyUsage {
    /// For encryption alone.
    pub const ENCRYPT: Self = Self { derive: false, encrypt: true, sign: false };
    /// For signatures and derivation, as the identity service's master key needs.
    pub const DERIVE_SIGN: Self = Self { derive: true, encrypt: false, sign: true };
}

/// A usage that no key can have.
#[derive(Debug, thiserror::Error)]
#[error("expected a comma-separated list of derive, encrypt and sign")]
pub struct UnknownUsage;

impl FromStr for KeyUsage {
    type Err = UnknownUsage;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut usage = Self { derive: false, encrypt: false, sign: false };
        for item in text.split(',') {
            match item {
                "derive" => usage.derive = true,
                "encrypt" => usage.encrypt = true,
                "sign" => usage.sign = true,
                _ => return Err(UnknownUsage),
            }
        }
        Ok(usage)
    }
}

impl TryFrom<String> for KeyUsage {
    type Error = UnknownUsage;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KeyUsage> for String {
    fn from(usage: KeyUsage) -> Self {
        let names = [(usage.derive, "derive"), (usage.encrypt, "encrypt"), (usage.sign, "sign")];
        names.into_iter().filter_map(|(wanted, name)| wanted.then_some(name)).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::KeyUsage;

    #[test]
    fn usage_is_a_strict_list() {
        for text in ["derive", "derive,sign", "derive,encrypt,sign"] {
            assert_eq!(String::from(text.parse::<KeyUsage>().unwrap()), text);
        }
        assert_eq!("sign,derive".parse::<KeyUsage>().unwrap(), KeyUsage::DERIVE_SIGN);
        for text in ["", "sign,", "Sign", "sign, derive", "none"] {
            assert!(text.parse::<KeyUsage>().is_err(), "{text:?}");
        }
    }
}
