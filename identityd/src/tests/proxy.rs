//! The way to the cloud through an HTTP proxy.

use aziot_identityd_cloud::{Exchange as _, TlsExchange};
use aziot_pki::tls::roots_from_file;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::super::*;
use super::world::World;

/// Opens one tunnel and returns the request that asked for it.
async fn proxy_once(listener: TcpListener) -> String {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let mut server = TcpStream::connect(target).await.unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    // Ends with either side; a reset is as good as an end here.
    let _ = copy_bidirectional(&mut client, &mut server).await;
    head
}

#[tokio::test]
async fn requests_go_through_a_tunnel_with_the_proxys_password() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://me:s%20p@{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(proxy_once(listener));
    let exchange = TlsExchange::new(Roots::Only(roots_from_file(&world.ca()).unwrap()), Proxy::new(&uri, ""));
    let request = ::http::Request::get(format!("https://{}/devices/x/modules", world.hub()));
    let answer = exchange.exchange(request.body(hyper::body::Bytes::new()).unwrap()).await.unwrap();
    assert!(answer.status().is_client_error(), "the simulator answered: {}", answer.status());
    drop(exchange);
    let head = tasks.join_next().await.unwrap().unwrap();
    assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1", world.hub())), "{head}");
    // base64 of "me:s p"
    assert!(head.contains("Proxy-Authorization: Basic bWU6cyBw\r\n"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_a_matter_of_the_network() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
    });
    let exchange = TlsExchange::new(Roots::Only(roots_from_file(&world.ca()).unwrap()), Proxy::new(&uri, ""));
    let request = ::http::Request::get(format!("https://{}/", world.hub())).body(hyper::body::Bytes::new()).unwrap();
    let error = exchange.exchange(request).await.unwrap_err();
    assert!(error.is_offline(), "{error:?}");
}
