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
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketFlags, accept_with},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::OwnedSemaphorePermit,
};
use tokio_util::task::TaskTracker;

use crate::{
    Listener, Peer, PeerProcess, REQUEST_ID_HEADER, Shutdown,
    error::Failure,
    peer::{DescriptorOf, Moment, descriptor_of},
    room::{Place, Room, Share, descriptors},
    service::{Causes, Routes},
    stream::{Stream, watch},
    streamed::Held,
    throttle::{Gate, Slot, Throttle, User},
};

/// What one daemon grants its callers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests of one uid that are worked on at once (`max_requests`).
    pub requests_per_user: usize,
    /// Connections of one uid, idle ones included.
    pub connections_per_user: usize,
    /// Connections of all users of this socket, idle ones included; those beyond wait to be accepted.
    pub connections: usize,
    /// How long a request over the limit waits for a slot before its connection is reset.
    pub wait_for_slot: Duration,
    /// How long a head may take to arrive, and how long a connection may idle.
    pub head: Duration,
    /// How long an answer may wait for a peer that reads nothing.
    pub write: Duration,
    /// How long a streamed answer may: whoever reads a log stops to look at it.
    pub stream: Duration,
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
            connections_per_user: descriptors() / 4,
            connections: descriptors(),
            wait_for_slot: Duration::from_secs(5),
            head: Duration::from_secs(60),
            write: Duration::from_secs(30),
            stream: Duration::from_secs(600),
            drain: Duration::from_secs(5),
        }
    }
}

/// A head larger than this is refused with 431.
const HEAD_BYTES: usize = 64 * 1024;
/// Pause after a failed `accept`, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections accepted in a row, after which those that have ended meanwhile give their places back.
const BURST: usize = 32;
/// How long answers that are ready may take to be written while stopping.
const LAST_WRITES: Duration = Duration::from_millis(500);

/// Serves the calls of one daemon on one socket.
pub struct Server {
    listener: Listener,
    limits: Limits,
    entry: Entry,
    share: Share,
}

/// What is told of a caller besides its credentials.
#[derive(Clone, Default)]
struct Entry {
    name: Option<Arc<str>>,
    /// Asks for their processes.
    processes: Option<DescriptorOf>,
}

impl Server {
    /// A server on a socket that is already open.
    #[must_use]
    pub fn new(listener: Listener, limits: Limits) -> Self {
        Self { listener, limits, entry: Entry::default(), share: Share::whole() }
    }

    /// Has callers' [`Peer::listener`] say that they came by this socket.
    #[must_use]
    pub fn named(mut self, name: Arc<str>) -> Self {
        self.entry.name = Some(name);
        self
    }

    /// Takes hold of each caller's process, for [`Peer::process`]: a second descriptor for each connection.
    #[must_use]
    pub fn identify_processes(mut self) -> Self {
        self.entry.processes = Some(descriptor_of);
        self
    }

    /// Has several servers share one room, of which this one has enough for `reserved` connections for itself, as long as the room lasts.
    #[must_use]
    pub fn sharing(mut self, room: &Room, reserved: usize) -> Self {
        self.share = Share::of(room.clone(), reserved);
        self
    }

    /// Serves until `shutdown`, then stops accepting, finishes what is under way within [`Limits::drain`] and returns.
    pub async fn serve(self, routes: Routes, shutdown: Shutdown) -> io::Result<()> {
        let Self { listener, limits, entry, share } = self;
        let places = share.places(limits.connections, if entry.processes.is_some() { 2 } else { 1 });
        let Listener { socket, since, bound } = listener;
        socket.set_nonblocking(true)?;
        // Whoever is accepted may have waited since then.
        let mut queued_since = has_queue(&socket).then_some(since);
        let socket = watch(socket, Interest::READABLE)?;
        let serving = Serving {
            throttle: Throttle::new(limits.requests_per_user, limits.connections_per_user),
            limits,
            entry,
            routes,
            graceful: GracefulShutdown::new(),
            connections: TaskTracker::new(),
            calls: TaskTracker::new(),
            cut: Shutdown::new(),
        };
        let (mut failing, mut burst) = (false, 0);
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accept(&socket, &mut queued_since) => accepted,
            };
            let caller = match accepted {
                Ok(stream) => {
                    failing = false;
                    serving.admit(stream, queued_since)
                }
                Err(error) => {
                    // Once for a burst: a log that fills the disk helps nobody.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!({ fields::ERROR } = %error, "could not accept a connection");
                    }
                    queued_since.get_or_insert_with(Moment::now);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(caller) = caller else { continue };
            let place = if let Some(place) = places.try_take() {
                place
            } else {
                queued_since.get_or_insert_with(Moment::now);
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    place = places.take() => place,
                }
            };
            serving.connection(caller, place);
            burst += 1;
            if burst == BURST {
                burst = 0;
                tokio::task::yield_now().await;
            }
        }
        // New callers are refused from here on, or queue with the service manager.
        drop((socket, bound));
        serving.finish().await;
        Ok(())
    }
}

/// The next connection. `queued_since` is emptied if nobody waited before it: it came while this was waiting for it.
async fn accept(socket: &AsyncFd<UnixListener>, queued_since: &mut Option<Moment>) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| Ok(accept_with(socket, flags)?)) {
            Ok(accepted) => return accepted.map(UnixStream::from),
            Err(_) => *queued_since = None,
        }
    }
}

/// Whether somebody waits to be accepted.
fn has_queue(socket: &UnixListener) -> bool {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut waiting = [PollFd::new(socket, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut waiting, Some(&AT_ONCE))) != Ok(0)
}

/// Somebody who has connected.
struct Caller {
    stream: UnixStream,
    peer: Peer,
    user: Arc<User>,
    permit: OwnedSemaphorePermit,
}

/// What the connections of one server share.
struct Serving {
    throttle: Throttle,
    limits: Limits,
    entry: Entry,
    routes: Routes,
    graceful: GracefulShutdown,
    connections: TaskTracker,
    calls: TaskTracker,
    /// Ends connections that are not worth waiting for.
    cut: Shutdown,
}

impl Serving {
    /// Finds out who it is, before anything is waited for. Whoever has too many connections, or no credentials, loses this one.
    fn admit(&self, stream: UnixStream, queued_since: Option<Moment>) -> Option<Caller> {
        let peer = match self.entry.peer(&stream, queued_since) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::error!({ fields::ERROR } = %error, "dropped a connection without peer credentials");
                return None;
            }
        };
        let uid = peer.uid;
        let user = self.throttle.user(uid);
        let Some(permit) = user.connection() else {
            tracing::info!(
                { fields::UID } = uid,
                { fields::PID } = peer.pid,
                "Max simultaneous connections reached for user {uid}"
            );
            return None;
        };
        Some(Caller { stream, peer, user, permit })
    }

    fn connection(&self, caller: Caller, place: Place) {
        let Caller { stream, peer, user, permit: connection_permit } = caller;
        let (uid, pid) = (peer.uid, peer.pid);
        let stream = match Stream::new(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!({ fields::ERROR } = %error, "dropped a connection that cannot be waited on");
                return;
            }
        };
        let slot = Slot::new(user, self.limits.wait_for_slot);
        let gate = TokioIo::new(Gate::new(stream, slot.clone(), self.limits.write, self.limits.stream));
        let (routes, calls) = (self.routes.clone(), self.calls.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (routes, slot, calls, peer) = (routes.clone(), slot.clone(), calls.clone(), peer.clone());
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
                if Held::is_needed(response.body()) {
                    let streaming = slot.streaming(permit);
                    return Ok(response.map(|body| Body::new(Held::new(body, streaming))));
                }
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

impl Entry {
    fn peer(&self, stream: &UnixStream, queued_since: Option<Moment>) -> io::Result<Peer> {
        // rustix has this too, but no pid 0, which a peer outside our pid namespace has.
        let credentials = getsockopt(stream, PeerCredentials)?;
        let pid = credentials.pid();
        let mut peer = Peer::new(credentials.uid(), credentials.gid(), pid);
        peer.listener.clone_from(&self.name);
        if let Some(descriptor_of) = self.processes {
            let process = PeerProcess::of(stream, pid, descriptor_of, queued_since);
            let explain = |error: &io::Error| tracing::debug!({ fields::PID } = pid, { fields::ERROR } = %error, "a caller's process is not known");
            peer.process = process.inspect_err(explain).ok();
        }
        Ok(peer)
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
    request.extensions_mut().insert(peer.clone());
    let work = async move {
        let begun = Instant::now();
        let call = AssertUnwindSafe(routes.answer(request)).catch_unwind();
        let response = call.await.unwrap_or_else(|_| Failure::internal("the call panicked").into_response());
        log(&method, &path, &peer, begun.elapsed(), &response);
        response
    };
    id.unwrap_or_else(RequestId::random).scope(work).await
}

fn log(method: &http::Method, path: &str, peer: &Peer, elapsed: Duration, response: &Response) {
    let causes = response.extensions().get::<Causes>().map(|causes| causes.0.join(": ")).unwrap_or_default();
    let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let status = response.status();
    macro_rules! line {
        ($level:ident, $text:literal $(, $cause:ident)?) => {
            tracing::$level!(
                { fields::METHOD } = %method, { fields::PATH } = path, { fields::STATUS } = status.as_u16(),
                { fields::UID } = peer.uid, { fields::PID } = peer.pid, { fields::LISTENER } = peer.listener.as_deref(),
                { fields::ELAPSED_MICROSECONDS } = elapsed,
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, os::fd::OwnedFd, path::Path};

    use nix::errno::Errno;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{ApiVersion, Body, Call, Client, Endpoint, Method, Retry, Service};

    /// Asks which process one is.
    #[derive(Debug, Serialize, Deserialize)]
    struct Who {}

    impl Call for Who {
        const METHOD: Method = Method::GET;
        const PATH: &'static str = "/who";
        const BODY: Body = Body::Ignored;
        type Reply = Option<i32>;
    }

    async fn who(_: Arc<()>, peer: Peer, _: Who) -> Result<Option<i32>, Infallible> {
        Ok(peer.process.map(|process| process.pid()))
    }

    /// As kernels before 6.5 answer.
    fn old_kernel(_: &UnixStream) -> Result<OwnedFd, Errno> {
        Err(Errno::ENOPROTOOPT)
    }

    async fn ask(path: &Path) -> Option<i32> {
        let endpoint = Endpoint::Unix(path.to_owned());
        let client = Client::new(&endpoint, ApiVersion::V2020_09_01, Retry::local(0)).unwrap();
        tokio::time::timeout(Duration::from_secs(20), client.send(&Who {})).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn of_those_who_queued_the_pid_alone_tells_nothing_and_others_are_who_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let mut listener = Listener::bind(&path).unwrap();
        // The service manager had it open before all processes.
        listener.since = Moment::FIRST;
        let mut server = Server::new(listener, Limits::new(MaxRequests::default())).identify_processes();
        server.entry.processes = Some(old_kernel);
        let routes = Service::new(Arc::new(()), &[ApiVersion::V2020_09_01]).call(who).into_routes();
        let shutdown = Shutdown::new();
        let asking = async {
            // The server runs once this one waits for its answer, and has connected by then.
            let queued = ask(&path).await;
            let next = ask(&path).await;
            shutdown.cancel();
            (queued, next)
        };
        let ((queued, next), outcome) = tokio::join!(asking, server.serve(routes, shutdown.clone()));
        outcome.unwrap();
        assert_eq!((queued, next), (None, i32::try_from(std::process::id()).ok()));
    }
}
