//! The control API: for whoever started the simulator, over `control.sock` in its folder and never on the TLS port.
//!
//! Shows what was seen and what is registered (without keys), sets faults, disables and forgets devices. Every error is
//! `{"message": "..."}`.

mod est;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::StatusCode;
use rustls::ServerConfig;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::certificates::{self, Authority};
use aziot_log::chain;

use crate::cloud::Cloud;
use crate::est::Est;
use crate::faults::{CertificateFault, Fault, Faults, Kind};
use crate::registry;
use crate::server::{Appearance, AskClients, tls_config};

const HELP: &str = "\
GET    /journal       the last 1000 requests: time, method, path, status, reason of a refusal
GET    /messages      the last 100 messages of devices and modules, bodies in base64
GET    /devices       devices and modules of the hub, without keys
PUT    /devices/ID    {\"disabled\": true}
DELETE /devices/ID    forget a device and its modules
GET    /est           settings of the EST server, if there is one
PUT    /est           {\"lifetimeSeconds\": 20, \"identityLifetimeSeconds\": 60, \"backdateSeconds\": 0,
                       \"authentication\": \"any|basic|certificate|both\", \"bootstrap\": \"identity|anything\",
                       \"pendingPolls\": 2, \"retryAfterSeconds\": 1, \"protectCacerts\": false, \"sendChain\": false,
                       \"insistOnReenroll\": false, \"allowCa\": false}
GET    /est/issued    the last 1000 certificates that were issued, and to whom
POST   /est/bootstrap a certificate of the bootstrap CA for a request in PEM; ?lifetimeSeconds=60
GET    /fault         the fault that is set
PUT    /fault         {\"kind\": \"none|refuse|stall|plain|latency|hang|withhold|reset|status|garbage|empty|html|truncated|answer\",
                       \"status\": 429, \"retryAfter\": 2, \"milliseconds\": 500, \"matching\": \"/devices/\", \"count\": 3,
                       \"networkError\": true}
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
        .route("/devices", get(devices))
        .route("/devices/{device_id}", put(change_device).delete(delete_device))
        .route("/fault", get(fault).put(set_fault).delete(clear_fault))
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

async fn devices(State(control): State<Arc<Control>>) -> Json<Value> {
    let shown = |generation: &str, etag: &str, kind: registry::AuthenticationType| json!({ "generationId": generation, "etag": etag, "authentication": kind });
    Json(control.cloud.store.read(|state| {
        let device = |(device_id, device): (&String, &registry::Device)| {
            let module = |(module_id, module): (&String, &registry::Module)| {
                let mut body = shown(&module.generation_id, &module.etag, module.authentication.kind);
                body["moduleId"] = module_id.as_str().into();
                body["managedBy"] = module.managed_by.as_deref().into();
                body
            };
            let mut body = shown(&device.generation_id, &device.etag, device.authentication.kind);
            body["deviceId"] = device_id.as_str().into();
            body["disabled"] = device.disabled.into();
            body["modules"] = device.modules.iter().map(module).collect();
            body
        };
        state.registry.devices().iter().map(device).collect()
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceChange {
    disabled: bool,
}

async fn change_device(
    State(control): State<Arc<Control>>,
    Path(device_id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let DeviceChange { disabled } =
        serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let changed = control.cloud.store.change(|state| state.registry.set_disabled(&device_id, disabled)).await;
    finished(changed)?;
    tracing::info!(device_id, disabled, "device changed on demand");
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_device(
    State(control): State<Arc<Control>>,
    Path(device_id): Path<String>,
) -> Result<StatusCode, Refusal> {
    finished(control.cloud.store.change(|state| state.registry.delete_device(&device_id)).await)?;
    tracing::info!(device_id, "device deleted on demand");
    Ok(StatusCode::NO_CONTENT)
}

/// Both calls on a device can only miss it.
fn finished(changed: Result<Result<(), registry::Error>, crate::state::Error>) -> Result<(), Refusal> {
    changed.map_err(|error| Refusal::internal(&error))?.map_err(|error| Refusal::not_found(error.to_string()))
}

async fn fault(State(control): State<Arc<Control>>) -> Json<Fault> {
    Json(control.faults.current())
}

async fn set_fault(State(control): State<Arc<Control>>, body: Bytes) -> Result<StatusCode, Refusal> {
    let bad = |error: serde_json::Error| Refusal::bad_request(error.to_string());
    let mut members: serde_json::Map<String, Value> = serde_json::from_slice(&body).map_err(bad)?;
    let certificate: Option<CertificateFault> =
        members.remove("certificate").map(serde_json::from_value).transpose().map_err(bad)?;
    if certificate.is_none() || !members.is_empty() {
        let fault: Fault = serde_json::from_value(members.into()).map_err(bad)?;
        if fault.status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err(Refusal::bad_request("status is not between 200 and 599"));
        }
        if fault.form.is_some() != (fault.kind == Kind::Answer) {
            return Err(Refusal::bad_request("a form belongs to the kind \"answer\", and only there"));
        }
        set(&control, fault);
    }
    if let Some(certificate) = certificate {
        show(&control, certificate).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn clear_fault(State(control): State<Arc<Control>>) -> Result<StatusCode, Refusal> {
    set(&control, Fault::default());
    show(&control, CertificateFault::Good).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn set(control: &Control, fault: Fault) {
    tracing::info!(?fault, "fault set on demand");
    let is_of_connections = fault.kind.is_of_connections();
    control.faults.set(fault);
    if is_of_connections {
        control.appearance.close_idle();
    }
}

async fn show(control: &Arc<Control>, fault: CertificateFault) -> Result<(), Refusal> {
    let issuer = Arc::clone(control);
    let issue = move || certificates::faulty(fault, issuer.authority.as_ref(), &issuer.names);
    let identity = tokio::task::spawn_blocking(issue)
        .await
        .map_err(|error| Refusal::internal(&error))?
        .map_err(|error| Refusal::internal(&error))?;
    let tls = match identity {
        None => Arc::clone(&control.good),
        Some(identity) => tls_config(identity, control.clients).map_err(|error| Refusal::internal(&error))?,
    };
    control.appearance.show(tls);
    tracing::info!(certificate = ?fault, "certificate shown from now on");
    Ok(())
}
