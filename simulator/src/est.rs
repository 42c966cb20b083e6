//! Enrollment over Secure Transport (RFC 7030) on the simulator's TLS port: `cacerts`, `simpleenroll` and `simplereenroll`, with or without a
//! label in the path.
//!
//! This file has the routes and the wording of answers; `service` decides, with `callers` (who asks), `request` (for what), `authority` (the
//! certificates), `pending` (later) and `settings`; `issuance` remembers, `answer` writes PKCS#7. `csrattrs`, `serverkeygen` and `fullcmc` are not there.

mod answer;
mod authority;
mod callers;
mod issuance;
mod pending;
mod request;
mod service;
mod settings;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Extensions, HeaderMap, StatusCode};

use aziot_log::chain;

use crate::clients::ClientChain;
use crate::cloud::because;
use crate::faults::Form;

pub(crate) use request::Request;
pub(crate) use service::Est;
use service::{Enrolment, Error, Operation, Outcome};
pub(crate) use settings::Change;
pub use settings::{Authentication, Bootstrap, Error as SettingsError, Password, RangeError, Settings};

const MEDIA_TYPE: &str = "application/pkcs10";

/// The routes of `est`, for any router.
pub(crate) fn routes<S>(est: Arc<Est>) -> Router<S> {
    Router::new()
        .route("/.well-known/est/cacerts", get(authorities))
        .route("/.well-known/est/{label}/cacerts", get(authorities))
        .route("/.well-known/est/simpleenroll", post(simple_enroll))
        .route("/.well-known/est/{label}/simpleenroll", post(simple_enroll))
        .route("/.well-known/est/simplereenroll", post(simple_reenroll))
        .route("/.well-known/est/{label}/simplereenroll", post(simple_reenroll))
        .with_state(est)
}

type Server = State<Arc<Est>>;

/// What stands before the operation in the path, if anything does.
type Label = Option<Path<String>>;

async fn authorities(State(est): Server, label: Label, headers: HeaderMap, extensions: Extensions) -> Response {
    let label = label.as_deref().map(String::as_str);
    let authorities = est.authorities(label, &headers, extensions.get::<ClientChain>());
    respond(authorities.map(Outcome::Granted), &extensions)
}

async fn simple_enroll(
    State(est): Server,
    label: Label,
    headers: HeaderMap,
    extensions: Extensions,
    body: Bytes,
) -> Response {
    enroll(&est, Operation::SimpleEnroll, label.as_deref(), &headers, &extensions, &body)
}

async fn simple_reenroll(
    State(est): Server,
    label: Label,
    headers: HeaderMap,
    extensions: Extensions,
    body: Bytes,
) -> Response {
    enroll(&est, Operation::SimpleReenroll, label.as_deref(), &headers, &extensions, &body)
}

fn enroll(
    est: &Est,
    operation: Operation,
    label: Option<&String>,
    headers: &HeaderMap,
    extensions: &Extensions,
    body: &[u8],
) -> Response {
    let media_type = headers.get(CONTENT_TYPE).and_then(|text| text.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(MEDIA_TYPE) {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("the body is no {MEDIA_TYPE}"));
    }
    let label = label.map(String::as_str);
    let form = extensions.get::<Form>().copied();
    let client = extensions.get::<ClientChain>();
    respond(est.enroll(&Enrolment { operation, label, headers, client, body, form }), extensions)
}

/// Answers 202 and 401 have no body: Bouncy Castle's client takes one for a broken connection.
fn respond(outcome: Result<Outcome, Error>, extensions: &Extensions) -> Response {
    let form = extensions.get::<Form>().copied();
    let outcome = match outcome {
        Ok(Outcome::Granted(certificates)) => answer::certificates(&certificates, form).map_err(Error::from),
        Ok(Outcome::Pending { retry_after_seconds }) => {
            let retry_after = [(RETRY_AFTER, retry_after_seconds.to_string())];
            Ok(because((StatusCode::ACCEPTED, retry_after).into_response(), "the request is pending".to_owned()))
        }
        Err(error) => Err(error),
    };
    match (outcome, form) {
        (Ok(response), Some(form)) => because(response, format!("answer on demand: {form:?}")),
        (Ok(response), None) => response,
        (Err(error), _) => refuse_for(&error),
    }
}

fn refuse_for(error: &Error) -> Response {
    let status = match error {
        Error::Label(_) => StatusCode::NOT_FOUND,
        Error::Caller(_) => StatusCode::UNAUTHORIZED,
        Error::Request(_) => StatusCode::BAD_REQUEST,
        Error::Forbidden(_) => StatusCode::FORBIDDEN,
        Error::Issue(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let reason = chain(error).to_string();
    if status == StatusCode::UNAUTHORIZED {
        return because((status, [(WWW_AUTHENTICATE, "Basic realm=\"est\"")]).into_response(), reason);
    }
    refuse(status, reason)
}

/// Tells a human why, as RFC 7030, section 4.2.3, has it, and the journal.
fn refuse(status: StatusCode, reason: String) -> Response {
    because((status, format!("{reason}\n")).into_response(), reason)
}
