//! Calls that use a key: signatures, encryption, decryption.

use aziot_http::{Base64, Call, Method, SecretBytes};
use serde::{Deserialize, Serialize};

use crate::key::KeyHandle;

/// Signs with a key pair (ECDSA) or a symmetric key (HMAC). RSA signatures are made by [`Encrypt`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// Handle of the key.
    pub key_handle: KeyHandle,
    /// How, and what.
    #[serde(flatten)]
    pub mechanism: SignMechanism,
}

/// A way to sign, with what is signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "algorithm", content = "parameters")]
pub enum SignMechanism {
    /// ECDSA over a digest that the caller made; the signature is a DER sequence of r and s.
    #[serde(rename = "ECDSA")]
    Ecdsa {
        /// The digest; what is longer than the curve's order is cut (FIPS 186).
        digest: Base64,
    },
    /// HMAC-SHA256 over a message of any length.
    #[serde(rename = "HMAC-SHA256")]
    HmacSha256 {
        /// The message.
        message: Base64,
    },
}

impl Call for Sign {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/sign";
    type Reply = Signature;
}

/// A signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signature {
    /// Its bytes.
    pub signature: Base64,
}

/// Encrypts with a symmetric key, or performs an RSA private-key operation, which is how callers make RSA signatures.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Encrypt {
    /// Handle of the key.
    pub key_handle: KeyHandle,
    /// How.
    #[serde(flatten)]
    pub mechanism: EncryptMechanism,
    /// What.
    pub plaintext: SecretBytes,
}

/// A way to encrypt.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "algorithm", content = "parameters")]
pub enum EncryptMechanism {
    /// AES-256-GCM with a 16-byte tag.
    #[serde(rename = "AEAD")]
    Aead {
        /// Initialization vector of 1 to 128 bytes, chosen by the caller and not part of the ciphertext.
        iv: Base64,
        /// Data that is authenticated and not encrypted.
        aad: Base64,
    },
    /// Block type 1 padding, then the private operation.
    #[serde(rename = "RSA-PKCS1")]
    RsaPkcs1,
    /// The private operation on a block as long as the modulus.
    #[serde(rename = "RSA-NO-PADDING")]
    RsaNoPadding,
}

impl Call for Encrypt {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/encrypt";
    type Reply = Ciphertext;
}

/// What encryption gives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ciphertext {
    /// For AEAD a version byte, the encrypted bytes and the tag; for RSA a block as long as the modulus.
    pub ciphertext: Base64,
}

/// Decrypts what [`Encrypt`] encrypted with AEAD.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decrypt {
    /// Handle of the key.
    pub key_handle: KeyHandle,
    /// How; the RSA ways are understood and always refused.
    #[serde(flatten)]
    pub mechanism: EncryptMechanism,
    /// What.
    pub ciphertext: Base64,
}

impl Call for Decrypt {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/decrypt";
    type Reply = Plaintext;
}

/// What decryption gives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plaintext {
    /// The bytes that were encrypted.
    pub plaintext: SecretBytes,
}
