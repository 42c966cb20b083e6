//! Faults on demand, as somebody at the control socket sets them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde_json::Value;

use super::{Control, Refusal};
use crate::certificates;
use crate::faults::{CertificateFault, Fault, Kind};
use crate::server::tls_config;

pub(super) fn routes() -> Router<Arc<Control>> {
    Router::new().route("/fault", get(fault).put(set_fault).delete(clear_fault))
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
        if fault.body.is_some() && fault.kind != Kind::Status {
            return Err(Refusal::bad_request("a body belongs to the kind \"status\""));
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
