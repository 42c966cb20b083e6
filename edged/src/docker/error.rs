//! Why the engine did not do as it was told.

use std::time::Duration;

use http::StatusCode;

/// Why a call to the engine has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing answered; nothing was sent.
    #[error("could not connect to the container engine at {engine}")]
    NotConnected {
        /// The engine's address.
        engine: String,
        /// What the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection ended before the answer was whole; the engine may have done its work.
    #[error("the connection to the container engine broke during {call}")]
    Interrupted {
        /// Method and path.
        call: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer, or no more of it, in time.
    #[error("the container engine did not answer {call} within {} s", limit.as_secs())]
    TimedOut {
        /// Method and path.
        call: String,
        /// The time it had.
        limit: Duration,
    },
    /// The engine said no; `message` is its text.
    #[error("{message}")]
    Refused {
        /// Status of the answer, or the one that a failure told in the middle of an answer stands for.
        status: StatusCode,
        /// The engine's own words.
        message: String,
    },
    /// An answer that the engine's API does not have.
    #[error("malformed answer of the container engine to {call}")]
    Malformed {
        /// Method and path.
        call: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The call cannot be written as a request.
    #[error("{call} cannot be written as a request")]
    Unsendable {
        /// Method and path.
        call: String,
        /// What is wrong with it.
        source: http::Error,
    },
}

impl Error {
    /// The status with which the engine refused.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the engine says that there is no such container, image or network.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// Whether a name is no container's, but the beginning of more than one id: Docker's words, then Podman's.
    pub(crate) fn is_ambiguous(&self) -> bool {
        let Self::Refused { message, .. } = self else { return false };
        let message = message.to_ascii_lowercase();
        message.contains("multiple ids found with provided prefix") || message.contains("more than one result for")
    }

    /// What an engine says where a container's name is another one's.
    pub(crate) fn name_taken(name: &str, id: &str) -> Self {
        let message = format!("The container name \"/{name}\" is already in use by container {id}");
        Self::Refused { status: StatusCode::CONFLICT, message }
    }
}
