//! The seam to the network: one request, one answer, no repetition. Tests put a script in its place.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use aziot_pki::tls::{self, ClientIdentity, ConnectError, Connector, Proxy, TlsError, Trust};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::AlertDescription;
use tokio::sync::OnceCell;

use crate::{BoxError, Error};

/// A request as it is sent.
pub type Request = http::Request<Bytes>;

/// An answer with its whole body.
pub type Answer = http::Response<Bytes>;

/// An answer on its way.
pub type Exchanging<'a> = Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send + 'a>>;

/// Something that carries requests to the cloud.
pub trait Exchange: Send + Sync + 'static {
    /// Sends one request and collects its answer. Dropping the future gives the attempt up.
    fn exchange(&self, request: Request) -> Exchanging<'_>;
}

impl<F, A> Exchange for F
where
    F: Fn(Request) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Answer, Error>> + Send + 'static,
{
    fn exchange(&self, request: Request) -> Exchanging<'_> {
        Box::pin(self(request))
    }
}

/// Bytes of an answer; the list of 50 modules is about 50 KB.
const ANSWER_LIMIT: usize = 4 * 1024 * 1024;
/// Bytes of an answer that says no; a sentence is expected.
const REFUSAL_LIMIT: usize = 64 * 1024;
/// The hub drops idle connections after some minutes.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_CONNECTIONS: usize = 4;

/// Who vouches for servers.
#[derive(Clone, Debug)]
pub enum Roots {
    /// The certification authorities that the system trusts.
    System,
    /// These alone.
    Only(Arc<tls::RootCertStore>),
}

/// Makes the ways to the cloud, one for each set of TLS credentials.
pub trait Exchanges: Send + Sync + 'static {
    /// A way whose connections show this client certificate to servers that ask, or none.
    fn exchange(&self, identity: Option<Arc<ClientIdentity>>) -> Arc<dyn Exchange>;
}

/// What all TLS connections of this device share.
struct Ground {
    roots: Roots,
    /// Read at the first request: a device without cloud needs no root certificates, and one whose roots are not there yet can try again.
    system: OnceCell<Arc<tls::RootCertStore>>,
    proxy: Option<Arc<Proxy>>,
}

impl Ground {
    async fn roots(&self) -> Result<Arc<tls::RootCertStore>, Error> {
        let read = || async {
            let read = tokio::task::spawn_blocking(tls::system_roots).await;
            let roots = read.map_err(|error| Error::Tls(error.into()))?;
            roots.map_err(|error: TlsError| Error::Tls(error.into()))
        };
        match &self.roots {
            Roots::System => self.system.get_or_try_init(read).await.cloned(),
            Roots::Only(roots) => Ok(Arc::clone(roots)),
        }
    }
}

/// [`TlsExchange`]s that share roots and proxy.
#[derive(Clone)]
pub struct TlsExchanges(Arc<Ground>);

impl TlsExchanges {
    /// Goes through `proxy` where there is one. Nothing is read or connected yet.
    #[must_use]
    pub fn new(roots: Roots, proxy: Option<Proxy>) -> Self {
        Self(Arc::new(Ground { roots, system: OnceCell::new(), proxy: proxy.map(Arc::new) }))
    }

    /// A pool of connections of its own that shows `identity`, or no certificate.
    #[must_use]
    pub fn with_identity(&self, identity: Option<Arc<ClientIdentity>>) -> TlsExchange {
        TlsExchange { ground: Arc::clone(&self.0), identity, client: OnceCell::new() }
    }
}

impl Exchanges for TlsExchanges {
    fn exchange(&self, identity: Option<Arc<ClientIdentity>>) -> Arc<dyn Exchange> {
        Arc::new(self.with_identity(identity))
    }
}

/// HTTP/1.1 over pooled TLS connections whose sessions are resumed. One value serves one set of TLS credentials and all hosts.
pub struct TlsExchange {
    ground: Arc<Ground>,
    identity: Option<Arc<ClientIdentity>>,
    client: OnceCell<legacy::Client<Connector, Full<Bytes>>>,
}

impl TlsExchange {
    /// A client without certificate that goes through `proxy` where there is one. Nothing is read or connected yet.
    #[must_use]
    pub fn new(roots: Roots, proxy: Option<Proxy>) -> Self {
        TlsExchanges::new(roots, proxy).with_identity(None)
    }

    async fn client(&self) -> Result<&legacy::Client<Connector, Full<Bytes>>, Error> {
        let build = || async {
            let trust = Trust::system(self.ground.roots().await?);
            let identity = self.identity.clone().map(|identity| identity as _);
            let settings = tls::client_config(&trust, identity).map_err(|error| Error::Tls(error.into()))?;
            Ok(legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .build(Connector::new(settings, self.ground.proxy.clone())))
        };
        self.client.get_or_try_init(build).await
    }
}

impl Exchange for TlsExchange {
    fn exchange(&self, request: Request) -> Exchanging<'_> {
        Box::pin(async move {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let sending = self.client().await?.request(request.map(Full::new));
            let answer = sending.await.map_err(|error| classify(&host, error))?;
            let (head, body) = answer.into_parts();
            let body = collect(&host, head.status, body).await?;
            Ok(Response::from_parts(head, body))
        })
    }
}

/// Reads a body. An overlong one beside an error is left out: the status alone says what to do.
async fn collect<B>(host: &str, status: StatusCode, body: B) -> Result<Bytes, Error>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let refused = status.is_client_error() || status.is_server_error();
    let limit = if refused { REFUSAL_LIMIT } else { ANSWER_LIMIT };
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if !error.is::<LengthLimitError>() => {
            Err(Error::Interrupted { host: host.to_owned(), source: error })
        }
        Err(_) if refused => Ok(Bytes::new()),
        Err(_) => Err(Error::TooLong { host: host.to_owned(), limit }),
    }
}

fn classify(host: &str, error: legacy::Error) -> Error {
    let host = host.to_owned();
    // With TLS 1.3 the alert comes after the handshake, in place of an answer.
    if refuses_certificate(&error) {
        return Error::CertificateRefused { host, source: error.into() };
    }
    let connecting = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<ConnectError>());
    match connecting {
        Some(ConnectError::NotHttps(_)) => Error::Unsendable { host, source: error.into() },
        // Our own affair, not the network's.
        Some(ConnectError::Unsigned { .. }) => Error::Signing(error.into()),
        Some(cause) if cause.is_untrusted() => Error::Untrusted { host, source: error.into() },
        Some(_) => Error::NotConnected { host, source: error.into() },
        None if error.is_connect() => Error::NotConnected { host, source: error.into() },
        None => Error::Interrupted { host, source: error.into() },
    }
}

/// Whether the server ended the connection because of the certificate that it was shown, or was not.
fn refuses_certificate(error: &legacy::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // An I/O error is not the source of what it wraps, but hides it.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(rustls::Error::AlertReceived(alert)) = inner.and_then(|inner| inner.downcast_ref()) {
            return is_about_certificate(*alert);
        }
        cause = error.source();
    }
    false
}

fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_refusal_is_cut_and_a_long_answer_refused() {
        let read = async |status: u16, length: usize| {
            let body = Full::new(Bytes::from(vec![b'x'; length]));
            collect("hub.example", StatusCode::from_u16(status).unwrap(), body).await.map(|body| body.len())
        };
        assert_eq!(read(200, REFUSAL_LIMIT + 1).await.unwrap(), REFUSAL_LIMIT + 1);
        assert_eq!(read(403, REFUSAL_LIMIT).await.unwrap(), REFUSAL_LIMIT);
        assert_eq!(read(403, REFUSAL_LIMIT + 1).await.unwrap(), 0);
        let error = read(200, ANSWER_LIMIT + 1).await.unwrap_err();
        assert_eq!(error.to_string(), "the answer from hub.example is longer than 4194304 bytes");
        assert!(!error.is_offline(), "another attempt would bring the same");
    }
}
