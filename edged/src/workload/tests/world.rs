//! A key service and a certificate service as they are, and an identity service whose answers the test decides, in one process and one folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use aziot_files::Mode;
use aziot_http::{
    Activation, Client, Endpoint, Peer, Retry, SecretBytes, Service, Shutdown, Status, StatusCode, testing::TestServer,
};
use aziot_identityd_api::{
    identity::{Authentication, AziotIdentity, Identity},
    module::{CreateModule, DeleteModule, GetModule, Identities as Listed, ListModules, UpdateModule},
};
use aziot_keyd_api::key::{CreateKey, DeleteKey, KeyUsage, LoadKey};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::super::{Device, Services, Workload};
use crate::{
    edge_ca::EdgeCa,
    identities::{Containers, Finding, Identities},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Issuance of the Edge CA as a quickstart has it.
pub(crate) const SELF_SIGNED: &str = "aziot-edged-ca = { method = 'self_signed', expiry_days = 90 }\n\
                                      aziot-edged-ca-temp = { method = 'self_signed', expiry_days = 90 }\n";

/// The services of a device.
pub(crate) struct World {
    pub(crate) identityd: Arc<Identityd>,
    pub(crate) services: Services,
    pub(crate) keyd: Daemon,
    pub(crate) certd: Daemon,
    server: TestServer,
    folder: TempDir,
}

/// A service that can be stopped.
pub(crate) struct Daemon {
    tasks: JoinSet<()>,
    shutdown: Shutdown,
}

impl Daemon {
    /// From now on nobody answers.
    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

impl World {
    /// With a certificate service that issues so.
    pub(crate) async fn new(issuance: &str) -> Self {
        Self::with_master_key(issuance, None).await
    }

    /// With a master encryption key of an older installation.
    pub(crate) async fn with_master_key(issuance: &str, master_key: Option<&[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let uid = rustix::process::getuid().as_raw();
        let preloaded = match master_key {
            Some(bytes) => {
                aziot_files::write(path("imported"), Mode::PRIVATE, bytes).unwrap();
                format!("[preloaded_keys]\niotedge_master_encryption_id = 'file://{}'\n", path("imported").display())
            }
            None => String::new(),
        };
        for home in ["keyd", "certd"] {
            let _ = aziot_files::create_directory(path(home), Mode::PRIVATE_DIRECTORY).unwrap();
        }
        let config = format!(
            "max_requests = 10\n[aziot_keys]\nhomedir_path = '{}'\n{preloaded}\
             [[principal]]\nuid = {uid}\nkeys = ['aziot-edged-ca', 'aziot-edged-ca-temp', 'iotedge_master_encryption_id', 'module *']\n\
             [endpoints]\naziot_keyd = 'unix://{}'\n",
            path("keyd").display(),
            path("keyd.sock").display(),
        );
        let keyd = {
            let sources = sources(&folder, "keyd", &config);
            let shutdown = Shutdown::new();
            let run = aziot_keyd::run(sources, Activation::from_environment().unwrap(), shutdown.clone());
            let mut tasks = JoinSet::new();
            tasks.spawn(async move { run.await.unwrap() });
            Daemon { tasks, shutdown }
        };
        let config = format!(
            "homedir_path = '{}'\n[cert_issuance]\n{issuance}\
             [[principal]]\nuid = {uid}\ncerts = ['aziot-edged-ca', 'aziot-edged-ca-temp', 'aziot-edged/module/*', '*bundle']\n\
             [endpoints]\naziot_certd = 'unix://{}'\naziot_keyd = 'unix://{}'\n",
            path("certd").display(),
            path("certd.sock").display(),
            path("keyd.sock").display(),
        );
        let certd = {
            let sources = sources(&folder, "certd", &config);
            let shutdown = Shutdown::new();
            let run = aziot_certd::run(sources, Activation::from_environment().unwrap(), shutdown.clone());
            let mut tasks = JoinSet::new();
            tasks.spawn(async move { run.await.unwrap() });
            Daemon { tasks, shutdown }
        };
        for name in ["keyd.sock", "certd.sock"] {
            let socket = path(name);
            eventually(name, async || UnixStream::connect(&socket).await.is_ok()).await;
        }
        let endpoint = |name| Endpoint::Unix(path(name));
        let services = Services {
            keyd: aziot_keyd_api::client(&endpoint("keyd.sock"), Retry::local(0)).unwrap(),
            certd: aziot_certd_api::client(&endpoint("certd.sock"), Retry::local(0)).unwrap(),
        };
        let identityd = Arc::new(Identityd::new(services.keyd.clone()));
        let server = TestServer::start(identityd.service().into_routes());
        Self { identityd, services, keyd, certd, server, folder }
    }

    pub(crate) fn identities(&self) -> Arc<Identities> {
        let client = aziot_identityd_api::client(&self.server.endpoint(), Retry::local(0)).unwrap();
        Arc::new(Identities::new(client, Arc::new(Running(["sensor"].map(str::to_owned).into()))))
    }

    pub(crate) async fn edge_ca(&self) -> Arc<EdgeCa> {
        let config = aziot_edged_api::config::EdgeCa {
            auto_renew: Some(aziot_certd_api::renewal::AutoRenew::default()),
            ..aziot_edged_api::config::EdgeCa::default()
        };
        EdgeCa::start(self.services.clone(), &config, "dev-1").await.unwrap()
    }

    pub(crate) async fn workload(&self) -> Arc<Workload> {
        self.workload_with(self.services.clone()).await
    }

    /// With an Edge CA that the real services have, and these for what modules ask for.
    pub(crate) async fn workload_with(&self, services: Services) -> Arc<Workload> {
        let device = Device { hub_name: "h.example.net".to_owned(), device_id: "dev-1".to_owned() };
        Arc::new(Workload::new(self.identities(), self.edge_ca().await, services, device))
    }

    /// The certificate service's own files.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.folder.path().join("certd/certs")
    }
}

fn sources(folder: &TempDir, name: &str, config: &str) -> aziot_config::Sources {
    let main = folder.path().join(format!("{name}.toml"));
    aziot_files::write(&main, Mode::PRIVATE, config).unwrap();
    aziot_config::Sources { main, directory: folder.path().join(format!("{name}.d")) }
}

/// Waits until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "not so in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Containers by name.
pub(crate) struct Running(pub(crate) BTreeSet<String>);

impl Containers for Running {
    fn module_names(&self) -> Finding<'_> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// An identity service without a hub.
pub(crate) struct Identityd {
    keyd: Client,
    state: Mutex<State>,
    /// Modules about which the hub does not answer for now.
    silent: watch::Sender<BTreeSet<String>>,
}

#[derive(Default)]
struct State {
    modules: BTreeMap<String, Module>,
    /// Elements of the list that are no modules of the hub.
    strange: Vec<Identity>,
    calls: Vec<String>,
}

#[derive(Clone)]
struct Module {
    generation_id: String,
    managed_by: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{1}")]
pub(crate) struct Refused(pub(crate) StatusCode, pub(crate) String);

impl Status for Refused {
    fn status(&self) -> StatusCode {
        self.0
    }
}

fn not_found() -> Refused {
    Refused(StatusCode::NOT_FOUND, "Hub client error\ncaused by: not found".to_owned())
}

/// The key that a module has in a generation.
pub(crate) fn module_key(module_id: &str, generation_id: &str) -> [u8; 32] {
    openssl::sha::sha256(format!("{module_id} {generation_id}").as_bytes())
}

fn key_id(module_id: &str, generation_id: &str) -> String {
    format!("module {module_id} {generation_id}")
}

impl Identityd {
    fn new(keyd: Client) -> Self {
        Self { keyd, state: Mutex::default(), silent: watch::Sender::default() }
    }

    fn service(self: &Arc<Self>) -> Service<Self> {
        Service::new(Arc::clone(self), aziot_identityd_api::VERSIONS)
            .call(|this: Arc<Self>, _: Peer, call: GetModule| async move { this.get(call).await })
            .call(|this: Arc<Self>, _: Peer, _: ListModules| async move { Ok::<_, Refused>(this.list()) })
            .call(|this: Arc<Self>, _: Peer, call: CreateModule| async move { this.create(call).await })
            .call(|this: Arc<Self>, _: Peer, call: UpdateModule| async move { this.update(call).await })
            .call(|this: Arc<Self>, _: Peer, call: DeleteModule| async move { this.delete(call).await })
    }

    /// The hub has this module now.
    pub(crate) fn put(&self, module_id: &str, generation_id: &str, managed_by: Option<&str>) {
        let module = Module { generation_id: generation_id.to_owned(), managed_by: managed_by.map(str::to_owned) };
        self.state.lock().unwrap().modules.insert(module_id.to_owned(), module);
    }

    /// The list has this too.
    pub(crate) fn put_strange(&self, identity: Identity) {
        self.state.lock().unwrap().strange.push(identity);
    }

    /// The calls so far: method and module.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    /// From now on the hub does not answer about these.
    pub(crate) fn silence(&self, modules: &[&str]) {
        self.silent.send_replace(modules.iter().map(|name| (*name).to_owned()).collect());
    }

    /// The key service loses the module's key.
    pub(crate) async fn lose_key(&self, module_id: &str, generation_id: &str) {
        let loaded = self.keyd.send(&LoadKey { key_id: key_id(module_id, generation_id) }).await.unwrap();
        self.keyd.send(&DeleteKey { key_handle: loaded.key_handle }).await.unwrap();
    }

    async fn heard(&self, call: &str, module_id: &str) {
        self.state.lock().unwrap().calls.push(format!("{call} {module_id}"));
        let mut silent = self.silent.subscribe();
        let answers = silent.wait_for(|silent| !silent.contains(module_id));
        timeout(PATIENCE, answers).await.expect("the test lets the hub answer").unwrap();
    }

    async fn get(&self, call: GetModule) -> Result<Identity, Refused> {
        // What it was when the call came.
        let module = self.state.lock().unwrap().modules.get(&call.module_id).cloned();
        self.heard("get", &call.module_id).await;
        let module = module.ok_or_else(not_found)?;
        Ok(self.told(call.module_id, module).await)
    }

    fn list(&self) -> Listed {
        let mut state = self.state.lock().unwrap();
        state.calls.push("list".to_owned());
        let modules = state.modules.iter();
        let identities =
            modules.map(|(id, module)| aziot(Some(id), Some(&module.generation_id), module.managed_by.clone()));
        Listed { identities: state.strange.iter().cloned().chain(identities).collect() }
    }

    async fn create(&self, call: CreateModule) -> Result<Identity, Refused> {
        self.heard("create", &call.module_id).await;
        let module = Module { generation_id: "1".to_owned(), managed_by: call.managed_by };
        self.state.lock().unwrap().modules.insert(call.module_id.clone(), module.clone());
        Ok(self.told(call.module_id, module).await)
    }

    async fn update(&self, call: UpdateModule) -> Result<Identity, Refused> {
        self.heard("update", &call.module_id).await;
        let module = self.state.lock().unwrap().modules.get(&call.module_id).cloned();
        let module = module.ok_or_else(not_found)?;
        Ok(self.told(call.module_id, module).await)
    }

    async fn delete(&self, call: DeleteModule) -> Result<(), Refused> {
        self.heard("delete", &call.module_id).await;
        let gone = self.state.lock().unwrap().modules.remove(&call.module_id);
        gone.map(drop).ok_or_else(not_found)
    }

    async fn told(&self, module_id: String, module: Module) -> Identity {
        let Module { generation_id, managed_by } = module;
        let create = CreateKey {
            key_id: key_id(&module_id, &generation_id),
            usage: KeyUsage::DERIVE_SIGN,
            key_bytes: Some(SecretBytes::new(module_key(&module_id, &generation_id).to_vec())),
        };
        let key_handle = self.keyd.send(&create).await.unwrap().key_handle;
        match aziot(Some(&module_id), Some(&generation_id), managed_by) {
            Identity::Aziot(identity) => {
                Identity::Aziot(AziotIdentity { auth: Some(Authentication::Sas { key_handle }), ..identity })
            }
            local @ Identity::Local(_) => local,
        }
    }
}

/// An identity without what proves it.
pub(crate) fn aziot(module_id: Option<&str>, generation_id: Option<&str>, managed_by: Option<String>) -> Identity {
    Identity::Aziot(AziotIdentity {
        hub_name: "h.example.net".to_owned(),
        gateway_host: "h.example.net".to_owned(),
        device_id: "dev-1".to_owned(),
        module_id: module_id.map(str::to_owned),
        gen_id: generation_id.map(str::to_owned),
        auth: None,
        managed_by,
    })
}
