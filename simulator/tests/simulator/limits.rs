//! Clients that send too much or too often, stay too long, or live in another year.

use aziot_simulator::{Settings, sas};

use crate::world::{HUB, KEY, SCOPE, World, key, soon};

#[tokio::test]
async fn messages_end_at_256_kib_and_bodies_at_1_mib() {
    let mut world = World::start(&format!("[[device]]\ndevice_id = 'd'\nsymmetric_key = '{KEY}'\n")).await;
    let token = world.hub_token("d", &key());
    let path = format!("/devices/d/messages/events?{HUB}");
    for (bytes, status) in [(256 << 10, 204), ((256 << 10) + 1, 413)] {
        assert_eq!(world.request("POST", &path, &token, vec![b'x'; bytes]).await.status, status, "{bytes}");
    }
    // The answer may be lost when the client goes on writing; that it was refused is what counts.
    let _answer_or_reset = world.try_request("POST", &path, &token, vec![b'x'; 2 << 20]).await;
    assert_eq!(world.last_request().await["status"], 413);
    assert_eq!(world.request("POST", &path, &token, "x").await.status, 204);
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_stays_does_not_hold_up_the_end() {
    let mut world = World::start("").await;
    let mut connection = world.connect().await.unwrap();
    assert_eq!(connection.request("GET", "/", &[], "").await.unwrap().status, 404);
    let begin = std::time::Instant::now();
    world.stop().await;
    assert!(begin.elapsed() < std::time::Duration::from_secs(4), "idle connections are closed at once");
    assert!(connection.request("GET", "/", &[], "").await.is_err());
}

#[tokio::test]
async fn too_many_requests_in_a_second_are_throttled() {
    let entries = format!(
        "[[device]]\ndevice_id = 'd'\nsymmetric_key = '{KEY}'\n[[device]]\ndevice_id = 'e'\nsymmetric_key = '{KEY}'\n"
    );
    let per_device = |settings: &mut Settings| settings.requests_per_second_per_device = Some(2);
    let mut world = World::start_with(tempfile::tempdir().unwrap(), &entries, per_device).await;
    let tokens = ["d", "e"].map(|device_id| world.hub_token(device_id, &key()));
    let mut throttled = 0;
    // Tries until two requests of the same second went before.
    let refusal = loop {
        let reply = world.request("GET", &format!("/devices/d/modules?{HUB}"), &tokens[0], "").await;
        if reply.status == 429 {
            throttled += 1;
            break reply;
        }
        assert_eq!(reply.status, 200);
    };
    assert_eq!(refusal.headers["retry-after"], "1");
    assert!(refusal.json()["Message"].as_str().unwrap().starts_with("ErrorCode:ThrottlingException;"));
    assert!(world.reason().await.contains("more than 2 requests in a second for this device"));
    assert_eq!(world.list("e", &tokens[1]).await, 200);

    let change = r#"{"requestsPerSecond":0,"requestsPerSecondPerDevice":null}"#;
    assert_eq!(world.control("PUT", "/settings", change).await.status, 204);
    let registration = world.register("Contoso-Device-01", "").await;
    assert_eq!((registration.status, &registration.json()["errorCode"]), (429, &429_001.into()));
    throttled += 1;
    assert_eq!(world.request("GET", "/nothing", "", "").await.status, 404);
    assert_eq!(world.control("PUT", "/settings", r#"{"requestsPerSecond":null}"#).await.status, 204);
    assert_eq!(world.list("d", &tokens[0]).await, 200);
    let counts = world.control("GET", "/counts", "").await.json();
    assert_eq!((&counts["throttled"], &counts["statuses"]["429"]), (&throttled.into(), &throttled.into()));
    assert!(counts["requests"].as_u64().unwrap() > throttled);
    for slip in [r#"{"maxModules":-1}"#, r#"{"clockOffsetSeconds":100000000000}"#, r#"{"max_modules":1}"#] {
        assert_eq!(world.control("PUT", "/settings", slip).await.status, 400, "{slip}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_limit_of_modules_is_a_setting() {
    let entries = format!("[[device]]\ndevice_id = 'd'\nsymmetric_key = '{KEY}'\niot_edge = false\n");
    let limit = |settings: &mut Settings| settings.max_modules = 1;
    let mut world = World::start_with(tempfile::tempdir().unwrap(), &entries, limit).await;
    let token = world.hub_token("d", &key());
    let mut statuses = Vec::new();
    for (module, limit) in [("a", 1), ("b", 1), ("b", 2), ("c", 2)] {
        assert_eq!(world.control("PUT", "/settings", &format!(r#"{{"maxModules":{limit}}}"#)).await.status, 204);
        let body = format!(r#"{{"moduleId":"{module}","deviceId":"d"}}"#);
        statuses.push(world.request("PUT", &format!("/devices/d/modules/{module}?{HUB}"), &token, body).await.status);
    }
    assert_eq!(statuses, [200, 403, 200, 403]);
    assert_eq!(world.control("GET", "/settings", "").await.json()["maxModules"], 2);
    world.stop().await;
}

#[tokio::test]
async fn tokens_are_judged_by_the_clouds_clock_which_its_answers_show() {
    const YEAR: i64 = 365 * 24 * 60 * 60;
    let ahead = |settings: &mut Settings| settings.clock_offset_seconds = YEAR;
    let mut world = World::start_with(tempfile::tempdir().unwrap(), "", ahead).await;
    let date = |reply: &crate::world::Reply| {
        let text = reply.headers["date"].to_str().unwrap();
        jiff::fmt::rfc2822::parse(text).unwrap().timestamp().as_second()
    };
    let registration =
        |expiry| sas::sign(&format!("{SCOPE}/registrations/Contoso-Device-01"), &key(), expiry, Some("registration"));
    let late = world.register("Contoso-Device-01", &registration(soon())).await;
    assert_eq!(late.status, 401);
    assert!(world.reason().await.contains("the token expired"));
    assert!((date(&late) - soon() - YEAR).abs() < 60);
    let right = world.register("Contoso-Device-01", &registration(date(&late) + 30)).await;
    assert_eq!(right.status, 202);
    assert_eq!(world.control("PUT", "/settings", r#"{"clockOffsetSeconds":0}"#).await.status, 204);
    let now = world.register("Contoso-Device-01", &registration(soon())).await;
    assert_eq!((now.status, (date(&now) - soon()).abs() < 60), (202, true));
    world.stop().await;
}
