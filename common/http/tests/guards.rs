//! Who may call what, before anybody looks at a body; and paths that clients write in several ways.

use std::{sync::Arc, time::Duration};

use aziot_http::{
    ApiVersion, Body, Call, Limits, Method, Peer, Room, Service, Status, StatusCode, Target,
    server::MaxRequests,
    testing::{TestServer, read_reply},
};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt as _, net::UnixStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);

const V: &str = "api-version=2022-08-03";
const VERSIONS: &[ApiVersion] = &[ApiVersion::V2018_06_28, ApiVersion::V2022_08_03];

#[derive(Debug, Serialize, Deserialize)]
struct Write {
    name: String,
    text: String,
}
impl Call for Write {
    const METHOD: Method = Method::PUT;
    const PATH: &'static str = "/books/{name}";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    type Reply = String;
}

#[derive(Debug, Serialize, Deserialize)]
struct Lend {
    name: String,
    to: String,
}
impl Call for Lend {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/books/{name}/lend";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const MISSING_BODY: &'static str = "missing parameter: request body";
    type Reply = String;
}

#[derive(Debug, Serialize, Deserialize)]
struct Who {}
impl Call for Who {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/who";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = (Option<i32>, Option<String>);
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the guard knows no {0}")]
    Stranger(String),
    #[error("the shelf broke")]
    Shelf(#[source] std::io::Error),
}
impl Status for Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::Stranger(_) => StatusCode::FORBIDDEN,
            Self::Shelf(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
    fn message(&self) -> String {
        "forbidden".to_owned()
    }
    fn message_of_failure(&self) -> String {
        self.to_string()
    }
}

fn guard(_: Arc<()>, _: Peer, target: &Target) -> impl Future<Output = Result<(), Error>> + Send + use<> {
    let name = target.get("name").unwrap_or_default().to_owned();
    async move { if name == "own" { Ok(()) } else { Err(Error::Stranger(name)) } }
}

async fn write(_: Arc<()>, _: Peer, call: Write) -> Result<String, Error> {
    if call.text == "break" { Err(Error::Shelf(std::io::Error::other("secret"))) } else { Ok(call.name) }
}

async fn lend(_: Arc<()>, _: Peer, call: Lend) -> Result<String, Error> {
    Ok(call.to)
}

async fn who(_: Arc<()>, peer: Peer, _: Who) -> Result<(Option<i32>, Option<String>), Error> {
    Ok((peer.process.map(|process| process.pid()), peer.listener.map(|name| name.to_string())))
}

fn rewrite(path: &str) -> Option<String> {
    path.eq_ignore_ascii_case("/who").then(|| "/who".to_owned())
}

fn service() -> Service<()> {
    Service::new(Arc::new(()), VERSIONS).guarded(guard, write).guarded(guard, lend).call(who).rewrite(rewrite)
}

fn limits() -> Limits {
    Limits::new(MaxRequests::default())
}

#[tokio::test]
async fn strangers_read_the_refusal_whatever_they_send() {
    let server = TestServer::start(service().into_routes());
    for (content_type, body) in [
        ("application/json", "{}"),
        ("application/json", "{"),
        ("application/json", ""),
        ("text/plain", "x"),
        ("application/json", r#"{"text":"fine"}"#),
    ] {
        for (method, target) in [("PUT", "/books/other"), ("POST", "/books/other/lend")] {
            let length = body.len();
            let head = format!("content-type: {content_type}\r\ncontent-length: {length}");
            let reply = server.send_raw(&format!("{method} {target}?{V} HTTP/1.1\r\n{head}\r\n\r\n{body}")).await;
            assert_eq!((reply.status, reply.body.as_str()), (403, r#"{"message":"forbidden"}"#), "{method} {body:?}");
        }
    }
    let large = format!("PUT /books/other?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 10 * 1024 * 1024);
    assert_eq!(server.send_raw(&large).await.status, 403);
    // A method that the route lacks comes before the guard, which belongs to a call.
    assert_eq!(server.send("GET", &format!("/books/other?{V}"), "").await.status, 400);
}

#[tokio::test]
async fn those_whom_the_guard_knows_read_what_is_wrong() {
    let server = TestServer::start(service().into_routes());
    for (method, target, body, status, answer) in [
        ("PUT", "/books/own", r#"{"text":"fine"}"#, 200, r#""own""#),
        ("PUT", "/books/own", r#"{"text":"break"}"#, 500, r#"{"message":"the shelf broke"}"#),
        ("PUT", "/books/own", "", 422, r#"{"message":"EOF while parsing a value at line 1 column 0"}"#),
        ("POST", "/books/own/lend", "", 400, r#"{"message":"missing parameter: request body"}"#),
        ("POST", "/books/own/lend", r#"{"to":"me"}"#, 200, r#""me""#),
    ] {
        let reply = server.send(method, &format!("{target}?{V}"), body).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, answer), "{method} {target} {body}");
    }
    let large = format!("PUT /books/own?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 10 * 1024 * 1024);
    assert_eq!(server.send_raw(&large).await.status, 413);
}

#[tokio::test]
async fn a_rewritten_path_keeps_its_query() {
    let server = TestServer::start(service().into_routes());
    assert_eq!(server.send("GET", &format!("/WHO?{V}"), "").await.status, 200);
    assert_eq!(server.send("GET", "/WHO?api-version=x", "").await.status, 400);
    assert_eq!(server.send("GET", &format!("/BOOKS/own?{V}"), "").await.status, 404);
}

#[tokio::test]
async fn callers_are_known_by_process_and_by_socket_where_that_is_asked_for() {
    let plain = TestServer::start(service().into_routes());
    assert_eq!(plain.send("GET", &format!("/who?{V}"), "").await.body, "[null,null]");
    let named = |server: aziot_http::Server| server.named("sensor".into()).identify_processes();
    let server = TestServer::start_as(service().into_routes(), limits(), named);
    let expected = format!(r#"[{},"sensor"]"#, std::process::id());
    assert_eq!(server.send("GET", &format!("/who?{V}"), "").await.body, expected);
}

async fn ask(stream: &mut UnixStream) -> u16 {
    stream.write_all(format!("GET /who?{V} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("send");
    let reply = timeout(PATIENCE, read_reply(stream, false)).await.expect("an answer in time");
    reply.expect("an answer").status
}

/// Connections of which each has had an answer, and so a place.
async fn fill(server: &TestServer, connections: usize) -> Vec<UnixStream> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = server.connect().await;
        assert_eq!(ask(&mut stream).await, 200);
        streams.push(stream);
    }
    streams
}

fn start(room: &Room, reserved: usize, limits: Limits) -> TestServer {
    TestServer::start_as(service().into_routes(), limits, |server| server.sharing(room, reserved))
}

#[tokio::test]
async fn servers_that_share_a_room_wait_for_one_anothers_places() {
    // One for each socket itself.
    let room = Room::of(4);
    let (full, other) = (start(&room, 0, limits()), start(&room, 0, limits()));
    let mut streams = fill(&full, 2).await;
    let mut waiting = other.connect().await;
    let mut answer = Box::pin(ask(&mut waiting));
    assert!(timeout(Duration::from_millis(200), &mut answer).await.is_err(), "there is no room");
    drop(streams.pop());
    assert_eq!(answer.await, 200);
}

#[tokio::test]
async fn whoever_fills_the_room_leaves_the_others_what_they_have_for_themselves() {
    let room = Room::of(6);
    // This one has room for one connection of two descriptors, or two of one.
    let (full, other) = (start(&room, 0, limits()), start(&room, 1, limits()));
    let _streams = fill(&full, 2).await;
    let mut beyond = full.connect().await;
    let mut answer = Box::pin(ask(&mut beyond));
    assert!(timeout(Duration::from_millis(200), &mut answer).await.is_err(), "there is no room");
    fill(&other, 2).await;
}

#[tokio::test]
async fn a_full_socket_leaves_the_room_to_the_others() {
    let room = Room::of(7);
    let few = Limits { connections: 2, ..limits() };
    let (full, other) = (start(&room, 0, few), start(&room, 0, limits()));
    let mut streams = fill(&full, 2).await;
    let mut beyond = full.connect().await;
    let mut answer = Box::pin(ask(&mut beyond));
    assert!(timeout(Duration::from_millis(200), &mut answer).await.is_err(), "the socket is full");
    fill(&other, 3).await;
    drop(streams.pop());
    assert_eq!(answer.await, 200);
}
