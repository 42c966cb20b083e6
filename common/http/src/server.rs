//! The accept loop: peer credentials, throttle, time limits, one tracked task per call, and an orderly stop.
//!
//! hyper serves and axum only routes, because `axum::serve` sets no timeouts and knows no peer.

use std::{io, num::NonZeroU16, time::Duration, time::Instant};

use axum::{body::Body, extract::Request, response::IntoResponse as _, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;

use crate::{
    Listener, Peer, Shutdown,
    error::Failure,
    request_id::{self, RequestId},
    service::{Causes, Routes},
    throttle::{Gate, Slot, Throttle},
};

/// What one daemon grants its callers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests of one uid that are worked on at once (`max_requests`).
    pub requests_per_user: usize,
    /// Connections of one uid, idle ones included.
    pub connections_per_user: usize,
    /// How long a request over the limit waits for a slot before its connection is reset.
    pub wait_for_slot: Duration,
    /// How long a head may take to arrive, and how long a connection may idle.
    pub head: Duration,
    /// How long requests under way may take once the daemon is asked to stop.
    pub drain: Duration,
}

/// The setting `max_requests`: requests of one uid that are worked on at once. At least 1, default 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaxRequests(pub NonZeroU16);

impl MaxRequests {
    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for MaxRequests {
    fn default() -> Self {
        Self(NonZeroU16::new(10).expect("10 is not zero"))
    }
}

impl Limits {
    /// The limits of every daemon, with its configured `max_requests`.
    #[must_use]
    pub fn new(max_requests: MaxRequests) -> Self {
        Self {
            requests_per_user: usize::from(max_requests.0.get()),
            connections_per_user: 512,
            wait_for_slot: Duration::from_secs(5),
            head: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}

/// A head larger than this is refused with 431.
const HEAD_BYTES: usize = 64 * 1024;
/// Pause after a failed `accept`, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the calls of one daemon on one socket.
pub struct Server {
    listener: Listener,
    limits: Limits,
}

impl Server {
    /// A server on a socket that is already open.
    #[must_use]
    pub fn new(listener: Listener, limits: Limits) -> Self {
        Self { listener, limits }
    }

    /// Serves until `shutdown`, then stops accepting, finishes what is under way within [`Limits::drain`] and returns.
    pub async fn serve(self, routes: Routes, shutdown: Shutdown) -> io::Result<()> {
        let Self { listener, limits } = self;
        let socket = listener.listener.try_clone()?;
        socket.set_nonblocking(true)?;
        let socket = UnixListener::from_std(socket)?;
        let throttle = Throttle::new(limits.requests_per_user, limits.connections_per_user);
        let (graceful, tasks) = (GracefulShutdown::new(), TaskTracker::new());
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = socket.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::error!(%error, "could not accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            serve_connection(stream, &throttle, limits, &routes, &graceful, &tasks);
            // A burst of callers that hang up at once is cleared away as fast as it is let in; otherwise it fills their user's
            // connections, and one that stays is turned away.
            tokio::task::yield_now().await;
        }
        // New callers are refused from here on, or queue with the service manager.
        drop((socket, listener));
        tasks.close();
        let finish = async {
            graceful.shutdown().await;
            tasks.wait().await;
        };
        if tokio::time::timeout(limits.drain, finish).await.is_err() {
            tracing::warn!(requests = tasks.len(), "gave up waiting for requests under way");
        }
        Ok(())
    }
}

fn serve_connection(
    stream: UnixStream,
    throttle: &Throttle,
    limits: Limits,
    routes: &Routes,
    graceful: &GracefulShutdown,
    tasks: &TaskTracker,
) {
    let peer = match stream.peer_cred() {
        Ok(credentials) => Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid().unwrap_or(0) },
        Err(error) => {
            tracing::error!(%error, "dropped a connection without peer credentials");
            return;
        }
    };
    let user = throttle.user(peer.uid);
    let Some(connection_permit) = user.connection() else {
        tracing::info!(uid = peer.uid, pid = peer.pid, "Max simultaneous connections reached for user {}", peer.uid);
        return;
    };
    let slot = Slot::new(user, limits.wait_for_slot);
    let gate = TokioIo::new(Gate::new(stream, slot.clone()));
    let (routes, calls) = (routes.clone(), tasks.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (routes, slot, calls) = (routes.clone(), slot.clone(), calls.clone());
        async move {
            let Some(permit) = slot.hold().await else { return Err(OverLimit) };
            // The call runs to its end even when its client hangs up: a half-done key operation is worse than a wasted one.
            // Boxed: tokio copies what it is given several times over, and this is some kilobytes.
            let call = calls.spawn(Box::pin(async move {
                let response = answer(routes, peer, request.map(Body::new)).await;
                drop(permit);
                response
            }));
            let response = call.await.unwrap_or_else(|_| internal_error());
            slot.clear();
            Ok(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(gate, service);
    let connection = graceful.watch(connection);
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(uid = peer.uid, pid = peer.pid, error = %aziot_log::chain(&error), "connection ended early");
        }
        drop(connection_permit);
    });
}

/// A pipelined request found no slot; its connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("over the request limit")]
struct OverLimit;

fn internal_error() -> Response {
    Failure::internal("the task of the call ended early").into_response()
}

/// Runs one call and writes its log line.
async fn answer(routes: Routes, peer: Peer, mut request: Request) -> Response {
    let id = RequestId::from_header(request.headers().get(request_id::HEADER)).unwrap_or_else(RequestId::random);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    request.extensions_mut().insert(peer);
    let work = id.clone().scope(async move { routes.answer(request).await });
    let panicked = |_| Failure::internal("the call panicked").into_response();
    let response =
        futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(work)).await.unwrap_or_else(panicked);
    log(&method, &path, peer, &id, begun.elapsed(), &response);
    response
}

fn log(method: &http::Method, path: &str, peer: Peer, id: &RequestId, elapsed: Duration, response: &Response) {
    let status = response.status();
    let causes = response.extensions().get::<Causes>().map(|causes| causes.0.join(": ")).unwrap_or_default();
    let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let Peer { uid, pid, .. } = peer;
    let status_code = status.as_u16();
    if status.is_server_error() {
        tracing::error!(%method, path, status = status_code, uid, pid, elapsed_us, request_id = %id, causes, "request failed");
    } else if causes.is_empty() {
        tracing::info!(%method, path, status = status_code, uid, pid, elapsed_us, request_id = %id, "request");
    } else {
        tracing::info!(%method, path, status = status_code, uid, pid, elapsed_us, request_id = %id, causes, "request refused");
    }
}
