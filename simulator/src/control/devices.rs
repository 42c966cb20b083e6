//! Devices at the hubs, for somebody at the control socket: shown without keys, disabled, forgotten.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Control, Refusal};
use crate::authentication::AuthenticationType;
use crate::hubs::Hub;
use crate::registry;

pub(super) fn routes() -> Router<Arc<Control>> {
    Router::new()
        .route("/devices", get(devices))
        .route("/devices/{device_id}", put(change_device).delete(delete_device))
}

async fn devices(State(control): State<Arc<Control>>) -> Json<Value> {
    let of_hub = |state: &crate::state::State, hub: &Hub| {
        let devices = state.registries.of(&hub.key).devices().iter();
        devices.map(|(device_id, device)| shown_device(hub, device_id, device)).collect::<Vec<_>>()
    };
    let hubs = control.cloud.hubs.all();
    Json(control.cloud.store.read(|state| hubs.iter().flat_map(|hub| of_hub(state, hub)).collect()))
}

fn shown_device(hub: &Hub, device_id: &str, device: &registry::Device) -> Value {
    let module = |(module_id, module): (&String, &registry::Module)| {
        let mut body = shown(&module.generation_id, &module.etag, module.authentication.kind);
        body["moduleId"] = module_id.as_str().into();
        body["managedBy"] = module.managed_by.as_deref().into();
        body
    };
    let mut body = shown(&device.generation_id, &device.etag, device.authentication.kind);
    body["hub"] = hub.name.as_str().into();
    body["deviceId"] = device_id.into();
    body["disabled"] = device.disabled.into();
    if let Some(thumbprints) = &device.authentication.x509_thumbprint {
        body["x509Thumbprint"] = json!(thumbprints);
    }
    body["modules"] = device.modules.iter().map(module).collect();
    body
}

fn shown(generation: &str, etag: &str, kind: AuthenticationType) -> Value {
    json!({ "generationId": generation, "etag": etag, "authentication": kind })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceChange {
    disabled: bool,
}

/// Which hub is meant; the first that has the device if none is named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AtHub {
    hub: Option<String>,
}

impl AtHub {
    fn find<'a>(&self, control: &'a Control, device_id: &str) -> Result<&'a Hub, Refusal> {
        let hubs = &control.cloud.hubs;
        if let Some(name) = &self.hub {
            return hubs.named(name).ok_or_else(|| Refusal::not_found(format!("there is no hub {name:?}")));
        }
        let holds = |state: &crate::state::State| {
            hubs.all().iter().find(|hub| state.registries.of(&hub.key).devices().contains_key(device_id))
        };
        Ok(control.cloud.store.read(holds).unwrap_or(hubs.first()))
    }
}

async fn change_device(
    State(control): State<Arc<Control>>,
    Path(device_id): Path<String>,
    Query(at_hub): Query<AtHub>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let DeviceChange { disabled } =
        serde_json::from_slice(&body).map_err(|error| Refusal::bad_request(error.to_string()))?;
    let hub = at_hub.find(&control, &device_id)?;
    let change = |state: &mut crate::state::State| state.registries.of_mut(&hub.key).set_disabled(&device_id, disabled);
    finished(control.cloud.store.change(change).await)?;
    tracing::info!(device_id, hub_name = hub.name, disabled, "device changed on demand");
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_device(
    State(control): State<Arc<Control>>,
    Path(device_id): Path<String>,
    Query(at_hub): Query<AtHub>,
) -> Result<StatusCode, Refusal> {
    let hub = at_hub.find(&control, &device_id)?;
    let delete = |state: &mut crate::state::State| state.registries.of_mut(&hub.key).take_device(&device_id).map(drop);
    finished(control.cloud.store.change(delete).await)?;
    tracing::info!(device_id, hub_name = hub.name, "device deleted on demand");
    Ok(StatusCode::NO_CONTENT)
}

/// Both calls on a device can only miss it.
fn finished(changed: Result<Result<(), registry::Error>, crate::state::Error>) -> Result<(), Refusal> {
    changed.map_err(|error| Refusal::internal(&error))?.map_err(|error| Refusal::not_found(error.to_string()))
}
