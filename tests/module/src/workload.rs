//! The workload API as a module uses it: its own name, its own socket.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::{
    Environment,
    http::{Connection, Response},
};

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf and its issuers, PEM.
    pub certificate: String,
    /// The private key, PEM.
    pub key: String,
}

/// A connection to a workload socket, in the name of a module.
pub struct Workload {
    connection: Connection,
    module: String,
    generation: String,
    version: String,
}

impl Workload {
    /// Connects as the environment says.
    pub fn connect(environment: &Environment) -> Result<Self> {
        Self::connect_to(&environment.path("IOTEDGE_WORKLOADURI")?, environment)
    }

    /// Connects to another socket.
    pub fn connect_to(socket: &Path, environment: &Environment) -> Result<Self> {
        Ok(Self {
            connection: Connection::unix(socket)?,
            module: utf8_percent_encode(environment.module()?, NON_ALPHANUMERIC).to_string(),
            generation: utf8_percent_encode(environment.generation()?, NON_ALPHANUMERIC).to_string(),
            version: environment.version().to_owned(),
        })
    }

    /// HMAC-SHA256 over `data` with the module's key. Without a content type, as the Python SDK asks.
    pub fn sign(&mut self, data: &[u8]) -> Result<Vec<u8>> {
        let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": STANDARD.encode(data) });
        let answer = self.post(&format!("genid/{}/sign", self.generation), &[], Some(&body))?.expect(&[200])?.json()?;
        bytes(&answer, "digest")
    }

    /// Encrypts for this module alone.
    pub fn encrypt(&mut self, plaintext: &[u8], vector: &[u8]) -> Result<Vec<u8>> {
        let body = json!({ "plaintext": STANDARD.encode(plaintext), "initializationVector": STANDARD.encode(vector) });
        let target = format!("genid/{}/encrypt", self.generation);
        bytes(&self.post(&target, JSON, Some(&body))?.expect(&[200])?.json()?, "ciphertext")
    }

    /// Decrypts what [`Self::encrypt`] made.
    pub fn decrypt(&mut self, ciphertext: &[u8], vector: &[u8]) -> Result<Vec<u8>> {
        let body =
            json!({ "ciphertext": STANDARD.encode(ciphertext), "initializationVector": STANDARD.encode(vector) });
        let target = format!("genid/{}/decrypt", self.generation);
        bytes(&self.post(&target, JSON, Some(&body))?.expect(&[200])?.json()?, "plaintext")
    }

    /// A certificate for a TLS server of this name.
    pub fn server_certificate(&mut self, common_name: &str) -> Result<Issued> {
        let body = json!({ "commonName": common_name, "expiration": "2035-01-01T00:00:00Z" });
        let target = format!("genid/{}/certificate/server", self.generation);
        issued(&self.post(&target, JSON, Some(&body))?)
    }

    /// A certificate for this module as a TLS client.
    pub fn identity_certificate(&mut self) -> Result<Issued> {
        issued(&self.post("certificate/identity", JSON, None)?)
    }

    /// The certificates to trust, PEM.
    pub fn trust_bundle(&mut self) -> Result<String> {
        let answer = self.connection.call("GET", &format!("/trust-bundle?api-version={}", self.version), &[], None)?;
        text(&answer.expect(&[200])?.json()?, "certificate")
    }

    fn post(&mut self, what: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Result<Response> {
        let target = format!("/modules/{}/{what}?api-version={}", self.module, self.version);
        let body = body.map(Value::to_string);
        self.connection.call("POST", &target, headers, body.as_deref().map(str::as_bytes))
    }
}

const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

fn text(answer: &Value, member: &str) -> Result<String> {
    answer[member].as_str().map(str::to_owned).with_context(|| format!("no text {member} in the answer"))
}

fn bytes(answer: &Value, member: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text(answer, member)?).with_context(|| format!("{member} is not base64"))
}

fn issued(answer: &Response) -> Result<Issued> {
    ensure!(answer.status == 201, "status {}: {}", answer.status, answer.text());
    let answer = answer.json()?;
    ensure!(answer["privateKey"]["type"] == "key", "no key in the answer");
    Ok(Issued { certificate: text(&answer, "certificate")?, key: text(&answer["privateKey"], "bytes")? })
}
