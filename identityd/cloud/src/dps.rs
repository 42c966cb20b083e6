//! Registering with the Device Provisioning Service: which hub is ours, and under which name.
//!
//! The answers are read leniently: what DPS sends differs between its versions, allocation policies and errors, and a device that cannot
//! say why it was refused costs somebody a day.

mod tpm;

use std::time::Duration;

use http::{Method, StatusCode};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Signer, TpmKey, Transport,
    error::{NotAssigned, Subject, excerpt},
    name,
    sas::Audience,
    transport::{Call, Credentials, parse, retry_after, segment, success},
};

const API_VERSION: &str = "2021-06-01";
/// Pause between polls where DPS asks for none.
const POLL_PAUSE: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Time for a whole registration, unless the configured attempts alone may take longer.
const DEADLINE: Duration = Duration::from_secs(300);

/// What a device registers as.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Host of DPS, with its port unless that is 443.
    pub host: String,
    /// Scope of the DPS instance.
    pub scope_id: String,
    /// Name of the enrollment, or in its group.
    pub registration_id: String,
    /// Passed on to the operator's custom allocation.
    pub payload: Option<Value>,
}

/// Where DPS put the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Host name of the hub.
    pub hub: String,
    /// Name of the device there.
    pub device_id: String,
}

/// How a device proves itself to DPS.
#[derive(Clone, Copy)]
pub enum Attestation<'a> {
    /// By tokens that its symmetric key signs.
    Key(&'a dyn Signer),
    /// By the certificate that the transport's connections show.
    Certificate,
    /// By its TPM: DPS sends a key that only that TPM can unwrap, and which signs the tokens. At the end it sends the one for the hub.
    Tpm(&'a dyn TpmKey),
}

impl<'a> Attestation<'a> {
    fn signer(self) -> Option<&'a dyn Signer> {
        match self {
            Self::Key(signer) => Some(signer),
            Self::Certificate => None,
            Self::Tpm(tpm) => Some(tpm),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody<'a> {
    registration_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm: Option<tpm::PublicKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    operation_id: Option<String>,
    status: Option<String>,
    registration_state: Option<State>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    assigned_hub: Option<String>,
    device_id: Option<String>,
    #[serde(alias = "code")]
    error_code: Option<Value>,
    #[serde(alias = "message")]
    error_message: Option<String>,
    tracking_id: Option<String>,
    tpm: Option<Value>,
}

/// Registers and waits until DPS has decided; at most five minutes, or as long as the transport's patience.
pub async fn register(
    transport: &Transport,
    registration: &Registration,
    attestation: Attestation<'_>,
) -> Result<Assignment, Error> {
    let limit = DEADLINE.max(transport.retry().total);
    tokio::time::timeout(limit, register_and_poll(transport, registration, attestation))
        .await
        .unwrap_or(Err(Error::NotAssignedInTime { limit }))
}

async fn register_and_poll(
    transport: &Transport,
    registration: &Registration,
    attestation: Attestation<'_>,
) -> Result<Assignment, Error> {
    let Registration { host, scope_id, registration_id, .. } = registration;
    if let Attestation::Tpm(tpm) = attestation {
        tpm::import_challenge(transport, registration, tpm).await?;
    }
    let audience = Audience::registration(scope_id, registration_id);
    let credentials = attestation.signer().map(|signer| Credentials { audience: &audience, signer });
    let base = registration.path();
    let mut call = registration.call(None)?;
    let mut operation_id = None;
    loop {
        let pause = match progress(transport, &call, credentials.as_ref()).await {
            Ok((progress, asked)) => {
                if let Some(assignment) = decided(host, &progress)? {
                    if let Attestation::Tpm(tpm) = attestation {
                        let key = progress.registration_state.and_then(|state| state.tpm);
                        tpm::import_hub_key(host, key, tpm).await?;
                    }
                    return Ok(assignment);
                }
                operation_id = progress.operation_id.or(operation_id);
                poll_pause(asked)
            }
            // DPS knows the operation; a lost poll loses nothing.
            Err(error) if error.is_offline() && operation_id.is_some() => {
                tracing::warn!(host = host.as_str(), %error, "could not ask DPS for the registration's progress");
                poll_pause(error.retry_after())
            }
            Err(error) => return Err(error),
        };
        let Some(operation_id) = &operation_id else {
            let status = "no operation and no assignment".to_owned();
            return Err(Error::NotAssigned(NotAssigned { status, text: None, error_code: None, tracking_id: None }));
        };
        call.method = Method::GET;
        call.target = format!("{base}/operations/{}?api-version={API_VERSION}", segment(operation_id));
        call.body = None;
        tokio::time::sleep(pause).await;
    }
}

impl Registration {
    fn path(&self) -> String {
        format!("/{}/registrations/{}", segment(&self.scope_id), segment(&self.registration_id))
    }

    /// The call that begins it.
    fn call(&self, tpm: Option<tpm::PublicKeys>) -> Result<Call<'_>, Error> {
        let Self { host, registration_id, payload, .. } = self;
        let body = RegisterBody { registration_id, tpm, payload: payload.as_ref() };
        let unsendable = |source: serde_json::Error| Error::Unsendable { host: host.clone(), source: source.into() };
        let body = serde_json::to_vec(&body).map_err(unsendable)?;
        Ok(Call {
            method: Method::PUT,
            host,
            target: format!("{}/register?api-version={API_VERSION}", self.path()),
            if_match: None,
            body: Some(Bytes::from(body)),
        })
    }
}

async fn progress(
    transport: &Transport,
    call: &Call<'_>,
    credentials: Option<&Credentials<'_>>,
) -> Result<(Progress, Option<Duration>), Error> {
    let (answer, _) = transport.send(call, credentials).await?;
    let asked = retry_after(&answer);
    let body = success(call.host, Subject::Registration, &[StatusCode::OK, StatusCode::ACCEPTED], answer)?;
    Ok((parse(call.host, &body)?, asked))
}

/// The service's wish within reason, and a fifth more at random: a fleet that was switched on at once must not poll in step.
fn poll_pause(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(POLL_PAUSE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE).mul_f64(1.0 + fastrand::f64() * 0.2)
}

/// The end of a registration, or `None` while DPS is still at it.
fn decided(host: &str, progress: &Progress) -> Result<Option<Assignment>, Error> {
    let state = progress.registration_state.as_ref();
    let status = match progress.status.as_deref() {
        None | Some("assigning") => return Ok(None),
        Some(status) => status,
    };
    if status == "assigned"
        && let Some(State { assigned_hub: Some(hub), device_id: Some(device_id), .. }) = state
    {
        if !name::is_authority(hub) {
            return Err(Error::malformed(host, format_args!("the device was assigned to {hub:?}, which is no host")));
        }
        if !name::is_device_id(device_id) {
            let problem = format_args!("the device was assigned as {device_id:?}, which no hub allows");
            return Err(Error::malformed(host, problem));
        }
        return Ok(Some(Assignment { hub: hub.clone(), device_id: device_id.clone() }));
    }
    // Just registered and not looked at yet, as some versions call it.
    if status == "unassigned" && progress.operation_id.is_some() && state.is_none() {
        return Ok(None);
    }
    let text = state.and_then(|state| state.error_message.as_deref()).filter(|text| !text.is_empty());
    let code = state.and_then(|state| state.error_code.as_ref()).filter(|code| !code.is_null());
    Err(Error::NotAssigned(NotAssigned {
        status: excerpt(status),
        text: text.map(excerpt),
        error_code: code.map(|code| excerpt(code.to_string().trim_matches('"'))),
        tracking_id: state.and_then(|state| state.tracking_id.as_deref()).map(excerpt),
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response, header};
    use tokio::time::Instant;

    use super::*;
    use crate::sas::tests::VectorKey;

    const ASSIGNED: &str = r#"{"operationId":"op/1","status":"assigned","registrationState":
        {"registrationId":"Dev-1","assignedHub":"hub.example:8443","deviceId":"dev-1","substatus":"initialAssignment"}}"#;

    fn answer(status: u16, body: &str) -> Response<Bytes> {
        let builder =
            Response::builder().status(status).header(header::CONTENT_TYPE, "application/json; charset=utf-8");
        builder.body(Bytes::from(body.to_owned())).unwrap()
    }

    fn later(seconds: &str, mut answer: Response<Bytes>) -> Response<Bytes> {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.parse().unwrap());
        answer
    }

    /// Registers against scripted answers and returns the outcome and the requests as `METHOD target body`.
    async fn run(answers: Vec<Response<Bytes>>) -> (Result<Assignment, Error>, Vec<String>) {
        let script = Arc::new(Mutex::new((answers.into_iter().rev().collect::<Vec<_>>(), Vec::new())));
        let exchange = {
            let script = Arc::clone(&script);
            move |request: Request<Bytes>| {
                let mut script = script.lock().unwrap();
                let body = String::from_utf8(request.body().to_vec()).unwrap();
                let target = request.uri().path_and_query().unwrap();
                script.1.push(format!("{} {target} {body}", request.method()).trim().to_owned());
                // The last answer stands for all that follow.
                let answer = if script.0.len() > 1 { script.0.pop().unwrap() } else { script.0[0].clone() };
                async move { Ok(answer) }
            }
        };
        let transport = Transport::new(Arc::new(exchange), Transport::patience(Duration::from_secs(70), 0));
        let registration = Registration {
            host: "dps.example".into(),
            scope_id: "0ne1".into(),
            registration_id: "Dev/1".into(),
            payload: Some(serde_json::json!({"b": 1, "a": 2})),
        };
        let outcome = register(&transport, &registration, Attestation::Key(&VectorKey)).await;
        let requests = script.lock().unwrap().1.clone();
        (outcome, requests)
    }

    #[tokio::test(start_paused = true)]
    async fn registers_polls_and_gets_its_hub() {
        let begun = Instant::now();
        let (outcome, requests) = run(vec![
            later("2", answer(202, r#"{"operationId":"op/1","status":"assigning"}"#)),
            later("3", answer(202, r#"{"operationId":"op/1","status":"assigning"}"#)),
            answer(503, ""),
            answer(200, ASSIGNED),
        ])
        .await;
        assert_eq!(outcome.unwrap(), Assignment { hub: "hub.example:8443".into(), device_id: "dev-1".into() });
        assert_eq!(
            requests,
            [
                r#"PUT /0ne1/registrations/Dev%2F1/register?api-version=2021-06-01 {"registrationId":"Dev/1","payload":{"a":2,"b":1}}"#,
                "GET /0ne1/registrations/Dev%2F1/operations/op%2F1?api-version=2021-06-01",
                "GET /0ne1/registrations/Dev%2F1/operations/op%2F1?api-version=2021-06-01",
                "GET /0ne1/registrations/Dev%2F1/operations/op%2F1?api-version=2021-06-01",
            ]
        );
        assert!((10.0..12.1).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_fails_is_repeated_when_dps_wants_it() {
        let begun = Instant::now();
        let (outcome, requests) = run(vec![
            later("1", answer(202, r#"{"operationId":"op/1","status":"assigning"}"#)),
            later("20", answer(429, "")),
            answer(429, ""),
            later("86400", answer(503, "")),
            answer(200, ASSIGNED),
        ])
        .await;
        assert_eq!((outcome.unwrap().device_id.as_str(), requests.len()), ("dev-1", 5));
        // 1, 20, 30 and 60 s, and up to a fifth more of each.
        assert!((111.0..133.3).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_assignment_that_cannot_be_is_not_believed() {
        let assigned = |hub: &str, device_id: &str| {
            let state = serde_json::json!({"assignedHub": hub, "deviceId": device_id});
            serde_json::json!({"operationId": "o", "status": "assigned", "registrationState": state}).to_string()
        };
        let long = "x".repeat(100_000);
        for (hub, device_id) in [
            ("", "dev-1"),
            ("not a host", "dev-1"),
            ("evil\ncaused by: x", "dev-1"),
            ("a/../b", "dev-1"),
            (&long, "dev-1"),
            ("hub.example", ""),
            ("hub.example", "a/../b"),
            ("hub.example", "x/y"),
            ("hub.example", ".."),
            ("hub.example", "a\nb"),
            ("hub.example", &long),
        ] {
            let (outcome, _) = run(vec![answer(200, &assigned(hub, device_id))]).await;
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }) && !error.is_offline(), "{error:?}");
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.len() < 1_000 && !cause.contains(char::is_control), "{cause:?}");
        }
        for hub in ["hub.example", "HUB-1.azure-devices.net:8443", "192.0.2.1", "[2001:db8::1]:8443"] {
            let assignment = run(vec![answer(200, &assigned(hub, "dev#1"))]).await.0.unwrap();
            assert_eq!(assignment, Assignment { hub: hub.into(), device_id: "dev#1".into() });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_that_is_done_at_once_is_taken() {
        let (outcome, requests) = run(vec![answer(200, ASSIGNED)]).await;
        assert_eq!((outcome.unwrap().device_id.as_str(), requests.len()), ("dev-1", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_end_has_a_text() {
        for (body, text) in [
            (
                r#"{"operationId":"o","status":"failed","registrationState":{"errorCode":400207,"errorMessage":"no hub","trackingId":"t"}}"#,
                "no hub (error code 400207, tracking id t)",
            ),
            (
                r#"{"operationId":"o","status":"failed","registrationState":{"code":7,"message":"x"}}"#,
                "x (error code 7)",
            ),
            (r#"{"operationId":"o","status":"failed"}"#, "the registration ended with the status \"failed\""),
            (
                r#"{"operationId":"o","status":"disabled","registrationState":{}}"#,
                "the enrollment of this device is disabled in DPS",
            ),
            (
                r#"{"operationId":"o","status":"unassigned","registrationState":{}}"#,
                "DPS has not assigned this device to a hub",
            ),
            (
                r#"{"operationId":"o","status":"assigned","registrationState":{"assignedHub":"h"}}"#,
                "the registration ended with the status \"assigned\"",
            ),
            ("{}", "the registration ended with the status \"no operation and no assignment\""),
        ] {
            let (outcome, _) = run(vec![answer(200, body)]).await;
            let error = outcome.unwrap_err();
            assert_eq!(error.to_string(), text);
            assert!(!error.is_offline());
        }
        let refusal = r#"{"errorCode":401002,"trackingId":"t","message":"Unauthorized"}"#;
        let error = run(vec![answer(401, refusal)]).await.0.unwrap_err();
        assert_eq!(error.to_string(), "Unauthorized (HTTP 401 Unauthorized, error code 401002, tracking id t)");
    }

    #[tokio::test(start_paused = true)]
    async fn foreign_text_is_short_and_harmless() {
        let long = format!("a\\n{}", "x".repeat(100_000));
        let state = format!(r#"{{"errorCode":"{long}","errorMessage":"{long}","trackingId":"{long}"}}"#);
        for body in [
            format!(r#"{{"operationId":"o","status":"failed","registrationState":{state}}}"#),
            format!(r#"{{"operationId":"o","status":"{long}","registrationState":{state}}}"#),
            format!(r#"{{"operationId":"o","status":"{long}"}}"#),
        ] {
            let text = run(vec![answer(200, &body)]).await.0.unwrap_err().to_string();
            assert!(text.len() < 1_100 && !text.contains(char::is_control), "{}", text.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn assigning_for_ever_ends_as_a_network_error() {
        let begun = Instant::now();
        let (outcome, _) = run(vec![answer(202, r#"{"operationId":"o","status":"assigning"}"#)]).await;
        assert!(outcome.unwrap_err().is_offline());
        assert_eq!(begun.elapsed(), DEADLINE);
    }
}
