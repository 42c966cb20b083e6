//! The network between device and cloud, as a test wants it: cut, slow, false, or good.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use aziot_identityd_cloud::{
    Error as CloudError, Exchange, Exchanges, TlsExchange, TlsExchanges, exchange::Exchanging,
};
use aziot_pki::tls::ClientIdentity;
use tokio::{net::TcpListener, sync::Notify, time::timeout};

use super::PATIENCE;

/// The network between device and cloud: it can be cut, and it remembers what went over it.
pub(crate) struct Network {
    exchanges: TlsExchanges,
    tls: TlsExchange,
    cut: AtomicBool,
    meddle: AtomicBool,
    requests: Mutex<Vec<String>>,
    lie: Mutex<Option<(String, &'static str)>>,
    hole: Mutex<Option<(&'static str, TcpListener)>>,
    held: Mutex<Option<(String, Arc<Held>)>>,
}

/// An answer that is on its way for as long as a test wants.
#[derive(Default)]
pub(crate) struct Held {
    arrived: Notify,
    released: Notify,
}

impl Held {
    /// Waits until the cloud has given the answer.
    pub(crate) async fn arrived(&self) {
        timeout(PATIENCE, self.arrived.notified()).await.expect("the request is made");
    }

    /// Says that it is there, and waits until it may go on.
    pub(super) async fn pass(&self) {
        self.arrived.notify_one();
        self.released.notified().await;
    }

    /// Lets the answer through.
    pub(crate) fn release(&self) {
        self.released.notify_one();
    }
}

/// The network as it is used with one client certificate, or with none.
struct Connections {
    network: Arc<Network>,
    tls: TlsExchange,
}

/// Plugs services into the network.
pub(crate) struct Cable(pub(crate) Arc<Network>);

impl Exchanges for Cable {
    fn exchange(&self, identity: Option<Arc<ClientIdentity>>) -> Arc<dyn Exchange> {
        let Self(network) = self;
        Arc::new(Connections { network: Arc::clone(network), tls: network.exchanges.with_identity(identity) })
    }
}

impl Exchange for Connections {
    fn exchange(&self, request: ::http::Request<hyper::body::Bytes>) -> Exchanging<'_> {
        self.network.carry(&self.tls, request)
    }
}

impl Exchange for Network {
    fn exchange(&self, request: ::http::Request<hyper::body::Bytes>) -> Exchanging<'_> {
        self.carry(&self.tls, request)
    }
}

impl Network {
    /// A network that does nothing of its own.
    pub(super) fn new(exchanges: TlsExchanges) -> Arc<Self> {
        Arc::new(Self {
            tls: exchanges.with_identity(None),
            exchanges,
            cut: AtomicBool::new(false),
            meddle: AtomicBool::new(false),
            requests: Mutex::default(),
            lie: Mutex::default(),
            hole: Mutex::default(),
            held: Mutex::default(),
        })
    }

    /// Lets the request through over `tls`, or whatever the test wants.
    fn carry<'a>(&'a self, tls: &'a TlsExchange, mut request: ::http::Request<hyper::body::Bytes>) -> Exchanging<'a> {
        let line = format!("{} {}", request.method(), request.uri().path());
        self.requests.lock().unwrap().push(line.clone());
        if let Some((_, body)) = self.lie.lock().unwrap().as_ref().filter(|(lied, _)| *lied == line) {
            let answer = ::http::Response::new(hyper::body::Bytes::from_static(body.as_bytes()));
            return Box::pin(async move { Ok(answer) });
        }
        if let Some((end, listener)) = &*self.hole.lock().unwrap()
            && line.ends_with(end)
        {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            let authority = format!("localhost:{}", listener.local_addr().unwrap().port());
            parts.authority = Some(authority.parse().unwrap());
            *request.uri_mut() = ::http::Uri::from_parts(parts).unwrap();
        }
        let held = self.held.lock().unwrap().take_if(|(awaited, _)| match awaited.strip_suffix('*') {
            Some(beginning) => line.starts_with(beginning),
            None => *awaited == line,
        });
        if let Some((_, held)) = held {
            return Box::pin(async move {
                let answer = tls.exchange(request).await;
                held.pass().await;
                answer
            });
        }
        if self.cut.load(Ordering::SeqCst) {
            let host = request.uri().host().unwrap().to_owned();
            return Box::pin(async move { Err(CloudError::NotConnected { host, source: "the cable is out".into() }) });
        }
        if request.headers().contains_key("if-match") && self.meddle.swap(false, Ordering::SeqCst) {
            return Box::pin(async move {
                // The same change, made by somebody else a moment before.
                assert_eq!(tls.exchange(request.clone()).await?.status(), 200);
                tls.exchange(request).await
            });
        }
        tls.exchange(request)
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Somebody else changes what the next conditional request is about, just before it.
    pub(crate) fn meddle_once(&self) {
        self.meddle.store(true, Ordering::SeqCst);
    }

    pub(crate) fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
        *self.hole.lock().unwrap() = None;
    }

    /// Requests whose path ends so connect and are never answered, as behind a firewall that swallows packets.
    pub(crate) async fn swallow(&self, end: &'static str) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        *self.hole.lock().unwrap() = Some((end, listener));
    }

    /// The cloud gives this answer to all requests of this method and path.
    pub(crate) fn lie(&self, line: &str, body: &'static str) {
        *self.lie.lock().unwrap() = Some((line.to_owned(), body));
    }

    /// Holds the answer to the next request of this method and path; with `*` at the end, of a path that begins so.
    pub(crate) fn hold(&self, line: &str) -> Arc<Held> {
        let held = Arc::new(Held::default());
        *self.held.lock().unwrap() = Some((line.to_owned(), Arc::clone(&held)));
        held
    }

    /// How many requests there were of this method and path.
    pub(crate) fn count_exactly(&self, line: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|one| *one == line).count()
    }

    /// How many requests of this method had this in their path.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let fits = |line: &&String| line.starts_with(method) && line.contains(part);
        self.requests.lock().unwrap().iter().filter(fits).count()
    }
}
