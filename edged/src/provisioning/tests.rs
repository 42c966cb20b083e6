//! Against an identity service that answers by a script.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use aziot_http::{Peer, Retry, Service, Status, StatusCode, testing::TestServer};
use aziot_identityd_api::{VERSIONS, identity::LocalAuthentication};

use super::*;

/// What the service answers to the next question for the device.
enum Answer {
    Device,
    Local,
    Refusal(StatusCode, &'static str),
}

#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    reprovisions: Mutex<VecDeque<Result<(), Refusal>>>,
    calls: Mutex<Vec<&'static str>>,
}

#[derive(Debug, thiserror::Error)]
#[error("{1}")]
struct Refusal(StatusCode, &'static str);

impl Status for Refusal {
    fn status(&self) -> StatusCode {
        self.0
    }
}

async fn answer(script: Arc<Script>, _peer: Peer, _call: GetDevice) -> Result<Identity, Refusal> {
    script.calls.lock().unwrap().push("device");
    match script.answers.lock().unwrap().pop_front().unwrap() {
        Answer::Device => Ok(Identity::Aziot(AziotIdentity {
            hub_name: "hub.example".to_owned(),
            gateway_host: "parent.example".to_owned(),
            device_id: "dev1".to_owned(),
            module_id: None,
            gen_id: None,
            auth: None,
            managed_by: None,
        })),
        Answer::Local => Ok(Identity::Local(aziot_identityd_api::identity::LocalIdentity {
            module_id: "m".to_owned(),
            auth: LocalAuthentication {
                private_key: aziot_identityd_api::identity::Pem(aziot_http::SecretBytes::new(Vec::new())),
                certificate: String::new(),
                expiration: String::new(),
            },
        })),
        Answer::Refusal(status, text) => Err(Refusal(status, text)),
    }
}

async fn reprovisioned(script: Arc<Script>, _peer: Peer, _call: Reprovision) -> Result<(), Refusal> {
    script.calls.lock().unwrap().push("reprovision");
    script.reprovisions.lock().unwrap().pop_front().unwrap_or(Ok(()))
}

/// The device that is found, and the calls that were made.
async fn found(
    mode: ReprovisioningMode,
    answers: impl IntoIterator<Item = Answer>,
    reprovisions: impl IntoIterator<Item = Result<(), Refusal>>,
) -> (Result<Device, Error>, Vec<&'static str>) {
    let script = Arc::new(Script {
        answers: Mutex::new(answers.into_iter().collect()),
        reprovisions: Mutex::new(reprovisions.into_iter().collect()),
        calls: Mutex::default(),
    });
    let service = Service::new(Arc::clone(&script), VERSIONS).call(answer).call(reprovisioned).into_routes();
    let server = TestServer::start(service);
    let hour = Duration::from_secs(3600);
    let retry = Retry { retries: 0, attempt: hour, total: hour };
    let identityd = aziot_identityd_api::client(&server.endpoint(), retry).unwrap();
    let found = device(&identityd, mode).await;
    let calls = script.calls.lock().unwrap().clone();
    (found, calls)
}

const NONE: [Result<(), Refusal>; 0] = [];

#[tokio::test(start_paused = true)]
async fn the_device_and_its_parent_are_told() {
    let (found, calls) = found(ReprovisioningMode::Dynamic, [Answer::Device], NONE).await;
    let device = found.unwrap();
    assert_eq!(
        (device.id.as_str(), device.hub.as_str(), device.gateway.as_str()),
        ("dev1", "hub.example", "parent.example")
    );
    assert!(device.is_nested());
    assert_eq!(calls, ["device"]);
}

#[tokio::test(start_paused = true)]
async fn only_a_device_without_identity_is_provisioned_anew() {
    let answers = [
        Answer::Refusal(StatusCode::NOT_FOUND, "DPS client error"),
        Answer::Refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        Answer::Refusal(StatusCode::UNAUTHORIZED, "authorization error"),
        Answer::Refusal(StatusCode::BAD_REQUEST, "device identity not found"),
        Answer::Device,
    ];
    let refusal = Err(Refusal(StatusCode::NOT_FOUND, "DPS client error"));
    let (found, calls) = found(ReprovisioningMode::OnErrorOnly, answers, [refusal]).await;
    assert_eq!(found.unwrap().id, "dev1");
    assert_eq!(calls, ["device", "device", "device", "device", "reprovision", "device"]);
}

#[tokio::test(start_paused = true)]
async fn it_is_provisioned_at_each_start_where_the_mode_says_so() {
    let (device, calls) = found(ReprovisioningMode::AlwaysOnStartup, [Answer::Device], NONE).await;
    assert!(device.is_ok());
    assert_eq!(calls, ["reprovision", "device"]);
    let refusal = Err(Refusal(StatusCode::NOT_FOUND, "DPS client error"));
    let (device, calls) = found(ReprovisioningMode::AlwaysOnStartup, [], [refusal]).await;
    assert!(matches!(device, Err(Error::Reprovision(_))));
    assert_eq!(calls, ["reprovision"]);
}

#[tokio::test(start_paused = true)]
async fn an_identity_of_the_local_network_is_none() {
    let (found, _) = found(ReprovisioningMode::Dynamic, [Answer::Local], NONE).await;
    assert_eq!(found.unwrap_err().to_string(), "Invalid device identity");
}
