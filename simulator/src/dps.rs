//! Routes of the device provisioning service: register, poll, look up.
//!
//! Parses, authorizes and words the answers; `provisioning.rs` decides.

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

use crate::cloud::{ApiVersion, Cloud, Trust, because, place};
use crate::enrollments::Grant;
use crate::provisioning::{self, Outcome, Registration};
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
            provisioning::Error::TooManyRegistrations => StatusCode::FORBIDDEN,
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

/// The way into all three calls: version, scope, and a token by a key that may sign for this registration.
fn authorize(
    cloud: &Cloud,
    version: &ApiVersion,
    scope: &str,
    registration_id: &str,
    headers: &HeaderMap,
) -> Result<Grant, Refusal> {
    if !cloud.speaks(version, API_VERSIONS) {
        return Err(Refusal::bad_request("the api-version is missing or unknown"));
    }
    if cloud.trust == Trust::Permissive {
        // The public mock server assigns a new device each time, and its users' scripts rely on it.
        let device_id = random::uuid();
        return Ok(Grant {
            keys: None,
            device_id,
            assigned_hub: None,
            disabled: false,
            fail_with: None,
            iot_edge: false,
        });
    }
    if let Some(expected) = cloud.id_scope.as_deref().filter(|expected| !expected.eq_ignore_ascii_case(scope)) {
        return Err(Refusal::unauthorized(format!("the id scope is {scope:?}, expected {expected:?}")));
    }
    let resources = [format!("{scope}/registrations/{registration_id}")];
    let mut reason = format!("no enrollment for the registration id {registration_id:?}");
    for grant in cloud.enrollments.candidates(registration_id) {
        let keys = grant.keys.as_ref().map(crate::registry::KeyPair::to_vec).unwrap_or_default();
        match cloud.check_token(headers, &resources, &keys, Some(POLICY)) {
            Ok(()) => return Ok(grant),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(Refusal::unauthorized(reason))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody {
    registration_id: String,
    payload: Option<Value>,
}

async fn register(
    State(cloud): State<Arc<Cloud>>,
    Path((scope, registration_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    authorize(&cloud, &version, &scope, &registration_id, &headers)?;
    // The public mock server does not ask.
    if cloud.trust == Trust::Verify && !is_json(&headers) {
        return Err(Refusal::bad_request("the content-type is not application/json"));
    }
    let body: RegisterBody = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_request(format!("the body is no registration: {}", place(&error))))?;
    if !body.registration_id.eq_ignore_ascii_case(&registration_id) {
        return Err(Refusal::bad_request("the registration id in the body is not that of the path"));
    }
    let polls = cloud.assigning_polls;
    let begin = |state: &mut crate::state::State| {
        provisioning::register(
            &mut state.registrations,
            &registration_id,
            body.payload.filter(|it| !it.is_null()),
            polls,
        )
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
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let grant = authorize(&cloud, &version, &scope, &registration_id, &headers)?;
    let (outcome, state) = cloud
        .store
        .change(|state| {
            let outcome = provisioning::poll(
                &mut state.registrations,
                &mut state.registry,
                &registration_id,
                &operation_id,
                &grant,
                &cloud.hub_name,
            )?;
            let registration = provisioning::look_up(&state.registrations, &registration_id)?;
            let state = registration_state(&registration_id, registration, &outcome);
            Ok::<_, provisioning::Error>((outcome, state))
        })
        .await??;
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
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    authorize(&cloud, &version, &scope, &registration_id, &headers)?;
    let state = cloud.store.read(|state| {
        let registration = provisioning::look_up(&state.registrations, &registration_id)?;
        Ok::<_, provisioning::Error>(registration_state(&registration_id, registration, &registration.outcome))
    })?;
    Ok(axum::Json(state).into_response())
}

fn accepted(cloud: &Cloud, body: &Value) -> Response {
    let retry_after = [(RETRY_AFTER, cloud.retry_after_seconds.to_string())];
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
