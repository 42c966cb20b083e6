//! The way through proxies: who sees the client's identity, and what requests in clear look like.

use std::sync::Arc;

use aziot_pki::tls::{ClientIdentity, ConnectError, Connector, Proxy, Trust, client_config, provider};
use hyper_util::{client::legacy, rt::TokioExecutor};
use openssl::{nid::Nid, ssl::SslVersion};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::{
    support::{Keyd, new_ec},
    tls_server::{Demands, Issuer, TlsServer, Traits, certify, chain, der, ping, roots},
};

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_proxy_behind_tls_never_sees_the_client_identity() {
    let (root_key, key) = (new_ec(Nid::X9_62_PRIME256V1), new_ec(Nid::X9_62_PRIME256V1));
    let keyd = Keyd::start([("key", key.clone())]);
    let root = certify("root", &root_key, None, Traits { authority: true, ..Traits::default() });
    let names = Traits { dns: Some("localhost"), ..Traits::default() };
    let leaf = certify("leaf", &key, Some(&Issuer(&root, &root_key)), names);
    let certificates = [&leaf];
    let version = SslVersion::TLS1_3;
    let clients = Some(&root);
    let server =
        TlsServer::start(&Demands { key: &key, certificates: &certificates, version, clients, signatures: None });

    let asks = WebPkiClientVerifier::builder_with_provider(roots(&root), provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(asks.allow_unauthenticated().build().unwrap())
        .with_single_cert(vec![der(&leaf)], PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8().unwrap()).into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::new(&format!("https://localhost:{}", listener.local_addr().unwrap().port()), "").unwrap();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut client = TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap();
        let target = head(&mut client).await.split(' ').nth(1).unwrap().to_owned();
        let mut onward = TcpStream::connect(target).await.unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut onward).await;
        client.get_ref().1.peer_certificates().map(<[_]>::len)
    };
    let identity = ClientIdentity::new(&chain(&certificates), keyd.key("key").await).unwrap();
    let config = client_config(&Trust::system(roots(&root)), Some(identity)).unwrap();
    let connector = Connector::new(config, Some(Arc::new(proxy)));
    let url = format!("https://localhost:{}/", server.address.port());
    let (connected, seen_by_proxy) = tokio::join!(ping(connector, &url), serve);
    connected.unwrap();
    assert_eq!(seen_by_proxy, None, "the proxy asked and was shown nothing");
    assert_eq!(server.shown().unwrap().len(), 1, "the server was shown the identity through the tunnel");
}

fn plain(proxy: Option<&str>) -> Connector {
    let key = new_ec(Nid::X9_62_PRIME256V1);
    let nobody = Trust::only(&chain(&[&certify("nobody", &key, None, Traits::default())]));
    let proxy = proxy.map(|uri| Arc::new(Proxy::new(uri, "").unwrap()));
    Connector::new(client_config(&nobody, None).unwrap(), proxy)
}

async fn first_head(listener: &TcpListener) -> String {
    let (mut client, _) = listener.accept().await.unwrap();
    let head = head(&mut client).await;
    client.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
    head
}

#[tokio::test]
async fn requests_in_clear_go_to_the_server_or_whole_to_the_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let get = |connector: Connector, url: String| {
        let client = legacy::Client::builder(TokioExecutor::new()).build::<_, String>(connector);
        async move { client.get(url.parse().unwrap()).await.unwrap().status() }
    };
    let direct = plain(None).allow_plain_http();
    let (status, head) = tokio::join!(get(direct, format!("http://{address}/x")), first_head(&listener));
    assert_eq!(status, 204);
    assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");

    let proxied = plain(Some(&format!("http://me:hunter2@{address}"))).allow_plain_http();
    let (status, head) = tokio::join!(get(proxied, "http://est.example/x?y".to_owned()), first_head(&listener));
    assert_eq!(status, 204);
    assert!(head.starts_with("GET http://est.example/x?y HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("host: est.example\r\n") && !head.to_lowercase().contains("authorization"), "{head}");
}

/// A server in clear needs no trust, but the proxy on the way to it does.
#[tokio::test]
async fn requests_in_clear_go_through_a_proxy_behind_tls_that_is_trusted() {
    let (root_key, key) = (new_ec(Nid::X9_62_PRIME256V1), new_ec(Nid::X9_62_PRIME256V1));
    let root = certify("root", &root_key, None, Traits { authority: true, ..Traits::default() });
    let names = Traits { dns: Some("localhost"), ..Traits::default() };
    let leaf = certify("leaf", &key, Some(&Issuer(&root, &root_key)), names);
    let private = PrivatePkcs8KeyDer::from(key.private_key_to_pkcs8().unwrap());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der(&leaf)], private.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("https://me:hunter2@localhost:{}", listener.local_addr().unwrap().port());
    let other = certify("other", &root_key, None, Traits { authority: true, ..Traits::default() });
    for (trust, is_trusted) in [
        (Trust::system(roots(&root)), true),
        (Trust::only(&chain(&[&root])), true),
        (Trust::system(roots(&other)), false),
        (Trust::only(&chain(&[&certify("nobody", &key, None, Traits::default())])), false),
    ] {
        let proxy = Some(Arc::new(Proxy::new(&proxy, "").unwrap()));
        let connector = Connector::new(client_config(&trust, None).unwrap(), proxy).allow_plain_http();
        let client = legacy::Client::builder(TokioExecutor::new()).build::<_, String>(connector);
        let serve = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut client = acceptor.accept(tcp).await.ok()?;
            let head = head(&mut client).await;
            client.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
            Some(head)
        };
        let (answer, head) = tokio::join!(client.get("http://est.example/x".parse().unwrap()), serve);
        assert_eq!(answer.is_ok(), is_trusted, "{trust:?}");
        let Some(head) = head else { continue };
        assert!(head.starts_with("GET http://est.example/x HTTP/1.1\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("authorization"), "{head}");
    }
}

#[tokio::test]
async fn clear_connections_must_be_allowed() {
    let url: http::Uri = "http://me:hunter2@est.example/x".parse().unwrap();
    let refused = plain(None).call(url).await.err().unwrap();
    assert!(matches!(refused, ConnectError::NotHttps(_)));
    assert_eq!(refused.to_string(), "http://est.example is no https URL");
    let refused = plain(None).allow_plain_http().call("ftp://est.example/".parse().unwrap()).await.err().unwrap();
    assert!(matches!(refused, ConnectError::NotHttps(_)));
}
