//! The whole service as `aziotd` runs it: settings from files, a socket of its own, a watch on the files, an orderly stop.

use std::path::Path;

use aziot_files::Mode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::super::*;
use super::world::eventually;

fn sources(folder: &Path) -> Sources {
    Sources { main: folder.join("config.toml"), directory: folder.join("config.d") }
}

fn write(folder: &Path, more: &str) {
    let text = format!(
        "hostname = 'edge'\nhomedir = '{0}/home'\nprovisioning.source = 'none'\n\
         endpoints.aziot_identityd = 'unix://{0}/identityd.sock'\n{more}",
        folder.display()
    );
    aziot_files::write(folder.join("config.toml"), Mode::PRIVATE, text).unwrap();
}

async fn get(folder: &Path, target: &str) -> String {
    let mut stream = UnixStream::connect(folder.join("identityd.sock")).await.unwrap();
    let request = format!("GET {target}?api-version=2021-12-01 HTTP/1.1\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn it_serves_reloads_and_stops() {
    use std::os::unix::fs::MetadataExt as _;

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let uid = folder.metadata().unwrap().uid();
    write(folder, "");
    let shutdown = Shutdown::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(run(sources(folder), Activation::from_environment().unwrap(), shutdown.clone()));
    eventually("it listens", async || UnixStream::connect(folder.join("identityd.sock")).await.is_ok()).await;
    assert!(get(folder, "/identities/provisioning").await.ends_with(r#"{"source":"none"}"#));

    write(folder, &format!("[[principal]]\nuid = {uid}\nname = 'nobody'\nidtype = []\n"));
    eventually("the new principal counts", async || get(folder, "/identities/identity").await.contains(" 401 ")).await;

    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert!(!folder.join("identityd.sock").exists());
}

#[tokio::test]
async fn unusable_settings_end_it_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for more in ["cloud_timeout_sec = 1", "[[principal]]\nuid = 1\nname = 'p'\nidtype = ['module']"] {
        write(folder, more);
        let ended = run(sources(folder), Activation::from_environment().unwrap(), Shutdown::new()).await;
        assert_eq!(ended.unwrap_err().exit_code(), 153, "{more}");
    }
}
