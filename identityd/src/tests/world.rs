//! A device with its key service and its cloud, in one process and one folder.

pub(super) mod gate;
pub(super) mod network;
pub(super) mod tpm;
pub(super) mod x509;

use std::{
    cell::RefCell,
    fmt::Write as _,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    rc::Rc,
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

use aziot_files::Mode;
use aziot_http::{Endpoint, testing::RawReply, testing::TestServer};
use aziot_pki::tls::{ClientIdentity, roots_from_file};
use aziot_simulator::{Enrollments, Simulator};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, timeout},
};

use super::super::*;
use crate::reload;

pub(super) use network::{Cable, Held, Network};

const PATIENCE: Duration = Duration::from_secs(30);
/// The device's key: 00 01 .. 1f.
pub(super) const DEVICE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(super) const VERSION: &str = "api-version=2021-12-01";

thread_local! {
    /// Folders of this thread's test. They go when the thread ends: after the test's runtime, whose last blocking task would
    /// otherwise put a file into a folder that is gone.
    static FOLDERS: RefCell<Vec<Rc<tempfile::TempDir>>> = const { RefCell::new(Vec::new()) };
}

/// What outlives a restart of the identity service.
pub(super) struct World {
    folder: Rc<tempfile::TempDir>,
    tasks: JoinSet<()>,
    shutdown: Shutdown,
    pub(super) port: u16,
    pub(super) network: Arc<Network>,
    /// Time for an attempt at provisioning, if not the usual one.
    pub(super) longest_attempt: Option<Duration>,
}

/// A running identity service.
pub(super) struct Service {
    pub(super) server: TestServer,
    pub(super) identities: Arc<Identities>,
    pub(super) settings: Shared,
    sources: Sources,
    _tasks: JoinSet<()>,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with_cloud(|_| {}).await
    }

    /// A world whose cloud has other settings than usual.
    pub(super) async fn with_cloud(change: impl FnOnce(&mut aziot_simulator::Settings)) -> Self {
        let folder = Rc::new(tempfile::tempdir().unwrap());
        FOLDERS.with_borrow_mut(|folders| folders.push(Rc::clone(&folder)));
        let shutdown = Shutdown::new();
        let mut tasks = JoinSet::new();
        let authority = Authority::new();
        aziot_files::write(folder.path().join("local-ca.key.pem"), Mode::PRIVATE, authority.key).unwrap();
        aziot_files::write(folder.path().join("local-ca.pem"), Mode::PRIVATE, authority.certificate).unwrap();

        let mut enrollments = Enrollments::default();
        for registration_id in ["dev-1", "dev-2"] {
            enrollments.add_argument(&format!("{registration_id}:{DEVICE_KEY}")).unwrap();
        }
        let mut settings = aziot_simulator::Settings {
            folder: Some(folder.path().join("cloud")),
            enrollments,
            assigning_polls: 0,
            ..aziot_simulator::Settings::default()
        };
        change(&mut settings);
        let simulator = Simulator::start(settings).await.unwrap();
        let port = simulator.address().port();
        tasks.spawn(simulator.run(shutdown.clone()));
        let roots = Roots::Only(roots_from_file(&folder.path().join("cloud/ca.pem")).unwrap());
        let exchanges = TlsExchanges::new(roots, None);
        let network = Network::new(exchanges);

        let world = Self { folder, tasks, shutdown, port, network, longest_attempt: None };
        world.start_keyd().await
    }

    async fn start_keyd(mut self) -> Self {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let path = |name: &str| self.folder.path().join(name);
        aziot_files::write(path("device-id"), Mode::PRIVATE, STANDARD.decode(DEVICE_KEY).unwrap()).unwrap();
        let _ = aziot_files::create_directory(path("keyd"), Mode::PRIVATE_DIRECTORY).unwrap();
        let config = format!(
            "max_requests = 1000\n[aziot_keys]\nhomedir_path = '{home}'\n[preloaded_keys]\n\
             device-id = 'file://{key}'\nlocal-ca = 'file://{authority}'\npreloaded = 'file://{preloaded}'\n\
             [[principal]]\nuid = {uid}\nkeys = ['device-id', 'local-ca', 'aziot_identityd_master_id', 'identity', 'identity-temp', 'preloaded']\n\
             [endpoints]\naziot_keyd = 'unix://{socket}'\n",
            home = path("keyd").display(),
            key = path("device-id").display(),
            authority = path("local-ca.key.pem").display(),
            preloaded = path("preloaded.key.pem").display(),
            uid = self.uid(),
            socket = path("keyd.sock").display(),
        );
        aziot_files::write(path("keyd.toml"), Mode::PRIVATE, config).unwrap();
        let sources = Sources { main: path("keyd.toml"), directory: path("keyd.d") };
        let run = aziot_keyd::run(sources, Activation::from_environment().unwrap(), self.shutdown.clone());
        let socket = path("keyd.sock");
        self.tasks.spawn(async move { run.await.unwrap() });
        eventually("keyd listens", async || UnixStream::connect(&socket).await.is_ok()).await;
        self
    }

    /// Starts the certificate service too, with a CA of its own that issues any certificate but `unissued`, and whose key is in the key service.
    pub(super) async fn start_certd(mut self) -> Self {
        let path = |name: &str| self.folder.path().join(name);
        let _ = aziot_files::create_directory(path("certd"), Mode::PRIVATE_DIRECTORY).unwrap();
        let long = format!("{}.{}", "m".repeat(40), "n".repeat(40));
        let mut issuance = String::new();
        for id in ["worker", "server", "free", "identity", "identity-temp", &long] {
            writeln!(issuance, "'{id}' = {{ method = 'local_ca' }}").unwrap();
        }
        let config = format!(
            "homedir_path = '{home}'\n[preloaded_certs]\nlocal-ca = 'file://{authority}'\n\
             [cert_issuance]\nlocal_ca = {{ cert = 'local-ca', pk = 'local-ca' }}\n{issuance}\
             [[principal]]\nuid = {uid}\ncerts = ['*']\n\
             [endpoints]\naziot_certd = 'unix://{socket}'\naziot_keyd = 'unix://{keyd}'\n",
            home = path("certd").display(),
            authority = path("local-ca.pem").display(),
            uid = self.uid(),
            socket = path("certd.sock").display(),
            keyd = path("keyd.sock").display(),
        );
        aziot_files::write(path("certd.toml"), Mode::PRIVATE, config).unwrap();
        let sources = Sources { main: path("certd.toml"), directory: path("certd.d") };
        let run = aziot_certd::run(sources, Activation::from_environment().unwrap(), self.shutdown.clone());
        let socket = path("certd.sock");
        self.tasks.spawn(async move { run.await.unwrap() });
        eventually("certd listens", async || UnixStream::connect(&socket).await.is_ok()).await;
        self
    }

    /// The user that runs the tests.
    pub(super) fn uid(&self) -> u32 {
        self.folder.path().metadata().unwrap().uid()
    }

    pub(super) fn home(&self) -> PathBuf {
        self.folder.path().join("identityd")
    }

    /// The certificate of the simulator's authority.
    pub(super) fn ca(&self) -> PathBuf {
        self.folder.path().join("cloud/ca.pem")
    }

    pub(super) fn hub(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Settings of a DPS device, with this text after them.
    pub(super) fn dps(&self, registration_id: &str, more: &str) -> String {
        format!(
            "{}source = 'dps'\nglobal_endpoint = 'https://localhost:{}'\nscope_id = '0ne1'\n\
             [provisioning.attestation]\nmethod = 'symmetric_key'\nregistration_id = '{registration_id}'\n\
             symmetric_key = 'device-id'\n{more}",
            self.head(),
            self.port
        )
    }

    /// Settings without provisioning, with this text after them.
    pub(super) fn unprovisioned(&self, more: &str) -> String {
        format!("{}source = 'none'\n{more}", self.head())
    }

    pub(super) fn head(&self) -> String {
        format!(
            "hostname = 'edge'\nhomedir = '{}'\ncloud_retries = 0\n\
             endpoints = {{ aziot_keyd = 'unix://{}', aziot_certd = 'unix://{}', aziot_tpmd = 'unix://{}' }}\n\
             [provisioning]\n",
            self.home().display(),
            self.folder.path().join("keyd.sock").display(),
            self.folder.path().join("certd.sock").display(),
            self.folder.path().join("tpmd.sock").display()
        )
    }

    /// The principal that lets the tests' own user do everything.
    pub(super) fn daemon(&self) -> String {
        format!("[[principal]]\nuid = {}\nname = 'tests'\n", self.uid())
    }

    /// Starts the identity service as `run` does, but for socket, system roots and file watch.
    pub(super) async fn start(&self, config: &str) -> Service {
        let sources =
            Sources { main: self.folder.path().join("identityd.toml"), directory: self.folder.path().join("none.d") };
        aziot_files::write(&sources.main, Mode::PRIVATE, config).unwrap();
        let settings = Settings::new(aziot_config::load(&sources).unwrap().value).unwrap();
        let services = services(&settings.config.endpoints, 0, Arc::new(Cable(Arc::clone(&self.network)))).unwrap();
        let state = open_state(&settings.config.homedir).await.unwrap();
        let settings = settings.share();
        let (identities, mut schedule) = assemble(Arc::clone(&settings), services, state);
        let mut tasks = JoinSet::new();
        schedule.attempts.longest = self.longest_attempt.unwrap_or(schedule.attempts.longest);
        tasks.spawn(schedule.run());
        let identities = Arc::new(identities);
        let server = TestServer::start(http::service(Arc::clone(&identities)).into_routes());
        Service { server, identities, settings, sources, _tasks: tasks }
    }

    /// Asks the simulator's control socket.
    pub(super) async fn control(&self, method: &str, path: &str, body: &str) -> Value {
        let mut stream = UnixStream::connect(self.folder.path().join("cloud/control.sock")).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 2"), "{answer}");
        serde_json::from_str(body).unwrap_or_default()
    }

    /// The modules that the hub has for the device, by name.
    pub(super) async fn modules_at_hub(&self, device_id: &str) -> Vec<(String, Value)> {
        let devices = self.control("GET", "/devices", "").await;
        let device = devices.as_array().unwrap().iter().find(|device| device["deviceId"] == device_id).cloned();
        let modules = device.unwrap()["modules"].as_array().unwrap().clone();
        modules.into_iter().map(|module| (module["moduleId"].as_str().unwrap().to_owned(), module)).collect()
    }

    /// An endpoint of the key service, for tests that sign as a workload would.
    pub(super) fn keyd(&self) -> Endpoint {
        Endpoint::Unix(self.folder.path().join("keyd.sock"))
    }
}

impl Service {
    /// Waits until the first attempt at provisioning has ended.
    pub(super) async fn settled(&self) {
        let mut situation = self.identities.situation.clone();
        let ended = timeout(PATIENCE, situation.wait_for(|situation| situation.first_attempt_ended)).await;
        drop(ended.expect("the first attempt ends").unwrap());
    }

    pub(super) async fn send(&self, method: &str, path_and_query: &str, body: &str) -> RawReply {
        let separator = if path_and_query.contains('?') { '&' } else { '?' };
        self.server.send(method, &format!("{path_and_query}{separator}{VERSION}"), body).await
    }

    /// The answer's JSON; fails the test on any status but 200.
    pub(super) async fn json(&self, method: &str, path_and_query: &str, body: &str) -> Value {
        let reply = self.send(method, path_and_query, body).await;
        assert_eq!(reply.status, 200, "{method} {path_and_query}: {}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    /// Status and message of an error.
    pub(super) async fn error(&self, method: &str, path_and_query: &str, body: &str) -> (u16, String) {
        let reply = self.send(method, path_and_query, body).await;
        assert!(reply.status >= 400, "{method} {path_and_query}: {}", reply.body);
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        (reply.status, body["message"].as_str().unwrap().to_owned())
    }

    /// Changes the settings as the watch would.
    pub(super) async fn reload(&self, config: &str) {
        aziot_files::write(&self.sources.main, Mode::PRIVATE, config).unwrap();
        // What cannot be read or used changes nothing, as in `Live::follow`.
        if let Ok(loaded) = aziot_config::load(&self.sources) {
            let _ = reload::apply(loaded.value, Arc::clone(&self.settings), self.identities.wishes.clone()).await;
        }
    }
}

/// A certification authority, PEM.
struct Authority {
    key: Vec<u8>,
    certificate: Vec<u8>,
}

impl Authority {
    fn new() -> Self {
        use openssl::{
            asn1::Asn1Time,
            bn::BigNum,
            ec::{EcGroup, EcKey},
            hash::MessageDigest,
            nid::Nid,
            pkey::PKey,
            x509::{X509, X509Name, extension::BasicConstraints},
        };
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut name = X509Name::builder().unwrap();
        name.append_entry_by_nid(Nid::COMMONNAME, "local CA").unwrap();
        let name = name.build();
        let mut certificate = X509::builder().unwrap();
        certificate.set_version(2).unwrap();
        certificate.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
        certificate.set_subject_name(&name).unwrap();
        certificate.set_issuer_name(&name).unwrap();
        certificate.set_pubkey(&key).unwrap();
        certificate.set_not_before(&Asn1Time::from_unix(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(365).unwrap()).unwrap();
        certificate.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        certificate.sign(&key, MessageDigest::sha256()).unwrap();
        Self { key: key.private_key_to_pem_pkcs8().unwrap(), certificate: certificate.build().to_pem().unwrap() }
    }
}

/// Waits until the condition holds.
pub(super) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
