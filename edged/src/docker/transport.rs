//! Requests to the engine and their limits: pooled connections, a time for each wait, a size for each answer, the engine's words on errors.

use std::{fmt::Write as _, time::Duration};

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, USER_AGENT},
    uri::{Authority, PathAndQuery},
};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use hyperlocal::UnixConnector;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use aziot_http::Endpoint;

use super::{Error, LIMIT};

/// Bytes of an answer that is read whole. A thousand containers with their labels come to about 3 MB.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// Bytes of an error's text that are looked at.
const ERROR_LIMIT: usize = 64 * 1024;
const IDLE: Duration = Duration::from_secs(30);
/// Kept for the next round of statistics or inspections; each costs the engine a goroutine or two.
const IDLE_CONNECTIONS: usize = 8;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// All but the unreserved characters of RFC 3986.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Credentials for a registry.
const REGISTRY_AUTH: HeaderName = HeaderName::from_static("x-registry-auth");

/// The engine's address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no address of a container engine: expected unix:///path or http://host[:port]")]
pub(crate) struct BadUri(String);

/// One request, not yet sent.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    target: String,
    /// Length of the target before its query.
    path: Option<usize>,
    body: Option<Bytes>,
    auth: Option<HeaderValue>,
    limit: Duration,
}

impl Call {
    pub(super) fn new(method: Method, path: &str) -> Self {
        Self { method, target: path.to_owned(), path: None, body: None, auth: None, limit: LIMIT }
    }

    pub(super) fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    /// Appends one segment of the path, encoded.
    pub(super) fn segment(mut self, text: &str) -> Self {
        self.target.extend(utf8_percent_encode(text, COMPONENT));
        self
    }

    /// Appends to the path what needs no encoding.
    pub(super) fn then(mut self, text: &str) -> Self {
        self.target.push_str(text);
        self
    }

    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        let begun = self.path.is_some();
        self.path.get_or_insert(self.target.len());
        // Writing to a String cannot fail.
        let _ =
            write!(self.target, "{}{name}={}", if begun { '&' } else { '?' }, utf8_percent_encode(value, COMPONENT));
        self
    }

    pub(super) fn body(mut self, value: &Value) -> Self {
        self.body = Some(Bytes::from(value.to_string()));
        self
    }

    pub(super) fn auth(mut self, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        self.auth = Some(value);
        self
    }

    pub(super) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Method and path, for errors.
    pub(super) fn name(&self) -> String {
        let path = self.path.and_then(|end| self.target.get(..end)).unwrap_or(&self.target);
        format!("{} {path}", self.method)
    }

    fn timed_out(&self, limit: Duration) -> Error {
        Error::TimedOut { call: self.name(), limit }
    }

    pub(super) fn malformed(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Malformed { call: self.name(), source: source.into() }
    }
}

/// How the engine is reached.
#[derive(Debug)]
pub(super) struct Transport {
    engine: String,
    authority: Authority,
    http: Http,
}

#[derive(Debug)]
enum Http {
    Unix(legacy::Client<UnixConnector, Full<Bytes>>),
    Tcp(legacy::Client<HttpConnector, Full<Bytes>>),
}

impl Transport {
    pub(super) fn new(uri: &str) -> Result<Self, BadUri> {
        let bad = || BadUri(uri.to_owned());
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).pool_max_idle_per_host(IDLE_CONNECTIONS);
        let (authority, http) = if uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
            let parsed: Uri = uri.parse().map_err(|_| bad())?;
            let plain = parsed.path() == "/" && parsed.query().is_none();
            let authority = parsed.authority().filter(|authority| plain && !authority.as_str().contains('@'));
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(CONNECT_LIMIT));
            (authority.cloned().ok_or_else(bad)?, Http::Tcp(builder.build(connector)))
        } else {
            let Ok(Endpoint::Unix(path)) = uri.parse() else { return Err(bad()) };
            // hyperlocal's form: the path in hexadecimal in place of a host.
            let uri: Uri = hyperlocal::Uri::new(path, "/").into();
            (uri.authority().cloned().ok_or_else(bad)?, Http::Unix(builder.build(UnixConnector)))
        };
        Ok(Self { engine: uri.to_owned(), authority, http })
    }

    /// Sends the call and waits for the head of a successful answer.
    pub(super) async fn head(&self, call: &Call) -> Result<Response<Incoming>, Error> {
        let mut outcome = self.attempt(call).await;
        // The engine has closed a kept connection in the very moment, most likely because it was started again.
        if call.method == Method::GET && matches!(outcome, Err(Error::Interrupted { .. })) {
            outcome = self.attempt(call).await;
        }
        let response = outcome?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        if !(status.is_client_error() || status.is_server_error()) {
            return Err(call.malformed(format!("unexpected status {status}")));
        }
        let body = tokio::time::timeout(LIMIT, Limited::new(response.into_body(), ERROR_LIMIT).collect()).await;
        // A refusal stays one, whatever became of its text.
        let text = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
        Err(Error::Refused { status, message: message(status, &text) })
    }

    async fn attempt(&self, call: &Call) -> Result<Response<Incoming>, Error> {
        let request = self.request(call).map_err(|source| Error::Unsendable { call: call.name(), source })?;
        let response = async {
            match &self.http {
                Http::Unix(client) => client.request(request).await,
                Http::Tcp(client) => client.request(request).await,
            }
        };
        match tokio::time::timeout(call.limit, response).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                Err(Error::NotConnected { engine: self.engine.clone(), source: error.into() })
            }
            Ok(Err(error)) => Err(Error::Interrupted { call: call.name(), source: error.into() }),
            Err(_) => Err(call.timed_out(call.limit)),
        }
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, http::Error> {
        let scheme = if matches!(self.http, Http::Unix(_)) { "unix" } else { "http" };
        let target: PathAndQuery = call.target.parse()?;
        let uri = Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(target).build()?;
        let mut request = Request::builder().method(call.method.clone()).uri(uri);
        request = request.header(USER_AGENT, concat!("aziot-edged/", env!("CARGO_PKG_VERSION")));
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(auth) = &call.auth {
            request = request.header(REGISTRY_AUTH, auth.clone());
        }
        request.body(Full::new(call.body.clone().unwrap_or_default()))
    }

    /// Sends the call and reads its whole answer.
    pub(super) async fn json<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let mut body = self.head(call).await?.into_body();
        let mut bytes = Vec::with_capacity(usize::try_from(body.size_hint().lower()).unwrap_or(0).min(ERROR_LIMIT));
        while let Some(piece) = next(call, &mut body, Some(LIMIT)).await? {
            if bytes.len() + piece.len() > ANSWER_LIMIT {
                return Err(call.malformed(format!("over {ANSWER_LIMIT} bytes")));
            }
            bytes.extend_from_slice(&piece);
        }
        serde_json::from_slice(&bytes).map_err(|source| call.malformed(source))
    }

    /// Sends the call; what a success says is not looked at.
    pub(super) async fn nothing(&self, call: &Call) -> Result<(), Error> {
        let mut body = self.head(call).await?.into_body();
        // Read to its end, so that the connection can serve again.
        let mut left = ERROR_LIMIT;
        while let Some(piece) = next(call, &mut body, Some(LIMIT)).await? {
            match left.checked_sub(piece.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        Ok(())
    }
}

/// The next piece of an answer; `idle` is the time that it may take.
pub(super) async fn next(call: &Call, body: &mut Incoming, idle: Option<Duration>) -> Result<Option<Bytes>, Error> {
    next_of(|| call.name(), body, idle).await
}

/// As [`next`], for who has only the name of the call.
pub(super) async fn next_of(
    name: impl Fn() -> String,
    body: &mut Incoming,
    idle: Option<Duration>,
) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = match idle {
            Some(limit) => {
                tokio::time::timeout(limit, body.frame()).await.map_err(|_| Error::TimedOut { call: name(), limit })?
            }
            None => body.frame().await,
        };
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(Error::Interrupted { call: name(), source: error.into() }),
            // Trailers say nothing here.
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            },
        }
    }
}

/// The engine's own words.
fn message(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let text = match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.message,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    match text.trim() {
        "" => format!("the container engine answered {status}"),
        text => text.to_owned(),
    }
}
