//! A client of one EST server (RFC 7030): its CA certificates, and one certificate for one request.
//!
//! One attempt, with a limit on each wait; what is repeated, and when, is decided above. Both requests go over one connection.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use aziot_certd_api::config::Basic;
use aziot_log::{RequestId, chain, fields};
use aziot_pki::{
    certificate::{Chain, ChainError},
    request::Request as CertificateRequest,
    tls::{ConnectError, Connector, Proxy},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use openssl::x509::{X509, X509VerifyResult};
use tokio::time::timeout;
use tower::Service;
use zeroize::Zeroizing;

use super::{
    answer::{self, Answer, Unusable},
    servers::{Limits, Servers},
    settings::Access,
    url::ServerUrl,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const CA_CERTIFICATES: &str = "cacerts";
const ENROLL: &str = "simpleenroll";
const REENROLL: &str = "simplereenroll";
/// Bytes of an answer; a certificate has about 1,000.
const ANSWER_LIMIT: usize = 1024 * 1024;
const COLUMNS: usize = 64;

/// Why a server gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No connection; nothing was sent.
    #[error("could not connect to {url}")]
    NotConnected { url: ServerUrl, source: legacy::Error },
    /// The connection ended, or somebody else speaks there.
    #[error("no answer came from {url}")]
    Interrupted { url: ServerUrl, source: BoxError },
    /// No answer in time.
    #[error("{url} did not answer within {} s", limit.as_secs())]
    TimedOut { url: ServerUrl, limit: Duration },
    /// The answer is of no use.
    #[error("{operation} of {url} failed")]
    Unusable { url: ServerUrl, operation: &'static str, source: Unusable },
    /// The certificates are somebody else's.
    #[error("{url} did not issue what was asked for")]
    NotIssued { url: ServerUrl, source: ChainError },
    /// The request cannot be written.
    #[error("could not write a request to {url}")]
    Unsendable { url: ServerUrl, source: BoxError },
}

impl Error {
    /// Whether it may work if it is tried again soon: the server is away or busy, but does not say no.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::NotConnected { source, .. } => {
                let cause = std::error::Error::source(source).and_then(|cause| cause.downcast_ref::<ConnectError>());
                cause.is_none_or(|cause| {
                    matches!(cause, ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. })
                })
            }
            Self::Interrupted { .. } | Self::TimedOut { .. } => true,
            Self::Unusable { source: Unusable::Status { status, .. }, .. } => {
                matches!(status, 408 | 429 | 502 | 503 | 504)
            }
            Self::Unusable { .. } | Self::NotIssued { .. } | Self::Unsendable { .. } => false,
        }
    }

    /// How long the server asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unusable { source: Unusable::Status { retry_after, .. }, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the server has decided, and not for what was asked: the same request would get the same again.
    pub(crate) fn is_decision(&self) -> bool {
        match self {
            // These say nothing about the request: who asks, where, and how often.
            Self::Unusable { source: Unusable::Status { status, .. }, .. } => {
                (400..500).contains(status) && !matches!(status, 401 | 404 | 405 | 407 | 408 | 429)
            }
            Self::Unusable { .. } | Self::NotIssued { .. } => true,
            Self::NotConnected { .. } | Self::Interrupted { .. } | Self::TimedOut { .. } | Self::Unsendable { .. } => {
                false
            }
        }
    }

    /// Whether the server does not have the operation.
    fn is_not_offered(&self) -> bool {
        matches!(self, Self::Unusable { source: Unusable::Status { status: 404 | 405 | 501, .. }, .. })
    }
}

/// What comes of an enrolment.
#[derive(Debug)]
pub(crate) enum Enrolled {
    /// The certificate for the request's key, its issuers, and the server's other CA certificates.
    Issued(Chain),
    /// The server has not decided; the same request is to be sent again after this time.
    NotYet(Duration),
}

/// A client of one server.
pub(crate) struct Client<'s> {
    servers: &'s Servers,
    access: &'s Access,
    limits: Limits,
    http: legacy::Client<InTime, Full<Bytes>>,
}

impl<'s> Client<'s> {
    pub(super) fn new(
        servers: &'s Servers,
        access: &'s Access,
        tls: Arc<rustls::ClientConfig>,
        proxy: Option<Arc<Proxy>>,
        limits: Limits,
    ) -> Self {
        let connector = InTime { connector: Connector::new(tls, proxy).allow_plain_http(), limit: limits.connect };
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.exchange)
            .pool_max_idle_per_host(1)
            .build(connector);
        Self { servers, access, limits, http }
    }

    /// Has a certificate issued. `replaces` says that one for the same subject is there already.
    pub(crate) async fn enroll(&self, request: &CertificateRequest, replaces: bool) -> Result<Enrolled, Error> {
        let limit = self.limits.exchange;
        let in_time = timeout(limit, self.exchange(request, replaces)).await;
        in_time.unwrap_or_else(|_| Err(Error::TimedOut { url: self.url(), limit }))
    }

    async fn exchange(&self, request: &CertificateRequest, replaces: bool) -> Result<Enrolled, Error> {
        let authorities = match self.ca_certificates().await {
            Ok(authorities) => Some(authorities),
            // The other request would fare no better.
            Err(error @ Error::NotConnected { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(
                    { fields::URL } = %self.access.url,
                    { fields::ERROR } = %chain(&error),
                    "the EST server gives no CA certificates; going on with those that are known"
                );
                self.servers.known_authorities(&self.access.url)
            }
        };
        let certificates = match self.order(request, replaces).await? {
            Answer::NotYet(pause) => return Ok(Enrolled::NotYet(pause)),
            Answer::Certificates(certificates) => certificates,
        };
        let is_known = authorities.is_some();
        let (issued, has_issuer) = self.ordered(request, certificates.clone(), authorities.unwrap_or_default()).await?;
        if is_known || has_issuer {
            return Ok(Enrolled::Issued(issued));
        }
        // A leaf alone is of no use to most; the certificate is issued, so this is worth another try.
        let (issued, _) = self.ordered(request, certificates, self.ca_certificates().await?).await?;
        Ok(Enrolled::Issued(issued))
    }

    /// The chain for the request's key, and whether the issuer of its first certificate is in it.
    async fn ordered(
        &self,
        request: &CertificateRequest,
        certificates: Vec<X509>,
        authorities: Vec<X509>,
    ) -> Result<(Chain, bool), Error> {
        let key = request.public_key_info().clone();
        let ordering = self.compute(move || {
            let chain = Chain::for_key(&key, certificates, &authorities)?;
            let has_issuer = has_issuer(&chain);
            Ok((chain, has_issuer))
        });
        ordering.await?.map_err(|source| Error::NotIssued { url: self.url(), source })
    }

    /// A server may send a hundred certificates: reading them and finding their order takes too long for a worker.
    async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        match tokio::task::spawn_blocking(RequestId::carry(work)).await {
            Ok(outcome) => Ok(outcome),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(source) => Err(Error::Interrupted { url: self.url(), source: source.into() }),
            },
        }
    }

    /// The server's CA certificates.
    async fn ca_certificates(&self) -> Result<Vec<X509>, Error> {
        let limit = self.limits.authorities;
        let answer = timeout(limit, self.send(Method::GET, CA_CERTIFICATES, None)).await;
        match answer.unwrap_or_else(|_| Err(Error::TimedOut { url: self.url(), limit }))? {
            Answer::Certificates(authorities) if authorities.is_empty() => {
                // What was known before is worth more.
                Err(Error::Unusable { url: self.url(), operation: CA_CERTIFICATES, source: Unusable::Empty })
            }
            Answer::Certificates(authorities) => {
                self.servers.remember_authorities(&self.access.url, &authorities);
                Ok(authorities)
            }
            Answer::NotYet(retry_after) => {
                let source = Unusable::Status { status: 202, text: String::new(), retry_after: Some(retry_after) };
                Err(Error::Unusable { url: self.url(), operation: CA_CERTIFICATES, source })
            }
        }
    }

    /// Sends the request where the settings want it, and to `simpleenroll` if the server has nothing else.
    async fn order(&self, request: &CertificateRequest, replaces: bool) -> Result<Answer, Error> {
        let body = || Some(lines(request.der()));
        if replaces && self.access.reenroll {
            match self.send(Method::POST, REENROLL, body()).await {
                Err(error) if error.is_not_offered() => {
                    tracing::info!({ fields::URL } = %self.access.url, "no {REENROLL} there, using {ENROLL}");
                }
                answer => return answer,
            }
        }
        self.send(Method::POST, ENROLL, body()).await
    }

    async fn send(&self, method: Method, operation: &'static str, body: Option<String>) -> Result<Answer, Error> {
        let unsendable = |source: BoxError| Error::Unsendable { url: self.url(), source };
        let uri = self.access.url.operation(operation).map_err(|error| unsendable(error.into()))?;
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(basic) = &self.access.basic {
            request = request.header(header::AUTHORIZATION, authorization(basic));
        }
        if body.is_some() {
            request = request
                .header(header::CONTENT_TYPE, "application/pkcs10")
                .header("content-transfer-encoding", "base64");
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| unsendable(error.into()))?;
        let answer = self.http.request(request).await.map_err(|source| {
            let url = self.url();
            if source.is_connect() {
                Error::NotConnected { url, source }
            } else {
                Error::Interrupted { url, source: source.into() }
            }
        })?;
        let (head, body) = answer.into_parts();
        let body = match Limited::new(body, ANSWER_LIMIT).collect().await {
            Ok(body) => body.to_bytes(),
            // The status says what to do.
            Err(error) if head.status.as_u16() != 200 && error.is::<LengthLimitError>() => Bytes::new(),
            Err(error) if error.is::<LengthLimitError>() => {
                let source = Unusable::TooLong { limit: ANSWER_LIMIT };
                return Err(Error::Unusable { url: self.url(), operation, source });
            }
            Err(source) => return Err(Error::Interrupted { url: self.url(), source }),
        };
        let answer = Response::from_parts(head, body);
        let answer = self.compute(move || answer::read(&answer, SystemTime::now())).await?;
        answer.map_err(|source| Error::Unusable { url: self.url(), operation, source })
    }

    fn url(&self) -> ServerUrl {
        self.access.url.clone()
    }
}

fn has_issuer(chain: &Chain) -> bool {
    let Some(leaf) = chain.leaf() else { return false };
    chain.certificates().iter().any(|candidate| candidate.issued(leaf) == X509VerifyResult::OK)
}

/// Base64 in lines of 64 characters, each ended by LF, the last one too.
fn lines(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = String::with_capacity(text.len() + text.len() / COLUMNS + 1);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(COLUMNS));
        lines.push_str(line);
        lines.push('\n');
        rest = after;
    }
    lines
}

fn authorization(basic: &Basic) -> HeaderValue {
    let plain = Zeroizing::new(format!("{}:{}", basic.username, basic.password.expose()));
    let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(plain.as_bytes())));
    let mut value = HeaderValue::from_str(&value).expect("base64 is visible ASCII");
    value.set_sensitive(true);
    value
}

/// A connector with one limit on the whole way to a connection.
#[derive(Clone)]
struct InTime {
    connector: Connector,
    limit: Duration,
}

impl Service<Uri> for InTime {
    type Response = <Connector as Service<Uri>>::Response;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let (limit, host) = (self.limit, target.host().unwrap_or_default().to_owned());
        let connecting = self.connector.call(target);
        Box::pin(async move { timeout(limit, connecting).await.unwrap_or(Err(ConnectError::TimedOut { host, limit })) })
    }
}

impl fmt::Debug for Client<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("url", &self.access.url).finish_non_exhaustive()
    }
}
