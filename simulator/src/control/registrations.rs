//! Registrations at DPS, for somebody at the control socket: shown, moved to another hub, answered otherwise, forgotten.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Control, Refusal};
use crate::provisioning::{self, Answer, Registration, Surroundings};
use crate::registries::Baggage;

pub(super) fn routes() -> Router<Arc<Control>> {
    Router::new()
        .route("/registrations", get(registrations))
        .route("/registrations/{registration_id}", put(change).delete(delete))
}

async fn registrations(State(control): State<Arc<Control>>) -> Json<Value> {
    let hubs = control.cloud.hubs.all();
    let shown = |(id, registration): (&String, &Registration)| {
        let mut body = json!(registration.outcome);
        if let Some(body) = body.as_object_mut() {
            // Of use to the TPM alone, and long.
            body.remove("tpm");
        }
        let placed = registration.placed.as_ref();
        let hub = placed.and_then(|placed| hubs.iter().find(|hub| hub.key == placed.hub));
        body["registrationId"] = id.as_str().into();
        body["hub"] = hub.map(|hub| hub.name.as_str()).into();
        body["lastUpdatedDateTimeUtc"] = registration.last_updated.to_string().into();
        body
    };
    Json(control.cloud.store.read(|state| state.registrations.iter().map(shown).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RegistrationChange {
    assigned_hub: Option<String>,
    #[serde(default)]
    migrate: bool,
    answer: Option<Answer>,
}

async fn change(
    State(control): State<Arc<Control>>,
    Path(registration_id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let change: RegistrationChange =
        serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let RegistrationChange { assigned_hub, migrate, answer } = change;
    if assigned_hub.is_none() && (migrate || answer.is_none()) {
        return Err(Refusal::bad_request("assignedHub or answer is missing"));
    }
    let baggage = if migrate { Baggage::Migrated } else { Baggage::Reset };
    let (hubs, now) = (&control.cloud.hubs, control.cloud.now());
    let changed = control.cloud.store.change(|state| {
        let registrations = &mut state.registrations;
        // First what can fail for more than an unknown registration.
        if let Some(hub_name) = &assigned_hub {
            let surroundings = Surroundings { registries: &mut state.registries, hubs, now };
            provisioning::move_to(registrations, &registration_id, hub_name, baggage, surroundings)?;
        }
        if let Some(answer) = answer {
            provisioning::answer_with(registrations, &registration_id, answer)?;
        }
        Ok(())
    });
    finished(changed.await)?;
    tracing::info!(registration_id, assigned_hub, migrate, ?answer, "registration changed on demand");
    Ok(StatusCode::NO_CONTENT)
}

async fn delete(
    State(control): State<Arc<Control>>,
    Path(registration_id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let forget = |state: &mut crate::state::State| provisioning::forget(&mut state.registrations, &registration_id);
    finished(control.cloud.store.change(forget).await)?;
    tracing::info!(registration_id, "registration forgotten on demand");
    Ok(StatusCode::NO_CONTENT)
}

fn finished(changed: Result<Result<(), provisioning::Error>, crate::state::Error>) -> Result<(), Refusal> {
    changed.map_err(|error| Refusal::internal(&error))?.map_err(|error| match error {
        provisioning::Error::Move { .. } => Refusal::internal(&error),
        error => Refusal::not_found(error.to_string()),
    })
}
