//! HTTP as bytes on a Unix socket: what curl cannot send (halves, garbage, many at once), and calls by the hundred without a process for each.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::Reply;

/// Longer than any answer takes; the longest limit of a daemon is 60 s.
const PATIENCE: Duration = Duration::from_secs(70);

/// A connection to a socket.
pub fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("could not connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE)).context("could not set a time limit")?;
    Ok(stream)
}

/// Sends these bytes, which ask for the connection to be closed, and returns all that comes back until then. A reset counts as a close.
pub fn exchange(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream = connect(socket)?;
    // The other side may refuse before it has read all.
    let _ = stream.write_all(bytes);
    read_to_end(&mut stream)
}

/// Sends these bytes and then the end of file, and returns all that comes back.
pub fn exchange_and_end(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream = connect(socket)?;
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    read_to_end(&mut stream)
}

/// Reads until the other side closes. A reset counts as a close.
pub fn read_to_end(stream: &mut UnixStream) -> Result<String> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        Err(error) => return Err(error).context("no answer"),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The bytes of a request with a JSON body, after which the connection is closed.
#[must_use]
pub fn request(method: &str, target: &str, body: Option<&str>) -> String {
    let head = format!("{method} {target} HTTP/1.1\r\nhost: device\r\nconnection: close\r\n");
    match body {
        None => format!("{head}\r\n"),
        Some(body) => {
            let length = body.len();
            format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        }
    }
}

/// A call, tried once.
pub fn call(socket: &Path, method: &str, target: &str, body: Option<&str>) -> Result<Reply> {
    let mut stream = connect(socket)?;
    // The other side may refuse before it has read all.
    let _ = stream.write_all(request(method, target, body).as_bytes());
    reply(&read_to_end(&mut stream)?)
}

/// Takes an answer apart.
pub fn reply(answer: &str) -> Result<Reply> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no answer: {answer:?}") };
    let status = head.split(' ').nth(1).context("no status")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    // An answer that ends early is none.
    if length.is_some_and(|length| length.parse() != Ok(body.len())) {
        bail!("half an answer: {answer:?}");
    }
    Ok(Reply { status: status.parse().context("no status")?, body: body.to_owned() })
}
