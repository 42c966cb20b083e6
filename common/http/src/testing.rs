//! Test support: a service on a socket of its own, and a client that sends raw bytes and distrusts every reply.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;

use crate::{Endpoint, Limits, Listener, Peer, PeerProcess, Server, Shutdown, server::MaxRequests, service::Routes};

const PATIENCE: Duration = Duration::from_secs(20);

/// A service that runs until this is dropped.
pub struct TestServer {
    folder: tempfile::TempDir,
    shutdown: Shutdown,
    server: JoinHandle<std::io::Result<()>>,
}

/// One answer, checked for what every answer must have.
#[derive(Debug)]
pub struct RawReply {
    /// Status code.
    pub status: u16,
    /// Header fields; names as they came.
    pub headers: BTreeMap<String, String>,
    /// Bytes of head, with the empty line that ends it.
    pub head: Vec<u8>,
    /// Body as text.
    pub body: String,
}

impl TestServer {
    /// Starts `routes` with the limits of a daemon with default settings.
    #[must_use]
    pub fn start(routes: Routes) -> Self {
        Self::start_with(routes, Limits::new(MaxRequests::default()))
    }

    /// Starts `routes` with limits of the test's choice.
    #[must_use]
    pub fn start_with(routes: Routes, limits: Limits) -> Self {
        Self::start_as(routes, limits, |server| server)
    }

    /// Starts `routes` on a server that the test has a hand in.
    ///
    /// # Panics
    /// When no temporary folder or socket can be made.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "aborted on drop; a test has no task set to spawn on")]
    pub fn start_as(routes: Routes, limits: Limits, finish: impl FnOnce(Server) -> Server) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let listener = Listener::bind(&folder.path().join("test.sock")).expect("socket");
        let shutdown = Shutdown::new();
        let server = tokio::spawn(finish(Server::new(listener, limits)).serve(routes, shutdown.clone()));
        Self { folder, shutdown, server }
    }

    /// Path of the socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("test.sock")
    }

    /// The socket as an endpoint.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }

    /// Asks the server to stop and waits until it has.
    ///
    /// # Panics
    /// When it fails or takes more than 20 s.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        timeout(PATIENCE, &mut self.server).await.expect("stop in time").expect("no panic").expect("no error");
    }

    /// A new connection.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.expect("connect")
    }

    /// Sends a request on a connection of its own, with a JSON content type where there is a body.
    pub async fn send(&self, method: &str, target: &str, body: &str) -> RawReply {
        let content = if body.is_empty() { String::new() } else { "content-type: application/json\r\n".to_owned() };
        self.send_raw(&format!("{method} {target} HTTP/1.1\r\n{content}content-length: {}\r\n\r\n{body}", body.len()))
            .await
    }

    /// Sends bytes as they are and reads one answer.
    ///
    /// # Panics
    /// When the answer is not as every answer must be.
    pub async fn send_raw(&self, request: &str) -> RawReply {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("send");
        let head = request.starts_with("HEAD ");
        timeout(PATIENCE, read_reply(&mut stream, head)).await.expect("answer in time").expect("an answer")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A process as a server that [identifies processes](Server::identify_processes) knows a caller.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn process(pid: u32) -> PeerProcess {
    PeerProcess::open(i32::try_from(pid).expect("a pid")).expect("a process")
}

/// Answers a request as the server does, without a socket and without a log line: for fuzz targets and benchmarks.
///
/// # Panics
/// When the body of the answer fails, which one in memory cannot.
pub async fn answer(routes: &Routes, peer: Peer, request: Request<Vec<u8>>) -> (StatusCode, Vec<u8>) {
    let mut request = request.map(axum::body::Body::from);
    request.extensions_mut().insert(peer);
    let (head, body) = routes.answer(request).await.into_parts();
    let body = body.collect().await.expect("a body in memory").to_bytes();
    (head.status, body.to_vec())
}

/// Reads one answer; `None` when the connection ended before its first byte.
///
/// # Panics
/// When the answer is not as every answer must be.
pub async fn read_reply(stream: &mut UnixStream, head_only: bool) -> Option<RawReply> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            assert!(bytes.is_empty(), "the head ends early: {:?}", String::from_utf8_lossy(&bytes));
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).expect("an ASCII head");
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
    let length = if head_only { 0 } else { length };
    while bytes.len() < end + length {
        assert_ne!(stream.read_buf(&mut bytes).await.expect("the body"), 0, "the body ends early");
    }
    let body = String::from_utf8(bytes[end..].to_vec()).expect("a text body");
    assert!(head.len() <= 512, "deployed clients read a head of at most 512 bytes: {head}");
    assert!(headers.len() <= 16 && headers.keys().all(|name| name.chars().all(|letter| !letter.is_ascii_uppercase())));
    assert!(!headers.contains_key("transfer-encoding"), "deployed clients know no chunks: {head}");
    match status {
        204 => {
            assert!(
                body.is_empty() && !headers.contains_key("content-type") && !headers.contains_key("content-length")
            );
            assert_eq!(headers.get("connection").map(String::as_str), Some("close"));
        }
        _ if length > 0 => assert_eq!(headers.get("content-type").map(String::as_str), Some("application/json")),
        _ => {}
    }
    Some(RawReply { status, headers, head: bytes[..end].to_vec(), body })
}
