//! What the module runtime understands: its management and workload calls, and its configuration.
//!
//! The management API is the agent's and the CLI's, the workload API the modules'. Anybody may depend on this crate; it knows neither
//! containers nor sockets. The JSON is the public package's to the byte.

use aziot_http::{ApiVersion, Client, Endpoint, Retry, client::NotCallable};

pub mod config;
pub mod duration;
pub mod identity;
pub mod logs;
pub mod module;
pub mod system;
pub mod workload;

/// The api-versions that both APIs answer, oldest first. The public runtime refuses 2021-05-11, for which an interface was published too.
pub const VERSIONS: &[ApiVersion] = &[
    ApiVersion::V2018_06_28,
    ApiVersion::V2019_01_30,
    ApiVersion::V2019_10_22,
    ApiVersion::V2019_11_05,
    ApiVersion::V2020_07_07,
    ApiVersion::V2021_05_11,
    ApiVersion::V2021_12_07,
    ApiVersion::V2022_08_03,
];

/// The version that modules are told to speak.
pub const NEWEST: ApiVersion = ApiVersion::V2022_08_03;

/// A client of the runtime at `endpoint` that repeats calls as `retry` says.
///
/// Pulling an image takes its time: grant an attempt several minutes.
pub fn client(endpoint: &Endpoint, retry: Retry) -> Result<Client, NotCallable> {
    Client::new(endpoint, NEWEST, retry)
}
