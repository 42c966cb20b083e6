//! The status of a refusal, and what a caller may read of why. Who is calling is found out elsewhere, and who may call what is for the routes.

use aziot_http::{Status, StatusCode};

use crate::caller::NotAModule;

impl Status for NotAModule {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoProcess
            | Self::Ended(_)
            | Self::Unreadable { .. }
            | Self::NoContainer(_)
            | Self::Foreign(_)
            | Self::Outside { .. }
            | Self::Other { .. }
            | Self::OtherSocket { .. } => StatusCode::FORBIDDEN,
            // The public runtime refuses here too, for good; clients repeat what failed.
            Self::Engine(_) | Self::TimedOut => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Why is for the log: it would tell strangers of other modules.
    fn message(&self) -> String {
        "forbidden".to_owned()
    }

    fn message_of_failure(&self) -> String {
        "container runtime error: could not ask who is calling".to_owned()
    }
}
