//! The accept loop: peer credentials, throttle, time limits, one tracked task per call, and an orderly stop.
//!
//! hyper serves and axum only routes, because `axum::serve` sets no timeouts and knows no peer.

use std::{
    io,
    num::NonZeroU32,
    os::unix::net::{UnixListener, UnixStream},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use aziot_log::{RequestId, fields};

use axum::{body::Body, extract::Request, response::IntoResponse as _, response::Response};
use futures_util::FutureExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::TaskTracker;

use crate::{
    Listener, Peer, REQUEST_ID_HEADER, Shutdown,
    error::Failure,
    service::{Causes, Routes},
    stream::{Stream, watch},
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
    /// How long an answer may wait for a peer that reads nothing.
    pub write: Duration,
    /// How long requests under way may take once the daemon is asked to stop.
    pub drain: Duration,
}

/// The setting `max_requests`: requests of one uid that are worked on at once. At least 1, default 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MaxRequests(NonZeroU32);

/// A service that answers no request at all.
#[derive(Debug, thiserror::Error)]
#[error("must be at least 1: with 0 every request would be refused")]
pub struct NoRequests;

impl TryFrom<u32> for MaxRequests {
    type Error = NoRequests;

    fn try_from(requests: u32) -> Result<Self, Self::Error> {
        NonZeroU32::new(requests).map(Self).ok_or(NoRequests)
    }
}

impl From<MaxRequests> for u32 {
    fn from(requests: MaxRequests) -> Self {
        requests.0.get()
    }
}

impl MaxRequests {
    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for MaxRequests {
    fn default() -> Self {
        Self(NonZeroU32::new(10).expect("10 is not zero"))
    }
}

impl Limits {
    /// The limits of every daemon, with its configured `max_requests`.
    #[must_use]
    pub fn new(max_requests: MaxRequests) -> Self {
        Self {
            requests_per_user: usize::try_from(max_requests.0.get()).unwrap_or(usize::MAX),
            connections_per_user: connections() / 4,
            wait_for_slot: Duration::from_secs(5),
            head: Duration::from_secs(60),
            write: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// Connections of all users together. Some descriptors are left for the daemon's own files and calls.
fn connections() -> usize {
    const OWN: u64 = 128;
    const MOST: u64 = 4096;
    let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let connections = open_files.unwrap_or(MOST).saturating_sub(OWN).clamp(64, MOST);
    usize::try_from(connections).unwrap_or(64)
}

/// A head larger than this is refused with 431.
const HEAD_BYTES: usize = 64 * 1024;
/// Pause after a failed `accept`, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers that are ready may take to be written while stopping.
const LAST_WRITES: Duration = Duration::from_millis(500);

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
        let socket = watch(socket, Interest::READABLE)?;
        let serving = Serving {
            throttle: Throttle::new(limits.requests_per_user, limits.connections_per_user),
            limits,
            routes,
            graceful: GracefulShutdown::new(),
            connections: TaskTracker::new(),
            calls: TaskTracker::new(),
            cut: Shutdown::new(),
        };
        let room = Arc::new(Semaphore::new(connections()));
        let mut failing = false;
        loop {
            let accept = async {
                let place = Arc::clone(&room).acquire_owned().await.ok();
                (accept(&socket).await, place)
            };
            let (accepted, place) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accept => accepted,
            };
            match accepted {
                Ok(stream) => {
                    failing = false;
                    serving.connection(stream, place);
                }
                Err(error) => {
                    // Once for a burst: a log that fills the disk helps nobody.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!({ fields::ERROR } = %error, "could not accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // New callers are refused from here on, or queue with the service manager.
        drop((socket, listener));
        serving.finish().await;
        Ok(())
    }
}

async fn accept(socket: &AsyncFd<UnixListener>) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket.async_io(Interest::READABLE, |socket| Ok(accept_with(socket, flags)?)).await?.into())
}

/// What the connections of one server share.
struct Serving {
    throttle: Throttle,
    limits: Limits,
    routes: Routes,
    graceful: GracefulShutdown,
    connections: TaskTracker,
    calls: TaskTracker,
    /// Ends connections that are not worth waiting for.
    cut: Shutdown,
}

impl Serving {
    fn connection(&self, stream: UnixStream, place: Option<OwnedSemaphorePermit>) {
        let peer = match socket_peercred(&stream) {
            Ok(credentials) => {
                Peer { uid: credentials.uid.as_raw(), gid: credentials.gid.as_raw(), pid: credentials.pid.as_raw_pid() }
            }
            Err(error) => {
                tracing::error!({ fields::ERROR } = %error, "dropped a connection without peer credentials");
                return;
            }
        };
        let (uid, pid) = (peer.uid, peer.pid);
        let user = self.throttle.user(uid);
        let Some(connection_permit) = user.connection() else {
            tracing::info!(
                { fields::UID } = uid,
                { fields::PID } = pid,
                "Max simultaneous connections reached for user {uid}"
            );
            return;
        };
        let stream = match Stream::new(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!({ fields::ERROR } = %error, "dropped a connection that cannot be waited on");
                return;
            }
        };
        let slot = Slot::new(user, self.limits.wait_for_slot);
        let gate = TokioIo::new(Gate::new(stream, slot.clone(), self.limits.write));
        let (routes, calls) = (self.routes.clone(), self.calls.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (routes, slot, calls) = (routes.clone(), slot.clone(), calls.clone());
            async move {
                let Some(permit) = slot.hold().await else { return Err(OverLimit) };
                let held = Arc::clone(&permit);
                // The call runs to its end even when its client hangs up: a half-done key operation is worse than a wasted one.
                // Boxed: tokio copies what it is given several times over, and this is some kilobytes.
                let call = calls.spawn(Box::pin(async move {
                    let response = answer(routes, peer, request.map(Body::new)).await;
                    drop(held);
                    response
                }));
                let response = call.await.unwrap_or_else(|_| internal_error());
                slot.answered(permit);
                Ok(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(gate, service);
        let (connection, cut) = (self.graceful.watch(connection), self.cut.clone());
        self.connections.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    let error = aziot_log::chain(&error);
                    tracing::debug!({ fields::UID } = uid, { fields::PID } = pid, { fields::ERROR } = %error, "connection ended early");
                },
                () = cut.cancelled() => {}
            }
            drop((connection_permit, place));
        });
    }

    /// Idle connections end at once, calls have their time, and a connection that holds half a request is not waited for.
    async fn finish(self) {
        self.calls.close();
        self.connections.close();
        let mut closing = pin!(self.graceful.shutdown());
        let calls = async {
            tokio::select! {
                () = &mut closing => {}
                () = self.calls.wait() => {}
            }
            // One that has just begun counts as well.
            self.calls.wait().await;
        };
        if tokio::time::timeout(self.limits.drain, calls).await.is_err() {
            tracing::warn!(requests = self.calls.len(), "gave up waiting for requests under way");
        } else {
            // Whoever does not take its answer by then is cut off.
            let _ = tokio::time::timeout(LAST_WRITES, self.connections.wait()).await;
        }
        self.cut.cancel();
    }
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
    let id = request.headers().get(REQUEST_ID_HEADER).and_then(|value| RequestId::parse(value.to_str().ok()?));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(peer);
    let work = async move {
        let begun = Instant::now();
        let call = AssertUnwindSafe(routes.answer(request)).catch_unwind();
        let response = call.await.unwrap_or_else(|_| Failure::internal("the call panicked").into_response());
        log(&method, &path, peer, begun.elapsed(), &response);
        response
    };
    id.unwrap_or_else(RequestId::random).scope(work).await
}

fn log(method: &http::Method, path: &str, peer: Peer, elapsed: Duration, response: &Response) {
    let causes = response.extensions().get::<Causes>().map(|causes| causes.0.join(": ")).unwrap_or_default();
    let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let status = response.status();
    macro_rules! line {
        ($level:ident, $text:literal $(, $cause:ident)?) => {
            tracing::$level!(
                { fields::METHOD } = %method, { fields::PATH } = path, { fields::STATUS } = status.as_u16(),
                { fields::UID } = peer.uid, { fields::PID } = peer.pid, { fields::ELAPSED_MICROSECONDS } = elapsed,
                $({ fields::ERROR } = $cause,)? $text
            )
        };
    }
    if status.is_server_error() {
        line!(error, "request failed", causes);
    } else if causes.is_empty() {
        line!(info, "request");
    } else {
        line!(info, "request refused", causes);
    }
}
