//! A device with its key service and its cloud, in one process and one folder.

use std::{
    cell::RefCell,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    rc::Rc,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aziot_files::Mode;
use aziot_http::{Endpoint, testing::RawReply, testing::TestServer};
use aziot_identityd_cloud::{Error as CloudError, exchange::Exchanging};
use aziot_pki::tls::roots_from_file;
use aziot_simulator::{Enrollments, Simulator};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixStream},
    sync::Notify,
    time::{Instant, timeout},
};

use super::super::*;
use crate::reload;

const PATIENCE: Duration = Duration::from_secs(30);
/// The device's key: 00 01 .. 1f.
const DEVICE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
pub(super) const VERSION: &str = "api-version=2021-12-01";

/// The network between device and cloud: it can be cut, and it remembers what went over it.
pub(super) struct Network {
    tls: TlsExchange,
    cut: AtomicBool,
    meddle: AtomicBool,
    requests: Mutex<Vec<String>>,
    lie: Mutex<Option<(String, &'static str)>>,
    hole: Mutex<Option<(&'static str, TcpListener)>>,
    held: Mutex<Option<(String, Arc<Held>)>>,
}

/// An answer that is on its way for as long as a test wants.
#[derive(Default)]
pub(super) struct Held {
    arrived: Notify,
    released: Notify,
}

impl Held {
    /// Waits until the cloud has given the answer.
    pub(super) async fn arrived(&self) {
        timeout(PATIENCE, self.arrived.notified()).await.expect("the request is made");
    }

    /// Lets the answer through.
    pub(super) fn release(&self) {
        self.released.notify_one();
    }
}

impl Exchange for Network {
    fn exchange(&self, mut request: ::http::Request<hyper::body::Bytes>) -> Exchanging<'_> {
        let line = format!("{} {}", request.method(), request.uri().path());
        self.requests.lock().unwrap().push(line.clone());
        if let Some((_, body)) = self.lie.lock().unwrap().as_ref().filter(|(lied, _)| *lied == line) {
            let answer = ::http::Response::new(hyper::body::Bytes::from_static(body.as_bytes()));
            return Box::pin(async move { Ok(answer) });
        }
        if let Some((end, listener)) = &*self.hole.lock().unwrap()
            && line.ends_with(end)
        {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            let authority = format!("localhost:{}", listener.local_addr().unwrap().port());
            parts.authority = Some(authority.parse().unwrap());
            *request.uri_mut() = ::http::Uri::from_parts(parts).unwrap();
        }
        let held = self.held.lock().unwrap().take_if(|(awaited, _)| *awaited == line);
        if let Some((_, held)) = held {
            return Box::pin(async move {
                let answer = self.tls.exchange(request).await;
                held.arrived.notify_one();
                held.released.notified().await;
                answer
            });
        }
        if self.cut.load(Ordering::SeqCst) {
            let host = request.uri().host().unwrap().to_owned();
            return Box::pin(async move { Err(CloudError::NotConnected { host, source: "the cable is out".into() }) });
        }
        if request.headers().contains_key("if-match") && self.meddle.swap(false, Ordering::SeqCst) {
            return Box::pin(async move {
                // The same change, made by somebody else a moment before.
                assert_eq!(self.tls.exchange(request.clone()).await?.status(), 200);
                self.tls.exchange(request).await
            });
        }
        self.tls.exchange(request)
    }
}

impl Network {
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Somebody else changes what the next conditional request is about, just before it.
    pub(super) fn meddle_once(&self) {
        self.meddle.store(true, Ordering::SeqCst);
    }

    pub(super) fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
        *self.hole.lock().unwrap() = None;
    }

    /// Requests whose path ends so connect and are never answered, as behind a firewall that swallows packets.
    pub(super) async fn swallow(&self, end: &'static str) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        *self.hole.lock().unwrap() = Some((end, listener));
    }

    /// The cloud gives this answer to all requests of this method and path.
    pub(super) fn lie(&self, line: &str, body: &'static str) {
        *self.lie.lock().unwrap() = Some((line.to_owned(), body));
    }

    /// Holds the answer to the next request of this method and path.
    pub(super) fn hold(&self, line: &str) -> Arc<Held> {
        let held = Arc::new(Held::default());
        *self.held.lock().unwrap() = Some((line.to_owned(), Arc::clone(&held)));
        held
    }

    /// How many requests of this method had this in their path.
    pub(super) fn count(&self, method: &str, part: &str) -> usize {
        let fits = |line: &&String| line.starts_with(method) && line.contains(part);
        self.requests.lock().unwrap().iter().filter(fits).count()
    }
}

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
        let folder = Rc::new(tempfile::tempdir().unwrap());
        FOLDERS.with_borrow_mut(|folders| folders.push(Rc::clone(&folder)));
        let shutdown = Shutdown::new();
        let mut tasks = JoinSet::new();

        let mut enrollments = Enrollments::default();
        for registration_id in ["dev-1", "dev-2"] {
            enrollments.add_argument(&format!("{registration_id}:{DEVICE_KEY}")).unwrap();
        }
        let settings = aziot_simulator::Settings {
            folder: Some(folder.path().join("cloud")),
            enrollments,
            assigning_polls: 0,
            ..aziot_simulator::Settings::default()
        };
        let simulator = Simulator::start(settings).await.unwrap();
        let port = simulator.address().port();
        tasks.spawn(simulator.run(shutdown.clone()));
        let roots = Roots::Only(roots_from_file(&folder.path().join("cloud/ca.pem")).unwrap());
        let network = Arc::new(Network {
            tls: TlsExchange::new(roots, None),
            cut: AtomicBool::new(false),
            meddle: AtomicBool::new(false),
            requests: Mutex::default(),
            lie: Mutex::default(),
            hole: Mutex::default(),
            held: Mutex::default(),
        });

        let world = Self { folder, tasks, shutdown, port, network, longest_attempt: None };
        world.start_keyd().await
    }

    async fn start_keyd(mut self) -> Self {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let path = |name: &str| self.folder.path().join(name);
        aziot_files::write(path("device-id"), Mode::PRIVATE, STANDARD.decode(DEVICE_KEY).unwrap()).unwrap();
        let _ = aziot_files::create_directory(path("keyd"), Mode::PRIVATE_DIRECTORY).unwrap();
        let config = format!(
            "[aziot_keys]\nhomedir_path = '{home}'\n[preloaded_keys]\ndevice-id = 'file://{key}'\n\
             [[principal]]\nuid = {uid}\nkeys = ['device-id', 'aziot_identityd_master_id']\n\
             [endpoints]\naziot_keyd = 'unix://{socket}'\n",
            home = path("keyd").display(),
            key = path("device-id").display(),
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
             endpoints = {{ aziot_keyd = 'unix://{}' }}\n[provisioning]\n",
            self.home().display(),
            self.folder.path().join("keyd.sock").display()
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
        let endpoint = settings.config.endpoints.aziot_keyd.clone();
        let keys = Keys::new(aziot_keyd_api::client(&endpoint, Retry::local(0)).unwrap());
        let state = open_state(&settings.config.homedir).await.unwrap();
        let settings = settings.share();
        let exchange: Arc<dyn Exchange> = Arc::clone(&self.network) as _;
        let (identities, mut schedule) = assemble(Arc::clone(&settings), keys, state, exchange);
        let mut tasks = JoinSet::new();
        schedule.longest_attempt = self.longest_attempt.unwrap_or(schedule.longest_attempt);
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

/// Waits until the condition holds.
pub(super) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
