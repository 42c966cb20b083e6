//! Answers that come piece by piece, as readers of logs see them: chunk by chunk, for as long as they like, and never in anybody's way.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aziot_http::{
    ApiVersion, Body, Call, Limits, Method, Peer, Service, Status, StatusCode, Streamed, server::MaxRequests,
    testing::TestServer,
};
use futures_util::stream;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
    time::timeout,
};

const V: &str = "api-version=2018-06-28";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
struct GetLogs {}
impl Call for GetLogs {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/logs";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = ();
}

#[derive(Debug, Serialize, Deserialize)]
struct GetBundle {}
impl Call for GetBundle {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/bundle";
    const SINCE: ApiVersion = ApiVersion::V2018_06_28;
    const BODY: Body = Body::Ignored;
    type Reply = ();
}

#[derive(Debug, thiserror::Error)]
#[error("no log to read")]
struct NoLog;
impl Status for NoLog {
    fn status(&self) -> StatusCode {
        StatusCode::CONFLICT
    }
}

type Piece = Result<Bytes, std::io::Error>;

/// Logs that a test writes, one for each reader.
struct Logs(Mutex<Vec<mpsc::Receiver<Piece>>>);

async fn get_logs(logs: Arc<Logs>, _: Peer, _: GetLogs) -> Result<Streamed, NoLog> {
    let receiver = logs.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop().ok_or(NoLog)?;
    Ok(Streamed::text(stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))))
}

async fn get_bundle(_: Arc<Logs>, _: Peer, _: GetBundle) -> Result<Streamed, NoLog> {
    let pieces = ["PK", "12345"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
    Ok(Streamed::zip(7, stream::iter(pieces)))
}

fn start(readers: usize, limits: Limits) -> (TestServer, Vec<mpsc::Sender<Piece>>) {
    let (senders, receivers) = (0..readers).map(|_| mpsc::channel(4)).unzip();
    let logs = Arc::new(Logs(Mutex::new(receivers)));
    let service = Service::new(logs, &[ApiVersion::V2018_06_28]).stream(get_logs).stream(get_bundle);
    (TestServer::start_with(service.into_routes(), limits), senders)
}

fn limits() -> Limits {
    Limits::new(MaxRequests::default())
}

async fn ask(server: &TestServer) -> UnixStream {
    let mut stream = server.connect().await;
    let request = format!("GET /logs?{V} HTTP/1.1\r\nHost: mgmt.sock:80\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

/// What one read gives.
async fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 64 * 1024];
    let length = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("in time").expect("no error");
    bytes.truncate(length);
    bytes
}

async fn head(stream: &mut UnixStream) -> String {
    String::from_utf8(read(stream).await).expect("an ASCII head")
}

#[tokio::test]
async fn each_piece_is_one_chunk_and_one_read_gives_the_whole_of_it() {
    let (server, mut senders) = start(1, limits());
    let sender = senders.pop().unwrap();
    let mut reader = ask(&server).await;
    let head = head(&mut reader).await;
    let (status, fields) = head.split_once("\r\n").unwrap();
    assert_eq!(status, "HTTP/1.1 200 OK");
    let mut fields: Vec<_> = fields.trim_end().split("\r\n").filter(|field| !field.starts_with("date: ")).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["content-type: text/plain", "transfer-encoding: chunked"]);
    // The head comes at once, however long the first piece takes.
    let long = vec![b'x'; 16 * 1024 + 8];
    for piece in [b"abc".to_vec(), long] {
        sender.send(Ok(Bytes::from(piece.clone()))).await.unwrap();
        let chunk = [format!("{:X}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
        assert!(read(&mut reader).await == chunk, "{} bytes", piece.len());
    }
    drop(sender);
    assert_eq!(read(&mut reader).await, b"0\r\n\r\n");
    // The connection goes on.
    reader.write_all(format!("GET /logs?{V} HTTP/1.1\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).await.unwrap();
    assert!(
        rest.starts_with("HTTP/1.1 409 Conflict\r\n") && rest.ends_with(r#"{"message":"no log to read"}"#),
        "{rest}"
    );
}

#[tokio::test]
async fn an_error_under_way_cuts_the_answer() {
    let (server, mut senders) = start(1, limits());
    let sender = senders.pop().unwrap();
    let mut reader = ask(&server).await;
    sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    sender.send(Err(std::io::Error::other("the engine is gone"))).await.unwrap();
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, reader.read_to_end(&mut bytes)).await.unwrap();
    assert!(bytes.ends_with(b"3\r\nabc\r\n"), "no last chunk: {}", String::from_utf8_lossy(&bytes));
}

#[tokio::test]
async fn a_file_has_a_length_and_no_chunks() {
    let (server, _) = start(0, limits());
    let mut stream = server.connect().await;
    stream.write_all(format!("GET /bundle?{V} HTTP/1.1\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\ncontent-type: application/zip\r\n") && head.contains("content-length: 7"), "{head}");
    assert!(!head.contains("chunked") && !head.contains("content-encoding"), "{head}");
    assert_eq!(body, "PK12345");
}

#[tokio::test]
async fn whoever_follows_a_log_holds_a_slot_until_he_goes() {
    let wait_for_slot = Duration::from_millis(200);
    let (server, senders) = start(2, Limits { requests_per_user: 1, wait_for_slot, ..limits() });
    let mut follower = ask(&server).await;
    head(&mut follower).await;
    for sender in &senders {
        let _ = sender.try_send(Ok(Bytes::from_static(b"abc")));
    }
    assert_eq!(read(&mut follower).await, b"3\r\nabc\r\n", "it goes on");
    let mut second = ask(&server).await;
    let refused = timeout(PATIENCE, second.read(&mut [0])).await.unwrap().expect_err("a reset");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
    drop(follower);
    let mut third = ask(&server).await;
    assert!(head(&mut third).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_reading_holds_up_its_log_alone_and_is_let_go_at_last() {
    let stream = Duration::from_secs(600);
    let (server, mut senders) = start(1, Limits { stream, write: Duration::from_secs(1), ..limits() });
    let sender = senders.pop().unwrap();
    let mut deaf = ask(&server).await;
    head(&mut deaf).await;
    let begun = tokio::time::Instant::now();
    // Until the server takes no more: what it holds has a bound.
    let mut pieces = 0;
    while sender.send(Ok(Bytes::from(vec![b'x'; 16 * 1024]))).await.is_ok() {
        pieces += 1;
    }
    assert!(pieces < 100, "{pieces} pieces were taken");
    assert!(begun.elapsed() >= stream, "{:?}", begun.elapsed());
    assert_eq!(server.send("GET", &format!("/logs?{V}"), "").await.status, 409);
}

#[tokio::test]
async fn the_stop_does_not_wait_for_a_log_that_is_followed() {
    let (mut server, senders) = start(1, limits());
    let mut follower = ask(&server).await;
    head(&mut follower).await;
    let begun = std::time::Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, follower.read_to_end(&mut rest)).await.unwrap();
    drop(senders);
}
