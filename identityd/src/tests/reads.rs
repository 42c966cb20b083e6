//! Reads of module identities: how often the hub is asked, and who waits for it when it is slow.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{task::JoinSet, time::timeout};

use super::world::{Held, Service, World, eventually};
use crate::error::Error;

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const M1: &str = "/identities/modules/m1?type=aziot";
const ASKED: &str = "GET /devices/dev-1/modules/m1";
/// Much longer than the hub's patience, much shorter than the hub takes in these tests.
const PROMPTLY: Duration = Duration::from_secs(5);

async fn started(world: &World) -> Service {
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    service
}

/// Somebody who reads the module, in a task.
fn reader(service: &Service, world: &World, tasks: &mut JoinSet<Result<(), Error>>) {
    let (identities, uid) = (Arc::clone(&service.identities), world.uid());
    tasks.spawn(async move { identities.module(uid, Some("aziot"), "m1").await.map(drop) });
}

async fn is_answered(service: &Service) {
    let read = timeout(PROMPTLY, service.json("GET", M1, "")).await.expect("a copy answers meanwhile");
    assert_eq!(read["spec"]["moduleId"], "m1");
}

/// The hub is asked about the module, and the answer is on its way until the test lets it through.
async fn held(service: &Service, world: &World) -> (Arc<Held>, JoinSet<Result<(), Error>>) {
    let held = world.network.hold(ASKED);
    let mut tasks = JoinSet::new();
    reader(service, world, &mut tasks);
    held.arrived().await;
    (held, tasks)
}

#[tokio::test]
async fn readers_at_one_time_share_one_request() {
    let world = World::new().await;
    let service = started(&world).await;
    let before = world.network.count("GET", "/modules/m1");
    let read = || service.identities.module(world.uid(), Some("aziot"), "m1");
    for answer in join_all((0..8).map(|_| read())).await {
        answer.unwrap();
    }
    assert_eq!(world.network.count("GET", "/modules/m1") - before, 1);
    service.json("GET", M1, "").await;
    assert_eq!(world.network.count("GET", "/modules/m1") - before, 2, "one who comes later asks anew");
}

#[tokio::test]
async fn a_slow_hub_keeps_nobody_waiting_who_can_have_a_copy() {
    let world = World::new().await;
    let service = started(&world).await;
    let before = world.network.count("GET", "/modules/m1");
    let (held, mut first) = held(&service, &world).await;
    for _ in 0..3 {
        is_answered(&service).await;
    }
    timeout(PROMPTLY, first.join_next()).await.expect("a copy answers meanwhile").unwrap().unwrap().unwrap();
    assert_eq!(world.network.count("GET", "/modules/m1") - before, 1, "that request is still under way");
    held.release();
}

#[tokio::test]
async fn the_list_is_word_enough_from_the_hub_after_a_restart() {
    let world = World::new().await;
    drop(started(&world).await);
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.settled().await;
    let (held, _first) = held(&service, &world).await;
    is_answered(&service).await;
    held.release();
}

#[tokio::test]
async fn a_late_no_of_the_hub_counts_at_once() {
    let world = World::new().await;
    let service = started(&world).await;
    // Deleted in the cloud, with which the device's service has nothing to do.
    assert_eq!(elsewhere(&world).await.send("DELETE", M1, "").await.status, 204);
    let (held, mut first) = held(&service, &world).await;
    is_answered(&service).await;
    held.release();
    first.join_next().await;
    let gone = (404, "Hub client error\ncaused by: module m1 not found".to_owned());
    assert_eq!(service.error("GET", M1, "").await, gone);
    world.network.cut();
    assert_eq!(service.error("GET", M1, "").await, gone);
}

/// The same device elsewhere, as an operator's tool would be.
async fn elsewhere(world: &World) -> Service {
    world.start(&world.dps("dev-1", &world.daemon()).replace("/identityd'", "/elsewhere'")).await
}

#[tokio::test]
async fn a_late_list_does_not_bring_back_what_a_read_found_deleted() {
    let world = World::new().await;
    let service = started(&world).await;
    let elsewhere = elsewhere(&world).await;
    let list = world.network.hold("GET /devices/dev-1/modules");
    let (identities, uid) = (Arc::clone(&service.identities), world.uid());
    let mut lister = JoinSet::new();
    lister.spawn(async move { identities.list_modules(uid, Some("aziot")).await.map(drop) });
    list.arrived().await;
    assert_eq!(elsewhere.send("DELETE", M1, "").await.status, 204);
    let gone = (404, "Hub client error\ncaused by: module m1 not found".to_owned());
    assert_eq!(service.error("GET", M1, "").await, gone);
    list.release();
    lister.join_next().await.unwrap().unwrap().unwrap();
    world.network.cut();
    assert_eq!(service.error("GET", M1, "").await, gone);
}

#[tokio::test]
async fn a_late_read_does_not_undo_a_newer_list() {
    let world = World::new().await;
    let service = started(&world).await;
    let elsewhere = elsewhere(&world).await;
    let (held, mut first) = held(&service, &world).await;
    assert_eq!(elsewhere.send("DELETE", M1, "").await.status, 204);
    let made = elsewhere.json("POST", "/identities/modules", CREATE_M1).await;
    service.json("GET", "/identities/modules?type=aziot", "").await;
    world.network.cut();
    held.release();
    first.join_next().await.unwrap().unwrap().unwrap();
    // Once the late answer has come, the next read asks again.
    let asked = world.network.count_exactly(ASKED);
    eventually("the late answer is there", async || {
        service.json("GET", M1, "").await;
        world.network.count_exactly(ASKED) > asked
    })
    .await;
    let read = service.json("GET", M1, "").await;
    assert_eq!(read["spec"]["genId"], made["spec"]["genId"]);
}

#[tokio::test]
async fn after_a_change_through_this_service_nobody_gets_what_was_before() {
    let world = World::new().await;
    let service = started(&world).await;
    let before = service.json("GET", M1, "").await;
    let (held, _first) = held(&service, &world).await;
    assert_eq!(service.send("DELETE", M1, "").await.status, 204);
    let gone = (404, "Hub client error\ncaused by: module m1 not found".to_owned());
    assert_eq!(service.error("GET", M1, "").await, gone, "the request under way is not joined");
    let made = service.json("POST", "/identities/modules", CREATE_M1).await;
    held.release();
    let after = service.json("GET", M1, "").await;
    assert_eq!(after["spec"]["genId"], made["spec"]["genId"]);
    assert_ne!(after["spec"]["genId"], before["spec"]["genId"]);
}

#[tokio::test]
async fn a_refusal_is_not_hidden_by_a_copy() {
    let world = World::new().await;
    let service = started(&world).await;
    world.control("PUT", "/fault", r#"{"kind":"status","status":403,"matching":"/modules/m1"}"#).await;
    assert_eq!(service.error("GET", M1, "").await.0, 404);
    // It was refused, so the copy is no longer known to be good, and whoever comes next waits for the hub.
    world.control("PUT", "/fault", r#"{"kind":"none"}"#).await;
    let (held, mut first) = held(&service, &world).await;
    assert!(timeout(Duration::from_millis(600), first.join_next()).await.is_err(), "answered by the copy");
    held.release();
    first.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_device_is_read_without_a_call_to_anybody() {
    let world = World::new().await;
    let service = started(&world).await;
    let before = world.network.count("", "/");
    let first = service.json("GET", "/identities/identity", "").await;
    for _ in 0..3 {
        let again = service.json("POST", "/identities/device", r#"{"type":"aziot"}"#).await;
        assert_eq!(again["spec"]["auth"], first["spec"]["auth"], "one handle for about a second");
    }
    assert_eq!(world.network.count("", "/"), before);
}
