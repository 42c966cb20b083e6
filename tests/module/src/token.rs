//! Shared access tokens, signed through the workload socket, and a message to the hub with one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    Environment, Workload,
    http::{Connection, Response},
};

const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A token for the module's own place at the hub, from now for this long.
pub fn token(workload: &mut Workload, environment: &Environment, lifetime: Duration) -> Result<String> {
    let (hub, device, module) = (environment.hub()?, environment.device()?, environment.module()?);
    let resource = format!("{hub}/devices/{device}/modules/{module}");
    let resource = utf8_percent_encode(&resource, COMPONENT).to_string();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let expiry = (now + lifetime).as_secs();
    let signature = STANDARD.encode(workload.sign(format!("{resource}\n{expiry}").as_bytes())?);
    let signature = utf8_percent_encode(&signature, COMPONENT);
    Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"))
}

/// Sends a message to the hub over TLS, trusting `roots` (PEM) alone.
pub fn send_message(environment: &Environment, token: &str, roots: &str, message: &str) -> Result<Response> {
    let module = utf8_percent_encode(environment.module()?, COMPONENT).to_string();
    let device = environment.device()?;
    let target = format!("/devices/{device}/modules/{module}/messages/events?api-version=2020-03-13");
    let mut hub = Connection::tls(environment.hub()?, roots.as_bytes())?;
    hub.call("POST", &target, &[("Authorization", token)], Some(message.as_bytes()))
}
