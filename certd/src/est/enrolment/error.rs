//! Why an enrolment brings no certificate, and which of these reasons pass by themselves.

use std::time::Duration;

use aziot_pki::{certificate::ChainError, name::NameError, renewal::NotAvailable};

use super::MOST;
use crate::{
    est::{client, identity, servers::TrustError, settings::Missing},
    store,
};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration is incomplete.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The configured subject is none.
    #[error("the subject that [cert_issuance] has for it is unusable")]
    Subject(#[source] NameError),
    /// The identity is not there and was not obtained.
    #[error(transparent)]
    Identity(Box<identity::Error>),
    /// The identity is of no use and was not renewed.
    #[error("there is no EST identity to enroll it with")]
    NotAvailable(#[source] NotAvailable),
    /// No server can be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The server.
    #[error("the EST server did not issue it")]
    Server(#[source] Box<client::Error>),
    /// The server put off its decision for too long.
    #[error("the EST server has not decided within {} s", limit.as_secs())]
    Undecided { limit: Duration },
    /// The certificate could not be written as text.
    #[error("could not write the certificate as PEM")]
    Encoding(#[source] ChainError),
    /// The certificate could not be stored.
    #[error("could not store the certificate")]
    Store(#[source] store::Error),
    /// Something newer is stored, or was deleted.
    #[error("it was overtaken: the certificate was issued anew, imported or deleted meanwhile")]
    Overtaken,
    /// The caller would not hear the answer any more.
    #[error("the enrolment takes more than {} s; it goes on, and the certificate will be stored", limit.as_secs())]
    Slow { limit: Duration },
    /// Too many enrolments are under way.
    #[error("{MOST} enrolments are under way, which is the most")]
    Busy,
    /// The enrolment ended without a word.
    #[error("the enrolment was cut off")]
    CutOff,
}

impl From<identity::Error> for Error {
    fn from(error: identity::Error) -> Self {
        Self::Identity(Box::new(error))
    }
}

impl Error {
    /// After which time the server wants to see the request of the identity again.
    pub(super) fn not_yet(&self) -> Option<Duration> {
        match self.of_identity()? {
            identity::Error::NotYet { pause, .. } => Some(*pause),
            _ => None,
        }
    }

    /// What a server that may do better soon has said.
    pub(super) fn passing(&self) -> Option<&client::Error> {
        let server = match self {
            Self::Server(error) => Some(&**error),
            _ => self.of_identity().and_then(identity::Error::server),
        };
        server.filter(|error| error.is_passing())
    }

    /// What was wrong with the identity, whoever found it.
    fn of_identity(&self) -> Option<&identity::Error> {
        match self {
            Self::Identity(error) => Some(error),
            Self::NotAvailable(NotAvailable::Unusable { source: Some(failure), .. }) => failure.error().downcast_ref(),
            Self::NotAvailable(NotAvailable::Unreadable { source, .. }) => source.error().downcast_ref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aziot_pki::renewal::Failure;

    use super::*;
    use crate::est::{answer::Unusable, url::ServerUrl};

    /// The engine found the same as an own look at the identity.
    fn both(error: impl Fn() -> identity::Error) -> [Error; 2] {
        let source = Some(Arc::new(Failure::from(error())));
        [error().into(), Error::NotAvailable(NotAvailable::Unusable { certificate_id: "i".into(), source })]
    }

    #[test]
    fn it_makes_no_difference_who_asked_for_the_identity() {
        let url = ServerUrl::new(&"https://h".parse::<url::Url>().unwrap().into()).unwrap();
        let answered = |status| {
            let source = Unusable::Status { status, text: String::new(), retry_after: Some(Duration::from_secs(5)) };
            let source = Box::new(client::Error::Unusable { url: url.clone(), operation: "x", source });
            identity::Error::Server { id: "i".into(), source }
        };
        let pause = Duration::from_secs(7);
        for error in both(|| identity::Error::NotYet { id: "i".into(), pause }) {
            assert!(error.not_yet() == Some(pause) && error.passing().is_none(), "{error:?}");
        }
        for error in both(|| answered(503)) {
            let pause = error.passing().and_then(client::Error::retry_after);
            assert!(error.not_yet().is_none() && pause == Some(Duration::from_secs(5)), "{error:?}");
        }
        for error in both(|| answered(403)).into_iter().chain(both(|| identity::Error::NoServer { id: "i".into() })) {
            assert!(error.not_yet().is_none() && error.passing().is_none(), "{error:?}");
        }
    }
}
