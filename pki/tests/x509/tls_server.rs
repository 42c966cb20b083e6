//! Certificates of every kind that servers have, and a TLS server by OpenSSL that answers one connection in a thread.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use aziot_pki::{
    certificate::Chain,
    tls::{ConnectError, Connector, RootCertStore, Trust, client_config},
};
use hyper_util::rt::TokioIo;
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::{PKey, Private},
    ssl::{SslAcceptor, SslMethod, SslVerifyMode, SslVersion},
    x509::{
        X509, X509NameBuilder, X509NameRef,
        extension::{BasicConstraints, SubjectAlternativeName},
        store::X509StoreBuilder,
    },
};
use rustls::{client::ResolvesClientCert, pki_types::CertificateDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::Service as _;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a certificate is like; the default is a leaf that holds for years and for no name.
#[derive(Clone, Copy, Default)]
pub(crate) struct Traits<'a> {
    pub(crate) authority: bool,
    pub(crate) dns: Option<&'a str>,
    pub(crate) ip: Option<&'a str>,
    pub(crate) version_1: bool,
    pub(crate) expired: bool,
}

pub(crate) struct Issuer<'a>(pub(crate) &'a X509, pub(crate) &'a PKey<Private>);

/// A certificate for `key`; without an issuer self-signed.
pub(crate) fn certify(name: &str, key: &PKey<Private>, issuer: Option<&Issuer<'_>>, traits: Traits<'_>) -> X509 {
    let mut builder = X509::builder().unwrap();
    builder.set_version(if traits.version_1 { 0 } else { 2 }).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(100, openssl::bn::MsbOption::ONE, false).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    let mut subject = X509NameBuilder::new().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    builder.set_subject_name(&subject).unwrap();
    let issuer_name: &X509NameRef = issuer.map_or(&subject, |Issuer(certificate, _)| certificate.subject_name());
    builder.set_issuer_name(issuer_name).unwrap();
    let not_after = if traits.expired { "20200102000000Z" } else { "20491231000000Z" };
    builder.set_not_before(&Asn1Time::from_str("20200101000000Z").unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_str(not_after).unwrap()).unwrap();
    builder.set_pubkey(key).unwrap();
    if !traits.version_1 {
        let mut constraints = BasicConstraints::new();
        if traits.authority {
            constraints.ca();
        }
        builder.append_extension(constraints.critical().build().unwrap()).unwrap();
        let mut names = SubjectAlternativeName::new();
        traits.dns.map(|name| names.dns(name));
        traits.ip.map(|address| names.ip(address));
        if traits.dns.or(traits.ip).is_some() {
            let names = names.build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
        }
    }
    builder.sign(issuer.map_or(key, |Issuer(_, key)| key), MessageDigest::sha256()).unwrap();
    builder.build()
}

pub(crate) fn chain(certificates: &[&X509]) -> Chain {
    Chain::from(certificates.iter().map(|&certificate| certificate.clone()).collect::<Vec<_>>())
}

pub(crate) fn der(certificate: &X509) -> CertificateDer<'static> {
    CertificateDer::from(certificate.to_der().unwrap())
}

pub(crate) fn roots(certificate: &X509) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(der(certificate)).unwrap();
    Arc::new(roots)
}

/// What a server demands, and what it is.
pub(crate) struct Demands<'a> {
    pub(crate) key: &'a PKey<Private>,
    /// Leaf first.
    pub(crate) certificates: &'a [&'a X509],
    pub(crate) version: SslVersion,
    /// The authority of the clients, if they must prove themselves.
    pub(crate) clients: Option<&'a X509>,
    /// The signatures that the server knows, if not all.
    pub(crate) signatures: Option<&'a str>,
}

/// A server of one connection, which answers "pong" to four bytes.
pub(crate) struct TlsServer {
    pub(crate) address: SocketAddr,
    thread: JoinHandle<Result<Vec<Vec<u8>>, String>>,
}

impl TlsServer {
    pub(crate) fn start(demands: &Demands<'_>) -> Self {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_private_key(demands.key).unwrap();
        acceptor.set_certificate(demands.certificates[0]).unwrap();
        for certificate in &demands.certificates[1..] {
            acceptor.add_extra_chain_cert((*certificate).clone()).unwrap();
        }
        acceptor.set_min_proto_version(Some(demands.version)).unwrap();
        acceptor.set_max_proto_version(Some(demands.version)).unwrap();
        if let Some(authority) = demands.clients {
            let mut store = X509StoreBuilder::new().unwrap();
            store.add_cert(authority.clone()).unwrap();
            acceptor.set_verify_cert_store(store.build()).unwrap();
            acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            acceptor.set_session_id_context(b"test").unwrap();
        }
        if let Some(signatures) = demands.signatures {
            acceptor.set_sigalgs_list(signatures).unwrap();
        }
        let (acceptor, listener) = (acceptor.build(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            tcp.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut stream = acceptor.accept(tcp).map_err(|error| error.to_string())?;
            let mut ping = [0; 4];
            stream.read_exact(&mut ping).map_err(|error| error.to_string())?;
            stream.write_all(b"pong").map_err(|error| error.to_string())?;
            // The client's certificate is not in a server's list, only what came with it.
            let leaf = stream.ssl().peer_certificate();
            let others = stream.ssl().peer_cert_chain();
            let shown = others.into_iter().flatten().map(|certificate| certificate.to_der().unwrap());
            Ok(leaf.into_iter().map(|leaf| leaf.to_der().unwrap()).chain(shown).collect())
        });
        Self { address, thread }
    }

    /// The certificates that the client showed, in their order, or why it was refused.
    pub(crate) fn shown(self) -> Result<Vec<Vec<u8>>, String> {
        self.thread.join().unwrap()
    }
}

/// A client with this trust and identity.
pub(crate) fn connector(trust: &Trust, identity: Option<Arc<dyn ResolvesClientCert>>) -> Connector {
    Connector::new(client_config(trust, identity).unwrap(), None)
}

/// Sends "ping" and waits for "pong".
pub(crate) async fn ping(mut connector: Connector, url: &str) -> Result<(), ConnectError> {
    let mut stream = TokioIo::into_inner(connector.call(url.parse().unwrap()).await?);
    let mut pong = [0; 4];
    let failed = |source| ConnectError::Handshake { host: url.to_owned(), source };
    stream.write_all(b"ping").await.map_err(failed)?;
    stream.read_exact(&mut pong).await.map_err(failed)?;
    assert_eq!(&pong, b"pong");
    Ok(())
}
