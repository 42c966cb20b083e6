//! The device: how it gets its identity, keeps it, and gets another one.

use aziot_http::{Base64, Retry};
use aziot_keyd_api::{
    key::KeyHandle,
    operation::{Sign, SignMechanism},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::world::{World, eventually};

#[tokio::test]
async fn a_device_registers_and_its_module_gets_a_key_that_the_hub_accepts() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;

    let device = service.json("GET", "/identities/identity", "").await;
    let spec = &device["spec"];
    assert_eq!(
        (&device["type"], &spec["hubName"], &spec["gatewayHost"], &spec["deviceId"], &spec["auth"]["type"]),
        (&json!("aziot"), &json!(world.hub()), &json!(world.hub()), &json!("dev-1"), &json!("sas"))
    );
    let posted = service.json("POST", "/identities/device", r#"{"type":""}"#).await;
    assert_eq!(posted["spec"]["deviceId"], "dev-1");

    let created =
        service.json("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"m1","managedBy":"tests"}"#).await;
    assert_eq!((&created["spec"]["moduleId"], &created["spec"]["managedBy"]), (&json!("m1"), &json!("tests")));
    let read = service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!(read["spec"]["genId"], created["spec"]["genId"]);
    assert_ne!(read["spec"]["auth"]["keyHandle"], created["spec"]["auth"]["keyHandle"], "handles differ");
    assert_eq!(send_message(&world, &read["spec"]).await, 204);

    let list = service.json("GET", "/identities/modules?type=aziot", "").await;
    let names: Vec<_> = list["identities"].as_array().unwrap().iter().map(|one| &one["spec"]["moduleId"]).collect();
    assert_eq!(names, [&json!("$edgeAgent"), &json!("$edgeHub"), &json!("m1")]);
    assert!(list["identities"][0]["spec"].get("auth").is_none());

    let updated = service.json("PUT", "/identities/modules/$edgeAgent?type=aziot", "{}").await;
    assert_eq!(send_message(&world, &updated["spec"]).await, 204);

    assert_eq!(service.send("DELETE", "/identities/modules/m1?type=aziot", "").await.status, 204);
    let (status, message) = service.error("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!((status, message.as_str()), (404, "Hub client error\ncaused by: module m1 not found"));

    let info = service.json("GET", "/identities/provisioning", "").await;
    let endpoint = format!("https://localhost:{}/", world.port);
    assert_eq!(
        info,
        json!({"source":"dps","auth":"symmetric_key","endpoint":endpoint,"scope_id":"0ne1","registration_id":"dev-1","payload":null})
    );
}

/// Sends a message to the hub as the module would: with a token that the key service signed with its handle.
async fn send_message(world: &World, module: &Value) -> u16 {
    let text = |name: &str| module[name].as_str().unwrap().to_owned();
    let (hub, module_id) = (text("hubName"), text("moduleId").replace('$', "%24"));
    let path = format!("/devices/{}/modules/{module_id}/messages/events", text("deviceId"));
    let resource = format!("{hub}/devices/{}/modules/{module_id}", text("deviceId"));
    let expiry = unix_seconds() + 600;
    let message = Base64(format!("{resource}\n{expiry}").into_bytes());
    let key_handle = KeyHandle(module["auth"]["keyHandle"].as_str().unwrap().to_owned());
    let keyd = aziot_keyd_api::client(&world.keyd(), Retry::local(0)).unwrap();
    let signed = keyd.send(&Sign { key_handle, mechanism: SignMechanism::HmacSha256 { message } }).await.unwrap();
    let signature = STANDARD.encode(signed.signature.0).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let request = ::http::Request::post(format!("https://{hub}{path}?api-version=2020-09-30"))
        .header("authorization", format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"))
        .body(hyper::body::Bytes::from_static(b"hello"))
        .unwrap();
    aziot_identityd_cloud::Exchange::exchange(&*world.network, request).await.unwrap().status().as_u16()
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn reprovisioning_keeps_the_modules_and_callers_share_one_registration() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    let before = service.json("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"m1"}"#).await;
    let registrations = world.network.count("PUT", "/register");
    let (one, other, third) = tokio::join!(
        service.send("POST", "/identities/device/reprovision", r#"{"type":"aziot"}"#),
        service.send("POST", "/identities/device/reprovision", ""),
        service.send("POST", "/identities/device/reprovision", ""),
    );
    assert_eq!((one.status, other.status, third.status), (204, 204, 204));
    assert_eq!(world.network.count("PUT", "/register") - registrations, 1);
    let after = service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!(after["spec"]["genId"], before["spec"]["genId"]);
}

#[tokio::test]
async fn callers_that_ask_again_and_again_share_one_registration_per_second() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.settled().await;
    assert_eq!(service.send("POST", "/identities/device/reprovision", "").await.status, 204);
    let (begun, registrations) = (std::time::Instant::now(), world.network.count("PUT", "/register"));
    let reprovision = service.send("POST", "/identities/device/reprovision", "");
    let registering = eventually("DPS is asked", async || world.network.count("PUT", "/register") > registrations);
    let (_, after) = tokio::join!(reprovision, async {
        registering.await;
        begun.elapsed()
    });
    assert!(after.as_millis() > 900, "{after:?}");
}

#[tokio::test]
async fn a_device_that_the_hub_lost_registers_again_at_the_next_start() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    service.json("GET", "/identities/modules?type=aziot", "").await;
    drop(service);
    world.control("DELETE", "/devices/dev-1", "").await;
    let service = world.start(&config).await;
    let list = service.json("GET", "/identities/modules?type=aziot", "").await;
    assert_eq!(list["identities"].as_array().unwrap().len(), 2);
    assert_eq!(world.network.count("PUT", "/register"), 2);
}

#[tokio::test]
async fn a_device_that_the_hub_goes_on_refusing_registers_once() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    world.start(&config).await.settled().await;
    world.control("PUT", "/fault", r#"{"kind":"status","status":401,"matching":"/devices/"}"#).await;
    let service = world.start(&config).await;
    service.settled().await;
    assert_eq!(world.network.count("PUT", "/register"), 2, "it may have been moved");
    for _ in 0..2 {
        let lists = world.network.count("GET", "/modules");
        service.reload(&config).await;
        eventually("another attempt", async || world.network.count("GET", "/modules") > lists).await;
    }
    assert_eq!(world.network.count("PUT", "/register"), 2);
    let (status, message) = service.error("POST", "/identities/device/reprovision", "").await;
    assert!(status == 404 && message.starts_with("Hub client error\ncaused by: "), "{message}");
    assert_eq!(world.network.count("PUT", "/register"), 3, "whoever asks gets it");
}

#[tokio::test]
async fn another_registration_does_not_inherit_the_state() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("GET", "/identities/modules?type=aziot", "").await;
    drop(service);
    let service = world.start(&world.dps("dev-2", &world.daemon())).await;
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-2");
    drop(service);
    world.network.cut();
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    let (status, message) = service.error("GET", "/identities/identity", "").await;
    assert_eq!((status, message.as_str()), (400, "device identity not found"));
}

#[tokio::test]
async fn a_manual_device_needs_no_dps() {
    let world = World::new().await;
    let config = format!(
        "{}source = 'manual'\niothub_hostname = '{}'\ndevice_id = 'dev-1'\n[provisioning.authentication]\n\
         method = 'sas'\ndevice_id_pk = 'device-id'\n{}",
        world.head(),
        world.hub(),
        world.daemon()
    );
    // The hub learns of the device through DPS; then the same device is configured by hand.
    let dps = world.start(&world.dps("dev-1", &world.daemon())).await;
    dps.json("GET", "/identities/modules?type=aziot", "").await;
    drop(dps);
    let registrations = world.network.count("PUT", "/register");
    let service = world.start(&config).await;
    let created = service.json("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"m1"}"#).await;
    assert_eq!(send_message(&world, &created["spec"]).await, 204);
    assert_eq!(world.network.count("PUT", "/register"), registrations);
    assert_eq!(service.json("GET", "/identities/provisioning", "").await, json!({"source":"manual","auth":"sas"}));
}

#[tokio::test]
async fn a_change_by_somebody_else_is_read_before_it_is_overwritten() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("GET", "/identities/modules?type=aziot", "").await;
    let reads = world.network.count("GET", "/modules/");
    world.network.meddle_once();
    let updated = service.json("PUT", "/identities/modules/$edgeHub?type=aziot", "{}").await;
    assert_eq!(world.network.count("GET", "/modules/") - reads, 2, "read again after the collision");
    assert_eq!(send_message(&world, &updated["spec"]).await, 204);
}

#[tokio::test]
async fn dps_says_why_it_does_not_want_a_device() {
    let world = World::new().await;
    let service = world.start(&world.dps("stranger", &world.daemon())).await;
    let (status, message) = service.error("POST", "/identities/device/reprovision", "").await;
    assert_eq!(status, 404);
    assert!(message.starts_with("DPS client error\ncaused by: ") && message.contains("HTTP 40"), "{message}");
    assert_eq!(message.lines().count(), 2, "{message}");
    assert_eq!(service.error("GET", "/identities/identity", "").await, (400, "device identity not found".into()));
}

#[tokio::test]
async fn a_device_without_its_key_says_so() {
    let world = World::new().await;
    let manual = "source = 'manual'\niothub_hostname = 'hub.invalid'\ndevice_id = 'd'\n[provisioning.authentication]\n\
                  method = 'sas'\ndevice_id_pk = 'aziot_identityd_master_id'\n";
    let service = world.start(&format!("{}{manual}{}", world.head(), world.daemon())).await;
    let (status, message) = service.error("GET", "/identities/identity", "").await;
    assert_eq!((status, message.as_str()), (404, "Key client error\ncaused by: a parameter has an invalid value"));
    let (status, message) = service.error("GET", "/identities/modules?type=aziot", "").await;
    let unsigned = "Key client error\ncaused by: could not sign with the device's key";
    assert_eq!((status, message.as_str()), (404, unsigned));
    assert_eq!(world.network.count("", "/"), 0, "nothing unsigned was sent");
}

#[tokio::test]
async fn without_provisioning_there_is_no_identity_until_a_reload_brings_one() {
    let world = World::new().await;
    let service = world.start(&world.unprovisioned(&world.daemon())).await;
    for (method, path, body) in [
        ("GET", "/identities/identity", ""),
        ("POST", "/identities/device", r#"{"type":"aziot"}"#),
        ("GET", "/identities/modules?type=aziot", ""),
        ("GET", "/identities/modules/m?type=aziot", ""),
    ] {
        assert_eq!(service.error(method, path, body).await, (400, "device identity not found".into()), "{path}");
    }
    assert_eq!(service.json("GET", "/identities/provisioning", "").await, json!({"source":"none"}));
    assert_eq!(service.send("POST", "/identities/device/reprovision", "").await.status, 204);
    service.reload(&world.dps("dev-1", &world.daemon())).await;
    eventually("the device is there", async || service.send("GET", "/identities/identity", "").await.status == 200)
        .await;
}
