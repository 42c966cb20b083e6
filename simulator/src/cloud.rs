//! The parts of the simulated cloud together, as the routes see them, and the check of a caller's credentials.

use std::convert::Infallible;
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::extract::FromRequestParts;
use axum::response::Response;
use http::header::{AUTHORIZATION, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use serde::Deserialize;

use crate::authentication::Demand;
use crate::behaviour::Behaviour;
use crate::client_certificate::{self, Case, ClientCertificate};
use crate::clients::ClientChain;
use crate::enrollments::Enrollments;
use crate::hubs::{Hub, Hubs};
use crate::journal::Journal;
use crate::key::SymmetricKey;
use crate::nonces::Nonces;
use crate::sas;
use crate::state::Store;
use crate::throttle::{Throttle, Throttled};

/// How much a caller has to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// What the public cloud asks for.
    Verify,
    /// Nothing: everybody may register and call, as with the public mock server.
    Permissive,
}

#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) trust: Trust,
    pub(crate) hubs: Hubs,
    /// The id scope that DPS answers for; any if absent.
    pub(crate) id_scope: Option<String>,
    pub(crate) behaviour: ArcSwap<Behaviour>,
    pub(crate) enrollments: Enrollments,
    pub(crate) nonces: Nonces,
    pub(crate) throttle: Throttle,
    pub(crate) store: Store,
    pub(crate) journal: Journal,
}

/// Why a caller is not let in: for the log and the journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    #[error(transparent)]
    Token(#[from] sas::Error),
    #[error(transparent)]
    Certificate(#[from] client_certificate::Error),
    #[error("the TPM of the registration has not been challenged, or too long ago")]
    NotChallenged,
    #[error("the request has a token, but its sender proves itself by certificate")]
    TokenInPlaceOfCertificate,
}

/// What a request tells of its sender.
#[derive(Debug)]
pub(crate) struct Caller {
    headers: HeaderMap,
    chain: Option<ClientChain>,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self { headers: parts.headers.clone(), chain: parts.extensions.get().cloned() })
    }
}

impl Caller {
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(crate) fn has_token(&self) -> bool {
        self.headers.contains_key(AUTHORIZATION)
    }

    fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The certificate, from a caller that sent no token beside it: the cloud would look at the token.
    pub(crate) fn certificate(&self) -> Result<ClientCertificate, Denied> {
        if self.has_token() {
            return Err(Denied::TokenInPlaceOfCertificate);
        }
        Ok(ClientCertificate::read(self.chain.as_ref())?)
    }
}

impl Cloud {
    /// What time it is in the cloud.
    pub(crate) fn now(&self) -> Timestamp {
        self.behaviour.load().now()
    }

    /// The hub that a caller means, or its gateway.
    pub(crate) fn called(&self, caller: &Caller) -> &Hub {
        self.hubs.called(caller.text(HOST))
    }

    pub(crate) fn throttle(&self, id: &str) -> Result<(), Throttled> {
        self.throttle.pass(&self.behaviour.load(), id, Instant::now())
    }

    /// Checks what a caller shows to be a device or module of a hub. `name` is for certificates of authorities.
    pub(crate) fn check(&self, caller: &Caller, demand: &Demand, resource: &str, name: &str) -> Result<(), Denied> {
        if self.trust == Trust::Permissive {
            return Ok(());
        }
        let now = self.now().as_second();
        match demand {
            Demand::Token(keys) => self.check_token(caller, resource, keys, None),
            Demand::Thumbprint(thumbprints) => Ok(caller.certificate()?.check_thumbprint(thumbprints, now)?),
            Demand::Authority(anchors) => {
                Ok(caller.certificate()?.check_authority(anchors, name, Case::Counts, now)?)
            }
        }
    }

    /// Checks the caller's token against a resource and keys.
    pub(crate) fn check_token(
        &self,
        caller: &Caller,
        resource: &str,
        keys: &[SymmetricKey],
        policy: Option<&'static str>,
    ) -> Result<(), Denied> {
        let header = caller.headers.get(AUTHORIZATION).ok_or(sas::Error::Missing)?;
        let header = header.to_str().map_err(|_| sas::Error::Malformed("it is not ASCII"))?;
        let behaviour = self.behaviour.load();
        let (now, clock_skew) = (behaviour.now().as_second(), behaviour.clock_skew_seconds.into());
        Ok(sas::Token::parse(header)?.verify(&sas::Check { resource, keys, policy, now, clock_skew })?)
    }

    /// Whether the query names a version of the API that is `known`, or any where nothing is checked.
    pub(crate) fn speaks(&self, query: &ApiVersion, known: &[&str]) -> bool {
        match (&query.api_version, self.trust) {
            (Some(_), Trust::Permissive) => true,
            (Some(version), Trust::Verify) => known.contains(&version.as_str()),
            (None, _) => false,
        }
    }
}

/// The part of a query that every call needs.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiVersion {
    #[serde(rename = "api-version")]
    api_version: Option<String>,
}

/// Why a request was refused, in the extensions of its answer: for the log and the journal, never for the client.
#[derive(Clone, Debug)]
pub(crate) struct Reason(pub(crate) String);

/// Adds the reason to an answer.
pub(crate) fn because(mut response: Response, reason: String) -> Response {
    response.extensions_mut().insert(Reason(reason));
    response
}

/// What is wrong with a body, without quoting it: it may hold a key.
pub(crate) fn place(error: &serde_json::Error) -> String {
    let problem = if error.is_data() { "a member is missing or has a wrong value" } else { "it is not JSON" };
    format!("{problem} (line {}, column {})", error.line(), error.column())
}
