//! From a domain's error to the status and body that its caller sees. The body is always `{"message": "..."}`.

use std::{convert::Infallible, error::Error, fmt::Write as _};

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// What callers read of a failure.
const INTERNAL_ERROR: &str = "internal error";

/// An error that a route may answer with. Implement it by hand, without a wildcard arm, beside the routes.
pub trait Status: Error + Send + Sync + 'static {
    /// The status of the answer.
    fn status(&self) -> StatusCode;

    /// The caller's text for a status below 500: the error's own line. Override it with [`with_causes`] where the public
    /// API promises `caused by:` lines.
    fn message(&self) -> String {
        self.to_string()
    }

    /// The caller's text from 500 on: nothing of what happened, which the log has with its causes. Override it where the public API tells
    /// more, and keep to what any caller may know.
    fn message_of_failure(&self) -> String {
        INTERNAL_ERROR.to_owned()
    }
}

/// Of routes that always succeed.
impl Status for Infallible {
    fn status(&self) -> StatusCode {
        match *self {}
    }
}

/// The error and its causes, one `caused by: ` line for each, as the public services word them.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, "\ncaused by: {error}");
        cause = error.source();
    }
    text
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, for people.
    pub message: String,
}

/// An answer that is not a success, on its way to the wire.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// Causes for the log, outermost first; empty where the message says all.
    pub(crate) causes: Vec<String>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), causes: Vec::new() }
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "method not allowed")
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not found")
    }

    pub(crate) fn internal(cause: impl Into<String>) -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: INTERNAL_ERROR.to_owned(),
            causes: vec![cause.into()],
        }
    }
}

impl<E: Status> From<E> for Failure {
    fn from(error: E) -> Self {
        let status = error.status();
        let message = if status.is_server_error() { error.message_of_failure() } else { error.message() };
        let mut causes = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Self { status, message, causes }
    }
}
