//! Calling a service on its socket: pooled connections, a limit on every wait, errors that tell offline from refused.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use hyperlocal::UnixConnector;
use serde_json::Value;

use aziot_log::{RequestId, fields};

use crate::{ApiVersion, Call, Endpoint, REQUEST_ID_HEADER, Retry, error::ErrorBody, parameters};

/// Bytes of an answer; none of ours comes near it.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// Below the servers' 60 s, so that a connection is dropped here before it is dropped there.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS: usize = 8;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing answered at the socket; nothing was sent.
    #[error("could not connect to {}", socket.display())]
    NotConnected {
        /// Path of the socket.
        socket: PathBuf,
        /// What the system said.
        source: legacy::Error,
    },
    /// The connection ended before the answer was complete; the call may have been carried out.
    #[error("the connection to {} broke", socket.display())]
    Interrupted {
        /// Path of the socket.
        socket: PathBuf,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{} did not answer within {} s", socket.display(), limit.as_secs())]
    TimedOut {
        /// Path of the socket.
        socket: PathBuf,
        /// The time it had.
        limit: Duration,
    },
    /// The service answered with an error; `message` is its text.
    #[error("{message}")]
    Refused {
        /// Status of the answer, 400 or above.
        status: StatusCode,
        /// The service's own words.
        message: String,
    },
    /// An answer that the service's API does not have.
    #[error("unexpected answer {status} from {}", socket.display())]
    Unexpected {
        /// Path of the socket.
        socket: PathBuf,
        /// Status of the answer.
        status: StatusCode,
    },
    /// The answer is not what the call promises.
    #[error("malformed answer from {}", socket.display())]
    Malformed {
        /// Path of the socket.
        socket: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The call cannot be written as a request.
    #[error("the call cannot be written as a request")]
    Unsendable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// Whether the service could not be reached or did not answer, as opposed to saying no.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::NotConnected { .. } | Self::Interrupted { .. } | Self::TimedOut { .. })
    }

    /// The status of a service that said no.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } | Self::Unexpected { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// The endpoint cannot be called.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no socket that a client can connect to")]
pub struct NotCallable(Endpoint);

/// A client of one service.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    version: ApiVersion,
    retry: Retry,
    http: legacy::Client<UnixConnector, Full<Bytes>>,
}

impl Client {
    /// A client that speaks `version` and repeats calls as `retry` says. Nothing is connected yet.
    pub fn new(endpoint: &Endpoint, version: ApiVersion, retry: Retry) -> Result<Self, NotCallable> {
        let Endpoint::Unix(socket) = endpoint else { return Err(NotCallable(endpoint.clone())) };
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(UnixConnector);
        Ok(Self { socket: socket.clone(), version, retry, http })
    }

    /// Sends the call and returns what it promises.
    pub async fn send<C: Call>(&self, call: &C) -> Result<C::Reply, ClientError> {
        let prepared = Prepared::new(call, self.version)?;
        let begun = Instant::now();
        let mut done = 0;
        loop {
            let attempt = tokio::time::timeout(self.retry.attempt, self.attempt(&prepared, C::SUCCESS)).await;
            let (error, asked) = match attempt {
                Ok(Ok(body)) => {
                    return serde_json::from_slice(&body)
                        .map_err(|source| ClientError::Malformed { socket: self.socket.clone(), source });
                }
                Ok(Err(failed)) => failed,
                Err(_) => (ClientError::TimedOut { socket: self.socket.clone(), limit: self.retry.attempt }, None),
            };
            done += 1;
            let repeatable = match &error {
                ClientError::NotConnected { .. } => true,
                ClientError::Refused { status, .. } => *status == StatusCode::TOO_MANY_REQUESTS,
                _ => error.is_offline() && C::IDEMPOTENT,
            };
            let pause = repeatable.then(|| self.retry.pause(done, begun.elapsed(), asked)).flatten();
            let Some(pause) = pause else { return Err(error) };
            tracing::warn!(
                { fields::URL } = %self.socket.display(),
                { fields::ATTEMPT } = done,
                { fields::DELAY_MILLISECONDS } = u64::try_from(pause.as_millis()).unwrap_or(0),
                { fields::ERROR } = %aziot_log::chain(&error),
                "call failed, will be repeated"
            );
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, call: &Prepared, success: StatusCode) -> Result<Bytes, (ClientError, Option<Duration>)> {
        let request = call.request(&self.socket).map_err(|error| (ClientError::Unsendable(error.into()), None))?;
        let response = self.http.request(request).await.map_err(|error| (self.transport(error), None))?;
        let (status, asked) = (response.status(), retry_after(&response));
        let interrupted = |source| (ClientError::Interrupted { socket: self.socket.clone(), source }, None);
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await.map_err(interrupted)?.to_bytes();
        if status == success {
            return Ok(if status == StatusCode::NO_CONTENT { Bytes::from_static(b"null") } else { body });
        }
        if status.is_client_error() || status.is_server_error() {
            let message = serde_json::from_slice::<ErrorBody>(&body)
                .map_or_else(|_| format!("HTTP error {status}"), |body| body.message);
            return Err((ClientError::Refused { status, message }, asked));
        }
        Err((ClientError::Unexpected { socket: self.socket.clone(), status }, None))
    }

    fn transport(&self, source: legacy::Error) -> ClientError {
        let socket = self.socket.clone();
        if source.is_connect() {
            return ClientError::NotConnected { socket, source };
        }
        ClientError::Interrupted { socket, source: source.into() }
    }
}

/// Seconds of a `Retry-After` header; its date form is for caches, no service here sends it.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// A call turned into what goes on the wire, as often as it has to.
struct Prepared {
    method: http::Method,
    target: String,
    body: Option<Bytes>,
}

impl Prepared {
    fn new<C: Call>(call: &C, version: ApiVersion) -> Result<Self, ClientError> {
        let value = serde_json::to_value(call).map_err(|error| ClientError::Unsendable(error.into()))?;
        let Value::Object(mut members) = value else {
            return Err(ClientError::Unsendable("a call is a struct with named members".into()));
        };
        let target = parameters::take_target::<C>(&mut members, version.as_str());
        let body = match C::BODY {
            crate::Body::Ignored if C::METHOD == http::Method::PUT => Some(Bytes::from_static(b"{}")),
            crate::Body::Ignored => None,
            crate::Body::Required => Some(Bytes::from(Value::Object(members).to_string())),
        };
        Ok(Self { method: C::METHOD, target, body })
    }

    fn request(&self, socket: &std::path::Path) -> Result<Request<Full<Bytes>>, http::Error> {
        let uri: http::Uri = hyperlocal::Uri::new(socket, &self.target).into();
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        if self.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(id) = RequestId::current()
            && let Ok(value) = HeaderValue::from_str(id.as_str())
        {
            request = request.header(REQUEST_ID_HEADER, value);
        }
        request.body(Full::new(self.body.clone().unwrap_or_default()))
    }
}
