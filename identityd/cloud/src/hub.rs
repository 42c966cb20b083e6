//! The hub's module registry, as one device may use it.
//!
//! A module is read, changed and written back with its etag, so that a change made meanwhile is never overwritten unseen, and members that we do
//! not know stay. How modules authenticate is not read: the hub knows more ways than we. An answer counts only if it is about the device and
//! the module that were asked for: keys are derived from what it says.

use std::sync::Arc;

use aziot_http::SecretBytes;
use http::{Method, StatusCode};
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{
    Error, Refusal, Signer, Transport,
    error::Subject,
    sas::Audience,
    transport::{Call, Credentials, parse, segment, success},
};

const API_VERSION: &str = "2017-11-08-preview";
/// Room for a module with its keys, so that the buffer does not grow and leave pieces of them behind.
const MODULE_BYTES: usize = 8 * 1024;

/// A module as the hub has it; without its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Its name.
    pub module_id: String,
    /// Name of its device.
    pub device_id: String,
    /// Who looks after it, if the hub names somebody.
    pub managed_by: Option<String>,
    /// Sets this module apart from a former one of the same name; its keys are derived from it.
    pub generation_id: Option<String>,
    /// All that the hub sent, `authentication` left out.
    members: Map<String, Value>,
}

/// The two keys of a module; either is good.
#[derive(Debug)]
pub struct ModuleKeys {
    /// The one that the module uses.
    pub primary: SecretBytes,
    /// The spare one.
    pub secondary: SecretBytes,
}

impl Module {
    fn from_members(mut members: Map<String, Value>) -> Result<Self, serde_json::Error> {
        members.remove("authentication");
        let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
        let required = |name: &'static str| text(name).ok_or_else(|| serde::de::Error::missing_field(name));
        Ok(Self {
            module_id: required("moduleId")?,
            device_id: required("deviceId")?,
            managed_by: text("managedBy").filter(|owner| !owner.is_empty()),
            generation_id: text("generationId"),
            members,
        })
    }

    /// The version that was read; any version where the hub names none, as parent gateways do.
    fn if_match(&self) -> String {
        match self.members.get("etag").and_then(Value::as_str).map(|etag| etag.trim_matches('"')) {
            Some(etag) if !etag.is_empty() => format!("\"{etag}\""),
            _ => "*".to_owned(),
        }
    }
}

#[derive(Serialize)]
struct NewModule<'a> {
    #[serde(rename = "moduleId")]
    module_id: &'a str,
    #[serde(rename = "deviceId")]
    device_id: &'a str,
    #[serde(rename = "managedBy", skip_serializing_if = "Option::is_none")]
    managed_by: Option<&'a str>,
}

#[derive(Serialize)]
struct KeyedModule<'a> {
    #[serde(flatten)]
    members: &'a Map<String, Value>,
    authentication: Authentication<'a>,
}

#[derive(Serialize)]
struct Authentication<'a> {
    #[serde(rename = "symmetricKey")]
    symmetric_key: SymmetricKey<'a>,
    r#type: &'static str,
}

#[derive(Serialize)]
struct SymmetricKey<'a> {
    #[serde(rename = "primaryKey")]
    primary_key: &'a SecretBytes,
    #[serde(rename = "secondaryKey")]
    secondary_key: &'a SecretBytes,
}

/// The registry of one device at one hub, or at the gateway before it.
#[derive(Clone)]
pub struct Hub {
    transport: Transport,
    gateway_host: String,
    device_id: String,
    audience: Audience,
    signer: Option<Arc<dyn Signer>>,
}

impl Hub {
    /// `hub_host` is in the tokens, `gateway_host` (the same unless nested) is called. Without a signer there are no tokens: the transport's
    /// connections show the device's certificate.
    #[must_use]
    pub fn new(
        transport: Transport,
        hub_host: &str,
        gateway_host: &str,
        device_id: &str,
        signer: Option<Arc<dyn Signer>>,
    ) -> Self {
        Self {
            transport,
            gateway_host: gateway_host.to_owned(),
            device_id: device_id.to_owned(),
            audience: Audience::device(hub_host, device_id),
            signer,
        }
    }

    /// All modules of the device, with the names that the hub tells, whatever they are.
    pub async fn modules(&self) -> Result<Vec<Module>, Error> {
        let (answer, _) = self.send(Method::GET, None, None, None).await?;
        let body = success(&self.gateway_host, Subject::Device, &[StatusCode::OK], answer)?;
        let modules: Vec<Map<String, Value>> = parse(&self.gateway_host, &body)?;
        modules.into_iter().map(|members| self.module_of(members)).collect()
    }

    /// One module.
    pub async fn module(&self, module_id: &str) -> Result<Module, Error> {
        let (answer, _) = self.send(Method::GET, Some(module_id), None, None).await?;
        self.read(module_id, answer)
    }

    /// Creates a module with keys of the hub's choice; 409 if there is one.
    pub async fn create_module(&self, module_id: &str, managed_by: Option<&str>) -> Result<Module, Error> {
        let new = NewModule { module_id, device_id: &self.device_id, managed_by };
        let body = serde_json::to_vec(&new).map_err(|error| self.unsendable(error))?;
        let (answer, _) = self.send(Method::PUT, Some(module_id), None, Some(Bytes::from(body))).await?;
        self.read(module_id, answer)
    }

    /// Gives the module as it was read these keys, and this owner if one is named; 412 if it has changed since.
    pub async fn set_keys(
        &self,
        module: &Module,
        managed_by: Option<&str>,
        keys: &ModuleKeys,
    ) -> Result<Module, Error> {
        let mut members = module.members.clone();
        if let Some(owner) = managed_by {
            members.insert("managedBy".to_owned(), owner.into());
        }
        let symmetric_key = SymmetricKey { primary_key: &keys.primary, secondary_key: &keys.secondary };
        let keyed = KeyedModule { members: &members, authentication: Authentication { symmetric_key, r#type: "sas" } };
        let mut body = Zeroizing::new(Vec::with_capacity(MODULE_BYTES));
        serde_json::to_writer(&mut *body, &keyed).map_err(|error| self.unsendable(error))?;
        let body = Bytes::from_owner(body);
        let module_id = &module.module_id;
        let (answer, _) = self.send(Method::PUT, Some(module_id), Some(module.if_match()), Some(body)).await?;
        self.read(module_id, answer)
    }

    /// Deletes the module, whatever its version. A module that is missing at a repetition was deleted by an attempt whose answer was lost.
    pub async fn delete_module(&self, module_id: &str) -> Result<(), Error> {
        let (answer, attempts) = self.send(Method::DELETE, Some(module_id), Some("*".to_owned()), None).await?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(());
        }
        let mut refusal = Refusal::of(&answer, Subject::Module);
        refusal.text = format!("unexpected HTTP status code: {}", answer.status());
        let error = Error::Refused(refusal);
        if attempts > 1 && error.is_module_missing() { Ok(()) } else { Err(error) }
    }

    async fn send(
        &self,
        method: Method,
        module_id: Option<&str>,
        if_match: Option<String>,
        body: Option<Bytes>,
    ) -> Result<(http::Response<Bytes>, u32), Error> {
        let modules = format!("/devices/{}/modules", segment(&self.device_id));
        let path = match module_id {
            Some(module_id) => format!("{modules}/{}", segment(module_id)),
            None => modules,
        };
        let target = format!("{path}?api-version={API_VERSION}");
        let call = Call { method, host: &self.gateway_host, target, if_match, body };
        let credentials = self.signer.as_deref().map(|signer| Credentials { audience: &self.audience, signer });
        self.transport.send(&call, credentials.as_ref()).await
    }

    /// The module of an answer, which must be the one that was asked for. The hub tells ids apart by case.
    fn read(&self, module_id: &str, answer: http::Response<Bytes>) -> Result<Module, Error> {
        let expected = [StatusCode::OK, StatusCode::CREATED];
        let body = success(&self.gateway_host, Subject::Module, &expected, answer)?;
        let module = self.module_of(parse(&self.gateway_host, &body)?)?;
        if module.module_id == module_id {
            Ok(module)
        } else {
            let problem = format_args!("it is about another module than {module_id:?}");
            Err(Error::malformed(&self.gateway_host, problem))
        }
    }

    fn module_of(&self, members: Map<String, Value>) -> Result<Module, Error> {
        let module = Module::from_members(members).map_err(|error| Error::malformed(&self.gateway_host, error))?;
        if module.device_id == self.device_id {
            Ok(module)
        } else {
            let problem = format_args!("it is about another device than {:?}", self.device_id);
            Err(Error::malformed(&self.gateway_host, problem))
        }
    }

    fn unsendable(&self, error: serde_json::Error) -> Error {
        Error::Unsendable { host: self.gateway_host.clone(), source: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use http::{Request, Response, header};

    use super::*;
    use crate::sas::tests::VectorKey;

    struct Seen {
        line: String,
        if_match: Option<String>,
        body: String,
    }

    /// A hub that gives one answer, and what it was asked.
    fn hub(status: u16, content_type: &'static str, body: &'static str) -> (Hub, Arc<Mutex<Vec<Seen>>>) {
        hub_of(vec![Ok((status, content_type, body))])
    }

    type Script = Vec<Result<(u16, &'static str, &'static str), Error>>;

    /// A hub that gives these answers in turn, and the last for ever.
    fn hub_of(script: Script) -> (Hub, Arc<Mutex<Vec<Seen>>>) {
        let retries = u32::try_from(script.len()).unwrap() - 1;
        let script = Mutex::new(script.into_iter().rev().collect::<Vec<_>>());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let exchange = move |request: Request<Bytes>| {
            log.lock().unwrap().push(Seen {
                line: format!("{} {}", request.method(), request.uri()),
                if_match: request.headers().get(header::IF_MATCH).map(|value| value.to_str().unwrap().to_owned()),
                body: String::from_utf8(request.body().to_vec()).unwrap(),
            });
            let mut script = script.lock().unwrap();
            let answer = match script.len() {
                1 => script[0].as_ref().map(|answer| *answer).map_err(|_| lost()),
                _ => script.pop().unwrap(),
            };
            async move {
                let (status, content_type, body) = answer?;
                let answer = Response::builder().status(status).header(header::CONTENT_TYPE, content_type);
                Ok(answer.body(Bytes::from_static(body.as_bytes())).unwrap())
            }
        };
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), retries));
        (Hub::new(transport, "hub.example", "gate.example:8443", "dev#1", Some(Arc::new(VectorKey))), seen)
    }

    fn lost() -> Error {
        Error::Interrupted { host: "gate.example:8443".into(), source: "reset".into() }
    }

    const MODULE: &str = r#"{"moduleId":"$edgeAgent","deviceId":"dev#1","managedBy":"iotedge","generationId":"637",
        "etag":"MA==","future":{"kept":true},"authentication":{"type":"certificateAuthority","symmetricKey":null}}"#;

    #[tokio::test]
    async fn keys_are_set_on_what_was_read() {
        let (hub, seen) = hub(200, "application/json; charset=utf-8", MODULE);
        let module = hub.module("$edgeAgent").await.unwrap();
        assert_eq!((module.managed_by.as_deref(), module.generation_id.as_deref()), (Some("iotedge"), Some("637")));
        let keys = ModuleKeys { primary: SecretBytes::new(vec![1; 32]), secondary: SecretBytes::new(vec![2; 32]) };
        hub.set_keys(&module, None, &keys).await.unwrap();
        let seen = seen.lock().unwrap();
        let url = "https://gate.example:8443/devices/dev%231/modules/%24edgeAgent?api-version=2017-11-08-preview";
        assert_eq!((seen[0].line.as_str(), &seen[0].if_match), (format!("GET {url}").as_str(), &None));
        assert_eq!(
            (seen[1].line.as_str(), seen[1].if_match.as_deref()),
            (format!("PUT {url}").as_str(), Some("\"MA==\""))
        );
        let body: Value = serde_json::from_str(&seen[1].body).unwrap();
        assert_eq!(body["future"]["kept"], true);
        assert_eq!(body["managedBy"], "iotedge");
        assert_eq!(body["authentication"]["type"], "sas");
        assert_eq!(
            body["authentication"]["symmetricKey"]["primaryKey"],
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
        );
    }

    #[tokio::test]
    async fn an_id_stays_in_its_segment() {
        let (hub, seen) = hub(204, "", "");
        hub.delete_module("../x%").await.unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen[0].line.contains("/devices/dev%231/modules/..%2Fx%25?api"), "{}", seen[0].line);
        assert_eq!(seen[0].if_match.as_deref(), Some("*"));
    }

    #[tokio::test]
    async fn creating_sends_no_precondition_and_the_owner() {
        let (hub, seen) = hub(201, "application/json", r#"{"moduleId":"m","deviceId":"dev#1","generationId":"1"}"#);
        let module = hub.create_module("m", Some("me")).await.unwrap();
        assert_eq!(module.if_match(), "*");
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0].if_match, None);
        assert_eq!(seen[0].body, r#"{"moduleId":"m","deviceId":"dev#1","managedBy":"me"}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_whose_answer_was_lost_has_succeeded() {
        let missing = || Ok((404, "application/json", r#"{"Message":"ErrorCode:ModuleNotFound;no"}"#));
        hub_of(vec![Err(lost()), missing()]).0.delete_module("m").await.unwrap();
        assert!(hub_of(vec![missing(), missing()]).0.delete_module("m").await.unwrap_err().is_module_missing());
        let no_device = Ok((404, "application/json", r#"{"Message":"ErrorCode:DeviceNotFound;no"}"#));
        hub_of(vec![Err(lost()), no_device]).0.delete_module("m").await.unwrap_err();
    }

    #[tokio::test]
    async fn answers_about_something_else_are_malformed() {
        let keys = ModuleKeys { primary: SecretBytes::new(vec![1; 32]), secondary: SecretBytes::new(vec![2; 32]) };
        let module = hub(200, "application/json", MODULE).0.module("$edgeAgent").await.unwrap();
        for body in [
            r#"{"moduleId":"other","deviceId":"dev#1"}"#,
            r#"{"moduleId":"$edgeAgent","deviceId":"otherdev"}"#,
            r#"{"moduleId":"$edgeagent","deviceId":"dev#1"}"#,
        ] {
            let (hub, _) = hub(200, "application/json", body);
            for outcome in [
                hub.module("$edgeAgent").await,
                hub.create_module("$edgeAgent", None).await,
                hub.set_keys(&module, None, &keys).await,
            ] {
                assert!(matches!(outcome, Err(Error::Malformed { .. })), "{body}");
            }
        }
        let list = hub(200, "application/json", r#"[{"moduleId":"m","deviceId":"otherdev"}]"#).0.modules().await;
        assert!(matches!(list, Err(Error::Malformed { .. })));
    }

    #[tokio::test]
    async fn a_success_of_another_kind_names_those_that_were_expected() {
        let list = hub(204, "", "").0.modules().await.unwrap_err();
        assert_eq!(list.to_string(), "Expected one of [200], got 204 No Content");
        let module = hub(204, "", "").0.module("m").await.unwrap_err();
        assert_eq!(module.to_string(), "Expected one of [200, 201], got 204 No Content");
    }

    #[tokio::test]
    async fn answers_that_are_none_are_told_apart() {
        let not_json = hub(200, "text/html", "<html>").0.modules().await.unwrap_err();
        assert_eq!(not_json.to_string(), "invalid Content-Type; expected JSON");
        let cut = hub(200, "application/json", "[{").0.modules().await.unwrap_err();
        assert!(matches!(cut, Error::Malformed { .. }));
        let nameless = hub(200, "application/json", "[{}]").0.modules().await.unwrap_err();
        assert!(matches!(nameless, Error::Malformed { .. }));
        let gone = hub(404, "application/json", "").0.delete_module("m").await.unwrap_err();
        assert_eq!(gone.to_string(), "unexpected HTTP status code: 404 Not Found");
        assert!(gone.is_module_missing());
    }
}
