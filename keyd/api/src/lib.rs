//! What the key service understands: its calls, its configuration, and a client.
//!
//! Anybody may depend on this crate; it knows neither keys nor files.

use aziot_http::{ApiVersion, Client, ClientError, Endpoint, Retry, StatusCode, client::NotCallable};

pub mod config;
pub mod derived_key;
pub mod key;
pub mod key_pair;
pub mod operation;

/// The api-versions that the service answers.
pub const VERSIONS: &[ApiVersion] = &[ApiVersion::V2020_09_01, ApiVersion::V2021_05_01];

/// A client of the key service at `endpoint` that repeats calls as `retry` says.
pub fn client(endpoint: &Endpoint, retry: Retry) -> Result<Client, NotCallable> {
    Client::new(endpoint, ApiVersion::V2021_05_01, retry)
}

/// Whether the service says no to this key or handle, as opposed to not saying anything, or failing.
///
/// It answers 400 then, and does not tell an unknown key from another parameter that it finds wrong: this means "there is no such key" only of a
/// call whose other parameters are known to be good, as loading a key by an id that the service takes.
#[must_use]
pub fn is_absent(error: &ClientError) -> bool {
    error.status() == Some(StatusCode::BAD_REQUEST)
}
