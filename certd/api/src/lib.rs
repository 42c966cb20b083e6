//! What the certificate service understands: its calls, its configuration, and a client.
//!
//! Anybody may depend on this crate; it knows neither certificates nor files.

use aziot_http::{ApiVersion, Client, ClientError, Endpoint, Retry, StatusCode, client::NotCallable};

pub mod certificate;
pub mod config;
pub mod renewal;

/// The api-versions that the service answers.
pub const VERSIONS: &[ApiVersion] = &[ApiVersion::V2020_09_01];

/// A client of the certificate service at `endpoint` that repeats calls as `retry` says.
pub fn client(endpoint: &Endpoint, retry: Retry) -> Result<Client, NotCallable> {
    Client::new(endpoint, ApiVersion::V2020_09_01, retry)
}

/// Whether the service says that there is no certificate of that id. Its status, 400, it has for much else; the cause is the public service's.
#[must_use]
pub fn is_absent(error: &ClientError) -> bool {
    let is_cause = |line| line == "caused by: not found";
    matches!(error, ClientError::Refused { status: StatusCode::BAD_REQUEST, message } if message.lines().any(is_cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_request_with_the_cause_says_that_there_is_none() {
        const ABSENT: &str = "parameter \"id\" has an invalid value\ncaused by: not found";
        for (status, message, expected) in [
            (StatusCode::BAD_REQUEST, ABSENT, true),
            (StatusCode::INTERNAL_SERVER_ERROR, ABSENT, false),
            (StatusCode::NOT_FOUND, "not found", false),
            (StatusCode::BAD_REQUEST, "parameter \"id\" has an invalid value\ncaused by: not founded", false),
        ] {
            let error = ClientError::Refused { status, message: message.to_owned() };
            assert_eq!(is_absent(&error), expected, "{status} {message}");
        }
    }
}
