//! HTTP/1.1 on a kept connection, over a Unix socket or TLS: as small as a load generator wants it, and strict about what comes back.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use openssl::{
    ssl::{SslConnector, SslMethod},
    x509::{X509, store::X509StoreBuilder},
};
use serde_json::Value;

/// For how long an answer is waited for; longer than a service may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// More than any answer of the runtime has.
const LONGEST_BODY: usize = 64 << 20;

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON; null where there is none.
    pub fn json(&self) -> Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.text()))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer itself, if its status is one of these.
    pub fn expect(self, statuses: &[u16]) -> Result<Self> {
        ensure!(statuses.contains(&self.status), "status {} instead of {statuses:?}: {}", self.status, self.text());
        Ok(self)
    }
}

trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// A connection that is kept.
pub struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    host: String,
}

impl Connection {
    /// Connects to a Unix socket.
    pub fn unix(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("could not connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = socket.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // As the stock clients name a socket.
        Ok(Self { stream: BufReader::new(Box::new(stream)), host: format!("{name}:80") })
    }

    /// Connects to `NAME[:PORT]` over TLS, trusting the certificates in `roots` (PEM) alone.
    pub fn tls(authority: &str, roots: &[u8]) -> Result<Self> {
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().with_context(|| format!("no port in {authority}"))?),
            None => (authority, 443),
        };
        let mut store = X509StoreBuilder::new()?;
        for root in X509::stack_from_pem(roots).context("the trust bundle is not PEM")? {
            store.add_cert(root)?;
        }
        let mut connector = SslConnector::builder(SslMethod::tls_client())?;
        connector.set_cert_store(store.build());
        let stream = TcpStream::connect((name, port)).with_context(|| format!("could not connect to {authority}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let stream = connector.build().connect(name, stream).with_context(|| format!("no TLS with {authority}"))?;
        Ok(Self { stream: BufReader::new(Box::new(stream)), host: authority.to_owned() })
    }

    /// Sends a request and reads its answer. A body is sent as it is, with these headers.
    pub fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Response> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host).into_bytes();
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n")?;
        }
        if let Some(body) = body {
            write!(request, "Content-Length: {}\r\n", body.len())?;
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body.unwrap_or_default());
        // In one write, as one packet.
        self.stream.get_mut().write_all(&request).with_context(|| format!("could not send {method} {target}"))?;
        self.read().with_context(|| format!("no answer to {method} {target}"))
    }

    fn read(&mut self) -> Result<Response> {
        let line = self.line()?;
        let mut parts = line.splitn(3, ' ');
        let (version, status, reason) = (parts.next(), parts.next(), parts.next());
        // The hand-written stack of edgeAgent wants all three.
        ensure!(version == Some("HTTP/1.1") && reason.is_some(), "a status line in two parts: {line:?}");
        let status = status.and_then(|status| status.parse().ok()).with_context(|| format!("no status in {line:?}"))?;
        let (mut length, mut is_chunked) = (None, false);
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').with_context(|| format!("a header without colon: {line:?}"))?;
            if name.eq_ignore_ascii_case("content-length") {
                ensure!(length.is_none(), "two lengths");
                length = Some(value.trim().parse::<usize>().with_context(|| format!("no length: {line:?}"))?);
            }
            is_chunked |= name.eq_ignore_ascii_case("transfer-encoding") && value.trim() == "chunked";
        }
        let body = match (length, is_chunked) {
            (_, true) => self.chunks()?,
            (Some(length), false) => self.bytes(length)?,
            (None, false) if status == 204 || status == 304 => Vec::new(),
            (None, false) => bail!("status {status}, and a body without a length"),
        };
        Ok(Response { status, body })
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = usize::from_str_radix(&line, 16).with_context(|| format!("no chunk length: {line:?}"))?;
            body.extend(self.bytes(length)?);
            ensure!(self.line()?.is_empty(), "a chunk longer than it says");
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        ensure!(length <= LONGEST_BODY, "a body of {length} bytes");
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).context("the answer ends early")?;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("the connection broke")?;
        let line = line.strip_suffix("\r\n").with_context(|| format!("the connection was closed after {line:?}"))?;
        Ok(line.to_owned())
    }
}
