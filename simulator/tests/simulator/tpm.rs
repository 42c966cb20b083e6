//! Devices with a TPM at DPS: the challenge, what proves the TPM, and the key for the hub.

use aziot_simulator::tpm::testing::SoftwareTpm;
use aziot_simulator::{SymmetricKey, sas};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::world::{DPS, Reply, SCOPE, World, dps_token, key, soon};

fn enrolled(registration_id: &str, endorsement_key: &str) -> String {
    format!("[[enrollment]]\nregistration_id = '{registration_id}'\nendorsement_key = '{endorsement_key}'\n")
}

fn base64_of(tpm: &SoftwareTpm) -> String {
    STANDARD.encode(tpm.endorsement_key())
}

/// The first call: the keys of the TPM and no token.
async fn ask(world: &mut World, registration_id: &str, tpm: &SoftwareTpm) -> Reply {
    let keys = json!({
        "endorsementKey": base64_of(tpm),
        "storageRootKey": STANDARD.encode(tpm.storage_root_key()),
    });
    let body = json!({ "registrationId": registration_id, "tpm": keys }).to_string();
    let path = format!("/{SCOPE}/registrations/{registration_id}/register?{DPS}");
    world.request("PUT", &path, "", body).await
}

/// What a TPM takes from an answer.
fn open(tpm: &SoftwareTpm, answer: &Value) -> SymmetricKey {
    let blob = STANDARD.decode(answer["authenticationKey"].as_str().unwrap()).unwrap();
    SymmetricKey::from_base64(&STANDARD.encode(tpm.open(&blob).unwrap())).unwrap()
}

/// From the first call to the assignment; returns the last answer and the hub's key.
async fn provision(world: &mut World, registration_id: &str, tpm: &SoftwareTpm) -> (Value, SymmetricKey) {
    let challenge = ask(world, registration_id, tpm).await;
    assert_eq!(challenge.status, 401);
    let token = dps_token(registration_id, &open(tpm, &challenge.json()));
    let answer = world.provision_by(registration_id, &token).await;
    assert_eq!(answer["status"], "assigned");
    let key = open(tpm, &answer["registrationState"]["tpm"]);
    (answer, key)
}

#[tokio::test]
async fn a_tpm_proves_itself_and_gets_its_key_for_the_hub() {
    let tpm = SoftwareTpm::new();
    let mut world = World::start(&enrolled("Tpm-1", &base64_of(&tpm))).await;
    let challenge = ask(&mut world, "Tpm-1", &tpm).await;
    assert_eq!((challenge.status, &challenge.json()["errorCode"]), (401, &401_002.into()));
    assert_eq!(world.reason().await, "the TPM is challenged");
    let nonce = open(&tpm, &challenge.json());

    // Ids have no case, tokens are in lower case.
    let token = sas::sign(&format!("{SCOPE}/registrations/tpm-1").to_lowercase(), &nonce, soon(), Some("registration"));
    let operation = world.register("Tpm-1", &token).await.json()["operationId"].as_str().unwrap().to_owned();
    let first = world.finish("Tpm-1", &operation, &token).await;
    let state = &first["registrationState"];
    assert_eq!((&state["deviceId"], &state["assignedHub"]), (&"Tpm-1".into(), &world.hub_name.clone().into()));
    // An answer that was lost comes again, not another one.
    assert_eq!(world.finish("Tpm-1", &operation, &token).await, first);

    let hub_key = open(&tpm, &state["tpm"]);
    let hub_token = world.hub_token("Tpm-1", &hub_key);
    assert_eq!(world.list("Tpm-1", &hub_token).await, 200);
    let with_nonce = world.hub_token("Tpm-1", &nonce);
    assert_eq!(world.list("Tpm-1", &with_nonce).await, 401);
    // The key stays when the device registers again, since other tokens by it may be on their way.
    let (_, again) = provision(&mut world, "Tpm-1", &tpm).await;
    assert_eq!(again.to_base64(), hub_key.to_base64());
    let registrations = world.control("GET", "/registrations", "").await.json();
    assert_eq!(registrations[0]["registrationId"], "tpm-1");
    assert!(registrations[0].get("tpm").is_none());
    world.stop().await;
}

#[tokio::test]
async fn who_is_not_that_tpm_gets_nothing() {
    let (tpm, other) = (SoftwareTpm::new(), SoftwareTpm::new());
    let mut world = World::start(&(enrolled("mine", &base64_of(&tpm)) + &enrolled("other", &base64_of(&other)))).await;
    let foreign = ask(&mut world, "mine", &other).await;
    assert_eq!(foreign.status, 401);
    assert!(foreign.json().get("authenticationKey").is_none());
    assert!(world.reason().await.contains("not the enrolled one"));
    let silent = world.register("mine", "").await;
    assert_eq!(silent.status, 401);
    assert!(silent.json().get("authenticationKey").is_none());
    assert!(world.reason().await.contains("neither a token nor the keys of a TPM"));

    // Before any challenge, no key is right; and one registration's nonce is not another's.
    assert_eq!(world.register("mine", &dps_token("mine", &key())).await.status, 401);
    assert!(world.reason().await.contains("has not been challenged"));
    let nonce = open(&other, &ask(&mut world, "other", &other).await.json());
    ask(&mut world, "mine", &tpm).await;
    assert_eq!(world.register("mine", &dps_token("mine", &nonce)).await.status, 401);
    assert!(world.reason().await.contains("not made with this identity's key"));
    // A later challenge takes the place of an earlier one.
    let earlier = open(&tpm, &ask(&mut world, "mine", &tpm).await.json());
    let later = open(&tpm, &ask(&mut world, "mine", &tpm).await.json());
    assert_eq!(world.register("mine", &dps_token("mine", &earlier)).await.status, 401);
    assert_eq!(world.register("mine", &dps_token("mine", &later)).await.status, 202);

    let path = format!("/{SCOPE}/registrations/mine/register?{DPS}");
    let srk_of_no_tpm = json!({ "endorsementKey": base64_of(&tpm), "storageRootKey": "AAAA" });
    for keys in
        [json!("x"), json!({ "endorsementKey": base64_of(&tpm) }), json!({ "endorsementKey": 1 }), srk_of_no_tpm]
    {
        let body = json!({ "registrationId": "mine", "tpm": keys }).to_string();
        assert_eq!(world.request("PUT", &path, "", body.clone()).await.status, 400, "{body}");
    }
    world.stop().await;
}

#[tokio::test]
async fn any_tpm_is_one_tpm_in_the_end() {
    let (first, second) = (SoftwareTpm::new(), SoftwareTpm::new());
    let enrollment = enrolled("unit", "any");
    let mut world = World::start(&enrollment).await;
    // To be challenged proves nothing.
    assert!(ask(&mut world, "unit", &second).await.json()["authenticationKey"].is_string());
    provision(&mut world, "unit", &first).await;
    assert!(ask(&mut world, "unit", &second).await.json().get("authenticationKey").is_none());
    let mut world = World::start_in(world.stop().await, &enrollment).await;
    assert!(ask(&mut world, "unit", &second).await.json().get("authenticationKey").is_none());
    // The TPM was replaced, and its operator says so.
    assert_eq!(world.control("DELETE", "/registrations/UNIT", "").await.status, 204);
    provision(&mut world, "unit", &second).await;
    assert_eq!(world.control("DELETE", "/registrations/nobody", "").await.status, 404);
    world.stop().await;
}
