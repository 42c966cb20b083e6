//! The EST server's part of the control API: settings, what was issued, and the factory that makes bootstrap certificates.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::Refusal;
use crate::est::{Change, Est, Request};

const YEAR_SECONDS: u32 = 365 * 24 * 60 * 60;

pub(super) fn routes<S>(est: Arc<Est>) -> Router<S> {
    Router::new()
        .route("/est", get(settings).put(change))
        .route("/est/issued", get(issued))
        .route("/est/bootstrap", post(bootstrap))
        .with_state(est)
}

async fn settings(State(est): State<Arc<Est>>) -> Json<Value> {
    Json(est.settings().shown())
}

async fn change(State(est): State<Arc<Est>>, body: Bytes) -> Result<StatusCode, Refusal> {
    let change: Change = serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    tracing::info!(?change, "EST server changed on demand");
    est.change(&change).map_err(|error| Refusal::bad_request(error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn issued(State(est): State<Arc<Est>>) -> Response {
    Json(est.issued()).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Factory {
    #[serde(default = "a_year")]
    lifetime_seconds: u32,
}

fn a_year() -> u32 {
    YEAR_SECONDS
}

async fn bootstrap(
    State(est): State<Arc<Est>>,
    Query(Factory { lifetime_seconds }): Query<Factory>,
    body: Bytes,
) -> Result<Vec<u8>, Refusal> {
    let request = Request::from_pem(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    est.bootstrap(&request, lifetime_seconds).map_err(|error| Refusal::internal(&error))
}
