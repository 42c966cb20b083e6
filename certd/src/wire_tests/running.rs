//! The service while it runs: other calls while one waits, callers that leave, changed configuration.

use std::{path::Path, sync::Arc, time::Duration};

use aziot_certd_api::certificate::{CreateCertificate, GetCertificate, ImportCertificate};
use aziot_config::Sources;
use aziot_files::{Mode, create_directory, write};
use aziot_http::{Activation, Endpoint, Retry, Shutdown};
use openssl::x509::X509;
use serde_json::json;
use tokio::{
    io::{AsyncWriteExt as _, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::device::{Device, member, start_keyd, until};
use crate::test_vectors::{CA, CA_SCALAR, REQUEST};

const LOCAL_CA: &str = "\
[cert_issuance]
slow = { method = \"local_ca\" }
[cert_issuance.local_ca]
cert = \"ca\"
pk = \"local-ca\"
[preloaded_certs]
ca = \"file://@/ca.pem\"
";

#[tokio::test]
async fn a_hung_key_service_holds_up_nobody_else_and_a_caller_who_leaves_stops_nothing() {
    let gate = tempfile::tempdir().unwrap();
    let path = gate.path().join("gate.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (arrived, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let mut tasks = JoinSet::new();
    let mut keyd = None;
    let device = Device::start_with(LOCAL_CA, &[("local-ca", CA_SCALAR)], |socket| {
        keyd = Some(socket);
        path
    })
    .await;
    device.put_file("ca.pem", CA);
    let (seen, way) = (Arc::clone(&arrived), Arc::clone(&open));
    let keyd = keyd.unwrap();
    tasks.spawn(async move {
        loop {
            let (mut caller, _) = listener.accept().await.unwrap();
            seen.add_permits(1);
            let _permit = way.acquire().await.unwrap();
            let mut service = UnixStream::connect(&keyd).await.unwrap();
            let _ = copy_bidirectional(&mut caller, &mut service).await;
        }
    });

    let body = json!({ "certId": "slow", "csr": REQUEST }).to_string();
    let mut leaving = device.server.connect().await;
    let head = format!("POST /certificates?api-version=2020-09-01 HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len());
    leaving.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    arrived.acquire().await.unwrap().forget();

    let others = async {
        assert_eq!(device.send("GET", "/certificates/ca", "").await.status, 200);
        assert_eq!(device.send("GET", "/certificates/slow", "").await.status, 400);
        let import = json!({ "pem": "imported" }).to_string();
        assert_eq!(device.send("PUT", "/certificates/slow", &import).await.status, 201);
        assert_eq!(device.send("DELETE", "/certificates/other", "").await.status, 204);
    };
    timeout(Duration::from_secs(5), others).await.expect("others do not wait for the key service");

    drop(leaving);
    open.add_permits(100);
    until(async || member(&device.send("GET", "/certificates/slow", "").await, "pem").ends_with(CA)).await;
}

#[tokio::test]
async fn the_service_runs_takes_over_changes_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let (home, config) = (folder.path().join("certd"), folder.path().join("etc"));
    let mut tasks = JoinSet::new();
    let keyd = start_keyd(folder.path(), &[("local-ca", CA_SCALAR)], &mut tasks).await;
    let _ = create_directory(config.join("config.d"), Mode::PRIVATE_DIRECTORY).unwrap();
    let sources = Sources { main: config.join("config.toml"), directory: config.join("config.d") };
    let put = |path: &Path, text: &str| write(path, Mode::PRIVATE, text).unwrap();
    let socket = folder.path().join("certd.sock");
    put(
        &sources.main,
        &format!(
            "homedir_path = \"{}\"\nunheard_of = 1\n[endpoints]\naziot_certd = \"unix://{}\"\naziot_keyd = \"unix://{}\"\n",
            home.display(),
            socket.display(),
            keyd.display()
        ),
    );
    put(&folder.path().join("ca.pem"), CA);
    let shutdown = Shutdown::new();
    let running = tasks.spawn(run(sources.clone(), shutdown.clone()));
    until(async || UnixStream::connect(&socket).await.is_ok()).await;
    let client = aziot_certd_api::client(&Endpoint::Unix(socket.clone()), Retry::local(0)).unwrap();
    let create = CreateCertificate { cert_id: "slow".into(), csr: REQUEST.into(), issuer: None };
    assert!(client.send(&create).await.is_err());
    let old = ImportCertificate { cert_id: "kept".into(), pem: CA.into() };
    // Without a principal only root may.
    let is_root = client.send(&old).await.is_ok();

    let uid = std::os::unix::fs::MetadataExt::uid(&folder.path().metadata().unwrap());
    let local_ca = LOCAL_CA.replace('@', folder.path().to_str().unwrap());
    let drop_in = sources.directory.join("local-ca.toml");
    put(&drop_in, &format!("{local_ca}\n[[principal]]\nuid = {uid}\ncerts = [\"*\"]\n"));
    until(async || client.send(&create).await.is_ok()).await;
    assert!(client.send(&old).await.is_ok() || is_root);

    // A mistake changes nothing; the file that is added after it is taken over once the mistake is gone.
    put(&sources.directory.join("mistake.toml"), "[preloaded_certs]\nx = 5\n");
    put(
        &sources.directory.join("more.toml"),
        "[preloaded_certs]\nbundle = [\"ca\", \"circle\"]\ncircle = [\"bundle\"]\n",
    );
    let bundle = GetCertificate { cert_id: "bundle".into() };
    assert!(client.send(&create).await.is_ok() && client.send(&bundle).await.is_err());
    put(&sources.directory.join("mistake.toml"), "");
    until(async || client.send(&bundle).await.is_ok_and(|certificate| certificate.pem == CA)).await;

    shutdown.cancel();
    until(async || running.is_finished()).await;
    assert!(!socket.exists());
    let stored = std::fs::read_dir(home.join("certs")).unwrap().map(|entry| entry.unwrap().path());
    for path in stored {
        X509::from_pem(&std::fs::read(path).unwrap()).unwrap();
    }
}

async fn run(sources: Sources, shutdown: Shutdown) {
    crate::run(sources, Activation::from_environment().unwrap(), shutdown).await.unwrap();
}
