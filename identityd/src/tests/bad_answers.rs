//! A cloud that answers badly, and services of this device that are away: a clear reason, no harm, and success by itself afterwards.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use super::world::{Service, World, eventually, x509::enroll};

const REPROVISION: &str = "/identities/device/reprovision";
const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const M1: &str = "/identities/modules/m1?type=aziot";

/// Why the device is not registered, as the log has it.
async fn reason(world: &World, service: &Service) -> String {
    aziot_log::chain(&service.identities.reprovision(world.uid()).await.unwrap_err()).to_string()
}

#[tokio::test]
async fn each_bad_answer_of_dps_has_its_reason_and_costs_the_device_nothing() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    for (fault, expected) in [
        (r#"{"kind":"status","status":400,"matching":"/register"}"#, "HTTP 400"),
        (r#"{"kind":"status","status":503,"matching":"/register"}"#, "503"),
        (r#"{"kind":"status","status":429,"retryAfter":0,"matching":"/register"}"#, "429"),
        (r#"{"kind":"huge","matching":"/register"}"#, "is longer than"),
        (r#"{"kind":"huge","matching":"/operations/"}"#, "is longer than"),
        (r#"{"kind":"reset","matching":"/register"}"#, "the connection to"),
        (r#"{"kind":"status","status":200,"body":"{\"status\":\"sideways\"}","matching":"/operations/"}"#, "sideways"),
        (r#"{"kind":"status","status":200,"body":"{\"status\":","matching":"/operations/"}"#, "malformed answer"),
        (r#"{"kind":"status","status":200,"body":"[1]","matching":"/register"}"#, "malformed answer"),
    ] {
        world.control("PUT", "/fault", fault).await;
        let reason = reason(&world, &service).await;
        assert!(reason.starts_with("DPS client error: ") && reason.contains(expected), "{fault}: {reason}");
        assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-1");
        world.control("DELETE", "/fault", "").await;
        service.json("GET", M1, "").await;
    }
    for (answer, expected) in
        [("disabled", "disabled"), ("unassigned", "has not assigned this device to a hub"), ("failed", "error code")]
    {
        world.control("PUT", "/registrations/dev-1", &format!(r#"{{"answer":"{answer}"}}"#)).await;
        let reason = reason(&world, &service).await;
        assert!(reason.starts_with("DPS client error: ") && reason.contains(expected), "{answer}: {reason}");
    }
    world.control("PUT", "/registrations/dev-1", r#"{"answer":"assign"}"#).await;
    assert_eq!(service.send("POST", REPROVISION, "").await.status, 204);
    service.json("GET", M1, "").await;
}

/// An assignment that was believed would replace a good device for good.
#[tokio::test]
async fn an_assignment_that_cannot_be_is_not_believed() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    for (hub, device_id) in [
        ("", "dev-1"),
        ("not a host", "dev-1"),
        ("evil\ncaused by: x", "dev-1"),
        ("hub.example", ""),
        ("hub.example", "a/../b"),
        ("hub.example", "x/y"),
    ] {
        let body = json!({"status": "assigned", "registrationState": {"assignedHub": hub, "deviceId": device_id}});
        let fault = json!({"kind": "status", "status": 200, "body": body.to_string(), "matching": "/operations/"});
        world.control("PUT", "/fault", &fault.to_string()).await;
        let reason = reason(&world, &service).await;
        assert!(
            reason.starts_with("DPS client error: malformed answer") && !reason.contains('\n'),
            "{fault}: {reason}"
        );
        world.control("DELETE", "/fault", "").await;
        assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-1");
        service.json("GET", M1, "").await;
    }
}

/// Callers who repeat themselves learn at once what is known, and DPS has its rest.
#[tokio::test]
async fn callers_do_not_override_what_dps_wishes() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.settled().await;
    for throttled in [
        r#"{"kind":"status","status":429,"retryAfter":3600,"matching":"/register","count":1}"#,
        r#"{"kind":"status","status":429,"matching":"/register","count":1}"#,
    ] {
        world.control("PUT", "/fault", throttled).await;
        let first = service.error("POST", REPROVISION, "").await;
        assert!(first.0 == 404 && first.1.contains("429"), "{first:?}");
        let (registrations, begun) = (world.network.count("PUT", "/register"), Instant::now());
        // More than the second in which callers share a registration anyway.
        while begun.elapsed() < Duration::from_secs(3) {
            let again = timeout(Duration::from_secs(1), service.error("POST", REPROVISION, "")).await;
            assert_eq!(again.expect("what is known is told at once"), first);
        }
        assert_eq!(world.network.count("PUT", "/register"), registrations, "{throttled}");
        // That was about other settings.
        for registration_id in ["dev-2", "dev-1"] {
            service.reload(&world.dps(registration_id, &world.daemon())).await;
            assert_eq!(service.send("POST", REPROVISION, "").await.status, 204);
            assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], registration_id);
        }
    }
    world
        .control("PUT", "/fault", r#"{"kind":"status","status":429,"retryAfter":2,"matching":"/register","count":1}"#)
        .await;
    assert_eq!(service.error("POST", REPROVISION, "").await.0, 404);
    eventually("the rest is over", async || service.send("POST", REPROVISION, "").await.status == 204).await;
}

#[tokio::test]
async fn each_bad_answer_of_the_hub_is_told_and_none_is_served_as_a_success() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let registrations = world.network.count("PUT", "/register");
    for status in [401, 403, 404, 409, 412, 429, 500] {
        let fault = format!(r#"{{"kind":"status","status":{status},"matching":"/modules"}}"#);
        world.control("PUT", "/fault", &fault).await;
        let (answered, message) =
            service.error("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"m2"}"#).await;
        assert_eq!(answered, 404, "{message}");
        assert!(
            message.starts_with("Hub client error\ncaused by: ") && message.contains(&status.to_string()),
            "{message}"
        );
        assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-1");
        world.control("DELETE", "/fault", "").await;
    }
    service.json("PUT", "/identities/modules/$edgeAgent?type=aziot", "{}").await;
    assert_eq!(world.network.count("PUT", "/register"), registrations, "no caller's mishap registers the device anew");
}

/// The message names the clock; nobody registers anew because of it.
#[tokio::test]
async fn a_clock_that_is_wrong_by_a_year_is_named() {
    let world = World::new().await;
    let config = world.dps("dev-1", &world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let registrations = world.network.count("PUT", "/register");
    world.control("PUT", "/settings", r#"{"clockOffsetSeconds":31536000}"#).await;
    let (status, message) = service.error("PUT", M1, "{}").await;
    assert_eq!(status, 404);
    assert!(
        message.contains("; this device's clock is 3153") && message.contains("s behind the service's"),
        "{message}"
    );
    drop(service);
    let service = world.start(&config).await;
    service.settled().await;
    assert_eq!(world.network.count("PUT", "/register"), registrations);
    assert!(reason(&world, &service).await.contains("s behind the service's"));
    world.control("PUT", "/settings", r#"{"clockOffsetSeconds":0}"#).await;
    service.json("PUT", M1, "{}").await;
}

#[tokio::test]
async fn a_device_that_dps_goes_on_assigning_is_not_waited_for_for_ever() {
    let mut world = World::new().await;
    world.longest_attempt = Some(Duration::from_secs(10));
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.settled().await;
    world.control("PUT", "/registrations/dev-1", r#"{"answer":"assigning"}"#).await;
    let text = timeout(Duration::from_secs(30), reason(&world, &service)).await.unwrap();
    assert_eq!(text, "provisioning has not ended in time");
    service.json("POST", "/identities/modules", CREATE_M1).await;
    world.control("PUT", "/registrations/dev-1", r#"{"answer":"assign"}"#).await;
    assert_eq!(service.send("POST", REPROVISION, "").await.status, 204);
}

/// keyd away: its part is named, and the device comes when keyd is there.
#[tokio::test]
async fn without_the_key_service_that_is_what_is_told() {
    let world = World::with_cloud(enroll).await.start_certd().await;
    for (config, expected) in [
        (world.dps("dev-1", &world.daemon()), "Key client error: could not sign with the device's key: "),
        (
            world.dps_x509("registration_id = 'dev-x'", &world.daemon()),
            "Key client error: the key service (keyd) could not load the key pair identity: ",
        ),
    ] {
        let away = config.replace("keyd.sock", "away.sock");
        let service = world.start(&away).await;
        let text = reason(&world, &service).await;
        assert!(text.starts_with(expected) && text.contains("away.sock"), "{text}");
        let error = service.identities.reprovision(world.uid()).await.unwrap_err();
        assert!(!error.is_offline(), "{error:?}");
        world.bring("keyd.sock", "away.sock");
        eventually("the device is there", async || service.send("GET", "/identities/identity", "").await.status == 200)
            .await;
        world.take("away.sock");
    }
}
