//! Clients that send too much, or leave in the middle.

use crate::world::{HUB, KEY, World, key};

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
