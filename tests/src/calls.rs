//! The calls that most tests make. Each is tried once, and whoever calls judges the answer.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{Daemon, Device, Reply, raw};

/// The api-version that all services have, as it stands in a query.
pub const VERSION: &str = "api-version=2020-09-01";

/// The device's identity.
pub fn device_identity(device: &Device) -> Result<Reply> {
    let target = format!("/identities/device?{VERSION}");
    raw::call(&device.socket(Daemon::Identity), "POST", &target, Some(r#"{"type":"aziot"}"#))
}

/// Creates a module.
pub fn create_module(device: &Device, name: &str) -> Result<Reply> {
    let body = json!({ "type": "aziot", "moduleId": name }).to_string();
    raw::call(&device.socket(Daemon::Identity), "POST", &format!("/identities/modules?{VERSION}"), Some(&body))
}

/// Names of all modules of the device.
pub fn module_ids(device: &Device) -> Result<Vec<String>> {
    let target = format!("/identities/modules?{VERSION}&type=aziot");
    let list = raw::call(&device.socket(Daemon::Identity), "GET", &target, None)?.expect(200)?.json()?;
    let modules = list["identities"].as_array().context("no list of identities")?;
    Ok(modules.iter().filter_map(|module| module["spec"]["moduleId"].as_str().map(str::to_owned)).collect())
}

/// Creates a symmetric key, or finds it.
pub fn create_key(device: &Device, id: &str) -> Result<Reply> {
    let body = json!({ "keyId": id, "usage": "sign" }).to_string();
    raw::call(&device.socket(Daemon::Keys), "POST", &format!("/key?{VERSION}"), Some(&body))
}

/// Has a certificate issued for a request in PEM; the certificate, PEM.
pub fn issue(device: &Device, id: &str, request: &str) -> Result<String> {
    let body = json!({ "certId": id, "csr": request }).to_string();
    let target = format!("/certificates?{VERSION}");
    raw::call(&device.socket(Daemon::Certificates), "POST", &target, Some(&body))?.expect(201)?.text("/pem")
}

/// Whether a daemon answers, by a request that it knows nothing about.
pub fn is_serving(device: &Device, daemon: Daemon) -> Result<()> {
    let reply = raw::call(&device.socket(daemon), "GET", &format!("/nope?{VERSION}"), None)?;
    ensure!(reply.status == 404 && reply.message() == "not found", "{} answers {reply:?}", daemon.name());
    Ok(())
}
