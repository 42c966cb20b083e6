//! Which servers are believed: certificates as they are found inside companies, and those that nobody should believe.

use std::sync::Arc;

use aziot_log::chain as causes;
use aziot_pki::{
    certificate::Chain,
    tls::{ConnectError, Trust, provider},
};
use openssl::{
    nid::Nid,
    pkey::{PKey, Private},
    ssl::SslVersion,
    x509::X509,
};
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    pki_types::PrivatePkcs8KeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    support::{new_ec, new_rsa},
    tls_server::{Demands, Issuer, TlsServer, Traits, certify, chain, connector, der, ping, roots},
};

const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

fn local(authority: bool) -> Traits<'static> {
    Traits { authority, dns: Some("localhost"), ..Traits::default() }
}

fn ec() -> PKey<Private> {
    new_ec(Nid::X9_62_PRIME256V1)
}

/// Connects to a server with these certificates at `host`, with both versions of TLS.
async fn connect(trust: &Trust, key: &PKey<Private>, certificates: &[&X509], host: &str) -> Result<(), ConnectError> {
    let mut results = Vec::new();
    for version in VERSIONS {
        let server = TlsServer::start(&Demands { key, certificates, version, clients: None, signatures: None });
        let url = format!("https://{host}:{}/", server.address.port());
        results.push(ping(connector(trust, None), &url).await);
        assert_eq!(server.shown().is_ok(), results[0].is_ok());
    }
    assert_eq!(results[0].is_ok(), results[1].is_ok(), "the same in both versions");
    results.remove(0)
}

/// Why the server was not believed.
async fn distrust(trust: &Trust, key: &PKey<Private>, certificates: &[&X509], host: &str) -> String {
    let error = connect(trust, key, certificates, host).await.unwrap_err();
    assert!(error.is_untrusted(), "{error:?}");
    causes(&error).to_string()
}

#[tokio::test]
async fn own_certificates_are_believed_in_the_forms_that_servers_have() {
    let (ec, rsa) = (ec(), new_rsa(2048));
    for key in [&ec, &rsa, &new_ec(Nid::SECP384R1)] {
        let authority = certify("self", key, None, local(true));
        connect(&Trust::only(&chain(&[&authority])), key, &[&authority], "localhost").await.unwrap();
        let leaf = certify("self", key, None, local(false));
        connect(&Trust::only(&chain(&[&leaf])), key, &[&leaf], "localhost").await.unwrap();
        // No alternative names there: the common name counts.
        let version_1 = certify("localhost", key, None, Traits { version_1: true, ..Traits::default() });
        connect(&Trust::only(&chain(&[&version_1])), key, &[&version_1], "localhost").await.unwrap();
    }
    let by_address = certify("x", &ec, None, Traits { ip: Some("127.0.0.1"), ..Traits::default() });
    connect(&Trust::only(&chain(&[&by_address])), &ec, &[&by_address], "127.0.0.1").await.unwrap();
}

#[tokio::test]
async fn a_chain_is_followed_to_an_own_root() {
    let (root_key, middle_key, key) = (ec(), ec(), ec());
    let root = certify("root", &root_key, None, Traits { authority: true, ..Traits::default() });
    let by_root = Issuer(&root, &root_key);
    let middle = certify("middle", &middle_key, Some(&by_root), Traits { authority: true, ..Traits::default() });
    let leaf = certify("leaf", &key, Some(&Issuer(&middle, &middle_key)), local(false));
    let trust = Trust::only(&chain(&[&root]));
    connect(&trust, &key, &[&leaf, &middle], "localhost").await.unwrap();
    assert_eq!(
        distrust(&trust, &key, &[&leaf], "localhost").await,
        "the certificate of localhost is not trusted: unable to get local issuer certificate: \"CN=leaf\""
    );
    // An intermediate is no root, but helps where the server forgets to send it.
    let text = distrust(&Trust::only(&chain(&[&middle])), &key, &[&leaf], "localhost").await;
    assert!(text.contains("issuer certificate"), "{text}");
    connect(&Trust::only(&chain(&[&root, &middle])), &key, &[&leaf], "localhost").await.unwrap();
    connect(&Trust::system_and(roots(&root), &chain(&[&middle])), &key, &[&leaf], "localhost").await.unwrap();
}

#[tokio::test]
async fn system_and_own_roots_work_side_by_side() {
    let (system_key, own_key, key) = (ec(), ec(), ec());
    let system = certify("system", &system_key, None, Traits { authority: true, ..Traits::default() });
    let own = certify("own", &own_key, None, Traits { authority: true, ..Traits::default() });
    let by_system = certify("leaf", &key, Some(&Issuer(&system, &system_key)), local(false));
    let by_own = certify("leaf", &key, Some(&Issuer(&own, &own_key)), local(false));
    let both = Trust::system_and(roots(&system), &chain(&[&own]));
    for leaf in [&by_system, &by_own] {
        connect(&both, &key, &[leaf], "localhost").await.unwrap();
    }
    connect(&Trust::system(roots(&system)), &key, &[&by_system], "localhost").await.unwrap();
    distrust(&Trust::system(roots(&system)), &key, &[&by_own], "localhost").await;
    distrust(&Trust::only(&chain(&[&own])), &key, &[&by_system], "localhost").await;
    distrust(&Trust::only(&Chain::default()), &key, &[&by_system], "localhost").await;
    // The refusal of the one that knows the issuer is told.
    for leaf in [&by_system, &by_own] {
        let text = distrust(&both, &key, &[leaf], "127.0.0.1").await;
        assert!(text.contains("not valid for") || text.contains("IP address mismatch"), "{text}");
    }
}

#[tokio::test]
async fn faults_of_a_known_certificate_are_named() {
    let key = ec();
    let good = certify("good", &key, None, local(true));
    let text = distrust(&Trust::only(&chain(&[&good])), &key, &[&good], "127.0.0.1").await;
    assert_eq!(text, "the certificate of 127.0.0.1 is not trusted: IP address mismatch: \"CN=good\"");
    let other = certify("other", &key, None, Traits { dns: Some("est.example"), ..Traits::default() });
    let text = distrust(&Trust::only(&chain(&[&other])), &key, &[&other], "localhost").await;
    assert_eq!(text, "the certificate of localhost is not trusted: hostname mismatch: \"CN=other\"");
    let expired = certify("old", &key, None, Traits { expired: true, ..local(true) });
    let text = distrust(&Trust::only(&chain(&[&expired])), &key, &[&expired], "localhost").await;
    assert_eq!(text, "the certificate of localhost is not trusted: certificate has expired: \"CN=old\"");
    let trust = Trust::only(&chain(&[&other]));
    distrust(&trust, &key, &[&good], "localhost").await;
}

/// A server that shows one key's certificate and signs with another.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

async fn impostor(version: &'static SupportedProtocolVersion, certificate: &X509, key: &PKey<Private>) -> ConnectError {
    let private = PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8().unwrap());
    let key = provider().key_provider.load_private_key(private.into()).unwrap();
    let certified = Arc::new(CertifiedKey::new(vec![der(certificate)], key));
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Impostor(certified)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let _ = TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
    };
    let trust = Trust::only(&chain(&[certificate]));
    let (connected, ()) = tokio::join!(ping(connector(&trust, None), &url), serve);
    connected.unwrap_err()
}

#[tokio::test]
async fn whoever_shows_a_certificate_must_have_its_key() {
    let (key, other) = (ec(), ec());
    for traits in [local(true), Traits { version_1: true, ..Traits::default() }] {
        let certificate = certify("localhost", &key, None, traits);
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let error = impostor(version, &certificate, &other).await;
            assert!(causes(&error).to_string().contains("BadSignature"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn weak_keys_are_not_believed() {
    let key = new_rsa(1536);
    let weak = certify("weak", &key, None, local(true));
    let error = impostor(&rustls::version::TLS12, &weak, &key).await;
    assert!(error.is_untrusted() && causes(&error).to_string().contains("too weak"), "{error:?}");
}
