//! What the certificate service understands: its calls, its configuration, and a client.
//!
//! Anybody may depend on this crate; it knows neither certificates nor files.

use aziot_http::{ApiVersion, Client, Endpoint, Retry, client::NotCallable};

pub mod certificate;
pub mod config;
pub mod renewal;

/// The api-versions that the service answers.
pub const VERSIONS: &[ApiVersion] = &[ApiVersion::V2020_09_01];

/// A client of the certificate service at `endpoint` that repeats calls as `retry` says.
pub fn client(endpoint: &Endpoint, retry: Retry) -> Result<Client, NotCallable> {
    Client::new(endpoint, ApiVersion::V2020_09_01, retry)
}
