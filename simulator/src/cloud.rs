//! The parts of the simulated cloud together, as the routes see them, and the check of a caller's token.

use axum::response::Response;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST};
use serde::Deserialize;

use crate::enrollments::Enrollments;
use crate::journal::Journal;
use crate::key::SymmetricKey;
use crate::sas;
use crate::state::Store;

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
    pub(crate) hub_name: String,
    /// The id scope that DPS answers for; any if absent.
    pub(crate) id_scope: Option<String>,
    pub(crate) clock_skew_seconds: u32,
    /// So many polls say `assigning` before a registration is decided.
    pub(crate) assigning_polls: u32,
    pub(crate) retry_after_seconds: u32,
    pub(crate) enrollments: Enrollments,
    pub(crate) store: Store,
    pub(crate) journal: Journal,
}

impl Cloud {
    /// Checks the token in `headers` against resource and keys. Not asked where nothing is checked.
    pub(crate) fn check_token(
        &self,
        headers: &HeaderMap,
        resources: &[String],
        keys: &[SymmetricKey],
        policy: Option<&'static str>,
    ) -> Result<(), sas::Error> {
        if self.trust == Trust::Permissive {
            return Ok(());
        }
        let header = headers.get(AUTHORIZATION).ok_or(sas::Error::Missing)?;
        let header = header.to_str().map_err(|_| sas::Error::Malformed("it is not ASCII"))?;
        let now = jiff::Timestamp::now().as_second();
        let clock_skew = self.clock_skew_seconds.into();
        sas::Token::parse(header)?.verify(&sas::Check { resources, keys, policy, now, clock_skew })
    }

    /// `<hub>/<path>` for the hub's own name and for the name it was called by: a parent gateway is called by its own.
    pub(crate) fn hub_resources(&self, headers: &HeaderMap, path: &str) -> Vec<String> {
        let mut resources = vec![format!("{}/{path}", self.hub_name)];
        if let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok())
            && !host.eq_ignore_ascii_case(&self.hub_name)
        {
            resources.push(format!("{host}/{path}"));
        }
        resources
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
