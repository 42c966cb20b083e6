//! The seam to the network: one request, one answer, no repetition. Tests put a script in its place.

use std::{pin::Pin, sync::Arc, time::Duration};

use aziot_pki::tls::{self, ConnectError, Connector, Proxy, TlsError, Trust};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::OnceCell;

use crate::{BoxError, Error};

/// An answer on its way.
pub type Exchanging<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Error>> + Send + 'a>>;

/// Something that carries requests to the cloud.
pub trait Exchange: Send + Sync + 'static {
    /// Sends one request and collects its answer. Dropping the future gives the attempt up.
    fn exchange(&self, request: Request<Bytes>) -> Exchanging<'_>;
}

impl<F, A> Exchange for F
where
    F: Fn(Request<Bytes>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Response<Bytes>, Error>> + Send + 'static,
{
    fn exchange(&self, request: Request<Bytes>) -> Exchanging<'_> {
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

/// HTTP/1.1 over pooled TLS connections. One value serves one set of TLS credentials and all hosts.
pub struct TlsExchange {
    roots: Roots,
    proxy: Option<Arc<Proxy>>,
    /// Made at the first request: a device without cloud needs no root certificates, and one whose roots are not there yet can try again.
    client: OnceCell<legacy::Client<Connector, Full<Bytes>>>,
}

impl TlsExchange {
    /// A client that goes through `proxy` where there is one. Nothing is read or connected yet.
    #[must_use]
    pub fn new(roots: Roots, proxy: Option<Proxy>) -> Self {
        Self { roots, proxy: proxy.map(Arc::new), client: OnceCell::new() }
    }

    async fn client(&self) -> Result<&legacy::Client<Connector, Full<Bytes>>, Error> {
        let build = || async {
            let roots = match &self.roots {
                Roots::System => {
                    let read = tokio::task::spawn_blocking(tls::system_roots).await;
                    read.map_err(|error| Error::Tls(error.into()))?
                }
                Roots::Only(roots) => Ok(Arc::clone(roots)),
            };
            let settings = roots.and_then(|roots| tls::client_config(&Trust::system(roots), None));
            let settings = settings.map_err(|error: TlsError| Error::Tls(error.into()))?;
            Ok(legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .build(Connector::new(settings, self.proxy.clone())))
        };
        self.client.get_or_try_init(build).await
    }
}

impl Exchange for TlsExchange {
    fn exchange(&self, request: Request<Bytes>) -> Exchanging<'_> {
        Box::pin(async move {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let sending = self.client().await?.request(request.map(Full::new));
            let answer = sending.await.map_err(|error| classify(&host, error))?;
            let (head, body) = answer.into_parts();
            let body = collect(head.status, body).await.map_err(|source| Error::Interrupted { host, source })?;
            Ok(Response::from_parts(head, body))
        })
    }
}

/// Reads a body. An overlong one beside an error is left out: the status alone says what to do.
async fn collect<B>(status: StatusCode, body: B) -> Result<Bytes, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let refused = status.is_client_error() || status.is_server_error();
    let limit = if refused { REFUSAL_LIMIT } else { ANSWER_LIMIT };
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if refused && error.is::<LengthLimitError>() => Ok(Bytes::new()),
        Err(error) => Err(error),
    }
}

fn classify(host: &str, error: legacy::Error) -> Error {
    let host = host.to_owned();
    let connecting = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<ConnectError>());
    match connecting {
        Some(ConnectError::NotHttps(_)) => Error::Unsendable { host, source: error.into() },
        Some(cause) if cause.is_untrusted() => Error::Untrusted { host, source: error.into() },
        Some(_) => Error::NotConnected { host, source: error.into() },
        None if error.is_connect() => Error::NotConnected { host, source: error.into() },
        None => Error::Interrupted { host, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_refusal_is_cut_and_a_long_answer_refused() {
        let read = async |status: u16, length: usize| {
            let body = collect(StatusCode::from_u16(status).unwrap(), Full::new(Bytes::from(vec![b'x'; length]))).await;
            body.map(|body| body.len()).ok()
        };
        assert_eq!(read(200, REFUSAL_LIMIT + 1).await, Some(REFUSAL_LIMIT + 1));
        assert_eq!(read(200, ANSWER_LIMIT + 1).await, None);
        assert_eq!(read(403, REFUSAL_LIMIT).await, Some(REFUSAL_LIMIT));
        assert_eq!(read(403, REFUSAL_LIMIT + 1).await, Some(0));
    }
}
