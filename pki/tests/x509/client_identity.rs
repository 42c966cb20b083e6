//! Client certificates whose keys are in the key service, in handshakes with OpenSSL.
//!
//! All tests run on one thread, where a handshake that waited for the key service on the runtime's thread would never end.

use std::time::{Duration, Instant};

use aziot_log::chain as causes;
use aziot_pki::{
    certificate::Chain,
    tls::{ClientIdentity, ConnectError, IdentityError, Trust},
};
use openssl::{nid::Nid, ssl::SslVersion, x509::X509};

use crate::{
    support::{CA_SCALAR, Keyd, new_ec, new_rsa, p256},
    tls_server::{Demands, Issuer, TlsServer, Traits, certify, chain, connector, ping, roots},
};

const AUTHORITY: Traits<'_> = Traits { authority: true, dns: None, ip: None, version_1: false, expired: false };
const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

#[tokio::test]
async fn every_kind_of_key_proves_itself_and_shows_its_whole_chain() {
    let pairs = [
        ("p256", new_ec(Nid::X9_62_PRIME256V1)),
        ("p384", new_ec(Nid::SECP384R1)),
        ("p521", new_ec(Nid::SECP521R1)),
        ("rsa", new_rsa(2048)),
    ];
    let keyd = Keyd::start(pairs.clone());
    let (root_key, issuer_key, server_key) = (p256(CA_SCALAR), new_rsa(2048), new_ec(Nid::X9_62_PRIME256V1));
    let root = certify("root", &root_key, None, AUTHORITY);
    let intermediate = certify("intermediate", &issuer_key, Some(&Issuer(&root, &root_key)), AUTHORITY);
    let local = Traits { dns: Some("localhost"), ..Traits::default() };
    let server = certify("server", &server_key, Some(&Issuer(&root, &root_key)), local);
    let signatures = [
        ("p256", None),
        ("p384", None),
        ("p521", None),
        ("rsa", None),
        ("rsa", Some("RSA-PSS+SHA256")),
        ("rsa", Some("RSA-PSS+SHA384")),
        ("rsa", Some("RSA-PSS+SHA512")),
        ("rsa", Some("RSA+SHA256")),
        ("rsa", Some("RSA+SHA384")),
        ("rsa", Some("RSA+SHA512")),
    ];
    for (name, signatures) in signatures {
        let key = &pairs.iter().find(|(pair, _)| *pair == name).unwrap().1;
        let leaf = certify(name, key, Some(&Issuer(&intermediate, &issuer_key)), Traits::default());
        let certificates = [&leaf, &intermediate, &root];
        for version in VERSIONS {
            let pkcs1 = signatures.is_some_and(|signatures| signatures.starts_with("RSA+"));
            if pkcs1 && version == SslVersion::TLS1_3 {
                continue; // RFC 8446, section 4.2.3: not for handshakes
            }
            if name == "p521" && version == SslVersion::TLS1_2 {
                continue; // OpenSSL wants the curve among those that the client offers for the key exchange
            }
            // What remains must do for the server's own certificate too.
            let signatures = signatures.map(|signatures| format!("{signatures}:ECDSA+SHA256"));
            let server = TlsServer::start(&Demands {
                key: &server_key,
                certificates: &[&server],
                version,
                clients: Some(&root),
                signatures: signatures.as_deref(),
            });
            let identity = ClientIdentity::new(&chain(&certificates), keyd.key(name).await).unwrap();
            let url = format!("https://localhost:{}/", server.address.port());
            let connected = ping(connector(&Trust::system(roots(&root)), Some(identity)), &url).await;
            assert!(connected.is_ok(), "{name} {version:?} {signatures:?}: {connected:?}, {:?}", server.shown());
            let shown = server.shown().unwrap();
            let sent: Vec<_> = certificates.iter().map(|certificate| certificate.to_der().unwrap()).collect();
            assert_eq!(shown, sent, "{name} {version:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_identity_is_refused_before_anybody_is_called() {
    let (key, short) = (new_ec(Nid::X9_62_PRIME256V1), new_ec(Nid::SECP224R1));
    let keyd = Keyd::start([("key", key.clone()), ("other", new_rsa(2048)), ("short", short.clone())]);
    let leaf = chain(&[&certify("leaf", &key, None, Traits::default())]);
    let refused = ClientIdentity::new(&leaf, keyd.key("other").await).unwrap_err();
    assert!(matches!(refused, IdentityError::ForeignKey { .. }));
    assert_eq!(refused.to_string(), "the client certificate \"CN=leaf\" does not belong to its key");
    let refused = ClientIdentity::new(&Chain::default(), keyd.key("key").await).unwrap_err();
    assert!(matches!(refused, IdentityError::NoCertificate));
    let leaf = chain(&[&certify("short", &short, None, Traits::default())]);
    let refused = ClientIdentity::new(&leaf, keyd.key("short").await).unwrap_err();
    assert!(matches!(refused, IdentityError::UnsupportedKey { .. }));
}

/// Connects with a key service that has come to misbehave.
async fn connect_badly(version: SslVersion, misbehave: impl Fn(&Keyd)) -> (ConnectError, Duration) {
    let key = new_ec(Nid::X9_62_PRIME256V1);
    let keyd = Keyd::start([("key", key.clone())]);
    let leaf: X509 = certify("localhost", &key, None, Traits { dns: Some("localhost"), ..AUTHORITY });
    let certificates = [&leaf];
    let demands = Demands { key: &key, certificates: &certificates, version, clients: Some(&leaf), signatures: None };
    let server = TlsServer::start(&demands);
    let limit = Duration::from_millis(200);
    let identity = ClientIdentity::with_limit(&chain(&certificates), keyd.key("key").await, limit).unwrap();
    misbehave(&keyd);
    let url = format!("https://localhost:{}/", server.address.port());
    let begun = Instant::now();
    let error = ping(connector(&Trust::only(&chain(&certificates)), Some(identity)), &url).await.unwrap_err();
    let elapsed = begun.elapsed();
    assert!(server.shown().is_err());
    (error, elapsed)
}

#[tokio::test]
async fn a_key_service_that_hangs_ends_in_a_clear_error_within_its_limit() {
    for version in VERSIONS {
        let (error, elapsed) = connect_badly(version, Keyd::hang).await;
        assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
        assert_eq!(
            causes(&error).to_string(),
            "could not prove to localhost who this device is: the key of the client certificate did not sign within 0.2 s"
        );
    }
}

#[tokio::test]
async fn a_signature_by_another_key_is_not_sent() {
    for version in VERSIONS {
        let (error, _) = connect_badly(version, Keyd::lie).await;
        assert!(matches!(error, ConnectError::Unsigned { .. }), "{error:?}");
        assert!(causes(&error).to_string().ends_with("another key than that of the client certificate"), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_nothing_is_shown_nothing() {
    let key = new_ec(Nid::X9_62_PRIME256V1);
    let keyd = Keyd::start([("key", key.clone())]);
    let leaf = certify("localhost", &key, None, Traits { dns: Some("localhost"), ..AUTHORITY });
    let identity = ClientIdentity::new(&chain(&[&leaf]), keyd.key("key").await).unwrap();
    let before = keyd.calls();
    let version = SslVersion::TLS1_3;
    let server =
        TlsServer::start(&Demands { key: &key, certificates: &[&leaf], version, clients: None, signatures: None });
    let url = format!("https://localhost:{}/", server.address.port());
    ping(connector(&Trust::only(&chain(&[&leaf])), Some(identity)), &url).await.unwrap();
    assert_eq!(server.shown().unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(keyd.calls(), before, "nothing was signed");
}
