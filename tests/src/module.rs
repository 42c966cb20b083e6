//! What a module does with the device: gets an identity, signs a token with a key it never sees, and talks to the hub.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::{Daemon, Device, Reply, curl};

const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A module identity as the identity service tells it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Host name of the hub.
    pub hub: String,
    /// Device id.
    pub device: String,
    /// Module id.
    pub module: String,
    /// Generation id of this creation of the module.
    pub generation: String,
    /// Handle of the module's key in the key service.
    pub key_handle: String,
}

impl Identity {
    /// Creates the module at the hub.
    pub fn create(device: &Device, module: &str) -> Result<Self> {
        let body = json!({ "type": "aziot", "moduleId": module }).to_string();
        let reply = device.call(Daemon::Identity, "POST", "/identities/modules?api-version=2020-09-01", Some(&body))?;
        Self::read(&reply.expect(200)?)
    }

    /// Reads the module that was created before.
    pub fn load(device: &Device, module: &str) -> Result<Self> {
        let target = format!("/identities/modules/{module}?api-version=2020-09-01&type=aziot");
        Self::read(&device.call(Daemon::Identity, "GET", &target, None)?.expect(200)?)
    }

    fn read(reply: &Reply) -> Result<Self> {
        let member = |name: &str| reply.text(&format!("/spec/{name}"));
        Ok(Self {
            hub: member("hubName")?,
            device: member("deviceId")?,
            module: member("moduleId")?,
            generation: member("genId")?,
            key_handle: member("auth/keyHandle")?,
        })
    }

    /// A token for the module's own place at the hub, signed by the key service.
    pub fn token(&self, device: &Device, lifetime: Duration) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        self.token_until(device, &self.module, (now + lifetime).as_secs())
    }

    /// A token for the place of any module, signed with this module's key, until a time in Unix seconds.
    pub fn token_until(&self, device: &Device, module: &str, expiry: u64) -> Result<String> {
        let resource = format!("{}/devices/{}/modules/{module}", self.hub, self.device);
        let resource = utf8_percent_encode(&resource, COMPONENT).to_string();
        let signature = sign(device, &self.key_handle, format!("{resource}\n{expiry}").as_bytes())?;
        let signature = utf8_percent_encode(&signature, COMPONENT);
        Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"))
    }

    /// Sends a message to the hub with this token.
    pub fn send_message(&self, device: &Device, token: &str, message: &str) -> Result<Reply> {
        let target = format!("/devices/{}/modules/{}/messages/events?api-version=2020-03-13", self.device, self.module);
        let url = format!("https://{}{target}", self.hub);
        curl::over_tls(&device.roots(), token, "POST", &url, message)
    }
}

/// HMAC-SHA256 over a message with the key of this handle, base64.
pub fn sign(device: &Device, key_handle: &str, message: &[u8]) -> Result<String> {
    let parameters = json!({ "message": STANDARD.encode(message) });
    let body = json!({ "keyHandle": key_handle, "algorithm": "HMAC-SHA256", "parameters": parameters });
    let reply = device.call(Daemon::Keys, "POST", "/sign?api-version=2020-09-01", Some(&body.to_string()))?;
    reply.expect(200)?.text("/signature")
}
