//! An EST server that does as a test says: answers from a script, a log of what it was asked, in clear or behind TLS.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use aziot_pki::{pkcs7, tls};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{
    asn1::Asn1Time,
    bn::{BigNum, MsbOption},
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, PKeyRef, Private, Public},
    x509::{
        X509, X509Builder, X509Name, X509NameRef, X509Req,
        extension::{BasicConstraints, SubjectAlternativeName},
    },
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// Runs until it is dropped.
pub(super) struct EstServer {
    pub(super) url: String,
    pub(super) authority: Arc<Authority>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    script: Mutex<HashMap<&'static str, VecDeque<Reply>>>,
    seen: Mutex<Vec<Seen>>,
    lifetime: Mutex<i64>,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The last part of the path.
    pub(super) operation: String,
    pub(super) head: String,
    pub(super) body: String,
    /// Certificates that the client has shown.
    pub(super) client: Vec<X509>,
}

/// What comes in place of a proper answer.
#[derive(Clone)]
pub(super) enum Reply {
    /// The proper answer after all.
    Proper,
    /// Status, header lines each ended by CR LF, body.
    Raw(u16, &'static str, Vec<u8>),
    /// PKCS#7 of what is made of the proper leaf and the authority.
    Certificates(fn(X509, &Authority) -> Vec<X509>),
    /// Nothing, for ever.
    Hang,
}

/// An authority with an intermediate, which issues.
pub(super) struct Authority {
    pub(super) root: X509,
    pub(super) intermediate: X509,
    key: PKey<Private>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let (root_key, key) = (new_key(), new_key());
        let root = certificate(&name("Root"), &root_key, public(&root_key).as_ref(), None, (-60, 86_400), true, &[]);
        let intermediate =
            certificate(&name("Issuing"), &root_key, public(&key).as_ref(), Some(&root), (-60, 86_400), true, &[]);
        Self { root, intermediate, key }
    }

    /// Valid from a minute ago, or from `lifetime` before its end, until `lifetime` seconds from now.
    pub(super) fn issue(
        &self,
        subject: &X509NameRef,
        key: &PKeyRef<Public>,
        dates: (i64, i64),
        names: &[&str],
    ) -> X509 {
        certificate(subject, &self.key, key, Some(&self.intermediate), dates, false, names)
    }
}

pub(super) fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

pub(super) fn public(key: &PKey<Private>) -> PKey<Public> {
    PKey::public_key_from_der(&key.public_key_to_der().unwrap()).unwrap()
}

pub(super) fn name(common_name: &str) -> X509Name {
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", common_name).unwrap();
    name.build()
}

/// `dates` are seconds from now.
fn certificate(
    subject: &X509NameRef,
    signer: &PKey<Private>,
    key: &PKeyRef<Public>,
    issuer: Option<&X509>,
    dates: (i64, i64),
    is_authority: bool,
    names: &[&str],
) -> X509 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let at = |seconds: i64| Asn1Time::from_unix(i64::try_from(now).unwrap() + seconds).unwrap();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, MsbOption::ONE, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(subject).unwrap();
    builder.set_issuer_name(issuer.map_or(subject, |issuer| issuer.subject_name())).unwrap();
    builder.set_not_before(&at(dates.0)).unwrap();
    builder.set_not_after(&at(dates.1)).unwrap();
    builder.set_pubkey(key).unwrap();
    if is_authority {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    if !names.is_empty() {
        let mut alternative = SubjectAlternativeName::new();
        for name in names {
            alternative.dns(name);
        }
        let extension = alternative.build(&builder.x509v3_context(issuer.map(|issuer| &**issuer), None)).unwrap();
        builder.append_extension(extension).unwrap();
    }
    builder.sign(signer, MessageDigest::sha256()).unwrap();
    builder.build()
}

impl EstServer {
    /// In clear.
    pub(super) async fn start() -> Self {
        Self::start_with(Arc::new(Authority::new()), false).await
    }

    /// Behind TLS, certified by its own authority as `localhost`, and asking for a client certificate of the same.
    pub(super) async fn start_tls() -> Self {
        Self::start_with(Arc::new(Authority::new()), true).await
    }

    pub(super) async fn start_with(authority: Arc<Authority>, is_tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if is_tls { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{port}/.well-known/est");
        let shared = Arc::new(Shared { lifetime: Mutex::new(3600), ..Shared::default() });
        let acceptor = is_tls.then(|| acceptor(&authority));
        let mut tasks = JoinSet::new();
        let (state, issuer) = (Arc::clone(&shared), Arc::clone(&authority));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, issuer, acceptor) = (Arc::clone(&state), Arc::clone(&issuer), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => serve(stream, Vec::new(), &state, &issuer).await,
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                            let client = shown.iter().map(|one| X509::from_der(one).unwrap()).collect();
                            serve(stream, client, &state, &issuer).await;
                        }
                    }
                });
            }
        });
        Self { url, authority, shared, _tasks: tasks }
    }

    /// Answers the next requests of the operation so; later ones properly.
    pub(super) fn script(&self, operation: &'static str, replies: impl IntoIterator<Item = Reply>) {
        self.shared.script.lock().unwrap().entry(operation).or_default().extend(replies);
    }

    /// What was asked so far, and forgets it.
    pub(super) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    pub(super) fn operations(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().iter().map(|seen| seen.operation.clone()).collect()
    }

    /// How many seconds certificates last from now on.
    pub(super) fn set_lifetime(&self, seconds: i64) {
        *self.shared.lifetime.lock().unwrap() = seconds;
    }
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let key = new_key();
    let leaf = authority.issue(&name("EST server"), &public(&key), (-60, 86_400), &["localhost"]);
    let der = |certificate: &X509| CertificateDer::from(certificate.to_der().unwrap());
    let mut roots = RootCertStore::empty();
    roots.add(der(&authority.root)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(
            vec![der(&leaf), der(&authority.intermediate)],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8().unwrap())),
        );
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    client: Vec<X509>,
    shared: &Shared,
    authority: &Authority,
) {
    while let Some((head, body)) = read_message(&mut stream).await {
        let path = head.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
        let operation = path.rsplit('/').next().unwrap_or_default().to_owned();
        let reply = shared.script.lock().unwrap().get_mut(operation.as_str()).and_then(VecDeque::pop_front);
        let (client, seen_body) = (client.clone(), body.clone());
        shared.seen.lock().unwrap().push(Seen { operation: operation.clone(), head, body: seen_body, client });
        let lifetime = *shared.lifetime.lock().unwrap();
        let (status, headers, body) = match reply.unwrap_or(Reply::Proper) {
            Reply::Proper => proper(&operation, &body, authority, lifetime, |leaf, _| vec![leaf]),
            Reply::Certificates(make) => proper(&operation, &body, authority, lifetime, make),
            Reply::Raw(status, headers, body) => (status, headers, body),
            Reply::Hang => std::future::pending().await,
        };
        let head = format!("HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\r\n", body.len());
        if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

fn proper(
    operation: &str,
    body: &str,
    authority: &Authority,
    lifetime: i64,
    make: fn(X509, &Authority) -> Vec<X509>,
) -> (u16, &'static str, Vec<u8>) {
    let certificates = if operation == "cacerts" {
        vec![authority.root.clone(), authority.intermediate.clone()]
    } else {
        let der = STANDARD.decode(body.split_whitespace().collect::<String>()).unwrap();
        let request = X509Req::from_der(&der).unwrap();
        let leaf = authority.issue(request.subject_name(), &request.public_key().unwrap(), (0, lifetime), &[]);
        make(leaf, authority)
    };
    let text = STANDARD.encode(pkcs7::from_certificates(&certificates).unwrap());
    (200, "content-type: application/pkcs7-mime; smime-type=certs-only\r\n", text.into_bytes())
}

/// Head and body of a request or an answer.
pub(super) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            if body.len() >= length.parse().unwrap() {
                return Some((head.to_owned(), body.to_owned()));
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
