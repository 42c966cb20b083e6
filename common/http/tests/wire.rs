//! What deployed clients see on the wire (spec: common behaviour, sections 6 and 7), byte for byte where they count bytes.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aziot_http::{
    ApiVersion, Base64, Body, Call, Client, ClientError, Limits, Method, Peer, Retry, Service, Status, StatusCode,
    server::MaxRequests,
    testing::{RawReply, TestServer, read_reply},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{Notify, Semaphore},
    time::timeout,
};

const V: &str = "api-version=2020-09-01";
const VERSIONS: &[ApiVersion] = &[ApiVersion::V2020_09_01, ApiVersion::V2021_12_01];
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
struct GetKeys {}
impl Call for GetKeys {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/get_tpm_keys";
    const BODY: Body = Body::Ignored;
    type Reply = Vec<String>;
}

#[derive(Debug, Serialize, Deserialize)]
struct Sign {
    data: Base64,
}
impl Call for Sign {
    const METHOD: Method = Method::POST;
    const PATH: &'static str = "/sign_with_auth_key";
    type Reply = Digest;
}
#[derive(Debug, Serialize, Deserialize)]
struct Digest {
    digest: Base64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remove {
    id: String,
}
impl Call for Remove {
    const METHOD: Method = Method::DELETE;
    const PATH: &'static str = "/things/{id}";
    const BODY: Body = Body::Ignored;
    const SUCCESS: StatusCode = StatusCode::NO_CONTENT;
    type Reply = ();
}

#[derive(Debug, Serialize, Deserialize)]
struct Newer {
    #[serde(rename = "type")]
    kind: Option<String>,
}
impl Call for Newer {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/newer";
    const QUERY: &'static [&'static str] = &["type"];
    const SINCE: ApiVersion = ApiVersion::V2021_12_01;
    const BODY: Body = Body::Ignored;
    type Reply = Option<String>;
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is no thing {0}")]
    NoThing(String),
    #[error("could not reach the vault")]
    Vault(#[source] std::io::Error),
}
impl Status for Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoThing(_) => StatusCode::BAD_REQUEST,
            Self::Vault(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A domain that tests can hold back.
struct Things {
    entered: Semaphore,
    go: Notify,
    finished: AtomicUsize,
}

async fn get_keys(_: Arc<Things>, peer: Peer, _: GetKeys) -> Result<Vec<String>, Error> {
    assert_eq!(peer.pid, i32::try_from(std::process::id()).expect("a pid"));
    Ok(vec!["ek".to_owned()])
}

async fn sign(things: Arc<Things>, _: Peer, call: Sign) -> Result<Digest, Error> {
    match call.data.0.as_slice() {
        b"fail" => Err(Error::Vault(std::io::Error::other("secret detail"))),
        b"panic" => panic!("as the test wants"),
        b"wait" => {
            things.entered.add_permits(1);
            things.go.notified().await;
            things.finished.fetch_add(1, Ordering::SeqCst);
            Ok(Digest { digest: call.data })
        }
        b"hang" => {
            things.entered.add_permits(1);
            pending().await
        }
        _ => Ok(Digest { digest: call.data }),
    }
}

async fn remove(_: Arc<Things>, _: Peer, call: Remove) -> Result<(), Error> {
    if call.id.starts_with("none") { Err(Error::NoThing(call.id)) } else { Ok(()) }
}

async fn newer(_: Arc<Things>, _: Peer, call: Newer) -> Result<Option<String>, Error> {
    Ok(call.kind)
}

fn things() -> Arc<Things> {
    Arc::new(Things { entered: Semaphore::new(0), go: Notify::new(), finished: AtomicUsize::new(0) })
}

fn start_with(things: &Arc<Things>, limits: Limits) -> TestServer {
    let service = Service::new(Arc::clone(things), VERSIONS).call(get_keys).call(sign).call(remove).call(newer);
    TestServer::start_with(service.into_routes(), limits)
}

fn start() -> TestServer {
    start_with(&things(), Limits::new(MaxRequests::default()))
}

fn message(reply: &RawReply) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_str(&reply.body).expect("an error body");
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1));
    (reply.status, body["message"].as_str().expect("a message").to_owned())
}

#[tokio::test]
async fn success_is_exactly_as_the_public_services_write_it() {
    let reply = start().send("POST", &format!("/sign_with_auth_key?{V}"), r#"{"data":"aGVsbG8="}"#).await;
    let head = String::from_utf8(reply.head).unwrap();
    let date = &reply.headers["date"];
    let expected =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 21\r\ndate: {date}\r\n\r\n");
    assert_eq!(head, expected);
    assert_eq!(reply.body, r#"{"digest":"aGVsbG8="}"#);
}

#[tokio::test]
async fn api_version_comes_before_everything() {
    let server = start();
    for (target, text) in [
        ("/get_tpm_keys", "api-version not specified"),
        ("/nope", "api-version not specified"),
        ("/get_tpm_keys?api-version=2019-01-01", r#"invalid api-version "2019-01-01""#),
        ("/nope?api-version=foo%22bar", r#"invalid api-version "foo\"bar""#),
        ("/get_tpm_keys?api-version=2020-09-01&api-version=x+y", r#"invalid api-version "x y""#),
    ] {
        assert_eq!(message(&server.send("GET", target, "").await), (400, text.to_owned()), "{target}");
    }
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?api-version=x&{V}"), "").await.status, 200);
}

#[tokio::test]
async fn routes_match_the_raw_path_and_know_when_they_came() {
    let server = start();
    for target in
        ["/nope?", "/get_tpm_keys/?", "/get_tpm%5Fkeys?", "/newer?", "/things/?", "/things/a/b?", "/things/%ff?"]
    {
        let reply = server.send("GET", &format!("{target}{V}"), "").await;
        assert_eq!(message(&reply), (404, "not found".to_owned()), "{target}");
    }
    let reply = server.send("GET", "/newer?api-version=2021-12-01&type=first&type=second", "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, r#""first""#));
    assert_eq!(server.send("DELETE", &format!("/things/a%2Fb?{V}"), "").await.status, 204);
    let reply = server.send("DELETE", &format!("/things/none%2541%2F?{V}"), "").await;
    assert_eq!(message(&reply), (400, "there is no thing none%41/".to_owned()), "decoded once");
    let reply = server.send_raw(&format!("GET http://any.host/get_tpm_keys?{V} HTTP/1.1\r\n\r\n")).await;
    assert_eq!(reply.status, 200, "an absolute-form target");
}

#[tokio::test]
async fn methods_and_bodies_follow_the_public_order() {
    let server = start();
    let keys = format!("/get_tpm_keys?{V}");
    let sign = format!("/sign_with_auth_key?{V}");
    for (method, target, content_type, body, status, text) in [
        ("POST", &keys, None, "", 400, "method not allowed"),
        ("PATCH", &keys, None, "", 400, "method not allowed"),
        ("OPTIONS", &keys, None, "", 400, "method not allowed"),
        ("DELETE", &keys, None, "", 400, "method not allowed"),
        ("GET", &sign, None, "", 400, "method not allowed"),
        ("PUT", &keys, None, "", 422, "EOF while parsing a value at line 1 column 0"),
        ("PUT", &keys, Some("text/plain"), "x", 415, "request body must be application/json"),
        ("PUT", &keys, Some("Application/JSON"), "{}", 415, "request body must be application/json"),
        ("PUT", &keys, None, "{}", 400, "method not allowed"),
        ("POST", &keys, None, "{", 422, "EOF while parsing an object at line 1 column 1"),
        ("POST", &sign, None, "", 400, "missing request body"),
        ("POST", &sign, Some("application/x-www-form-urlencoded"), r#"{"data":"aGk="}"#, 400, "missing request body"),
        ("POST", &sign, Some("application/json"), "{}", 422, "missing field `data` at line 1 column 2"),
    ] {
        let content = content_type.map(|kind| format!("content-type: {kind}\r\n")).unwrap_or_default();
        let length = body.len();
        let raw = format!("{method} {target} HTTP/1.1\r\n{content}content-length: {length}\r\n\r\n{body}");
        assert_eq!(message(&server.send_raw(&raw).await), (status, text.to_owned()), "{raw}");
    }
    let with_charset = "content-type: application/json; charset=utf-8\r\ncontent-length: 15";
    let raw = format!("POST {sign} HTTP/1.1\r\n{with_charset}\r\n\r\n{{\"data\":\"aGk=\"}}");
    assert_eq!(server.send_raw(&raw).await.status, 200);
    assert_eq!(server.send("DELETE", &format!("/things/x?{V}"), "{").await.status, 422);
    let head = server.send_raw(&format!("HEAD {keys} HTTP/1.1\r\n\r\n")).await;
    assert_eq!((head.status, head.body.as_str()), (400, ""));
    let refused = server.send("POST", &keys, "").await;
    assert_eq!(refused.headers["allow"], "GET");
}

#[tokio::test]
async fn old_clients_and_odd_framing_are_served() {
    let server = start();
    let no_host = server.send_raw(&format!("GET /x?{V} HTTP/1.1\r\n\r\n")).await;
    assert_eq!((no_host.status, no_host.headers.get("connection")), (404, None), "the connection stays open");
    let closing = server.send_raw(&format!("GET /x?{V} HTTP/1.1\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(closing.headers["connection"], "close");
    let old = server.send_raw(&format!("GET /x?{V} HTTP/1.0\r\n\r\n")).await;
    assert!(old.head.starts_with(b"HTTP/1.0 404"));
    let chunked = "transfer-encoding: chunked\r\n\r\nf\r\n{\"data\":\"aGk=\"}\r\n0\r\n\r\n";
    let reply = server.send_raw(&format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\n{chunked}")).await;
    assert_eq!(reply.status, 200);
    let garbage = server.send_raw("blah blah\r\n\r\n").await;
    assert_eq!((garbage.status, garbage.headers["content-length"].as_str(), garbage.body.as_str()), (400, "0", ""));
    let many = "x-again: y\r\n".repeat(101);
    assert_eq!(server.send_raw(&format!("GET /x?{V} HTTP/1.1\r\n{many}\r\n")).await.status, 431);

    // The blocking client writes in pieces, and needs head and body of the answer to arrive at once.
    let mut stream = server.connect().await;
    for piece in ["GET", " ", "/get_tpm_keys", "?", V, " HTTP/1.1\r\n", "\r\n"] {
        stream.write_all(piece.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    let mut first = vec![0; 512];
    let read = stream.read(&mut first).await.unwrap();
    assert!(first[..read].ends_with(b"[\"ek\"]"), "{:?}", String::from_utf8_lossy(&first[..read]));
}

#[tokio::test]
async fn deletion_answers_204_and_closes() {
    let server = start();
    let mut stream = server.connect().await;
    stream.write_all(format!("DELETE /things/x?{V} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let reply = timeout(PATIENCE, read_reply(&mut stream, false)).await.unwrap().unwrap();
    assert_eq!(reply.status, 204);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the blocking client waits for the end of the connection");
}

#[tokio::test]
async fn errors_tell_the_caller_little_and_keep_the_connection() {
    let server = start();
    let mut stream = server.connect().await;
    for (data, status, text) in
        [("ZmFpbA==", 500, "internal error"), ("cGFuaWM=", 500, "internal error"), ("%", 422, "")]
    {
        let body = format!(r#"{{"data":"{data}"}}"#);
        let request = format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let reply = timeout(PATIENCE, read_reply(&mut stream, false)).await.unwrap().unwrap();
        let (got, message) = message(&reply);
        assert_eq!(got, status);
        assert!(text.is_empty() || message == text, "{message}");
    }
    assert_eq!(
        message(&server.send("DELETE", &format!("/things/none?{V}"), "").await),
        (400, "there is no thing none".into())
    );
}

#[tokio::test]
async fn a_body_of_two_mebibytes_is_refused_before_it_arrives() {
    let server = start();
    let announced = format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 2 * 1024 * 1024);
    let reply = server.send_raw(&announced).await;
    assert_eq!(message(&reply).0, 413);
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status, 200);

    // One that does not say how long it is.
    let mut stream = server.connect().await;
    let head = format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, "x".repeat(64 * 1024));
    for _ in 0..32 {
        // The server stops reading at its limit and may close before all is sent.
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            break;
        }
    }
    let reply = timeout(PATIENCE, read_reply(&mut stream, false)).await.unwrap().expect("an answer");
    assert_eq!(message(&reply).0, 413);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_408() {
    let server = start();
    let reply = server.send_raw(&format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: 9\r\n\r\n{{")).await;
    assert_eq!(message(&reply), (408, "deadline has elapsed".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_dribbles_in_is_cut_off_and_costs_one_slot_only() {
    let limits = Limits { requests_per_user: 2, ..Limits::new(MaxRequests::default()) };
    let server = start_with(&things(), limits);
    let mut slow = server.connect().await;
    let dribble = async {
        for byte in b"GET /get_tpm_keys HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(70), dribble).await.expect("the server gives up after 60 s");
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_after_a_minute() {
    let server = start();
    let mut silent = server.connect().await;
    let ended = timeout(Duration::from_secs(65), silent.read(&mut [0])).await.expect("closed in time");
    assert_eq!(ended.unwrap(), 0);
}

#[tokio::test]
async fn idle_connections_hold_no_slot_and_busy_ones_do() {
    let things = things();
    let wait_for_slot = Duration::from_millis(200);
    let limits = Limits { requests_per_user: 2, wait_for_slot, ..Limits::new(MaxRequests::default()) };
    let server = start_with(&things, limits);
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(server.connect().await);
    }
    let request =
        format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: 19\r\n\r\n{{\"data\":\"d2FpdA==\"}}");
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        busy.push(stream);
    }
    things.entered.acquire_many(2).await.unwrap().forget();
    // The third request waits a little, then its connection is reset, unread.
    let mut third = server.connect().await;
    third.write_all(format!("GET /get_tpm_keys?{V} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    let error = timeout(PATIENCE, third.read(&mut [0])).await.unwrap().expect_err("a reset, never a clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    things.go.notify_waiters();
    for stream in &mut busy {
        assert_eq!(timeout(PATIENCE, read_reply(stream, false)).await.unwrap().unwrap().status, 200);
    }
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status, 200);
}

/// Clients in the field spin for ever on an end of file after a request, so every refusal must be a reset.
#[tokio::test]
async fn refused_requests_never_see_an_end_of_file() {
    use std::io::{Read as _, Write as _};
    let things = things();
    let wait_for_slot = Duration::from_millis(50);
    let limits = Limits { requests_per_user: 1, wait_for_slot, ..Limits::new(MaxRequests::default()) };
    let server = start_with(&things, limits);
    let request =
        format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: 19\r\n\r\n{{\"data\":\"d2FpdA==\"}}");
    let mut busy = server.connect().await;
    busy.write_all(request.as_bytes()).await.unwrap();
    things.entered.acquire().await.unwrap().forget();
    let refused: Vec<_> = (0..60)
        .map(|_| {
            let (socket, request) = (server.socket(), request.clone());
            std::thread::spawn(move || {
                let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // A reset may come before the request is sent.
                let _ = stream.write_all(request.as_bytes());
                stream.read(&mut [0; 1]).map_err(|error| error.kind())
            })
        })
        .collect();
    for client in refused {
        let ended = tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
        assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset));
    }
    things.go.notify_waiters();
    assert_eq!(timeout(PATIENCE, read_reply(&mut busy, false)).await.unwrap().unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn half_a_head_keeps_its_slot_for_a_moment_only() {
    let limits = Limits { requests_per_user: 1, ..Limits::new(MaxRequests::default()) };
    let server = start_with(&things(), limits);
    let mut half = server.connect().await;
    half.write_all(b"\r\nG").await.unwrap();
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status, 200);
    half.write_all(format!("ET /get_tpm_keys?{V} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
    assert_eq!(timeout(PATIENCE, read_reply(&mut half, false)).await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_that_nobody_reads_keeps_its_slot_and_is_given_up() {
    let write = Duration::from_millis(300);
    let limits = Limits { requests_per_user: 1, write, ..Limits::new(MaxRequests::default()) };
    let server = start_with(&things(), limits);
    let body = format!("{{\"data\":\"{}\"}}", "QUFB".repeat(250_000));
    let request = format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut deaf = server.connect().await;
    deaf.write_all(request.as_bytes()).await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status, 200);
    assert!(begun.elapsed() >= write / 2, "the slot was not held");
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, deaf.read_to_end(&mut rest)).await.expect("given up");
    assert!(ended.is_err() || rest.len() < body.len(), "the whole answer came");
}

#[tokio::test]
async fn five_hundred_clients_at_once_are_all_served() {
    let server = Arc::new(start());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let server = Arc::clone(&server);
        clients.spawn(async move { server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status });
    }
    let statuses = clients.join_all().await;
    assert!(statuses.iter().all(|status| *status == 200));
}

#[tokio::test]
async fn callers_that_hang_up_at_once_do_not_use_up_their_users_connections() {
    let limits = Limits { connections_per_user: 64, ..Limits::new(MaxRequests::default()) };
    let server = start_with(&things(), limits);
    // All of them wait in the kernel, hung up, before the server gets to run.
    for _ in 0..500 {
        drop(std::os::unix::net::UnixStream::connect(server.socket()).unwrap());
    }
    assert_eq!(server.send("GET", &format!("/get_tpm_keys?{V}"), "").await.status, 200);
}

#[tokio::test]
async fn a_pipelined_request_is_answered_in_turn() {
    let server = start();
    let mut stream = server.connect().await;
    let one = format!("GET /get_tpm_keys?{V} HTTP/1.1\r\n\r\n");
    stream.write_all(one.repeat(2).as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    while bytes.windows(6).filter(|window| window == b"[\"ek\"]").count() < 2 {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut bytes)).await.unwrap().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_call_outlives_its_client_and_the_stop_waits_for_it() {
    let things = things();
    let mut server = start_with(&things, Limits::new(MaxRequests::default()));
    let mut stream = server.connect().await;
    let request =
        format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: 19\r\n\r\n{{\"data\":\"d2FpdA==\"}}");
    stream.write_all(request.as_bytes()).await.unwrap();
    things.entered.acquire().await.unwrap().forget();
    drop(stream);
    let socket = server.socket();
    let ((), ()) = tokio::join!(server.stop(), async {
        while UnixStream::connect(&socket).await.is_ok() {
            tokio::task::yield_now().await;
        }
        things.go.notify_waiters();
    });
    assert_eq!(things.finished.load(Ordering::SeqCst), 1);
    assert!(!socket.exists(), "a socket bound here is removed");
}

#[tokio::test(start_paused = true)]
async fn the_stop_has_a_limit() {
    let things = things();
    let mut server = start_with(&things, Limits::new(MaxRequests::default()));
    let mut stream = server.connect().await;
    let request =
        format!("POST /sign_with_auth_key?{V} HTTP/1.1\r\ncontent-length: 19\r\n\r\n{{\"data\":\"aGFuZw==\"}}");
    stream.write_all(request.as_bytes()).await.unwrap();
    things.entered.acquire().await.unwrap().forget();
    server.stop().await;
}

#[tokio::test]
async fn the_client_pools_and_tells_refused_from_offline() {
    let mut server = start();
    let retry = Retry { retries: 0, ..Retry::local(0) };
    let client = Client::new(&server.endpoint(), ApiVersion::V2020_09_01, retry).unwrap();
    let digest = client.send(&Sign { data: Base64(b"hello".to_vec()) }).await.unwrap();
    assert_eq!(digest.digest.0, b"hello");
    client.send(&Remove { id: "a/b?c%d é".into() }).await.unwrap();
    let refused = client.send(&Remove { id: "none".into() }).await.unwrap_err();
    assert_eq!(
        (refused.status(), refused.to_string()),
        (Some(StatusCode::BAD_REQUEST), "there is no thing none".into())
    );
    assert!(!refused.is_offline());
    server.stop().await;
    let offline = client.send(&GetKeys {}).await.unwrap_err();
    assert!(matches!(offline, ClientError::NotConnected { .. }) && offline.is_offline(), "{offline:?}");
}

#[tokio::test(start_paused = true)]
async fn the_client_gives_up_on_a_silent_service() {
    let things = things();
    let server = start_with(&things, Limits::new(MaxRequests::default()));
    let client = Client::new(&server.endpoint(), ApiVersion::V2020_09_01, Retry::local(1)).unwrap();
    let error = client.send(&Sign { data: Base64(b"hang".to_vec()) }).await.unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    assert_eq!(things.entered.available_permits(), 2, "one repetition");
}
