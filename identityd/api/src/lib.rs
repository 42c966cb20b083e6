//! What the identity service understands: its calls, its configuration, and a client.
//!
//! Anybody may depend on this crate; it knows neither hubs nor files. The JSON is the public package's to the byte; what ours adds is
//! optional and said to be so where it stands.

use aziot_http::{ApiVersion, Client, Endpoint, Retry, client::NotCallable};

pub mod config;
pub mod device;
pub mod identity;
pub mod module;
pub mod provisioning;
pub mod trust_bundle;

/// The api-versions that the service answers.
pub const VERSIONS: &[ApiVersion] = &[ApiVersion::V2020_09_01, ApiVersion::V2021_12_01, ApiVersion::V2022_08_01];

/// A client of the identity service at `endpoint` that repeats calls as `retry` says.
///
/// Calls wait for the cloud: grant an attempt several minutes.
pub fn client(endpoint: &Endpoint, retry: Retry) -> Result<Client, NotCallable> {
    Client::new(endpoint, ApiVersion::V2021_12_01, retry)
}
