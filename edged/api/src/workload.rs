//! Calls of a module on its workload socket: signatures, secrets, certificates, and whom to trust.
//!
//! Bytes travel as standard base64 with padding. They stay text here: what does not decode is the caller's wrong parameter (400) and no body
//! of another shape (422). `moduleId` is the name that the hub knows (`$edgeHub`), `generationId` the hub's generation of it.

use aziot_http::{ApiVersion, Base64, Body, Call, Method, SecretBytes, SecretText, StatusCode};
use serde::{Deserialize, Serialize};

/// Signs with the module's key: HMAC-SHA256. `keyId` and `algo`, which clients send, say nothing else and are not read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// Name of the module at the hub.
    pub module_id: String,
    /// Its generation, which must be the present one.
    pub generation_id: String,
    /// What is signed, base64.
    pub data: String,
}

impl Call for Sign {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{moduleId}/genid/{generationId}/sign";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    // This call alone words it so.
    const MISSING_BODY: &'static str = "missing parameter: request body";
    type Reply = Digest;
}

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Its 32 bytes.
    pub digest: Base64,
}

/// Encrypts a secret that this module alone can decrypt here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encrypt {
    /// Name of the module at the hub.
    pub module_id: String,
    /// Its generation, which must be the present one.
    pub generation_id: String,
    /// The secret, base64.
    pub plaintext: SecretText,
    /// 1 to 128 bytes, base64; not part of the result.
    pub initialization_vector: String,
}

impl Call for Encrypt {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{moduleId}/genid/{generationId}/encrypt";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    type Reply = Ciphertext;
}

/// An encrypted secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ciphertext {
    /// A byte for the layout, then what the key service made of the secret.
    pub ciphertext: Base64,
}

/// Decrypts what [`Encrypt`] encrypted, in this or an older generation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decrypt {
    /// Name of the module at the hub.
    pub module_id: String,
    /// The generation in which the secret was encrypted.
    pub generation_id: String,
    /// What encryption gave, base64.
    pub ciphertext: String,
    /// The bytes that encryption was given, base64.
    pub initialization_vector: String,
}

impl Call for Decrypt {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{moduleId}/genid/{generationId}/decrypt";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    type Reply = Plaintext;
}

/// A decrypted secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plaintext {
    /// Its bytes.
    pub plaintext: SecretBytes,
}

/// Issues a certificate for a TLS server, with a new key. `expiration`, which clients send, is not read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateServerCertificate {
    /// Name of the module at the hub.
    pub module_id: String,
    /// Its generation; any is taken.
    pub generation_id: String,
    /// Host name or address under which clients reach the server.
    pub common_name: String,
}

impl Call for CreateServerCertificate {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{moduleId}/genid/{generationId}/certificate/server";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const SUCCESS: StatusCode = StatusCode::CREATED;
    // Each time another certificate, but one as good as the other.
    const IDEMPOTENT: bool = true;
    type Reply = IssuedCertificate;
}

/// Issues a certificate with which the module proves itself to TLS servers, with a new key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateIdentityCertificate {
    /// Name of the module at the hub.
    pub module_id: String,
}

impl Call for CreateIdentityCertificate {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/modules/{moduleId}/certificate/identity";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::CREATED;
    const IDEMPOTENT: bool = true;
    type Reply = IssuedCertificate;
}

/// A certificate and its private key, which is kept nowhere else. The order of the members is the public one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IssuedCertificate {
    /// The key.
    pub private_key: PrivateKey,
    /// PEM: the certificate, then its issuers.
    pub certificate: String,
    /// End of the certificate's validity, RFC 3339 with `+00:00`.
    pub expiration: String,
}

/// A private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum PrivateKey {
    /// The key itself.
    Key {
        /// PKCS#8, PEM text.
        bytes: SecretText,
    },
}

/// Gives the certificates that modules are to trust.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetTrustBundle {}

impl Call for GetTrustBundle {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/trust-bundle";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = TrustBundle;
}

/// Gives the certificates by which deployments may be signed; none is no error.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GetManifestTrustBundle {}

impl Call for GetManifestTrustBundle {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/manifest-trust-bundle";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = TrustBundle;
}

/// Certificates to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// PEM, possibly several; empty where there are none.
    pub certificate: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_the_public_packages() {
        let issued = IssuedCertificate {
            private_key: PrivateKey::Key { bytes: SecretText::new("KEY".to_owned()) },
            certificate: "CERT".to_owned(),
            expiration: "2024-06-01T10:00:00+00:00".to_owned(),
        };
        assert_eq!(
            serde_json::to_string(&issued).unwrap(),
            r#"{"privateKey":{"type":"key","bytes":"KEY"},"certificate":"CERT","expiration":"2024-06-01T10:00:00+00:00"}"#
        );
        assert!(!format!("{issued:?}").contains("KEY"));
        let digest = Digest { digest: Base64(vec![0, 1]) };
        assert_eq!(serde_json::to_string(&digest).unwrap(), r#"{"digest":"AAE="}"#);
    }

    #[test]
    fn what_clients_send_beyond_the_contract_is_not_read() {
        let sent = r#"{"moduleId":"m","generationId":"1","keyId":7,"algo":null,"data":"AA=="}"#;
        assert_eq!(serde_json::from_str::<Sign>(sent).unwrap().data, "AA==");
        let sent = r#"{"moduleId":"m","generationId":"1","commonName":"a.b","expiration":{}}"#;
        assert_eq!(serde_json::from_str::<CreateServerCertificate>(sent).unwrap().common_name, "a.b");
    }

    #[test]
    fn secrets_do_not_show() {
        let sent = r#"{"moduleId":"m","generationId":"1","plaintext":"c2VjcmV0","initializationVector":"AA=="}"#;
        let call = serde_json::from_str::<Encrypt>(sent).unwrap();
        assert_eq!(call.plaintext.expose(), "c2VjcmV0");
        assert!(!format!("{call:?}").contains("c2VjcmV0"));
        let plaintext = Plaintext { plaintext: SecretBytes::new(b"secret".to_vec()) };
        assert_eq!(serde_json::to_string(&plaintext).unwrap(), r#"{"plaintext":"c2VjcmV0"}"#);
    }
}
