//! The client against engines that do not behave.

pub(crate) mod engine;
mod scripted;

use std::time::Duration;

use aziot_edged_api::logs::{LogOptions, Tail};
use futures_util::StreamExt as _;
use http::StatusCode;
use serde_json::json;

use super::*;
use scripted::{Scripted, Then, answer, chunked};

const CONTAINER: &str = r#"{"Id":"1f","Name":"/m","Image":"sha256:2e","State":{"Status":"running","ExitCode":0},"Config":{"Labels":null,"Tty":false}}"#;

fn image(text: &str) -> Reference {
    Reference::new(text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_given_up_in_time() {
    let engine = Scripted::start([("", Then::Hang), ("", Then::Hang), ("", Then::Hang)]);
    let begun = tokio::time::Instant::now();
    let error = engine.docker().inspect("m").await.unwrap_err();
    assert!(matches!(&error, Error::TimedOut { limit, .. } if *limit == LIMIT), "{error:?}");
    assert_eq!(error.to_string(), "the container engine did not answer GET /containers/m/json within 60 s");
    assert_eq!(begun.elapsed().as_secs(), 60);

    let limit = Duration::from_secs(90);
    assert!(matches!(engine.docker().stop("m", None, limit).await, Err(Error::TimedOut { .. })));
    assert_eq!(begun.elapsed().as_secs(), 150);
    assert!(matches!(engine.docker().create("m", &json!({})).await, Err(Error::TimedOut { .. })));
    assert_eq!(begun.elapsed().as_secs(), 150 + 240);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stops_in_its_middle_is_given_up() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Id\":";
    let engine = Scripted::start([(half, Then::Hang)]);
    assert!(matches!(engine.docker().inspect("m").await, Err(Error::TimedOut { .. })));
}

#[tokio::test]
async fn a_cut_connection_is_tried_again_where_that_does_no_harm() {
    let good = answer(200, CONTAINER);
    let engine = Scripted::start([("", Then::Close), (good.as_str(), Then::Close)]);
    assert_eq!(engine.docker().inspect("m").await.unwrap().id, "1f");

    let engine = Scripted::start([("", Then::Close), ("", Then::Close), ("", Then::Close)]);
    let error = engine.docker().inspect("m").await.unwrap_err();
    assert_eq!(error.to_string(), "the connection to the container engine broke during GET /containers/m/json");

    let engine = Scripted::start([("", Then::Close), (&answer(204, ""), Then::Close)]);
    assert!(matches!(engine.docker().start("m").await, Err(Error::Interrupted { .. })));
    assert_eq!(engine.requests().len(), 1);
}

#[tokio::test]
async fn an_answer_cut_in_its_middle_is_no_answer() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"Id\":";
    let engine = Scripted::start([(half, Then::Close)]);
    assert!(matches!(engine.docker().inspect("m").await, Err(Error::Interrupted { .. })));
}

#[tokio::test]
async fn nothing_at_the_socket_names_the_engine() {
    let docker = Docker::new("unix:///nowhere/docker.sock").unwrap();
    let error = docker.list().await.unwrap_err();
    assert_eq!(error.to_string(), "could not connect to the container engine at unix:///nowhere/docker.sock");
    assert!(matches!(error, Error::NotConnected { .. }));
}

#[tokio::test]
async fn refusals_are_in_the_engines_words() {
    for (body, expected) in [
        (r#"{"message":"No such container: m"}"#, "No such container: m"),
        (r#"{"cause":"x","message":"no container m","response":404}"#, "no container m"),
        ("page not found\n", "page not found"),
        ("", "the container engine answered 404 Not Found"),
    ] {
        let engine = Scripted::start([(answer(404, body).as_str(), Then::Close)]);
        let error = engine.docker().inspect("m").await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.is_not_found()), (expected, true));
    }
}

#[tokio::test]
async fn answers_of_another_kind_are_malformed() {
    let long = format!("HTTP/1.1 200 OK\r\n\r\n[{}", " ".repeat(17 * 1024 * 1024));
    for (text, reason) in [
        (answer(200, "{]"), "key must be a string"),
        (answer(200, r#"{"Id":1}"#), "invalid type"),
        (answer(200, ""), "EOF"),
        (
            "HTTP/1.1 301 Moved Permanently\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "unexpected status 301",
        ),
        (long, "over 16777216 bytes"),
    ] {
        let engine = Scripted::start([(text.as_str(), Then::Close)]);
        let error = engine.docker().inspect("m").await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
        let chain = aziot_log::chain(&error).to_string();
        assert!(chain.contains(reason), "{chain}");
    }
}

#[tokio::test]
async fn requests_are_the_public_daemons() {
    let good = answer(204, "");
    let engine = Scripted::start((0..9).map(|_| (good.clone(), Then::Close)));
    let docker = engine.docker();
    let limit = Duration::from_secs(9);
    docker.start("m").await.unwrap();
    docker.stop("m", None, limit).await.unwrap();
    docker.stop("m", Some(30), limit).await.unwrap();
    docker.restart("m", None, limit).await.unwrap();
    docker.remove("a/../b?c=d").await.unwrap();
    docker.rename("m", "n&x").await.unwrap();
    docker.remove_image(&image("sha256:00")).await.unwrap();
    let _ = docker.list().await;
    assert_eq!(
        engine.targets(),
        [
            "POST /containers/m/start",
            "POST /containers/m/stop",
            "POST /containers/m/stop?t=30",
            "POST /containers/m/restart",
            "DELETE /containers/a%2F..%2Fb%3Fc%3Dd?force=true&v=false",
            "POST /containers/m/rename?name=n%26x",
            "DELETE /images/sha256%3A00?force=false&noprune=false",
            "GET /containers/json?all=true&filters=%7B%22label%22%3A%5B%22net.azure-devices.edge.owner%3DMicrosoft.Azure.Devices.Edge.Agent%22%5D%7D",
        ]
    );
}

#[tokio::test]
async fn what_is_as_it_should_be_is_a_success() {
    let engine = Scripted::start([("HTTP/1.1 304 Not Modified\r\n\r\n", Then::Close)]);
    engine.docker().start("m").await.unwrap();
}

#[tokio::test]
async fn create_options_go_out_as_they_are() {
    let engine = Scripted::start([(answer(201, r#"{"Id":"1f","Warnings":null}"#), Then::Close)]);
    let options = json!({ "Unknown": { "x": [1, 2.5, null] }, "HostConfig": { "AlsoUnknown": true } });
    assert_eq!(engine.docker().create("m", &options).await.unwrap().id, "1f");
    let request = engine.requests().remove(0);
    assert!(request.starts_with("POST /containers/create?name=m HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("content-type: application/json\r\n"), "{request}");
    assert!(request.ends_with(&options.to_string()), "{request}");
}

#[tokio::test]
async fn a_pull_is_judged_by_its_last_word() {
    let pulling = r#"{"status":"Pulling","progressDetail":{}}"#;
    let pulled = async |events: &[&str]| {
        let engine = Scripted::start([(chunked(events), Then::Close)]);
        engine.docker().pull(&image("x"), None).await
    };
    pulled(&[pulling, "\r\n{\"sta", "tus\":\"Done\"}\r\n"]).await.unwrap();
    // An error that was overcome.
    pulled(&[r#"{"errorDetail":{"message":"retry"},"error":"retry"}"#, pulling]).await.unwrap();
    for (last, status, message) in [
        (r#"{"errorDetail":{"code":403,"message":"no"},"error":"no"}"#, 403, "no"),
        (r#"{"errorDetail":{"message":"pull access denied for x"},"error":"e"}"#, 404, "pull access denied for x"),
        (r#"{"errorDetail":{"message":"manifest unknown"}}"#, 404, "manifest unknown"),
        (
            r#"{"errorDetail":{"message":"unauthorized: authentication required"}}"#,
            401,
            "unauthorized: authentication required",
        ),
        (r#"{"errorDetail":{"code":7,"message":"no space left on device"}}"#, 500, "no space left on device"),
        (r#"{"error":"plain"}"#, 500, "plain"),
        (r#"{"errorDetail":{}}"#, 500, "the pull failed"),
    ] {
        let error = pulled(&[pulling, last]).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::from_u16(status).ok(), "{last}");
        assert_eq!(error.to_string(), message);
    }
    for (events, reason) in [
        (&[][..], "it is empty"),
        (&[pulling, r#"{"status":"#], "it ends within a message"),
        (&["no JSON"], "not JSON"),
    ] {
        let error = pulled(events).await.unwrap_err();
        let chain = aziot_log::chain(&error).to_string();
        assert!(matches!(error, Error::Malformed { .. }) && chain.contains(reason), "{chain}");
    }
    let endless = format!("{{\"status\":\"{}", "x".repeat(70_000));
    assert!(matches!(pulled(&[&endless]).await, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn a_pull_that_is_cut_has_failed() {
    let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n16\r\n{\"status\":\"Pulling\"}\r\n\r\n";
    let engine = Scripted::start([(cut, Then::Close)]);
    assert!(matches!(engine.docker().pull(&image("x"), None).await, Err(Error::Interrupted { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_pull_may_take_long_but_not_be_silent() {
    let begun = tokio::time::Instant::now();
    let engine = Scripted::start([("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Then::Drip(20))]);
    let error = engine.docker().pull(&image("x"), None).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    // Twenty events a minute apart, then ten minutes of silence.
    assert_eq!(begun.elapsed().as_secs(), 20 * 60 + 600);
}

#[tokio::test]
async fn a_pull_names_the_tag_and_carries_credentials() {
    let good = chunked(&["{}"]);
    let engine = Scripted::start((0..3).map(|_| (good.clone(), Then::Close)));
    let docker = engine.docker();
    docker.pull(&image("host:5000/a/b"), None).await.unwrap();
    docker.pull(&image("a@sha256:00"), Some(&json!({}))).await.unwrap();
    docker.pull(&image("a:1"), Some(&json!({ "username": "\u{3ff}?", "identitytoken": "t" }))).await.unwrap();
    assert_eq!(
        engine.targets(),
        [
            "POST /images/create?fromImage=host%3A5000%2Fa%2Fb%3Alatest",
            "POST /images/create?fromImage=a%40sha256%3A00",
            "POST /images/create?fromImage=a%3A1",
        ]
    );
    let header = |number: usize| {
        let request = engine.requests().remove(number);
        request.lines().find_map(|line| line.strip_prefix("x-registry-auth: ").map(str::to_owned))
    };
    assert_eq!(header(0), None);
    assert_eq!(header(1).as_deref(), Some("e30="));
    // URL-safe: the two bytes of U+03FF and `?` would need a slash otherwise.
    assert_eq!(header(2).as_deref(), Some("eyJpZGVudGl0eXRva2VuIjoidCIsInVzZXJuYW1lIjoiz78_In0="));
}

#[tokio::test]
async fn logs_are_handed_on_frame_by_frame() {
    let frames = ["\x01\0\0\0\0\0\0\x02a\n", "\x02\0\0\0\0\0\0\x01b", "\x01\0\0\0\0\0\0\0"];
    let all = frames.concat();
    let (first, second) = all.split_at(13);
    let engine = Scripted::start([(answer(200, CONTAINER), Then::Close), (chunked(&[first, second]), Then::Close)]);
    let container = engine.docker().inspect("m").await.unwrap();
    let options = LogOptions { tail: Tail::Lines(7), since: Some(-5), until: Some(-5), ..LogOptions::default() };
    let logs = engine.docker().logs(&container, &options).await.unwrap();
    let read: Vec<_> = logs.into_stream().map(Result::unwrap).collect().await;
    assert_eq!(read, frames);
    assert_eq!(
        engine.targets()[1],
        "GET /containers/1f/logs?stdout=true&stderr=true&follow=false&timestamps=false&since=0&until=1&tail=7"
    );
}

#[tokio::test]
async fn a_terminal_gets_frames_and_a_cut_log_an_error() {
    let terminal = CONTAINER.replace("\"Tty\":false", "\"Tty\":true");
    let plain = answer(200, &terminal);
    let cut = answer(200, "\x01\0\0\0\0\0\0\x09abc");
    let engine = Scripted::start([
        (plain, Then::Close),
        (answer(200, "hello"), Then::Close),
        (answer(200, CONTAINER), Then::Close),
        (cut, Then::Close),
    ]);
    let docker = engine.docker();
    for expected in [Some(&b"\x01\0\0\0\0\0\0\x05hello"[..]), None] {
        let container = docker.inspect("m").await.unwrap();
        let mut logs = docker.logs(&container, &LogOptions::default()).await.unwrap();
        match expected {
            Some(expected) => assert_eq!(logs.next().await.unwrap().unwrap(), expected),
            None => assert!(matches!(logs.next().await, Err(Error::Malformed { .. }))),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_followed_log_may_be_silent_for_days_another_may_not() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let container = answer(200, CONTAINER);
    let script = [(container.as_str(), Then::Close), (head, Then::Hang), (head, Then::Hang)];
    let engine = Scripted::start(script);
    let docker = engine.docker();
    let container = docker.inspect("m").await.unwrap();
    let mut followed = docker.logs(&container, &LogOptions { follow: true, ..LogOptions::default() }).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(3 * 86_400), followed.next()).await.is_err());
    let mut whole = docker.logs(&container, &LogOptions::default()).await.unwrap();
    assert!(matches!(whole.next().await, Err(Error::TimedOut { .. })));
}

#[tokio::test]
async fn a_network_is_made_only_where_none_has_exactly_its_name() {
    use aziot_edged_api::config::{Ipam, IpamConfig, Network};
    let others = r#"[{"Name":"edge-2"},{"Name":"bridge"}]"#;
    let subnet = IpamConfig { subnet: Some("172.20.0.0/16".to_owned()), ..IpamConfig::default() };
    let network = Network { ipam: Some(Ipam { config: Some(vec![subnet]) }), ..Network::named("edge") };
    let engine = Scripted::start([
        (answer(200, others), Then::Close),
        (answer(201, "{}"), Then::Close),
        (answer(200, r#"[{"Name":"edge"}]"#), Then::Close),
    ]);
    engine.docker().ensure_network(&network).await.unwrap();
    engine.docker().ensure_network(&network).await.unwrap();
    let requests = engine.requests();
    assert_eq!(requests.len(), 3);
    assert!(requests[1].ends_with(
        r#"{"CheckDuplicate":true,"EnableIPv6":false,"IPAM":{"Config":[{"Subnet":"172.20.0.0/16"}]},"Name":"edge"}"#
    ));
    // Podman says 500 where somebody was faster.
    let engine = Scripted::start([
        (answer(200, others), Then::Close),
        (answer(500, r#"{"message":"network name edge already used"}"#), Then::Close),
        (answer(200, r#"[{"Name":"edge"}]"#), Then::Close),
    ]);
    engine.docker().ensure_network(&network).await.unwrap();
}

#[test]
fn only_sockets_and_plain_hosts_are_addresses() {
    for uri in ["unix:///var/run/docker.sock", "http://localhost:2375", "http://127.0.0.1", "HTTP://h:1/"] {
        assert!(Docker::new(uri).is_ok(), "{uri}");
    }
    for uri in
        ["https://h", "http://", "http://h/path", "http://user@h", "fd://x", "/var/run/docker.sock", "", "unix://h/x"]
    {
        assert!(Docker::new(uri).is_err(), "{uri}");
    }
}
