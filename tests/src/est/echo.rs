//! A service behind mutual TLS and its client, both on OpenSSL: the service lets in who holds a certificate of the EST authority, and
//! sends each line back. A client in a loop proves that there is always a certificate that others accept.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    ssl::{SslAcceptor, SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode},
    x509::{X509, store::X509StoreBuilder},
};

use crate::{hex, openssl as program};

/// For how long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two connections of a loop.
const PAUSE: Duration = Duration::from_millis(20);

/// A certificate with its issuers, the leaf first, and its key.
#[derive(Clone)]
pub struct Pair {
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl Pair {
    /// Reads PEM. A key that is not the certificate's is an error, as it is for a service that loads both.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        let chain = X509::stack_from_pem(chain).context("the chain is not PEM")?;
        let leaf = chain.first().context("there is no certificate")?;
        let key = PKey::private_key_from_pem(key).context("the key is not PEM")?;
        let public = leaf.public_key().context("the certificate has no usable key")?;
        ensure!(public.public_eq(&key), "the key is not the certificate's");
        Ok(Self { chain, key })
    }

    /// Reads two files of PEM.
    pub fn read(chain: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("could not read {}", path.display()));
        Self::from_pem(&read(chain)?, &read(key)?)
    }

    /// SHA-256 over the leaf, lower-case hex.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(hex::encode(&self.chain.first().context("there is no certificate")?.digest(MessageDigest::sha256())?))
    }
}

/// A `load` for [`EchoServer::connect_in_a_loop`] that goes on with the last pair where there is none at the moment, as a service does: certificate
/// and key are replaced one after the other, and a reader in between finds two that do not match. A pair that stays away shows when the last one expires.
pub fn or_last(mut load: impl FnMut() -> Result<Pair>) -> impl FnMut() -> Result<Pair> {
    let mut last: Option<Pair> = None;
    move || match (load(), &last) {
        (Ok(pair), _) => {
            last = Some(pair.clone());
            Ok(pair)
        }
        (Err(_), Some(last)) => Ok(last.clone()),
        (Err(error), None) => Err(error),
    }
}

/// The service. Dropping it ends it.
pub struct EchoServer {
    address: SocketAddr,
    root: X509,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_ending: AtomicBool,
}

impl EchoServer {
    /// Lets in who has a certificate under `client_root` (PEM) and sends its issuers along. Its own certificate is made in `folder`.
    pub fn start(folder: &Path, client_root: &Path) -> Result<Self> {
        let (key, certificate) = (folder.join("echo.key.pem"), folder.join("echo.pem"));
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
        let mut arguments: Vec<std::ffi::OsString> =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
                .map(Into::into)
                .into();
        arguments.extend(["-subj", "/CN=localhost", "-addext", names, "-keyout"].map(Into::into));
        arguments.extend([key.clone().into(), "-out".into(), certificate.clone().into()]);
        program::run(arguments, "")?;
        let own = Pair::read(&certificate, &key)?;
        let client_root = fs::read(client_root).with_context(|| format!("could not read {}", client_root.display()))?;
        let mut trusted = X509StoreBuilder::new()?;
        trusted.add_cert(X509::from_pem(&client_root).context("the clients' root is not PEM")?)?;
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        let root = own.chain.into_iter().next().context("there is no certificate")?;
        acceptor.set_certificate(&root)?;
        acceptor.set_private_key(&own.key)?;
        acceptor.set_verify_cert_store(trusted.build())?;
        acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        acceptor.set_session_id_context(b"echo")?;
        let acceptor = Arc::new(acceptor.build());

        let listener = TcpListener::bind("127.0.0.1:0").context("could not listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for tcp in listener.incoming() {
                if state.is_ending.load(Ordering::SeqCst) {
                    return;
                }
                let acceptor = Arc::clone(&acceptor);
                // A client that fails knows why; one that is slow holds up nobody else.
                let _detached = thread::spawn(move || tcp.map(|tcp| echo(&acceptor, tcp)));
            }
        });
        Ok(Self { address, root, shared, thread: Some(thread) })
    }

    /// Where it listens, for clients of other kinds.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// PEM: its certificate, which such clients trust.
    pub fn root(&self) -> Result<String> {
        let pem = self.root.to_pem().context("could not write the certificate as PEM")?;
        String::from_utf8(pem).context("PEM is text")
    }

    /// Connects as the holder of `pair`, sends a line and gets it back. Fails where a careful client would.
    pub fn connect(&self, pair: &Pair) -> Result<()> {
        connect(self.address, &self.root, pair)
    }

    /// Connects with what `load` returns, again and again until [`Loop::stop`], from a thread of its own.
    pub fn connect_in_a_loop(&self, load: impl FnMut() -> Result<Pair> + Send + 'static) -> Loop {
        let (is_ending, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (address, root) = (self.address, self.root.clone());
        let (ends, count) = (Arc::clone(&is_ending), Arc::clone(&connections));
        let mut load = load;
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            while !ends.load(Ordering::SeqCst) {
                let number = seen.connections + 1;
                let pair = load().with_context(|| format!("no pair for connection {number}"))?;
                let fingerprint = pair.fingerprint()?;
                connect(address, &root, &pair)
                    .with_context(|| format!("connection {number} failed with certificate {fingerprint}"))?;
                seen.connections = number;
                count.store(number, Ordering::SeqCst);
                seen.certificates.insert(fingerprint);
                thread::sleep(PAUSE);
            }
            Ok(seen)
        });
        Loop { is_ending, connections, thread: Some(thread) }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        // Whoever waits for a connection gets one.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a loop has done.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// So many connections, all of them good.
    pub connections: u32,
    /// Fingerprints of the certificates that were used.
    pub certificates: BTreeSet<String>,
}

/// A client that connects again and again. Its first failure ends it, and shows in [`Loop::stop`].
pub struct Loop {
    is_ending: Arc<AtomicBool>,
    connections: Arc<AtomicU32>,
    thread: Option<JoinHandle<Result<Seen>>>,
}

impl Loop {
    /// Whether it is still at it: false after a failure.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// So many connections until now.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Ends it, and tells what it has done or why it failed.
    pub fn stop(mut self) -> Result<Seen> {
        self.is_ending.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("the loop was stopped already")?;
        thread.join().map_err(|_| anyhow!("the loop panicked"))?
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::SeqCst);
    }
}

fn be_patient(tcp: &TcpStream) -> Result<()> {
    tcp.set_read_timeout(Some(PATIENCE)).and_then(|()| tcp.set_write_timeout(Some(PATIENCE)))?;
    tcp.set_nodelay(true).context("could not set up the connection")
}

fn echo(acceptor: &SslAcceptor, tcp: TcpStream) -> Result<()> {
    be_patient(&tcp)?;
    let mut reader = BufReader::new(acceptor.accept(tcp).map_err(|error| anyhow!("the handshake failed: {error}"))?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        reader.get_mut().write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn connect(address: SocketAddr, root: &X509, pair: &Pair) -> Result<()> {
    let connector = connector(root, pair)?.build();
    let tcp = TcpStream::connect_timeout(&address, PATIENCE).context("could not connect")?;
    be_patient(&tcp)?;
    let stream = connector.connect("localhost", tcp).map_err(|error| anyhow!("the handshake failed: {error}"))?;
    let mut reader = BufReader::new(stream);
    let line = format!("{}\n", pair.fingerprint()?);
    // In TLS 1.3 a server says only after the handshake that it does not like the client's certificate.
    reader.get_mut().write_all(line.as_bytes()).context("the server closed the connection")?;
    let mut back = String::new();
    reader.read_line(&mut back).context("the server refused the certificate")?;
    if back != line {
        bail!("the echo of {line:?} is {back:?}");
    }
    reader.get_mut().shutdown().map(|_| ()).context("could not close the connection")
}

fn connector(root: &X509, pair: &Pair) -> Result<SslConnectorBuilder> {
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    let mut trusted = X509StoreBuilder::new()?;
    trusted.add_cert(root.clone())?;
    connector.set_cert_store(trusted.build());
    let mut chain = pair.chain.iter();
    connector.set_certificate(chain.next().context("there is no certificate")?)?;
    for issuer in chain {
        connector.add_extra_chain_cert(issuer.clone())?;
    }
    connector.set_private_key(&pair.key)?;
    Ok(connector)
}
