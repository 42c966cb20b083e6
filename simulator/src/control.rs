//! The control API: for whoever started the simulator, over `control.sock` in its folder and never on the TLS port.
//!
//! Shows what was seen and what is registered (without keys), changes settings, sets faults, moves, disables and forgets devices. Every error is
//! `{"message": "..."}`. This file has the routes, the help and what is small.

mod devices;
mod est;
mod faults;
mod registrations;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use rustls::ServerConfig;
use serde_json::json;

use aziot_log::chain;

use crate::behaviour::{self, Change};
use crate::certificates::Authority;
use crate::cloud::Cloud;
use crate::est::Est;
use crate::faults::Faults;
use crate::server::{Appearance, AskClients};

const HELP: &str = "\
GET    /journal       the last 10000 requests: time, method, path, host, status, reason of a refusal
GET    /counts        requests since the start, how many were throttled, and how many had which status
GET    /messages      the last 100 messages of devices and modules, bodies in base64
GET    /settings      what can be changed while it runs
PUT    /settings      {\"assigningPolls\": 3, \"retryAfterSeconds\": 1, \"clockSkewSeconds\": 300, \"clockOffsetSeconds\": 31536000,
                       \"maxModules\": 600, \"requestsPerSecond\": 20, \"requestsPerSecondPerDevice\": null}
GET    /registrations who registered, and what became of it
PUT    /registrations/ID {\"assignedHub\": \"127.0.0.1:8443\", \"migrate\": true}: the device leaves its hub at once, with or without its modules,
                       and the next registration assigns it to the other one
                      {\"answer\": \"assign|assigning|disabled|failed|unassigned\"}, whatever its enrollment says
DELETE /registrations/ID forget a registration and its TPM; the device stays
GET    /devices       devices and modules of all hubs, without keys
PUT    /devices/ID    {\"disabled\": true}; ?hub=NAME if several hubs have it
DELETE /devices/ID    forget a device and its modules; ?hub=NAME
GET    /est           settings of the EST server, if there is one
PUT    /est           {\"lifetimeSeconds\": 20, \"identityLifetimeSeconds\": 60, \"backdateSeconds\": 0,
                       \"authentication\": \"any|basic|certificate|both\", \"bootstrap\": \"identity|anything\",
                       \"pendingPolls\": 2, \"retryAfterSeconds\": 1, \"protectCacerts\": false, \"sendChain\": false,
                       \"insistOnReenroll\": false, \"allowCa\": false}
GET    /est/issued    the last 1000 certificates that were issued, and to whom
POST   /est/bootstrap a certificate of the bootstrap CA for a request in PEM; ?lifetimeSeconds=60
GET    /fault         the fault that is set
PUT    /fault         {\"kind\": \"none|refuse|stall|plain|latency|hang|withhold|reset|status|served-as|garbage|empty|html|huge|truncated|answer\",
                       \"status\": 429, \"retryAfter\": 2, \"milliseconds\": 500, \"method\": \"PUT\", \"matching\": \"/devices/\", \"count\": 3,
                       \"networkError\": true, \"body\": \"{}\"}
                      {\"certificate\": \"good|wrong-name|expired|other-ca\"}
                      {\"kind\": \"answer\", \"form\": \"FORM\"} for EST, where FORM is one of
                       no-certificates no-content wrong-key ca-only other-ca expired not-yet-valid unordered extra many
                       crlf one-line unpadded der pem plain-pem garbage garbage-der huge empty
                       wrong-media-type odd-media-type no-media-type
DELETE /fault         no fault, the good certificate
";

/// What the control API works on.
pub(crate) struct Control {
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) appearance: Arc<Appearance>,
    /// The configuration with the good certificate.
    pub(crate) good: Arc<ServerConfig>,
    pub(crate) authority: Option<Authority>,
    pub(crate) names: Vec<String>,
    pub(crate) est: Option<Arc<Est>>,
    pub(crate) clients: AskClients,
}

pub(crate) fn routes(control: Arc<Control>) -> Router {
    let est = control.est.clone().map(est::routes).unwrap_or_default();
    Router::new()
        .merge(est)
        .route("/", get(HELP))
        .route("/journal", get(requests))
        .route("/messages", get(messages))
        .route("/counts", get(counts))
        .route("/settings", get(settings).put(change_settings))
        .merge(registrations::routes())
        .merge(devices::routes())
        .merge(faults::routes())
        .fallback(async || Refusal::not_found("there is no such path; GET / lists all"))
        .method_not_allowed_fallback(async || Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            message: "the path has no such method; GET / lists all".to_owned(),
        })
        .with_state(control)
}

struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.into() }
    }

    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        // Whoever may open the socket may read the log as well.
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: chain(error).to_string() }
    }
}

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "message": self.message }))).into_response()
    }
}

async fn requests(State(control): State<Arc<Control>>) -> Response {
    Json(control.cloud.journal.requests()).into_response()
}

async fn messages(State(control): State<Arc<Control>>) -> Response {
    Json(control.cloud.journal.messages()).into_response()
}

async fn counts(State(control): State<Arc<Control>>) -> Response {
    Json(control.cloud.journal.counts()).into_response()
}

async fn settings(State(control): State<Arc<Control>>) -> Response {
    Json(control.cloud.behaviour.load().as_ref()).into_response()
}

async fn change_settings(State(control): State<Arc<Control>>, body: Bytes) -> Result<StatusCode, Refusal> {
    let change: Change = serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let changed = behaviour::change_shared(&control.cloud.behaviour, &change);
    let changed = changed.map_err(|error| Refusal::bad_request(error.to_string()))?;
    tracing::info!(?changed, "settings changed on demand");
    Ok(StatusCode::NO_CONTENT)
}
