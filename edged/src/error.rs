//! Why a management call failed: its status and the words that its caller reads.
//!
//! An answer of the container engine decides the status, however deep among the causes it lies; its reason is appended to the public text.
//! Other causes are for the log alone.

use std::{error::Error as StdError, fmt};

use aziot_http::{Status, StatusCode};

use crate::docker;

/// Any error with its causes.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a management call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The caller sent something that cannot be; the text says what, in the public words where they are laid down.
    #[error("{0}")]
    Invalid(String),
    /// There is no such container, or it is not a module.
    #[error("runtime operation error: {operation} module {module:?}: there is no such module")]
    UnknownModule {
        /// What should have been done.
        operation: Operation,
        /// Its name.
        module: String,
    },
    /// Something could not be done with a module.
    #[error("runtime operation error: {operation} module {module:?}")]
    Module {
        /// What should have been done.
        operation: Operation,
        /// Its name.
        module: String,
        /// Why not.
        source: BoxError,
    },
    /// The modules could not be listed.
    #[error("runtime operation error: list modules")]
    List(#[source] BoxError),
    /// An image could not be pulled.
    #[error("registry operation error: pull image {image:?}")]
    Pull {
        /// Its reference.
        image: String,
        /// Why not.
        source: BoxError,
    },
    /// Logs or statistics could not be read.
    #[error("container runtime error")]
    ContainerRuntime(#[source] BoxError),
    /// The system could not be described.
    #[error("runtime operation error: query system info")]
    SystemInfo(#[source] BoxError),
    /// Nobody is there to reprovision.
    #[error("failed to send reprovision request")]
    Reprovision,
    /// No support bundle could be made.
    #[error("Could not generate support bundle")]
    SupportBundle(#[source] BoxError),
}

/// What is done with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Making its container.
    Create,
    /// Looking at it.
    Get,
    /// Starting it.
    Start,
    /// Stopping it.
    Stop,
    /// Stopping and starting it.
    Restart,
    /// Removing its container.
    Remove,
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Remove => "remove",
        })
    }
}

impl Error {
    /// Wraps why something could not be done with a module.
    pub(crate) fn module(operation: Operation, module: &str, source: impl Into<BoxError>) -> Self {
        Self::Module { operation, module: module.to_owned(), source: source.into() }
    }

    /// The engine's part in it.
    fn engine(&self) -> Option<&docker::Error> {
        let causes = std::iter::successors(self.source(), |&cause| cause.source());
        causes.filter_map(|cause| cause.downcast_ref::<docker::Error>()).last()
    }
}

impl Status for Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::UnknownModule { .. } => StatusCode::NOT_FOUND,
            Self::Module { .. } | Self::List(_) | Self::Pull { .. } | Self::ContainerRuntime(_) => {
                self.engine().and_then(docker::Error::status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::SystemInfo(_) | Self::Reprovision | Self::SupportBundle(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn message(&self) -> String {
        self.engine().map_or_else(|| self.to_string(), |engine| format!("{self}: {engine}"))
    }

    fn message_of_failure(&self) -> String {
        self.message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: StatusCode) -> docker::Error {
        docker::Error::Refused { status, message: "no such image: x".to_owned() }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("could not do it")]
    struct Deeper(#[source] docker::Error);

    #[test]
    fn the_engines_answer_decides_the_status_and_is_told() {
        let error = Error::module(Operation::Create, "m", Deeper(refused(StatusCode::CONFLICT)));
        assert_eq!(error.status(), StatusCode::CONFLICT);
        assert_eq!(error.message(), r#"runtime operation error: create module "m": no such image: x"#);
        let error = Error::Pull { image: "r/x:1".to_owned(), source: refused(StatusCode::NOT_FOUND).into() };
        assert_eq!(error.status(), StatusCode::NOT_FOUND);
        assert_eq!(error.message(), r#"registry operation error: pull image "r/x:1": no such image: x"#);
    }

    #[test]
    fn other_causes_are_for_the_log() {
        let error = Error::module(Operation::Start, "m", std::io::Error::other("secret path"));
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(error.message_of_failure(), r#"runtime operation error: start module "m""#);
    }

    #[test]
    fn system_information_is_never_the_engines_status() {
        let error = Error::SystemInfo(refused(StatusCode::NOT_FOUND).into());
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
