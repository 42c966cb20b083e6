//! An engine that answers one connection after the other with what it is told, and may stop there.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use crate::docker::Docker;

/// What the engine does after it has written its answer.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// Closes the connection.
    Close,
    /// Does nothing any more.
    Hang,
    /// Writes so many chunks, a minute apart, then hangs.
    Drip(u32),
}

pub(super) struct Scripted {
    folder: TempDir,
    requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Scripted {
    pub(super) fn start<T: Into<String>>(script: impl IntoIterator<Item = (T, Then)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let script: Vec<(String, Then)> = script.into_iter().map(|(text, then)| (text.into(), then)).collect();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = Vec::new();
            for (text, then) in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read(&mut stream).await;
                seen.lock().unwrap().push(request);
                // The client may have had enough.
                let _ = stream.write_all(text.as_bytes()).await;
                match then {
                    Then::Close => drop(stream),
                    Then::Hang => open.push(stream),
                    Then::Drip(times) => {
                        for _ in 0..times {
                            tokio::time::sleep(Duration::from_secs(60)).await;
                            let _ = stream.write_all(b"2\r\n{}\r\n").await;
                        }
                        open.push(stream);
                    }
                }
            }
            std::future::pending::<()>().await;
        });
        Self { folder, requests, _tasks: tasks }
    }

    pub(super) fn docker(&self) -> Docker {
        Docker::new(&format!("unix://{}/s", self.folder.path().display())).unwrap()
    }

    /// All requests, head and body.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Methods and targets of all requests.
    pub(super) fn targets(&self) -> Vec<String> {
        let target = |request: &String| request.split(" HTTP/1.1").next().unwrap().to_owned();
        self.requests().iter().map(target).collect()
    }
}

async fn read(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return text;
        }
    }
}

pub(super) fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

pub(super) fn chunked(chunks: &[&str]) -> String {
    let mut text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for chunk in chunks.iter().chain(&[""]) {
        write!(text, "{:x}\r\n{chunk}\r\n", chunk.len()).unwrap();
    }
    text
}
