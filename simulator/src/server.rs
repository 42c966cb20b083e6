//! The listeners: TLS over TCP for devices, a Unix socket for whoever started the simulator; HTTP/1.1 with timeouts on both.
//!
//! Shutting down means: no new connections, idle ones closed, calls under way answered, for five seconds at most.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::Identity;
use crate::clients::{AnyCertificate, ClientChain};
use crate::faults::{Faults, Kind};
use crate::front::{self, Front};
use crate::stream::{Impatient, Resettable};

/// So many connections at once; more wait in the kernel's queue. A thousand devices may keep one or two each.
const MAX_CONNECTIONS: usize = 2048;
/// Also how long a connection may idle: hyper counts from the end of the last answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Out of file descriptors, say: time for some connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A TLS configuration is impossible: the key is not the certificate's, or of a kind that is not supported.
#[derive(Debug, thiserror::Error)]
#[error("the server certificate and its key cannot be used")]
pub struct TlsError(#[from] rustls::Error);

/// TLS 1.2 and 1.3 with this certificate. Clients are asked for theirs, if at all, and may have none.
pub(crate) fn tls_config(identity: Identity, clients: AskClients) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls_openssl::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match clients {
        AskClients::ForNothing => builder.with_no_client_auth(),
        AskClients::ForCertificates => builder.with_client_cert_verifier(Arc::new(AnyCertificate::new(&provider))),
    };
    let mut config = builder.with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Whether clients are asked to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskClients {
    ForNothing,
    ForCertificates,
}

/// What new connections see; a change closes the idle ones.
#[derive(Debug)]
pub(crate) struct Appearance {
    tls: ArcSwap<ServerConfig>,
    /// Whether HTTP in clear is served too, on the same port.
    takes_plain_http: bool,
    changes: watch::Sender<()>,
}

impl Appearance {
    pub(crate) fn new(tls: Arc<ServerConfig>, takes_plain_http: bool) -> Self {
        Self { tls: ArcSwap::new(tls), takes_plain_http, changes: watch::Sender::new(()) }
    }

    /// Shows another certificate from now on.
    pub(crate) fn show(&self, tls: Arc<ServerConfig>) {
        self.tls.store(tls);
        self.close_idle();
    }

    /// Has every client connect anew before its next request.
    pub(crate) fn close_idle(&self) {
        self.changes.send_replace(());
    }
}

/// The two stages of an end: `drain` asks, `abort` insists.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    drain: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
    pub(crate) calls: TaskTracker,
}

impl Ends {
    pub(crate) fn new(drain: CancellationToken) -> Self {
        Self { drain, abort: CancellationToken::new(), connections: TaskTracker::new(), calls: TaskTracker::new() }
    }

    /// Waits for so long, or until the drain begins.
    pub(crate) async fn until_drain(&self, limit: Duration) {
        let _ended_early = timeout(limit, self.drain.cancelled()).await;
    }

    /// Waits until all connections and calls have ended, and ends those that take too long.
    pub(crate) async fn drained(&self) {
        self.connections.close();
        self.calls.close();
        let all = async { tokio::join!(self.connections.wait(), self.calls.wait()) };
        if timeout(DRAIN_TIMEOUT, all).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "some connections did not end in time and were cut");
        }
        self.abort.cancel();
        // Cut connections end at their next poll.
        self.connections.wait().await;
    }
}

/// Serves devices until the drain begins.
pub(crate) async fn serve_devices(
    listener: TcpListener,
    appearance: Arc<Appearance>,
    faults: Arc<Faults>,
    front: Arc<Front>,
    ends: Ends,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(slot) = take_slot(&slots, &ends).await {
        let Some((tcp, peer)) = accepted(listener.accept(), &ends).await else { continue };
        let fault = faults.for_connection();
        if fault == Some(Kind::Refuse) {
            tracing::info!(%peer, "connection refused on demand");
            if let Err(error) = tcp.set_zero_linger() {
                tracing::debug!(%error, "could not reset the connection");
            }
            continue;
        }
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "answers may be delayed");
        }
        let (appearance, front, connection_ends) = (Arc::clone(&appearance), Arc::clone(&front), ends.clone());
        let connection = async move {
            let _slot = slot;
            match fault {
                None => serve_device(tcp, peer, &appearance, &front, &connection_ends).await,
                Some(kind) => spoil(kind, tcp, peer, &connection_ends).await,
            }
        };
        spawn(&ends, connection);
    }
}

async fn serve_device(tcp: TcpStream, peer: SocketAddr, appearance: &Appearance, front: &Front, ends: &Ends) {
    // In this order, so that a change in between closes this connection too.
    let changes = Some(appearance.changes.subscribe());
    let tls = TlsAcceptor::from(appearance.tls.load_full());
    let reset = Arc::new(AtomicBool::new(false));
    if appearance.takes_plain_http && !speaks_tls(&tcp).await {
        let stream = Impatient::new(Resettable::new(tcp, Arc::clone(&reset)));
        return converse(stream, |request| front.handle(request, &reset), changes, ends).await;
    }
    let tcp = Impatient::new(Resettable::new(tcp, Arc::clone(&reset)));
    let stream = match timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return tracing::debug!(%peer, "the peer left before TLS"); // a port scan, or a check whether we are there
        }
        Ok(Err(error)) => return tracing::info!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::info!(%peer, "TLS handshake did not end within 10 s"),
    };
    let client = stream.get_ref().1.peer_certificates().map(ClientChain::new);
    let handle = |mut request: Request<Incoming>| {
        client.clone().map(|client| request.extensions_mut().insert(client));
        front.handle(request, &reset)
    };
    converse(stream, handle, changes, ends).await;
}

/// Looks at the first byte that the peer sends, and leaves it there.
async fn speaks_tls(tcp: &TcpStream) -> bool {
    const HANDSHAKE_RECORD: u8 = 22;
    let mut first = [0];
    match timeout(HANDSHAKE_TIMEOUT, tcp.peek(&mut first)).await {
        Ok(Ok(1)) => first[0] == HANDSHAKE_RECORD,
        // Who says nothing or leaves is told so by the handshake.
        _ => true,
    }
}

/// A connection on which no TLS is spoken, on demand.
async fn spoil(kind: Kind, mut tcp: TcpStream, peer: SocketAddr, ends: &Ends) {
    tracing::info!(%peer, ?kind, "connection spoiled on demand");
    let answered = async {
        if kind == Kind::Plain {
            let _length = tcp.read(&mut [0; 1024]).await?;
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
            return tcp.shutdown().await;
        }
        // Until the peer gives up.
        tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await.map(|_| ())
    };
    tokio::select! {
        ended = answered => if let Err(error) = ended {
            tracing::debug!(%error, "the peer of a spoiled connection left");
        },
        () = ends.until_drain(front::LONGEST_FAULT) => {}
    }
}

/// Serves the control socket until the drain begins.
pub(crate) async fn serve_control(listener: UnixListener, router: Router, ends: Ends) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(slot) = take_slot(&slots, &ends).await {
        let Some((stream, _)) = accepted(listener.accept(), &ends).await else { continue };
        let (router, connection_ends) = (router.clone(), ends.clone());
        let connection = async move {
            let _slot = slot;
            let handle = |request| async { Ok(front::call(&router, &connection_ends.calls, request).await) };
            converse(Impatient::new(stream), handle, None, &connection_ends).await;
        };
        spawn(&ends, connection);
    }
}

fn spawn(ends: &Ends, connection: impl Future<Output = ()> + Send + 'static) {
    let abort = ends.abort.clone();
    ends.connections.spawn(async move { abort.run_until_cancelled(connection).await });
}

async fn take_slot(slots: &Arc<Semaphore>, ends: &Ends) -> Option<OwnedSemaphorePermit> {
    ends.drain.run_until_cancelled(Arc::clone(slots).acquire_owned()).await?.ok()
}

async fn accepted<T>(accept: impl Future<Output = io::Result<T>>, ends: &Ends) -> Option<T> {
    match ends.drain.run_until_cancelled(accept).await? {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::warn!(%error, "could not accept a connection");
            ends.drain.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            None
        }
    }
}

async fn converse<I, H, F>(io: I, handle: H, changes: Option<watch::Receiver<()>>, ends: &Ends)
where
    I: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response, front::Cut>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(io), service_fn(handle));
    let mut connection = std::pin::pin!(connection);
    let asked_to_end = async {
        match changes {
            Some(mut changes) => tokio::select! {
                () = ends.drain.cancelled() => {}
                _ = changes.changed() => {}
            },
            None => ends.drain.cancelled().await,
        }
    };
    let result = tokio::select! {
        biased; // a request that comes after the change is not served any more
        () = asked_to_end => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        result = connection.as_mut() => result,
    };
    if let Err(error) = result {
        tracing::debug!(error = %aziot_log::chain(&error), "a connection ended early");
    }
}
