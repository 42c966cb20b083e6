//! The cloud out of reach: what is known goes on being answered, and nothing is given up.

use std::time::Duration;

use tokio::time::timeout;

use super::world::{Service, World, eventually};

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const M1: &str = "/identities/modules/m1?type=aziot";
const GET_M1: &str = "GET /devices/dev-1/modules/m1";
const PUT_M1: &str = "PUT /devices/dev-1/modules/m1";

#[tokio::test]
async fn a_restart_without_network_answers_from_the_state_and_catches_up_later() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    let made = service.json("POST", "/identities/modules", CREATE_M1).await;
    drop(service);

    world.network.cut();
    let added = "[[principal]]\nuid = 1000001\nname = 'added'\nidtype = ['module']\n";
    let service = world.start(&format!("{config}{added}")).await;
    let device = service.json("GET", "/identities/identity", "").await;
    assert_eq!(device["spec"]["deviceId"], "dev-1");
    let read = service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!(read["spec"]["genId"], made["spec"]["genId"]);
    assert_eq!(read["spec"]["auth"]["type"], "sas");
    let list = service.json("GET", "/identities/modules?type=aziot", "").await;
    assert_eq!(list["identities"].as_array().unwrap().len(), 3);
    let (status, message) = service.error("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!((status, message.as_str()), (404, "Hub client error\ncaused by: could not connect to localhost"));
    let (status, message) = service.error("GET", "/identities/modules/other?type=aziot", "").await;
    assert_eq!((status, message.as_str()), (404, "Hub client error\ncaused by: module other not found"));

    world.network.mend();
    eventually("the added module is made", async || service.identities.own(1_000_001).await.is_ok()).await;
}

#[tokio::test]
async fn a_failed_reprovisioning_keeps_the_device() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    world.network.cut();
    let (status, message) = service.error("POST", "/identities/device/reprovision", "").await;
    assert_eq!((status, message.as_str()), (404, "DPS client error\ncaused by: could not connect to localhost"));
    service.json("GET", "/identities/identity", "").await;
    service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert!(world.home().join("device_info").exists());
    world.network.mend();
    assert_eq!(service.send("POST", "/identities/device/reprovision", "").await.status, 204);
}

#[tokio::test]
async fn a_first_start_without_network_says_so_and_goes_on_trying() {
    let world = World::new().await;
    world.network.cut();
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    let (status, message) = service.error("GET", "/identities/identity", "").await;
    assert_eq!((status, message.as_str()), (400, "device identity not found"));
    assert_eq!(service.json("GET", "/identities/provisioning", "").await["source"], "dps");
    world.network.mend();
    eventually("the device is there", async || service.send("GET", "/identities/identity", "").await.status == 200)
        .await;
}

#[tokio::test]
async fn a_module_deleted_in_the_cloud_does_not_live_on_in_the_state() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    // The same device elsewhere, as an operator's tool would be.
    let elsewhere = world.start(&config.replace("/identityd'", "/elsewhere'")).await;
    assert_eq!(elsewhere.send("DELETE", "/identities/modules/m1?type=aziot", "").await.status, 204);
    let gone = (404, "Hub client error\ncaused by: module m1 not found".to_owned());
    assert_eq!(service.error("GET", "/identities/modules/m1?type=aziot", "").await, gone);
    world.network.cut();
    assert_eq!(service.error("GET", "/identities/modules/m1?type=aziot", "").await, gone);
}

/// A device with a module, and the same device elsewhere.
async fn twice(world: &World) -> (Service, Service) {
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    (service, world.start(&config.replace("/identityd'", "/elsewhere'")).await)
}

async fn has_no_copy(world: &World, service: &Service) {
    world.network.cut();
    let gone = (404, "Hub client error\ncaused by: module m1 not found".to_owned());
    assert_eq!(service.error("GET", M1, "").await, gone);
}

async fn delete(service: &Service) {
    assert_eq!(service.send("DELETE", M1, "").await.status, 204);
}

#[tokio::test]
async fn an_update_that_finds_the_module_gone_leaves_no_copy() {
    let world = World::new().await;
    let (service, elsewhere) = twice(&world).await;
    let read = world.network.hold(GET_M1);
    let meanwhile = async {
        read.arrived().await;
        delete(&elsewhere).await;
        read.release();
    };
    let (updated, ()) = tokio::join!(service.error("PUT", M1, "{}"), meanwhile);
    assert_eq!(updated.0, 404, "{updated:?}");
    has_no_copy(&world, &service).await;
}

#[tokio::test]
async fn an_update_that_finds_the_module_gone_after_a_collision_leaves_no_copy() {
    let world = World::new().await;
    let (service, elsewhere) = twice(&world).await;
    let read = world.network.hold(GET_M1);
    let meanwhile = async {
        read.arrived().await;
        elsewhere.json("PUT", M1, "{}").await;
        let written = world.network.hold(PUT_M1);
        read.release();
        written.arrived().await;
        delete(&elsewhere).await;
        written.release();
    };
    let (updated, ()) = tokio::join!(service.error("PUT", M1, "{}"), meanwhile);
    assert_eq!(updated.0, 404, "{updated:?}");
    has_no_copy(&world, &service).await;
}

#[tokio::test]
async fn a_creation_that_finds_the_module_gone_after_all_leaves_no_copy() {
    let world = World::new().await;
    let (service, elsewhere) = twice(&world).await;
    let written = world.network.hold(PUT_M1);
    let meanwhile = async {
        written.arrived().await;
        delete(&elsewhere).await;
        written.release();
    };
    let (created, ()) = tokio::join!(service.error("POST", "/identities/modules", CREATE_M1), meanwhile);
    assert_eq!(created.0, 404, "{created:?}");
    has_no_copy(&world, &service).await;
}

#[tokio::test]
async fn a_creation_that_ends_halfway_leaves_no_copy_of_the_former_module() {
    let world = World::new().await;
    let (service, elsewhere) = twice(&world).await;
    delete(&elsewhere).await;
    let written = world.network.hold(PUT_M1);
    let meanwhile = async {
        written.arrived().await;
        world.network.cut();
        written.release();
    };
    let (created, ()) = tokio::join!(service.error("POST", "/identities/modules", CREATE_M1), meanwhile);
    assert_eq!(created.0, 404, "{created:?}");
    has_no_copy(&world, &service).await;
}

#[tokio::test]
async fn the_copies_come_first_where_they_are_preferred() {
    let world = World::new().await;
    let config = format!("prefer_module_identity_cache = true\n{}", world.dps("dev-1", &world.daemon()));
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let reads = world.network.count("GET", "/modules");
    service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    service.json("GET", "/identities/modules?type=aziot", "").await;
    assert_eq!(world.network.count("GET", "/modules"), reads, "the hub was not asked");
}

/// As long as a caller may take while nobody answers in the cloud; one attempt at a TLS handshake alone takes 20 s.
const PROMPTLY: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_silent_cloud_does_not_keep_the_copies_back() {
    let world = World::new().await;
    let config = format!("prefer_module_identity_cache = true\n{}", world.dps("dev-1", &world.daemon()));
    world.start(&config).await.json("POST", "/identities/modules", CREATE_M1).await;
    world.network.swallow("").await;
    let service = world.start(&config).await;
    for path in ["/identities/modules/m1?type=aziot", "/identities/modules?type=aziot"] {
        timeout(PROMPTLY, service.json("GET", path, "")).await.expect(path);
    }
    world.network.mend();
}

#[tokio::test]
async fn readers_wait_for_a_silent_cloud_once_and_not_each_time() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    world.start(&config).await.json("POST", "/identities/modules", CREATE_M1).await;
    world.network.cut();
    let service = world.start(&config).await;
    service.json("GET", M1, "").await;
    // It was out of reach a moment ago: nobody waits to see whether it still is.
    world.network.mend();
    world.network.swallow("").await;
    for path in [M1, "/identities/modules?type=aziot"] {
        timeout(PROMPTLY, service.json("GET", path, "")).await.expect(path);
    }
    world.network.mend();
}

#[tokio::test]
async fn a_cloud_that_is_back_is_believed_at_once() {
    let world = World::new().await;
    let (service, elsewhere) = twice(&world).await;
    delete(&elsewhere).await;
    world.network.cut();
    service.json("GET", M1, "").await;
    world.network.mend();
    assert_eq!(service.error("GET", M1, "").await.0, 404);
    world.network.cut();
    assert_eq!(service.error("GET", M1, "").await.0, 404);
}

#[tokio::test]
async fn an_attempt_ends_in_time_and_those_who_waited_learn_it() {
    let mut world = World::new().await;
    world.longest_attempt = Some(Duration::from_secs(2));
    world.network.swallow("").await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    let answer = service.error("POST", "/identities/device/reprovision", "");
    let (status, message) = timeout(PROMPTLY, answer).await.expect("it is bounded");
    assert_eq!((status, message.as_str()), (404, "provisioning has not ended in time"));
    assert_eq!(service.error("GET", "/identities/identity", "").await, (400, "device identity not found".into()));
    world.network.mend();
    eventually("the device is there", async || service.send("GET", "/identities/identity", "").await.status == 200)
        .await;
}

#[tokio::test]
async fn reads_do_not_wait_for_the_first_attempt_of_a_device_that_is_known() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    world.start(&config).await.json("POST", "/identities/modules", CREATE_M1).await;
    // Only the list of the first attempt hangs.
    world.network.swallow("/modules").await;
    let service = world.start(&config).await;
    let read = service.json("GET", "/identities/modules/m1?type=aziot", "");
    timeout(PROMPTLY, read).await.expect("the hub answers for the module");
    world.network.mend();
}

#[tokio::test]
async fn a_failing_hub_is_not_a_reason_to_register_anew() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    drop(service);
    let registrations = world.network.count("PUT", "/register");
    for fault in [
        r#"{"kind":"status","status":503,"matching":"/devices/"}"#,
        r#"{"kind":"status","status":429,"matching":"/devices/"}"#,
        r#"{"kind":"reset","matching":"/devices/"}"#,
    ] {
        world.control("PUT", "/fault", fault).await;
        let service = world.start(&config).await;
        service.json("GET", "/identities/modules/m1?type=aziot", "").await;
        assert_eq!(world.network.count("PUT", "/register"), registrations, "{fault}");
    }
}

#[tokio::test]
async fn a_cloud_with_somebody_elses_certificate_gets_nothing() {
    let world = World::new().await;
    for certificate in ["other-ca", "wrong-name", "expired"] {
        world.control("PUT", "/fault", &format!(r#"{{"certificate":"{certificate}"}}"#)).await;
        let service = world.start(&world.dps("dev-1", &world.daemon())).await;
        let (status, message) = service.error("POST", "/identities/device/reprovision", "").await;
        let expected = format!("DPS client error\ncaused by: the certificate of {} is not trusted", world.hub());
        assert_eq!((status, message), (404, expected), "{certificate}");
        assert_eq!(service.error("GET", "/identities/identity", "").await.0, 400);
    }
    assert_eq!(world.control("GET", "/journal", "").await.as_array().unwrap().len(), 0, "no request got through");
}
