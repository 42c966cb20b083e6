//! Routes of the hub: a device's module registry, and messages from devices and modules.
//!
//! Parses, authorizes and words the answers; `registry.rs` decides.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, ETAG, IF_MATCH};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use aziot_log::chain;

use crate::authentication::{Authentication, AuthenticationType, KeyPair, Thumbprints};
use crate::cloud::{ApiVersion, Caller, Cloud, Denied, because, place};
use crate::hubs::Hub;
use crate::journal;
use crate::key::SymmetricKey;
use crate::registry::{self, Module, ModuleChange, Precondition};

const API_VERSIONS: &[&str] = &[
    "2016-11-14",
    "2017-06-30",
    "2017-11-08-preview",
    "2018-04-01",
    "2018-06-30",
    "2019-10-01",
    "2020-03-13",
    "2020-05-31-preview",
    "2020-09-30",
    "2021-04-12",
];

/// The hub takes messages up to this size, properties not counted here.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

pub(crate) fn routes() -> Router<Arc<Cloud>> {
    Router::new()
        .route("/devices/{device_id}/modules", get(list))
        .route("/devices/{device_id}/modules/{module_id}", get(read).put(create_or_replace).delete(delete))
        .route("/devices/{device_id}/messages/events", post(device_message))
        .route("/devices/{device_id}/modules/{module_id}/messages/events", post(module_message))
}

/// An error as the hub words it.
struct Refusal {
    status: StatusCode,
    /// The hub's name for it.
    code: &'static str,
    reason: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, reason: impl Into<String>) -> Self {
        Self { status, code, reason: reason.into() }
    }

    fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ArgumentInvalid", reason)
    }
}

impl From<registry::Error> for Refusal {
    fn from(error: registry::Error) -> Self {
        let (status, code) = match error {
            registry::Error::UnknownDevice(_) => (StatusCode::NOT_FOUND, "DeviceNotFound"),
            registry::Error::UnknownModule { .. } => (StatusCode::NOT_FOUND, "ModuleNotFound"),
            registry::Error::DisabledDevice(_) => (StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess"),
            registry::Error::ModuleExists { .. } => (StatusCode::CONFLICT, "ModuleAlreadyExistsOnDevice"),
            registry::Error::EtagMismatch { .. } => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
            registry::Error::TooManyModules { .. } => (StatusCode::FORBIDDEN, "TooManyModulesOnDevice"),
            registry::Error::TooManyDevices => (StatusCode::FORBIDDEN, "TooManyDevices"),
            registry::Error::InvalidName(_) => (StatusCode::BAD_REQUEST, "ArgumentInvalid"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<Denied> for Refusal {
    fn from(error: Denied) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess", error.to_string())
    }
}

impl From<crate::state::Error> for Refusal {
    fn from(error: crate::state::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "ServerError", chain(&error).to_string())
    }
}

impl axum::response::IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // Who is not let in learns no more; the reason is in the log.
        let text = match self.status {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::INTERNAL_SERVER_ERROR => "Internal error",
            _ => &self.reason,
        };
        let body = json!({ "Message": format!("ErrorCode:{};{text}", self.code) });
        because((self.status, axum::Json(body)).into_response(), self.reason)
    }
}

/// The way to a hub: a device or module by name, with a token or certificate. Returns the hub that was called.
fn authorize<'a>(
    cloud: &'a Cloud,
    version: &ApiVersion,
    device_id: &str,
    module_id: Option<&str>,
    caller: &Caller,
) -> Result<&'a Hub, Refusal> {
    if !cloud.speaks(version, API_VERSIONS) {
        return Err(Refusal::bad_request("the api-version is missing or unknown"));
    }
    let hub = cloud.called(caller);
    let demand = cloud.store.read(|state| {
        let authentication = state.registries.of(&hub.key).authentication(device_id, module_id)?;
        Ok::<_, registry::Error>(authentication.demand())
    })?;
    let name = match module_id {
        None => device_id.to_owned(),
        Some(module_id) => format!("{device_id}/modules/{module_id}"),
    };
    cloud.check(caller, &demand, &format!("{}/devices/{name}", hub.name), &name)?;
    Ok(hub)
}

async fn list(
    State(cloud): State<Arc<Cloud>>,
    Path(device_id): Path<String>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
) -> Result<Response, Refusal> {
    let hub = authorize(&cloud, &version, &device_id, None, &caller)?;
    let modules = cloud.store.read(|state| {
        let modules = &state.registries.of(&hub.key).device(&device_id)?.modules;
        Ok::<_, registry::Error>(
            modules.iter().map(|(module_id, module)| module_body(&device_id, module_id, module)).collect::<Vec<_>>(),
        )
    })?;
    Ok(axum::Json(modules).into_response())
}

async fn read(
    State(cloud): State<Arc<Cloud>>,
    Path((device_id, module_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
) -> Result<Response, Refusal> {
    let hub = authorize(&cloud, &version, &device_id, None, &caller)?;
    let module = cloud.store.read(|state| state.registries.of(&hub.key).module(&device_id, &module_id).cloned())?;
    Ok(module_response(&device_id, &module_id, &module))
}

async fn create_or_replace(
    State(cloud): State<Arc<Cloud>>,
    Path((device_id, module_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
    body: Bytes,
) -> Result<Response, Refusal> {
    let hub = authorize(&cloud, &version, &device_id, None, &caller)?;
    let body: PutBody = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_request(format!("the body is no module: {}", place(&error))))?;
    if body.device_id != device_id || body.module_id != module_id {
        return Err(Refusal::bad_request("the ids in the body are not those of the path"));
    }
    let authentication = body.authentication.unwrap_or_default().complete()?;
    let change = ModuleChange { managed_by: body.managed_by, authentication };
    let precondition = precondition(caller.headers())?;
    let max_modules = cloud.behaviour.load().max_modules;
    let put = |state: &mut crate::state::State| {
        let registry = state.registries.of_mut(&hub.key);
        registry.put_module(&device_id, &module_id, precondition, change, max_modules)
    };
    let module = cloud.store.change(put).await??;
    Ok(module_response(&device_id, &module_id, &module))
}

async fn delete(
    State(cloud): State<Arc<Cloud>>,
    Path((device_id, module_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
) -> Result<StatusCode, Refusal> {
    let hub = authorize(&cloud, &version, &device_id, None, &caller)?;
    let precondition = precondition(caller.headers())?;
    let delete = |state: &mut crate::state::State| {
        state.registries.of_mut(&hub.key).delete_module(&device_id, &module_id, precondition)
    };
    cloud.store.change(delete).await??;
    Ok(StatusCode::NO_CONTENT)
}

async fn device_message(
    State(cloud): State<Arc<Cloud>>,
    Path(device_id): Path<String>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    take_message(&cloud, &version, device_id, None, &caller, &body)
}

async fn module_message(
    State(cloud): State<Arc<Cloud>>,
    Path((device_id, module_id)): Path<(String, String)>,
    Query(version): Query<ApiVersion>,
    caller: Caller,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    take_message(&cloud, &version, device_id, Some(module_id), &caller, &body)
}

fn take_message(
    cloud: &Cloud,
    version: &ApiVersion,
    device_id: String,
    module_id: Option<String>,
    caller: &Caller,
    body: &Bytes,
) -> Result<StatusCode, Refusal> {
    let hub = authorize(cloud, version, &device_id, module_id.as_deref(), caller)?;
    if body.len() > MAX_MESSAGE_BYTES {
        let reason = format!("the message has {} bytes, the hub takes {MAX_MESSAGE_BYTES}", body.len());
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "MessageTooLarge", reason));
    }
    cloud.journal.add_message(journal::Message {
        time: jiff::Timestamp::now(),
        hub: hub.name.clone(),
        device_id,
        module_id,
        content_type: caller.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned),
        bytes: body.len(),
        body: STANDARD.encode(body),
    });
    Ok(StatusCode::NO_CONTENT)
}

/// A module as a client writes it; members that only the hub sets are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PutBody {
    device_id: String,
    module_id: String,
    managed_by: Option<String>,
    /// `null` is as good as nothing.
    authentication: Option<PutAuthentication>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PutAuthentication {
    #[serde(rename = "type")]
    kind: AuthenticationType,
    symmetric_key: Option<PutKeys>,
    #[serde(rename = "x509Thumbprint")]
    x509_thumbprint: Option<Thumbprints>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PutKeys {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

impl PutAuthentication {
    /// Keys where they belong, made by the hub where the client gives none.
    fn complete(self) -> Result<Authentication, Refusal> {
        let Self { kind, symmetric_key, x509_thumbprint } = self;
        let key = |text: Option<String>| match text.filter(|text| !text.is_empty()).map(zeroize::Zeroizing::new) {
            None => Ok(SymmetricKey::random()),
            Some(text) => SymmetricKey::from_base64(&text).map_err(|error| Refusal::bad_request(error.to_string())),
        };
        if kind == AuthenticationType::Sas {
            let PutKeys { primary_key, secondary_key } = symmetric_key.unwrap_or_default();
            let keys = KeyPair { primary_key: key(primary_key)?, secondary_key: key(secondary_key)? };
            return Ok(Authentication::sas(keys));
        }
        Ok(Authentication::written(kind, x509_thumbprint))
    }
}

/// What `If-Match` says; an etag counts with and without quotes.
fn precondition(headers: &HeaderMap) -> Result<Precondition<'_>, Refusal> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(Precondition::Absent) };
    let value = value.to_str().map_err(|_| Refusal::bad_request("If-Match is not ASCII"))?.trim();
    match value.trim_matches('"') {
        "" => Err(Refusal::bad_request("If-Match is empty")),
        "*" => Ok(Precondition::AnyVersion),
        etag => Ok(Precondition::Etag(etag)),
    }
}

fn module_response(device_id: &str, module_id: &str, module: &Module) -> Response {
    let etag = format!("\"{}\"", module.etag);
    ([(ETAG, etag)], axum::Json(module_body(device_id, module_id, module))).into_response()
}

fn module_body(device_id: &str, module_id: &str, module: &Module) -> Value {
    let mut body = json!(module);
    body["deviceId"] = device_id.into();
    body["moduleId"] = module_id.into();
    body["connectionState"] = "Disconnected".into();
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(IF_MATCH, value.parse().unwrap())])
    }

    #[test]
    fn if_match_in_all_its_forms() {
        let read = |value| precondition(&headers(value)).ok().map(|found| format!("{found:?}"));
        assert_eq!(precondition(&HeaderMap::new()).ok(), Some(Precondition::Absent));
        assert_eq!(precondition(&headers("*")).ok(), Some(Precondition::AnyVersion));
        assert_eq!(precondition(&headers("\"*\"")).ok(), Some(Precondition::AnyVersion));
        assert_eq!(read("\"AAAA=\""), read("AAAA="));
        assert_eq!(read("\"\""), None);
    }

    #[test]
    fn keys_are_made_where_none_are_given_and_only_for_sas() {
        let complete = |text: &str| serde_json::from_str::<PutAuthentication>(text).unwrap().complete();
        assert!(complete("{}").ok().unwrap().symmetric_key.is_some());
        assert!(complete(r#"{"type":"sas","symmetricKey":{"primaryKey":null}}"#).ok().unwrap().symmetric_key.is_some());
        for kind in ["none", "x509", "selfSigned", "certificateAuthority"] {
            let authentication = complete(&format!(r#"{{"type":"{kind}"}}"#)).ok().unwrap();
            assert!(authentication.symmetric_key.is_none(), "{kind}");
        }
        assert!(complete(r#"{"symmetricKey":{"primaryKey":"AAAA"}}"#).is_err());
    }

    #[test]
    fn a_bad_body_is_not_quoted() {
        let error = serde_json::from_str::<PutBody>(r#"{"deviceId":"d","moduleId":"m","managedBy":{"a":"secret"}}"#);
        assert!(!place(&error.err().unwrap()).contains("secret"));
    }
}
