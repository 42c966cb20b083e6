//! What is measured: the operations, and the requests that ask for them.

use std::{path::Path, sync::atomic::AtomicU64, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use aziot_tests::raw;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::json;

const VERSION: &str = "api-version=2021-05-01";
/// Bytes that are signed with HMAC, about those of a SAS token's resource and expiry.
pub(crate) const MESSAGE: [u8; 64] = [b'm'; 64];
/// The digest that is signed with ECDSA.
pub(crate) const DIGEST: [u8; 32] = [0x5a; 32];
/// What is encrypted with AEAD.
pub(crate) const PLAINTEXT: [u8; 1024] = [b'p'; 1024];
/// Initialization vector of AEAD.
pub(crate) const IV: [u8; 12] = [7; 12];
/// Data that AEAD authenticates.
pub(crate) const AAD: &[u8] = b"$iotedged";
/// DER of a `DigestInfo` of SHA-256 without its digest.
const DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// What is signed with RSA: a `DigestInfo`.
pub(crate) fn digest_info() -> Vec<u8> {
    [&DIGEST_INFO[..], &DIGEST].concat()
}

/// An operation that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    /// A route that does not exist: what the server alone can do.
    EmptyRoute,
    HmacSha256,
    EcdsaP256,
    Rsa2048,
    Aead1Kib,
    CreateKey,
    CreateKeyPair,
}

impl Operation {
    pub(crate) const ALL: [Self; 7] = [
        Self::EmptyRoute,
        Self::HmacSha256,
        Self::EcdsaP256,
        Self::Rsa2048,
        Self::Aead1Kib,
        Self::CreateKey,
        Self::CreateKeyPair,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EmptyRoute => "empty route (404)",
            Self::HmacSha256 => "HMAC-SHA256",
            Self::EcdsaP256 => "ECDSA P-256",
            Self::Rsa2048 => "RSA-2048",
            Self::Aead1Kib => "AEAD 1 KiB",
            Self::CreateKey => "create key",
            Self::CreateKeyPair => "create P-256 pair",
        }
    }

    /// Makes the key that the operation uses, and the requests that use it.
    pub(crate) fn requests(self, socket: &Path) -> Result<Requests> {
        let base64 = |bytes: &[u8]| STANDARD.encode(bytes);
        let fixed = |path: &str, body: serde_json::Value| Requests::Fixed { request: post(path, &body), status: 200 };
        Ok(match self {
            Self::EmptyRoute => {
                let request = format!("GET /nothing?{VERSION} HTTP/1.1\r\nhost: keyd.sock\r\n\r\n").into_bytes();
                Requests::Fixed { request, status: 404 }
            }
            Self::HmacSha256 => {
                let handle = key(socket, "bench-hmac")?;
                let parameters = json!({ "message": base64(&MESSAGE) });
                fixed("/sign", json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": parameters }))
            }
            Self::EcdsaP256 => {
                let handle = key_pair(socket, "bench-ec", "ec-p256")?;
                let parameters = json!({ "digest": base64(&DIGEST) });
                fixed("/sign", json!({ "keyHandle": handle, "algorithm": "ECDSA", "parameters": parameters }))
            }
            Self::Rsa2048 => {
                let handle = key_pair(socket, "bench-rsa", "rsa-2048")?;
                let plaintext = base64(&digest_info());
                fixed("/encrypt", json!({ "keyHandle": handle, "algorithm": "RSA-PKCS1", "plaintext": plaintext }))
            }
            Self::Aead1Kib => {
                let handle = key(socket, "bench-aead")?;
                let parameters = json!({ "iv": base64(&IV), "aad": base64(AAD) });
                let plaintext = base64(&PLAINTEXT);
                fixed(
                    "/encrypt",
                    json!({ "keyHandle": handle, "algorithm": "AEAD", "parameters": parameters, "plaintext": plaintext }),
                )
            }
            Self::CreateKey => Requests::creation("/key", |id| json!({ "keyId": id, "usage": "sign" })),
            Self::CreateKeyPair => {
                Requests::creation("/keypair", |id| json!({ "keyId": id, "preferredAlgorithms": "ec-p256" }))
            }
        })
    }
}

/// The requests of a run.
pub(crate) enum Requests {
    /// One and the same.
    Fixed { request: Vec<u8>, status: u16 },
    /// These in turn.
    InTurn { requests: Vec<Vec<u8>>, next: usize, status: u16 },
    /// Each with an id that no other had.
    Creation { path: &'static str, body: fn(&str) -> serde_json::Value, request: Vec<u8> },
}

impl Requests {
    /// Requests that make something new under `path` each time.
    pub(crate) fn creation(path: &'static str, body: fn(&str) -> serde_json::Value) -> Self {
        Self::Creation { path, body, request: Vec::new() }
    }

    /// The bytes to send.
    pub(crate) fn next(&mut self) -> &[u8] {
        match self {
            Self::Fixed { request, .. } => request,
            Self::InTurn { requests, next, .. } => {
                *next = (*next + 1) % requests.len();
                &requests[*next]
            }
            Self::Creation { path, body, request } => {
                static NEXT: AtomicU64 = AtomicU64::new(0);
                let id = format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                *request = post(path, &body(&id));
                request
            }
        }
    }

    /// The status of a good answer.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Fixed { status, .. } | Self::InTurn { status, .. } => *status,
            Self::Creation { .. } => 200,
        }
    }
}

/// Requests that each make a new RSA-4096 pair.
pub(crate) fn rsa_4096_pairs() -> Requests {
    Requests::creation("/keypair", |id| json!({ "keyId": id, "preferredAlgorithms": "rsa-4096" }))
}

/// A request with a JSON body, on a connection that may be kept.
fn post(path: &str, body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path}?{VERSION} HTTP/1.1\r\nhost: keyd.sock\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn key(socket: &Path, id: &str) -> Result<String> {
    handle(socket, "/key", &json!({ "keyId": id, "usage": "sign" }))
}

fn key_pair(socket: &Path, id: &str, algorithm: &str) -> Result<String> {
    handle(socket, "/keypair", &json!({ "keyId": id, "preferredAlgorithms": algorithm }))
}

fn handle(socket: &Path, path: &str, body: &serde_json::Value) -> Result<String> {
    let reply = raw::call(socket, "POST", &format!("{path}?{VERSION}"), Some(&body.to_string()))?;
    reply.expect(200)?.text("/keyHandle").context("no handle")
}

/// The handle of a key that is there already.
pub(crate) fn load(socket: &Path, id: &str) -> Result<()> {
    raw::call(socket, "GET", &format!("/key/{id}?{VERSION}"), None)?.expect(200).map(|_| ())
}
