//! Other settings while the service runs: they act as a whole, at once, and what was there stays until its successor is there.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::world::{Service, World, eventually, x509::enroll};

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const BY_KEY: &str = "method = 'sas'\ndevice_id_pk = 'device-id'";

/// The device that callers are told of; none is an empty text.
async fn device_id(service: &Service) -> String {
    let reply = service.send("GET", "/identities/identity", "").await;
    let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    body["spec"]["deviceId"].as_str().unwrap_or_default().to_owned()
}

async fn becomes(service: &Service, expected: &str) {
    eventually(expected, async || device_id(service).await == expected).await;
}

#[tokio::test]
async fn a_device_becomes_another_one_and_none_and_one_again() {
    let world = World::with_certificates().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    assert_eq!(device_id(&service).await, "dev-1");

    service.reload(&world.dps_x509("registration_id = 'dev-x'", &world.daemon())).await;
    becomes(&service, "dev-x").await;
    assert_eq!(service.json("GET", "/identities/provisioning", "").await["auth"], "x509");
    service.json("POST", "/identities/modules", CREATE_M1).await;

    service.reload(&world.unprovisioned(&world.daemon())).await;
    becomes(&service, "").await;
    assert_eq!(service.json("GET", "/identities/provisioning", "").await, json!({"source":"none"}));

    service.reload(&world.manual("manual-k", BY_KEY, &world.daemon())).await;
    becomes(&service, "manual-k").await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
}

#[tokio::test]
async fn the_old_device_is_served_until_the_new_one_is_there() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let registrations = world.network.count("PUT", "/register");
    world.network.cut();
    service.reload(&world.dps("dev-2", &world.daemon())).await;
    eventually("the new one is tried", async || world.network.count("PUT", "/register") > registrations).await;
    assert_eq!(device_id(&service).await, "dev-1");
    service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!(
        service.json("GET", "/identities/provisioning", "").await["registration_id"],
        "dev-1",
        "what is in force"
    );
    world.network.mend();
    becomes(&service, "dev-2").await;
    assert_eq!(service.json("GET", "/identities/provisioning", "").await["registration_id"], "dev-2");
    // Where it was before, it registers again: the state knows one device.
    service.reload(&world.dps("dev-1", &world.daemon())).await;
    becomes(&service, "dev-1").await;
}

/// W14: the files are right as a whole, or nothing changes.
#[tokio::test]
async fn settings_that_cannot_be_used_change_nothing() {
    let world = World::with_cloud(enroll).await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    assert_eq!(device_id(&service).await, "dev-1");
    let subject = "registration_id = { CN = 'r', NONSENSE = 'x' }";
    let twice = format!("{0}{0}", world.daemon());
    for config in [
        world.dps_x509(subject, &world.daemon()),
        world.dps("dev-2", &twice),
        world.unprovisioned("[[principal]]\nuid = 5\nname = 'm'\nidtype = ['module']\n"),
    ] {
        service.reload(&config).await;
        assert_eq!(device_id(&service).await, "dev-1");
        assert_eq!(service.settings.load().config.principal.len(), 1);
    }
    assert_eq!(world.network.count("PUT", "/register"), 1);
}

/// An attempt with wrong settings is not waited for.
#[tokio::test]
async fn an_attempt_with_settings_of_yesterday_is_given_up() {
    let world = World::new().await;
    world.network.swallow("/register").await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    eventually("it is tried", async || world.network.count("PUT", "/register") > 0).await;
    service.reload(&world.manual("dev-1", BY_KEY, &world.daemon())).await;
    timeout(Duration::from_secs(5), becomes(&service, "dev-1")).await.expect("at once");
    assert_eq!(service.json("GET", "/identities/provisioning", "").await["source"], "manual");
    world.network.mend();
}

#[tokio::test]
async fn patience_and_preferences_act_without_asking_dps() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let registrations = world.network.count("PUT", "/register");
    world.control("PUT", "/fault", r#"{"kind":"status","status":503,"matching":"/modules"}"#).await;
    let patient = config.replace("cloud_retries = 0", "cloud_retries = 1\nprefer_module_identity_cache = true");
    service.reload(&patient).await;
    eventually("the settings are in force", async || {
        service.identities.situation.borrow().device.as_ref().unwrap().settings.config.cloud_retries.0 == 1
    })
    .await;
    let deletions = world.network.count("DELETE", "/modules/m1");
    assert_eq!(service.error("DELETE", "/identities/modules/m1?type=aziot", "").await.0, 404);
    assert_eq!(world.network.count("DELETE", "/modules/m1") - deletions, 2, "repeated once");
    let reads = world.network.count("GET", "/modules/m1");
    service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!(world.network.count("GET", "/modules/m1"), reads, "the copy comes first");
    assert_eq!(world.network.count("PUT", "/register"), registrations);
}
