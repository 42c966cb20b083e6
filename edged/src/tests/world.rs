//! A runtime without a watchdog, served on two sockets, whose caller is whom the test wants.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::Arc,
};

use aziot_http::{
    Limits, Shutdown,
    server::MaxRequests,
    testing::{RawReply, TestServer},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    caller::tests::stage::{Stage, id, own_pid},
    docker::{Docker, OWNER, OWNER_LABEL, tests::engine::Engine},
    http::{Management, WorkloadApi},
    images::{Images, Use},
    modules::Modules,
    settings::{Settings, tests::config},
    shared::Shared,
    sockets::Sockets,
    specification::Privileges,
    system::System,
    trust_bundle::{self, TrustBundles},
    watchdog::Requests,
    workload::tests::world::World as Services,
};

/// The newest version, as clients send it.
pub(super) const V: &str = "api-version=2022-08-03";

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) services: Services,
    pub(super) stage: Stage,
    pub(super) folder: TempDir,
    management: TestServer,
    workload: TestServer,
    starts: Cell<u64>,
}

impl World {
    /// With the running modules `edgeAgent`, `edgeHub`, `sensor` and `other`, and a foreign container `database`.
    pub(super) async fn new() -> Self {
        let engine = Engine::start();
        for name in ["edgeAgent", "edgeHub", "sensor", "other"] {
            engine.add_container(name, "running", module());
        }
        engine.add_container("database", "running", json!({ "Image": "image:1", "Labels": { "x": "y" } }));
        Self::build(engine.docker(), engine, Stage::new().await).await
    }

    /// With the engine of the stage, which can do nothing but tell of its containers and give their log.
    pub(super) async fn on_stage() -> Self {
        let stage = Stage::new().await;
        Self::build(stage.docker(), Engine::start(), stage).await
    }

    async fn build(docker: Docker, engine: Engine, stage: Stage) -> Self {
        let services = Services::new(crate::workload::tests::world::SELF_SIGNED).await;
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::new(config(folder.path())).unwrap();
        for (digit, name) in [('a', "edgeAgent"), ('b', "edgeHub"), ('c', "sensor"), ('d', "other")] {
            stage.module(digit, name);
        }
        let callers = Arc::new(stage.callers());
        let sockets = Arc::new(Sockets::new(settings.sockets(), MaxRequests::default()));
        let usage = Arc::new(Use::open(&settings.image_use()).await);
        let images = Images::new(docker.clone(), usage);
        let modules = Arc::new(Modules::new(docker.clone(), images, sockets, Privileges::Elevated));
        let system = System::new(&settings, docker, Arc::clone(&modules), services.services.certd.clone()).await;
        let management = Management {
            callers: Arc::clone(&callers),
            modules: Arc::clone(&modules),
            identities: services.identities(),
            system: Arc::new(system),
            requests: Arc::new(Requests::new(Shutdown::new())),
        };
        let ids = trust_bundle::Ids {
            trust_bundle: "bundle".to_owned(),
            manifest_trust_bundle: "manifest-bundle".to_owned(),
        };
        let workload = WorkloadApi {
            callers,
            modules,
            workload: services.workload().await,
            trust_bundles: Arc::new(TrustBundles::new(services.services.certd.clone(), ids)),
            lists: Shared::default(),
        };
        let start = |routes| {
            TestServer::start_as(routes, Limits::new(MaxRequests::default()), aziot_http::Server::identify_processes)
        };
        let (management, workload) = (start(management.routes()), start(workload.routes()));
        let world = Self { engine, services, stage, folder, management, workload, starts: Cell::new(0) };
        world.be_nobody();
        world
    }

    /// From now on the tests' own process is one of this container.
    pub(super) fn be(&self, digit: char) {
        self.place(&format!("0::/docker/{}\n", id(digit)));
    }

    pub(super) fn be_agent(&self) {
        self.be('a');
    }

    pub(super) fn be_sensor(&self) {
        self.be('c');
    }

    /// From now on it is one of the host.
    pub(super) fn be_nobody(&self) {
        self.place("0::/system.slice/ssh.service\n");
    }

    fn place(&self, cgroups: &str) {
        self.stage.place(own_pid(), cgroups, 2);
        // Seemingly another process: what is known of the former one does not count.
        self.starts.set(self.starts.get() + 1);
        self.stage.start(own_pid(), self.starts.get());
    }

    /// Folder of the modules' sockets.
    pub(super) fn sockets(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub(super) fn management(&self) -> &TestServer {
        &self.management
    }

    pub(super) fn workload(&self) -> &TestServer {
        &self.workload
    }

    /// Asks the management API: `GET /modules` or `PUT /modules/m {"name":"m"}`.
    pub(super) async fn manage(&self, request: &str) -> RawReply {
        send(&self.management, request).await
    }

    /// Asks the workload API.
    pub(super) async fn work(&self, request: &str) -> RawReply {
        send(&self.workload, request).await
    }
}

async fn send(server: &TestServer, request: &str) -> RawReply {
    let mut parts = request.splitn(3, ' ');
    let (method, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mark = if target.contains('?') { '&' } else { '?' };
    server.send(method, &format!("{target}{mark}{V}"), parts.next().unwrap_or_default()).await
}

/// Status and `message` of an answer that is nothing but an error.
pub(super) fn refusal(reply: &RawReply) -> (u16, String) {
    let body: Value = serde_json::from_str(&reply.body).unwrap_or_else(|_| panic!("no JSON: {:?}", reply.body));
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
    (reply.status, body["message"].as_str().expect("a message").to_owned())
}

/// The first line of an answer.
pub(super) fn status_line(reply: &RawReply) -> String {
    String::from_utf8(reply.head.clone()).unwrap().lines().next().unwrap_or_default().to_owned()
}

fn module() -> Value {
    let labels = json!({ OWNER_LABEL: OWNER, "net.azure-devices.edge.env": "SECRET" });
    json!({ "Image": "image:1", "Labels": labels })
}

/// A request for a module whose image is not pulled.
pub(super) fn specification(name: &str) -> Value {
    json!({
        "name": name,
        "type": "docker",
        "imagePullPolicy": "Never",
        "config": { "settings": { "image": "image:1", "createOptions": {}, "digest": null, "auth": null }, "env": [] },
    })
}

/// Names of the files in a folder.
pub(super) fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
