//! Servers that want the client certificate once a request has come: not supported, and said so.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::Duration,
};

use aziot_files::{Mode, write};
use aziot_pki::tls::Trust;
use hyper_util::rt::TokioIo;
use openssl::nid::Nid;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tower::Service as _;

use crate::{
    support::new_ec,
    tls_server::{Traits, certify, chain, connector},
};

/// An `openssl s_server`, ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn renegotiation_is_refused_with_advice() {
    let key = new_ec(Nid::X9_62_PRIME256V1);
    let certificate = certify("localhost", &key, None, Traits { dns: Some("localhost"), ..Traits::default() });
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("key.pem"), Mode::PRIVATE, key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    write(folder.path().join("certificate.pem"), Mode::PRIVATE, certificate.to_pem().unwrap()).unwrap();
    let mut server = Server(
        Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-tls1_2", "-cert", "certificate.pem", "-key", "key.pem"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let accepting = lines.find(|line| line.starts_with("ACCEPT")).unwrap();
    let port = accepting.rsplit(':').next().unwrap();

    let mut connector = connector(&Trust::only(&chain(&[&certificate])), None);
    let url = format!("https://localhost:{port}/").parse().unwrap();
    let mut stream = TokioIo::into_inner(connector.call(url).await.unwrap());
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // The server's own command for "renegotiate, and ask for a certificate".
    server.0.stdin.as_mut().unwrap().write_all(b"R\n").unwrap();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await.unwrap();
    let text = read.unwrap_err().to_string();
    assert!(text.contains("after the handshake (renegotiation"), "{text}");
}
