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

use aziot_log::RequestId;
use http::Uri;
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Intercept,
    },
    rt::TokioIo,
};
use rustls::{
    CertificateError, ClientConfig, OtherError, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    pki_types::ServerName,
    sign::CertifiedKey,
};
use tokio::{runtime::Handle, time::timeout};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{
    Proxy,
    identity::SigningError,
    stream::{Stream, Transport},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Time for the name look-up and TCP (the proxy's part included), and again for TLS.
const STEP: Duration = Duration::from_secs(20);
const HTTPS_PORT: u16 = 443;
const PROXY_SESSIONS: usize = 8;

/// Why there is no connection. Nothing was sent yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an `https` URL with a host, and not one in clear that was allowed.
    #[error("{0} is no https URL")]
    NotHttps(String),
    /// Name look-up, TCP or the proxy failed, or the connection ended before there was TLS, as at a balancer whose servers are away.
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
        source: BoxError,
    },
    /// The server wanted proof of who we are, and the key service made none.
    #[error("could not prove to {host} who this device is")]
    Unsigned {
        /// Name of the server.
        host: String,
        /// A [`SigningError`].
        source: BoxError,
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

/// Opens connections. Cheap to clone; clones share sessions.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
    /// What a proxy behind TLS is shown: the same trust, no identity, no sessions of servers.
    tls_to_proxy: Arc<ClientConfig>,
    proxy: Option<Arc<Proxy>>,
    tcp: HttpConnector,
    plain_http: bool,
}

impl Connector {
    /// A connector with these TLS settings and, for the hosts that need it, this proxy.
    ///
    /// A proxy behind TLS is checked with the trust of these settings, also on the way to a server in clear.
    #[must_use]
    pub fn new(tls: Arc<ClientConfig>, proxy: Option<Arc<Proxy>>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(STEP));
        tcp.set_nodelay(true);
        let tls_to_proxy = if proxy.is_some() { Arc::new(anonymous(&tls)) } else { Arc::clone(&tls) };
        Self { tls, tls_to_proxy, proxy, tcp, plain_http: false }
    }

    /// Lets `http` URLs through: such a server is reached in clear, and whoever is between reads what is sent to it.
    ///
    /// A proxy is given such requests whole, in absolute-form and without the credentials that it may want for tunnels.
    #[must_use]
    pub fn allow_plain_http(self) -> Self {
        Self { plain_http: true, ..self }
    }

    async fn connect(self, target: Uri) -> Result<TokioIo<Stream>, ConnectError> {
        let refused = || ConnectError::NotHttps(shown(&target));
        let host = target.host().map(|host| host.trim_matches(['[', ']']).to_owned()).ok_or_else(refused)?;
        let stream = match target.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| refused())?;
                let transport = in_time(&host, self.tunnel(target)).await?;
                self.handshake(host, name, transport).await?
            }
            Some("http") if self.plain_http => in_time(&host, self.clear(target)).await?,
            _ => return Err(refused()),
        };
        Ok(TokioIo::new(stream))
    }

    async fn handshake(
        self,
        host: String,
        name: ServerName<'static>,
        transport: Box<dyn Transport>,
    ) -> Result<Stream, ConnectError> {
        let (runtime, tls) = (Handle::current(), TlsConnector::from(self.tls));
        // The limit is inside: a blocking task goes on when nobody waits for it any more.
        let connect = move || runtime.block_on(async { timeout(STEP, tls.connect(name, transport)).await });
        let finished = match tokio::task::spawn_blocking(RequestId::carry(connect)).await {
            Ok(Ok(finished)) => finished,
            Ok(Err(_)) => return Err(ConnectError::TimedOut { host, limit: STEP }),
            Err(error) => Err(io::Error::other(error)),
        };
        finished.map(Stream::tls).map_err(|error| classify(host, error))
    }

    /// The byte stream under TLS: to the server, or through a tunnel that the proxy opens to it.
    async fn tunnel(&self, target: Uri) -> Result<Box<dyn Transport>, BoxError> {
        let Some(proxy) = self.intercept(&target) else {
            return Ok(Box::new(self.tcp.clone().call(with_port(target)?).await?.into_inner()));
        };
        if is_https(proxy.uri()) {
            let mut tunnel = authenticated(Tunnel::new(proxy.uri().clone(), self.to_proxy()), proxy.basic_auth());
            return Ok(Box::new(tunnel.call(target).await?.into_inner()));
        }
        let tunnel = Tunnel::new(with_port(proxy.uri().clone())?, self.tcp.clone());
        Ok(Box::new(authenticated(tunnel, proxy.basic_auth()).call(target).await?.into_inner()))
    }

    /// A stream without TLS of ours: to the server, or to the proxy that passes the requests on.
    async fn clear(&self, target: Uri) -> Result<Stream, BoxError> {
        let mut tcp = self.tcp.clone();
        let Some(proxy) = self.intercept(&target) else {
            return Ok(Stream::clear(Box::new(tcp.call(target).await?.into_inner()), false));
        };
        let transport: Box<dyn Transport> = if is_https(proxy.uri()) {
            Box::new(self.to_proxy().call(proxy.uri().clone()).await?.into_inner())
        } else {
            Box::new(tcp.call(proxy.uri().clone()).await?.into_inner())
        };
        Ok(Stream::clear(transport, true))
    }

    fn intercept(&self, target: &Uri) -> Option<Intercept> {
        self.proxy.as_ref().and_then(|proxy| proxy.intercept(target))
    }

    /// For the way to a proxy behind TLS, which is nobody to prove an identity to.
    fn to_proxy(&self) -> Self {
        Self { tls: Arc::clone(&self.tls_to_proxy), proxy: None, plain_http: false, ..self.clone() }
    }
}

async fn in_time<T>(host: &str, work: impl Future<Output = Result<T, BoxError>>) -> Result<T, ConnectError> {
    match timeout(STEP, work).await {
        Ok(done) => done.map_err(|source| ConnectError::Unreachable { host: host.to_owned(), source }),
        Err(_) => Err(ConnectError::TimedOut { host: host.to_owned(), limit: STEP }),
    }
}

fn classify(host: String, error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause)))) => {
            ConnectError::Untrusted { host, source: Box::new(Arc::clone(cause)) }
        }
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            ConnectError::Untrusted { host, source: error.into() }
        }
        Some(rustls::Error::Other(OtherError(cause))) if cause.is::<SigningError>() => {
            ConnectError::Unsigned { host, source: Box::new(Arc::clone(cause)) }
        }
        // What TLS itself does not like has another kind.
        None if is_end(error.kind()) => ConnectError::Unreachable { host, source: error.into() },
        _ => ConnectError::Handshake { host, source: error },
    }
}

fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn anonymous(tls: &ClientConfig) -> ClientConfig {
    let mut tls = tls.clone();
    tls.client_auth_cert_resolver = Arc::new(Nobody);
    // A session that a server granted to the identity would vouch for it here too.
    tls.resumption = Resumption::in_memory_sessions(PROXY_SESSIONS);
    tls
}

/// An identity that is never shown.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// A URL without its user, password and path.
fn shown(uri: &Uri) -> String {
    format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default())
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
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

    #[test]
    fn what_is_refused_is_named_without_its_password() {
        let error = ConnectError::NotHttps(shown(&"http://me:hunter2@hub.example/x?sig=1".parse().unwrap()));
        assert_eq!(error.to_string(), "http://hub.example is no https URL");
    }
}
