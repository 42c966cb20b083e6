//! Servers that end the TLS connection because of the client certificate, in both versions of TLS.

use std::time::Duration;

use aziot_identityd_cloud::{Error as CloudError, Exchange as _};
use aziot_pki::tls::roots_from_file;
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    ssl::{SslAcceptor, SslMethod, SslVerifyMode, SslVersion},
    x509::{
        X509, X509Name,
        extension::{BasicConstraints, SubjectAlternativeName},
    },
};
use tokio::{net::TcpListener, task::spawn_blocking, time::timeout};

use super::{
    super::*,
    world::{World, x509::now},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn certificate(key: &PKey<Private>, name: &str, issuer: Option<(&X509, &PKey<Private>)>) -> X509 {
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    let subject = subject.build();
    let mut certificate = X509::builder().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
    certificate.set_subject_name(&subject).unwrap();
    certificate.set_issuer_name(issuer.map_or(&subject, |(issuer, _)| issuer.subject_name())).unwrap();
    certificate.set_pubkey(key).unwrap();
    certificate.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
    if issuer.is_some() {
        let names =
            SubjectAlternativeName::new().dns("localhost").build(&certificate.x509v3_context(None, None)).unwrap();
        certificate.append_extension(names).unwrap();
    } else {
        certificate.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    }
    certificate.sign(issuer.map_or(key, |(_, key)| key), MessageDigest::sha256()).unwrap();
    certificate.build()
}

#[tokio::test]
async fn a_refused_certificate_is_no_outage() {
    let world = World::new().await;
    let client_key = world.make_key_pair("identity").await;
    let pem = world.certificate(&client_key, "dev-x", now() - 10, now() + 3600);
    let identity = world.identity("identity", &pem).await;
    let folder = tempfile::tempdir().unwrap();
    let (authority_key, server_key) = (key(), key());
    let authority = certificate(&authority_key, "authority", None);
    let server = certificate(&server_key, "server", Some((&authority, &authority_key)));
    let roots = folder.path().join("authority.pem");
    aziot_files::write(&roots, aziot_files::Mode::PRIVATE, authority.to_pem().unwrap()).unwrap();
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_min_proto_version(Some(version)).unwrap();
        acceptor.set_max_proto_version(Some(version)).unwrap();
        acceptor.set_private_key(&server_key).unwrap();
        acceptor.set_certificate(&server).unwrap();
        acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        let (acceptor, listener) = (acceptor.build(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let port = listener.local_addr().unwrap().port();
        let serving = async {
            let stream = listener.accept().await.unwrap().0.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            spawn_blocking(move || acceptor.accept(stream).is_err()).await.unwrap()
        };

        let exchanges = TlsExchanges::new(Roots::Only(roots_from_file(&roots).unwrap()), None);
        let exchange = exchanges.with_identity(Some(Arc::clone(&identity)));
        let request =
            ::http::Request::get(format!("https://localhost:{port}/")).body(hyper::body::Bytes::new()).unwrap();
        let ended = timeout(PATIENCE, async { tokio::join!(exchange.exchange(request), serving) }).await;
        let (answer, is_refused) = ended.expect("both ends finish");
        let error = answer.unwrap_err();
        assert!(matches!(error, CloudError::CertificateRefused { .. }), "{version:?}: {error:?}");
        assert!(error.is_device_rejected() && !error.is_offline());
        assert!(is_refused);
    }
}
