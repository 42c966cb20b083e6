//! What every request passes before and after the routes: limits, throttling, faults on demand, the catching of panics, the journal and the log.
//!
//! Knows nothing of what the routes mean.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use aziot_log::fields;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HOST, RETRY_AFTER};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use jiff::fmt::rfc2822::DateTimePrinter;
use serde_json::json;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::cloud::{Cloud, Reason, because};
use crate::dps;
use crate::faults::{Fault, Faults, Kind};
use crate::journal;
use crate::server::Ends;
use crate::throttle::{self, Throttled};

const MAX_BODY_BYTES: usize = 1 << 20;
const HUGE_BYTES: usize = 10 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long a fault on demand can hold a request or a connection.
pub(crate) const LONGEST_FAULT: Duration = Duration::from_secs(600);

/// The connection ends here, without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut on demand")]
pub(crate) struct Cut;

/// The way in for requests on the TLS port.
pub(crate) struct Front {
    router: Router,
    cloud: Arc<Cloud>,
    faults: Arc<Faults>,
    ends: Ends,
    last_request_id: AtomicU64,
}

impl Front {
    pub(crate) fn new(router: Router, cloud: Arc<Cloud>, faults: Arc<Faults>, ends: Ends) -> Self {
        Self { router, cloud, faults, ends, last_request_id: AtomicU64::new(0) }
    }

    /// Answers a request, or has its connection cut; `reset` is set where that should be done by a TCP reset.
    pub(crate) async fn handle(&self, request: Request<Incoming>, reset: &AtomicBool) -> Result<Response, Cut> {
        let begin = Instant::now();
        let request_id = self.last_request_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(ToOwned::to_owned);
        let throttled = throttle::subject_of(&path).and_then(|id| self.cloud.throttle(id).err());
        let is_throttled = throttled.is_some();
        let mut answer = match (throttled, self.faults.for_request(&method, &path)) {
            (Some(throttled), _) => Ok(too_many(&path, &throttled)),
            (None, None) => Ok(call(&self.router, &self.ends.calls, request).await),
            (None, Some(fault)) => self.commit(&fault, &path, request, reset).await,
        };
        if let Ok(response) = &mut answer {
            self.tell_time(response);
        }
        let reason = match &answer {
            Ok(response) => response.extensions().get::<Reason>().map(|reason| reason.0.clone()),
            Err(cut) => Some(cut.to_string()),
        };
        let status = answer.as_ref().ok().map(|response| response.status().as_u16());
        let elapsed_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            { fields::METHOD } = method,
            { fields::PATH } = path,
            { fields::STATUS } = status,
            { fields::ELAPSED_MICROSECONDS } = elapsed_us,
            { fields::REQUEST_ID } = request_id,
            reason,
            "request"
        );
        let time = jiff::Timestamp::now();
        let request = journal::Request { time, id: request_id, method, path, host, status, elapsed_us, reason };
        self.cloud.journal.add_request(request, is_throttled);
        answer
    }

    /// The cloud's own time, which hyper would take from the system.
    fn tell_time(&self, response: &mut Response) {
        let now = DateTimePrinter::new().timestamp_to_rfc9110_string(&self.cloud.now());
        if let Some(now) = now.ok().and_then(|now| HeaderValue::try_from(now).ok()) {
            response.headers_mut().insert(DATE, now);
        }
    }

    async fn commit(
        &self,
        fault: &Fault,
        path: &str,
        mut request: Request<Incoming>,
        reset: &AtomicBool,
    ) -> Result<Response, Cut> {
        if fault.kind == Kind::Hang {
            self.ends.until_drain(LONGEST_FAULT).await;
            return Err(Cut);
        }
        let latency = Duration::from_millis(fault.milliseconds.unwrap_or(0).into());
        tokio::time::sleep(latency.min(LONGEST_FAULT)).await;
        let status = |default| fault.status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(default);
        let ok = status(StatusCode::OK);
        let json_type = [(CONTENT_TYPE, "application/json")];
        let response = match fault.kind {
            Kind::Answer => {
                fault.form.map(|form| request.extensions_mut().insert(form));
                return Ok(call(&self.router, &self.ends.calls, request).await);
            }
            Kind::None | Kind::Refuse | Kind::Stall | Kind::Plain | Kind::Latency | Kind::Hang => {
                return Ok(call(&self.router, &self.ends.calls, request).await);
            }
            Kind::Reset => {
                reset.store(true, Ordering::Relaxed);
                return Err(Cut);
            }
            Kind::Withhold => {
                let _served = call(&self.router, &self.ends.calls, request).await;
                self.ends.until_drain(LONGEST_FAULT).await;
                return Err(Cut);
            }
            Kind::ServedAs => {
                let mut response = call(&self.router, &self.ends.calls, request).await;
                *response.status_mut() = status(response.status());
                return Ok(because(response, "fault on demand: ServedAs".to_owned()));
            }
            Kind::Huge => return Ok(swell(call(&self.router, &self.ends.calls, request).await).await),
            Kind::Truncated => return Ok(truncate(call(&self.router, &self.ends.calls, request).await).await),
            Kind::Status => {
                let status = status(StatusCode::INTERNAL_SERVER_ERROR);
                if let Some(body) = &fault.body {
                    return Ok(finish(fault, (status, json_type, body.clone()).into_response()));
                }
                let body = if fault.network_error {
                    json!({ "errorMessage": "the cloud is out of reach (fault on demand)", "networkError": true })
                } else if path.starts_with("/devices/") {
                    json!({ "Message": "ErrorCode:FaultOnDemand;fault on demand" })
                } else {
                    dps::error_body(u32::from(status.as_u16()) * 1000, "fault on demand")
                };
                (status, axum::Json(body)).into_response()
            }
            Kind::Garbage => (ok, json_type, Bytes::from_static(b"\x00\xff{]no json")).into_response(),
            Kind::Empty => ok.into_response(),
            Kind::Html => {
                (ok, axum::response::Html("<html><body>Please log in to the Wi-Fi</body></html>")).into_response()
            }
        };
        Ok(finish(fault, response))
    }
}

fn finish(fault: &Fault, mut response: Response) -> Response {
    if let Some(seconds) = fault.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    because(response, format!("fault on demand: {:?}", fault.kind))
}

/// As DPS or a hub words it.
fn too_many(path: &str, throttled: &Throttled) -> Response {
    let status = StatusCode::TOO_MANY_REQUESTS;
    let body = if path.starts_with("/devices/") {
        json!({ "Message": "ErrorCode:ThrottlingException;Too many requests" })
    } else {
        dps::error_body(429_001, "Operations are being throttled")
    };
    // A second begins with its first request, so it is over after one at the latest.
    because((status, [(RETRY_AFTER, "1")], axum::Json(body)).into_response(), throttled.to_string())
}

/// Has the routes answer. The call runs to its end even if the client leaves, and a panic in it is one 500.
pub(crate) async fn call<B>(router: &Router, calls: &TaskTracker, request: Request<B>) -> Response
where
    B: hyper::body::Body<Error: std::error::Error + Send + Sync + 'static>,
{
    let (head, body) = request.into_parts();
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 1 MiB");
    }
    let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come within 30 s"),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 1 MiB");
        }
        Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "the body broke off"),
        Ok(Ok(body)) => body.to_bytes(),
    };
    let request = Request::from_parts(head, Body::from(body));
    let router = router.clone();
    match calls.spawn(router.oneshot(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(error) if error.is_panic() => {
            tracing::error!("a call panicked: this is a fault of the simulator");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the call panicked")
        }
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the simulator is shutting down"),
    }
}

/// What no route words: limits, unknown paths, wrong methods.
pub(crate) fn refuse(status: StatusCode, reason: &'static str) -> Response {
    let text = if status.is_server_error() { "Internal error" } else { reason };
    let mut response = (status, axum::Json(json!({ "Message": text }))).into_response();
    if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
        // The rest of the body is still on its way and nobody will read it.
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    because(response, reason.to_owned())
}

/// The same answer, of whose body only the first half arrives.
async fn truncate(response: Response) -> Response {
    let (head, body) = response.into_parts();
    let whole = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body = Truncated { rest: Some(whole.slice(..whole.len() / 2)), announced: whole.len() as u64, is_sent: false };
    because(Response::from_parts(head, Body::new(body)), "fault on demand: Truncated".to_owned())
}

/// The same answer with blanks behind it.
async fn swell(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let mut whole = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default().to_vec();
    whole.resize(whole.len() + HUGE_BYTES, b' ');
    head.headers.remove(CONTENT_LENGTH);
    because(Response::from_parts(head, Body::from(whole)), "fault on demand: Huge".to_owned())
}

struct Truncated {
    rest: Option<Bytes>,
    announced: u64,
    is_sent: bool,
}

impl hyper::body::Body for Truncated {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(half) = self.rest.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        if !self.is_sent {
            // hyper flushes what it has when a body is not ready; failing at once would take the first half along.
            self.is_sent = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Cut)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_one_500_and_tells_nothing() {
        async fn panics() {
            panic!("secret");
        }
        let (router, calls) = (Router::new().route("/", get(panics)), TaskTracker::new());
        for _ in 0..2 {
            let response = call(&router, &calls, Request::new(Full::<Bytes>::default())).await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, r#"{"Message":"Internal error"}"#);
        }
    }

    #[tokio::test]
    async fn a_call_ends_even_if_its_client_left() {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (go, goes) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let parts = Arc::new(std::sync::Mutex::new(Some((begun, goes, done))));
        let handler = async move || {
            let (begun, goes, done) = parts.lock().unwrap().take().unwrap();
            begun.send(()).unwrap();
            goes.await.unwrap();
            done.send(()).unwrap();
        };
        let (router, calls) = (Router::new().route("/", get(handler)), TaskTracker::new());
        tokio::select! {
            _ = call(&router, &calls, Request::new(Full::<Bytes>::default())) => panic!("nobody let it go"),
            begun = has_begun => begun.unwrap(),
        }
        go.send(()).unwrap();
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn half_of_a_body_comes_and_then_the_end() {
        let mut response = truncate((StatusCode::OK, "12345678").into_response()).await;
        assert_eq!(hyper::body::Body::size_hint(response.body()).exact(), Some(8));
        let first = response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "1234");
        assert!(response.body_mut().frame().await.unwrap().is_err());
    }
}
