//! Routes of the device provisioning service: register, poll, look up.
//!
//! Parses and words the answers; `entrance` lets callers in, `provisioning.rs` decides.

mod entrance;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use aziot_log::chain;

use crate::attestation::TpmKeys;
use crate::cloud::{ApiVersion, Caller, Cloud, Trust, because, place};
use crate::provisioning::{self, Outcome, Registration, Registrations, Surroundings, Wish};
use crate::random;

/// Versions of the device side of the API.
const API_VERSIONS: &[&str] = &["2018-04-01", "2018-11-01", "2019-03-31", "2021-06-01", "2021-11-01-preview"];

/// Who may sign for a registration is written in its enrollment, and tokens say so.
const POLICY: &str = "registration";

pub(crate) fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/{scope}/registrations/{registration_id}/register", put(register))
        .route("/{scope}/registrations/{registration_id}/operations/{operation_id}", get(poll))
        .route("/{scope}/registrations/{registration_id}", post(look_up))
}

/// An error as the service words it.
struct Refusal {
    status: StatusCode,
    code: u32,
    message: &'static str,
    reason: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        let (code, message) = match status {
            StatusCode::BAD_REQUEST => (400_004, "Bad request"),
            StatusCode::UNAUTHORIZED => (401_002, "Unauthorized"),
            StatusCode::FORBIDDEN => (403_001, "Quota exceeded"),
            StatusCode::NOT_FOUND => (404_001, "Not found"),
            _ => (500_000, "Internal error"),
        };
        Self { status, code, message, reason: reason.into() }
    }

    fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    fn unauthorized(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, reason)
    }
}

impl From<provisioning::Error> for Refusal {
    fn from(error: provisioning::Error) -> Self {
        let status = match error {
            provisioning::Error::UnknownRegistration(_) | provisioning::Error::UnknownOperation { .. } => {
                StatusCode::NOT_FOUND
            }
            provisioning::Error::ForeignTpm(_) => StatusCode::UNAUTHORIZED,
            provisioning::Error::TooManyRegistrations => StatusCode::FORBIDDEN,
            provisioning::Error::Move { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<crate::state::Error> for Refusal {
    fn from(error: crate::state::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error).to_string())
    }
}

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        because((self.status, axum::Json(error_body(self.code, self.message))).into_response(), self.reason)
    }
}

/// The body of an error of this service.
pub(crate) fn error_body(code: u32, message: &str) -> Value {
    json!({
        "errorCode": code,
        "trackingId": random::uuid(),
        "message": message,
        "timestampUtc": jiff::Timestamp::now().to_string(),
    })
}

/// What every call must have right, whoever makes it: the version and the scope.
fn enter(cloud: &Cloud, version: &ApiVersion, scope: &str) -> Result<(), Refusal> {
    if !cloud.speaks(version, API_VERSIONS) {
        return Err(Refusal::bad_request("the api-version is missing or unknown"));
    }
    match cloud.id_scope.as_deref() {
        Some(expected) if cloud.trust == Trust::Verify && !expected.eq_ignore_ascii_case(scope) => {
            Err(Refusal::unauthorized(format!("the id scope is {scope:?}, expected {expected:?}")))
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody {
    registration_id: String,
    payload: Option<Value>,
    /// The public mock server takes anything here.
    tpm: Option<Value>,
}

impl RegisterBody {
    fn read(cloud: &Cloud, registration_id: &str, headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        // The public mock server does not ask.
        if cloud.trust == Trust::Verify && !is_json(headers) {
            return Err(Refusal::bad_request("the content-type is not application/json"));
        }
        let body: Self = serde_json::from_slice(body)
            .map_err(|error| Refusal::bad_request(format!("the body is no registration: {}", place(&error))))?;
        if !body.registration_id.eq_ignore_ascii_case(registration_id) {
            return Err(Refusal::bad_request("the registration id in the body is not that of the path"));
        }
        Ok(body)
    }

    fn tpm(self) -> Result<Option<TpmKeys>, Refusal> {
        let keys = self.tpm.filter(|tpm| !tpm.is_null()).map(serde_json::from_value).transpose();
        keys.map_err(|error| Refusal::bad_request(format!("the keys of the TPM are none: {}", place(&error))))
    }
}

async fn register(
    State(cloud): State<Arc<Cloud>>,
    Path((scope, registration_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
    body: Bytes,
) -> Result<Response, Refusal> {
    enter(&cloud, &version, &scope)?;
    if let Some(grant) = entrance::of_unproved_tpm(&cloud, &registration_id, &caller) {
        let tpm = RegisterBody::read(&cloud, &registration_id, caller.headers(), &body)?.tpm()?;
        let challenge = entrance::challenge(&cloud, &registration_id, &grant, tpm)?;
        let response = (StatusCode::UNAUTHORIZED, axum::Json(challenge)).into_response();
        return Ok(because(response, "the TPM is challenged".to_owned()));
    }
    let admission = entrance::admit(&cloud, &scope, &registration_id, &caller)?;
    let body = RegisterBody::read(&cloud, &registration_id, caller.headers(), &body)?;
    let behaviour = cloud.behaviour.load_full();
    let wish = Wish {
        registration_id: &registration_id,
        proof: admission.proof,
        payload: body.payload.filter(|it| !it.is_null()),
        polls: admission.grant.assigning_polls.unwrap_or(behaviour.assigning_polls),
    };
    let begin = |state: &mut crate::state::State| {
        provisioning::register(&mut state.registrations, wish, &admission.grant, behaviour.now())
    };
    let operation_id = cloud.store.change(begin).await??;
    let location = format!("/{scope}/registrations/{registration_id}/operations/{operation_id}?api-version=2021-06-01");
    let mut response = accepted(&cloud, &json!({ "operationId": operation_id, "status": "assigning" }));
    if let Ok(location) = location.parse() {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

async fn poll(
    State(cloud): State<Arc<Cloud>>,
    Path((scope, registration_id, operation_id)): Path<(String, String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
) -> Result<Response, Refusal> {
    enter(&cloud, &version, &scope)?;
    let grant = entrance::admit(&cloud, &scope, &registration_id, &caller)?.grant;
    let (hubs, now) = (&cloud.hubs, cloud.now());
    let show = |registrations: &Registrations, outcome: Outcome| {
        let registration = provisioning::look_up(registrations, &registration_id)?;
        let shown = registration_state(&registration_id, registration, &outcome);
        Ok::<_, provisioning::Error>((outcome, shown))
    };
    // Most polls change nothing, so that there is nothing to write.
    let look = |state: &crate::state::State| {
        let settled = provisioning::settled(&state.registrations, &registration_id, &operation_id)?;
        settled.map(|outcome| show(&state.registrations, outcome)).transpose()
    };
    let (outcome, state) = if let Some(settled) = cloud.store.read_kept(look).await?? {
        settled
    } else {
        let advance = |state: &mut crate::state::State| {
            let surroundings = Surroundings { registries: &mut state.registries, hubs, now };
            let registrations = &mut state.registrations;
            let outcome = provisioning::poll(registrations, &registration_id, &operation_id, &grant, surroundings)?;
            show(registrations, outcome)
        };
        cloud.store.change(advance).await??
    };
    let body = json!({ "operationId": operation_id, "status": state["status"], "registrationState": state });
    if outcome == Outcome::Assigning {
        return Ok(accepted(&cloud, &body));
    }
    Ok(axum::Json(body).into_response())
}

async fn look_up(
    State(cloud): State<Arc<Cloud>>,
    Path((scope, registration_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
) -> Result<Response, Refusal> {
    enter(&cloud, &version, &scope)?;
    entrance::admit(&cloud, &scope, &registration_id, &caller)?;
    let state = cloud.store.read(|state| {
        let registration = provisioning::look_up(&state.registrations, &registration_id)?;
        Ok::<_, provisioning::Error>(registration_state(&registration_id, registration, &registration.outcome))
    })?;
    Ok(axum::Json(state).into_response())
}

fn accepted(cloud: &Cloud, body: &Value) -> Response {
    let retry_after = [(RETRY_AFTER, cloud.behaviour.load().retry_after_seconds.to_string())];
    (StatusCode::ACCEPTED, retry_after, axum::Json(body)).into_response()
}

fn registration_state(registration_id: &str, registration: &Registration, outcome: &Outcome) -> Value {
    let mut state = json!(outcome);
    state["registrationId"] = registration_id.into();
    state["createdDateTimeUtc"] = registration.created.to_string().into();
    state["lastUpdatedDateTimeUtc"] = registration.last_updated.to_string().into();
    state["etag"] = registration.etag.as_str().into();
    state
}

/// Whether the body calls itself JSON, or says nothing.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}
