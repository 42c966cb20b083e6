//! Connections for hyper-util's client: TCP, through a proxy if there is one, then TLS on a blocking thread.
//!
//! The handshake may need a signature that only the runtime's own thread can fetch from the key service. `hyper-rustls` polls it on that
//! thread and would wait for itself for ever; here it has a thread of its own. Only HTTP/1.1 is spoken: no ALPN is offered.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

use super::Proxy;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Time for the name look-up and TCP (the proxy's part included), and again for TLS.
const STEP: Duration = Duration::from_secs(20);
const HTTPS_PORT: u16 = 443;

/// Why there is no connection. Nothing was sent yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an `https` URL with a host.
    #[error("{0} is no https URL")]
    NotHttps(Uri),
    /// Name look-up, TCP or the proxy failed.
    #[error("could not connect to {host}")]
    Unreachable {
        /// Name of the server.
        host: String,
        /// What the system or the proxy said.
        source: BoxError,
    },
    /// No connection in time.
    #[error("{host} did not accept a connection within {} s", limit.as_secs())]
    TimedOut {
        /// Name of the server.
        host: String,
        /// The time it had.
        limit: Duration,
    },
    /// The server's certificate is not trusted: a matter of configuration, waiting does not mend it.
    #[error("the certificate of {host} is not trusted")]
    Untrusted {
        /// Name of the server.
        host: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// TLS failed for another reason.
    #[error("the TLS handshake with {host} failed")]
    Handshake {
        /// Name of the server.
        host: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl ConnectError {
    /// Whether the server proved to be somebody else, as opposed to being out of reach.
    #[must_use]
    pub fn is_untrusted(&self) -> bool {
        matches!(self, Self::Untrusted { .. })
    }
}

/// Opens TLS connections. Cheap to clone; clones share sessions.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
    proxy: Option<Arc<Proxy>>,
    tcp: HttpConnector,
}

impl Connector {
    /// A connector with these TLS settings and, for the hosts that need it, this proxy.
    #[must_use]
    pub fn new(tls: Arc<ClientConfig>, proxy: Option<Arc<Proxy>>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(STEP));
        tcp.set_nodelay(true);
        Self { tls, proxy, tcp }
    }

    async fn connect(self, target: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let Some(host) = target.host().map(|host| host.trim_matches(['[', ']']).to_owned()) else {
            return Err(ConnectError::NotHttps(target));
        };
        let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::NotHttps(target.clone()))?;
        if target.scheme_str() != Some("https") {
            return Err(ConnectError::NotHttps(target));
        }
        let too_late = |_| ConnectError::TimedOut { host: host.clone(), limit: STEP };
        let transport = timeout(STEP, self.transport(target))
            .await
            .map_err(too_late)?
            .map_err(|source| ConnectError::Unreachable { host: host.clone(), source })?;
        let (runtime, tls) = (Handle::current(), TlsConnector::from(self.tls));
        // The limit is inside: a blocking task goes on when nobody waits for it any more.
        let handshake =
            tokio::task::spawn_blocking(move || runtime.block_on(timeout(STEP, tls.connect(name, transport))));
        let finished = match handshake.await {
            Ok(in_time) => in_time.map_err(too_late)?,
            Err(error) => Err(io::Error::other(error)),
        };
        match finished {
            Ok(stream) => Ok(TokioIo::new(Stream(Box::new(stream)))),
            Err(source) if is_untrusted(&source) => Err(ConnectError::Untrusted { host, source }),
            Err(source) => Err(ConnectError::Handshake { host, source }),
        }
    }

    /// The byte stream under TLS: to the server, or through a tunnel that the proxy opens to it.
    async fn transport(&self, target: Uri) -> Result<Box<dyn Transport>, BoxError> {
        let mut tcp = self.tcp.clone();
        let Some(proxy) = self.proxy.as_ref().and_then(|proxy| proxy.intercept(&target)) else {
            return Ok(Box::new(tcp.call(with_port(target)?).await?.into_inner()));
        };
        if proxy.uri().scheme_str() == Some("https") {
            let to_proxy = Self { proxy: None, ..self.clone() };
            let mut tunnel = authenticated(Tunnel::new(proxy.uri().clone(), to_proxy), proxy.basic_auth());
            return Ok(Box::new(tunnel.call(target).await?.into_inner()));
        }
        let mut tunnel = authenticated(Tunnel::new(with_port(proxy.uri().clone())?, tcp), proxy.basic_auth());
        Ok(Box::new(tunnel.call(target).await?.into_inner()))
    }
}

fn authenticated<C>(tunnel: Tunnel<C>, credentials: Option<&http::HeaderValue>) -> Tunnel<C> {
    match credentials {
        Some(credentials) => tunnel.with_auth(credentials.clone()),
        None => tunnel,
    }
}

/// The TCP connector takes port 80 where a URL names none, whatever its scheme.
fn with_port(uri: Uri) -> Result<Uri, http::Error> {
    if uri.port().is_some() || uri.scheme_str() != Some("https") {
        return Ok(uri);
    }
    let authority = format!("{}:{HTTPS_PORT}", uri.host().unwrap_or_default());
    Uri::builder().scheme("https").authority(authority).path_and_query("/").build()
}

fn is_untrusted(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented))
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connector").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        Box::pin(self.clone().connect(target))
    }
}

/// What TLS runs over.
trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open TLS connection.
pub struct Stream(Box<TlsStream<Box<dyn Transport>>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        // A tunnel is invisible from inside: no absolute URIs, no proxy header.
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_without_a_port_is_port_443() {
        let port = |uri: &str| with_port(uri.parse().unwrap()).unwrap().to_string();
        assert_eq!(port("https://hub.example/devices"), "https://hub.example:443/");
        assert_eq!(port("https://hub.example:8443/x"), "https://hub.example:8443/x");
        assert_eq!(port("http://proxy:3128/"), "http://proxy:3128/");
    }
}
