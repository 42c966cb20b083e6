//! Faults on demand, as a client sees them.

use std::time::{Duration, Instant};

use crate::world::{Failure, HUB, KEY, World, key};

const PATH: &str = "/devices/d/modules";

async fn world() -> World {
    World::start(&format!("[[device]]\ndevice_id = 'd'\nsymmetric_key = '{KEY}'\n")).await
}

async fn set(world: &mut World, fault: &str) {
    assert_eq!(world.control("PUT", "/fault", fault).await.status, 204, "{fault}");
}

async fn list(world: &mut World) -> Result<crate::world::Reply, Failure> {
    let token = world.hub_token("d", &key());
    world.try_request("GET", &format!("{PATH}?{HUB}"), &token, "").await
}

fn has_io_kind(error: &Failure, kind: std::io::ErrorKind) -> bool {
    let causes = std::iter::successors(Some(error.as_ref() as &dyn std::error::Error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).any(|error| error.kind() == kind)
}

#[tokio::test]
async fn throttled_so_many_times() {
    let mut world = world().await;
    set(&mut world, r#"{"kind":"status","status":429,"retryAfter":2,"matching":"/modules","count":2}"#).await;
    assert_eq!(world.request("GET", "/other", "", "").await.status, 404);
    for _ in 0..2 {
        let reply = list(&mut world).await.unwrap();
        assert_eq!((reply.status, &reply.headers["retry-after"]), (429, &"2".parse().unwrap()));
        assert!(reply.json()["Message"].is_string());
    }
    assert_eq!(list(&mut world).await.unwrap().status, 200);
    let journal = world.control("GET", "/journal", "").await.json();
    assert_eq!((&journal[1]["status"], &journal[1]["reason"]), (&429.into(), &"fault on demand: Status".into()));
    assert_eq!((&journal[1]["method"], &journal[1]["path"]), (&"GET".into(), &PATH.into()));
    world.stop().await;
}

#[tokio::test]
async fn wrong_bodies() {
    let mut world = world().await;
    set(&mut world, r#"{"kind":"garbage"}"#).await;
    let garbage = list(&mut world).await.unwrap();
    assert_eq!((garbage.status, &garbage.headers["content-type"]), (200, &"application/json".parse().unwrap()));
    assert!(serde_json::from_slice::<serde_json::Value>(&garbage.body).is_err());
    set(&mut world, r#"{"kind":"html","status":503}"#).await;
    let html = list(&mut world).await.unwrap();
    assert_eq!((html.status, html.headers["content-type"].to_str().unwrap()), (503, "text/html; charset=utf-8"));
    set(&mut world, r#"{"kind":"empty"}"#).await;
    let empty = list(&mut world).await.unwrap();
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    set(&mut world, r#"{"kind":"status","networkError":true}"#).await;
    let offline = list(&mut world).await.unwrap();
    assert_eq!((offline.status, &offline.json()["networkError"]), (500, &true.into()));
    set(&mut world, r#"{"kind":"status","status":200,"body":"{\"status\":\"sideways\"}"}"#).await;
    let malformed = list(&mut world).await.unwrap();
    assert_eq!((malformed.status, &malformed.json()["status"]), (200, &"sideways".into()));
    set(&mut world, r#"{"kind":"served-as","status":203}"#).await;
    let served = list(&mut world).await.unwrap();
    assert_eq!((served.status, served.json().as_array().unwrap().len()), (203, 2));
    set(&mut world, r#"{"kind":"huge"}"#).await;
    let huge = list(&mut world).await.unwrap();
    assert!(huge.body.len() > 10 << 20);
    assert_eq!((huge.status, huge.json().as_array().unwrap().len()), (200, 2));
    world.stop().await;
}

#[tokio::test]
async fn connections_that_end_early() {
    let mut world = world().await;
    set(&mut world, r#"{"kind":"reset","count":1}"#).await;
    let error = list(&mut world).await.err().unwrap();
    assert!(has_io_kind(&error, std::io::ErrorKind::ConnectionReset), "{error:?}");
    assert_eq!(world.last_request().await["status"], serde_json::Value::Null);

    set(&mut world, r#"{"kind":"truncated","count":1}"#).await;
    assert!(list(&mut world).await.is_err());
    // The head did come, and the request was served.
    assert_eq!(world.last_request().await["status"], 200);
    assert_eq!(list(&mut world).await.unwrap().status, 200);

    let mut idle = world.connect().await.unwrap();
    assert_eq!(idle.request("GET", "/", &[], "").await.unwrap().status, 404);
    set(&mut world, r#"{"kind":"refuse"}"#).await;
    assert!(idle.request("GET", "/", &[], "").await.is_err());
    assert!(list(&mut world).await.is_err());
    assert_eq!(world.control("DELETE", "/fault", "").await.status, 204);
    assert_eq!(list(&mut world).await.unwrap().status, 200);
    world.stop().await;
}

#[tokio::test]
async fn slow_answers_are_right_answers() {
    let mut world = world().await;
    set(&mut world, r#"{"kind":"latency","milliseconds":300}"#).await;
    let begin = Instant::now();
    assert_eq!(list(&mut world).await.unwrap().status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    world.stop().await;
}

#[tokio::test]
async fn wrong_certificates_are_refused_by_a_careful_client() {
    let mut world = world().await;
    for (fault, expected) in
        [("wrong-name", "not valid for name"), ("expired", "expired"), ("other-ca", "UnknownIssuer")]
    {
        set(&mut world, &format!(r#"{{"certificate":"{fault}"}}"#)).await;
        let error = format!("{:?} {0}", list(&mut world).await.err().unwrap());
        assert!(error.contains(expected), "{fault}: {error}");
    }
    set(&mut world, r#"{"certificate":"good"}"#).await;
    assert_eq!(list(&mut world).await.unwrap().status, 200);
    world.stop().await;
}

#[tokio::test]
async fn slips_are_told_and_change_nothing() {
    let mut world = world().await;
    for slip in [
        "",
        "{}",
        r#"{"kind":"explode"}"#,
        r#"{"kind":"status","status":99}"#,
        r#"{"certificate":"none"}"#,
        r#"{"kind":"empty","body":"x"}"#,
    ] {
        let reply = world.control("PUT", "/fault", slip).await;
        assert_eq!(reply.status, 400, "{slip}");
        assert!(reply.json()["message"].is_string());
    }
    assert_eq!(world.control("GET", "/fault", "").await.json()["kind"], "none");
    assert_eq!(world.control("GET", "/nothing", "").await.status, 404);
    assert_eq!(world.control("POST", "/fault", "").await.status, 405);
    world.stop().await;
}
