//! A folder with a key service and a certificate service in it.

use std::{
    fmt::Write as _,
    future::Future,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use aziot_certd_api::config::Config;
use aziot_config::Sources;
use aziot_files::{Mode, create_directory, write};
use aziot_http::{
    Activation, Client, Endpoint, Retry, Shutdown,
    testing::{RawReply, TestServer},
};
use aziot_keyd_api::key_pair::LoadKeyPair;
use aziot_pki::renewal::{Engine, SystemClock};
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    nid::Nid,
    pkey::{PKey, Private},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixStream, task::JoinSet};

use crate::{
    certificates::Certificates,
    est::{Surroundings, enrolment::Patience, servers::Limits},
    http,
    settings::Settings,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Both services, until this is dropped.
pub(super) struct Device {
    pub(super) folder: TempDir,
    pub(super) server: TestServer,
    pub(super) certificates: Arc<Certificates>,
    pub(super) keyd: Client,
    pub(super) surroundings: Surroundings,
    _tasks: JoinSet<()>,
}

impl Device {
    /// With a configuration in which `@` stands for the folder; the caller of this process may do everything. The key
    /// service has these key pairs, given as private scalars on P-256.
    pub(super) async fn start(config: &str, key_pairs: &[(&str, &str)]) -> Self {
        Self::start_with(config, key_pairs, |keyd| keyd).await
    }

    /// The certificate service looks for its key service where `route` says.
    pub(super) async fn start_with(
        config: &str,
        key_pairs: &[(&str, &str)],
        route: impl FnOnce(PathBuf) -> PathBuf,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut tasks = JoinSet::new();
        let socket = start_keyd(folder.path(), key_pairs, &mut tasks).await;
        let endpoint = |socket| Endpoint::Unix(socket);
        let keyd = aziot_keyd_api::client(&endpoint(socket.clone()), Retry::local(0)).unwrap();
        let through_route = aziot_keyd_api::client(&endpoint(route(socket)), Retry::local(0)).unwrap();
        let surroundings = surroundings(through_route);
        let settings = settings(folder.path(), config, &surroundings);
        let engine = Engine::new(SystemClock::new());
        let certificates = Arc::new(Certificates::new(settings, &surroundings, engine.clone(), patience()));
        certificates.look_after().await;
        tasks.spawn(async move { engine.run().await });
        let server = TestServer::start(http::routes(Arc::clone(&certificates)));
        Self { folder, server, certificates, keyd, surroundings, _tasks: tasks }
    }

    pub(super) fn put_file(&self, name: &str, bytes: impl AsRef<[u8]>) {
        write(self.folder.path().join(name), Mode::SHARED, bytes).unwrap();
    }

    /// Sends a request; `target` is without the api-version.
    pub(super) async fn send(&self, method: &str, target: &str, body: &str) -> RawReply {
        self.server.send(method, &format!("{target}?api-version=2020-09-01"), body).await
    }

    pub(super) async fn post(&self, id: &str, csr: &str, issuer: Option<(&str, &str)>) -> RawReply {
        let issuer = issuer.map(|(id, handle)| json!({ "certId": id, "privateKeyHandle": handle }));
        let body = json!({ "certId": id, "csr": csr, "issuer": issuer });
        self.send("POST", "/certificates", &body.to_string()).await
    }

    /// The handle of a key pair in the key service.
    pub(super) async fn handle(&self, key_id: &str) -> String {
        self.keyd.send(&LoadKeyPair { key_id: key_id.to_owned() }).await.unwrap().key_handle.0
    }
}

/// Short enough for tests that wait for the end of it.
pub(super) fn patience() -> Patience {
    let retry = Retry { retries: 2, attempt: Duration::from_secs(5), total: Duration::from_secs(5) };
    Patience { caller: Duration::from_secs(4), retry, decision: Duration::from_secs(60) }
}

fn surroundings(keyd: Client) -> Surroundings {
    let limits = Limits {
        connect: Duration::from_secs(5),
        authorities: Duration::from_secs(2),
        exchange: Duration::from_secs(8),
    };
    Surroundings::new(keyd, None, limits)
}

pub(super) fn settings(folder: &Path, config: &str, surroundings: &Surroundings) -> Settings {
    let config = config.replace('@', folder.to_str().unwrap());
    let uid = folder.metadata().unwrap().uid();
    let text =
        format!("homedir_path = \"{}\"\n{config}\n[[principal]]\nuid = {uid}\ncerts = [\"*\"]\n", folder.display());
    let loaded = aziot_config::load_str::<Config>("config.toml", &text).unwrap();
    assert!(loaded.findings.is_empty(), "{:?}", loaded.findings);
    Settings::new(folder, loaded.value, surroundings)
}

/// The socket of a key service that is ready.
pub(super) async fn start_keyd(folder: &Path, keys: &[(&str, &str)], tasks: &mut JoinSet<()>) -> PathBuf {
    let folder = folder.join("keyd");
    let _ = create_directory(&folder, Mode::PRIVATE_DIRECTORY).unwrap();
    let shown = folder.display();
    let uid = folder.metadata().unwrap().uid();
    let mut config = format!(
        "[aziot_keys]\nhomedir_path = \"{shown}\"\n[endpoints]\naziot_keyd = \"unix://{shown}/keyd.sock\"\n\
         [[principal]]\nuid = {uid}\nkeys = [\"*\"]\n[preloaded_keys]\n"
    );
    for (id, scalar) in keys {
        let pem = p256(scalar).private_key_to_pem_pkcs8().unwrap();
        write(folder.join(id), Mode::PRIVATE, pem).unwrap();
        writeln!(config, "{id} = \"file://{shown}/{id}\"").unwrap();
    }
    write(folder.join("config.toml"), Mode::PRIVATE, config).unwrap();
    let sources = Sources { main: folder.join("config.toml"), directory: folder.join("config.d") };
    tasks.spawn(async {
        let activation = Activation::from_environment().unwrap();
        aziot_keyd::run(sources, activation, Shutdown::new()).await.unwrap();
    });
    let socket = folder.join("keyd.sock");
    until(|| async { UnixStream::connect(&socket).await.is_ok() }).await;
    socket
}

/// Looks again and again, for at most 20 s, until it is so.
pub(super) async fn until<F: Future<Output = bool>>(is_so: impl Fn() -> F) {
    let looking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap();
}

pub(super) fn p256(scalar: &str) -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let scalar = BigNum::from_hex_str(scalar).unwrap();
    let mut point = EcPoint::new(&group).unwrap();
    point.mul_generator2(&group, &scalar, &mut BigNumContext::new().unwrap()).unwrap();
    PKey::from_ec_key(EcKey::from_private_components(&group, &scalar, &point).unwrap()).unwrap()
}

/// The member of a reply's JSON.
pub(super) fn member(reply: &RawReply, name: &str) -> String {
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    body[name].as_str().unwrap().to_owned()
}

/// Runs `openssl` in a folder of these files; its output, or panics with it.
pub(super) fn openssl(files: &[(&str, &str)], arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(folder.path().join(name), Mode::PRIVATE, text).unwrap();
    }
    let output = Command::new("openssl").args(arguments).current_dir(&folder).output().expect("the openssl program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
