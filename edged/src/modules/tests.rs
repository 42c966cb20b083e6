//! Modules on an engine in memory that fails where it is told to.

use aziot_edged_api::logs::Tail;
use aziot_http::{Status as _, StatusCode, server::MaxRequests};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    docker::{
        OWNER, OWNER_LABEL,
        tests::engine::{Engine, Fault},
    },
    images::Use,
};

mod closing;
mod exchange;

struct World {
    engine: Engine,
    modules: Arc<Modules>,
    sockets: Arc<Sockets>,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let engine = Engine::start();
        let folder = tempfile::tempdir().unwrap();
        let sockets = Arc::new(Sockets::new(folder.path().join("mnt"), MaxRequests::default()));
        let usage = Arc::new(Use::open(folder.path()).await);
        let images = Images::new(engine.docker(), usage);
        let modules = Arc::new(Modules::new(engine.docker(), images, Arc::clone(&sockets), Privileges::Elevated));
        Self { engine, modules, sockets, folder }
    }

    /// With the running module `mm`.
    async fn with_module() -> Self {
        let world = Self::new().await;
        world.engine.add_container("mm", "running", options("old"));
        world
    }

    fn socket(&self, module: &str) -> bool {
        self.folder.path().join("mnt").join(format!("{module}.sock")).exists()
    }

    /// The `Mark` of the container of this name.
    fn mark(&self, name: &str) -> Option<String> {
        self.engine.container(name).map(|made| made.options["Mark"].as_str().unwrap_or_default().to_owned())
    }

    async fn update(&self, start: bool) -> Result<ModuleDetails, Error> {
        self.modules.update(&name("mm"), request("mm", "image:1"), start).await
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn options(mark: &str) -> Value {
    json!({ "Image": "image:1", "Mark": mark, "HostConfig": {}, "Labels": { OWNER_LABEL: OWNER, "x": "y" } })
}

/// Asks for a module with the mark `new`, whose image is not pulled.
fn request(name: &str, image: &str) -> ModuleSpecification {
    serde_json::from_value(json!({
        "name": name,
        "type": "docker",
        "imagePullPolicy": "never",
        "config": { "settings": { "image": image, "createOptions": { "Mark": "new" }, "auth": { "password": "p" } } },
    }))
    .unwrap()
}

fn pulling(name: &str, image: &str) -> ModuleSpecification {
    ModuleSpecification { image_pull_policy: None, ..request(name, image) }
}

#[tokio::test]
async fn a_module_is_made_started_stopped_and_removed() {
    let world = World::new().await;
    let details = world.modules.create(request("mm", "image:1")).await.unwrap();
    assert_eq!(
        serde_json::to_value(&details).unwrap(),
        json!({ "id": "id", "name": "mm", "type": "docker", "status": { "runtimeStatus": { "status": "stopped" } },
            "config": { "settings": { "image": "image:1", "createOptions": { "Mark": "new" } } } })
    );
    assert!(!world.socket("mm"));
    world.modules.start(&name("mm")).await.unwrap();
    assert!(world.socket("mm"));
    let listed = world.modules.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        serde_json::to_value(&listed[0]).unwrap(),
        json!({ "id": "id", "name": "mm", "type": "docker",
            "config": { "env": [], "settings": { "image": "image:1", "imageHash": "sha256:01", "createOptions": { "Labels": {
                OWNER_LABEL: OWNER, "net.azure-devices.edge.original-image": "image:1" } } } },
            "status": { "startTime": "2024-05-01T10:00:00Z", "runtimeStatus": { "status": "running" } } })
    );
    assert_eq!(world.modules.running().await.unwrap(), [name("mm")]);
    assert_eq!(world.modules.statistics().await.unwrap(), r#"[{"name":"/mm"}]"#);
    world.modules.stop(&name("mm")).await.unwrap();
    assert_eq!(world.modules.get(&name("mm")).await.unwrap().status.runtime_status.status, Status::Stopped);
    assert!(world.socket("mm"));
    world.modules.remove(&name("mm")).await.unwrap();
    assert!(!world.socket("mm") && world.engine.containers().is_empty());
}

#[tokio::test]
async fn containers_that_are_no_modules_do_not_exist() {
    let world = World::new().await;
    world.engine.add_container("foreign", "running", json!({ "Image": "image:1" }));
    let id = world.engine.container("foreign").unwrap().id;
    world.engine.add_container("mm", "running", options("old"));
    let own = world.engine.container("mm").unwrap().id;
    for unknown in [name("foreign"), name(&id), name(&own), name(&own[..12]), name("nobody")] {
        let modules = &world.modules;
        let errors = [
            modules.get(&unknown).await.map(drop),
            modules.start(&unknown).await,
            modules.stop(&unknown).await,
            modules.restart(&unknown).await,
            modules.remove(&unknown).await,
            modules.logs(&unknown, &LogOptions { tail: Tail::All, ..LogOptions::default() }).await.map(drop),
            modules.update(&unknown, request(unknown.as_str(), "image:1"), true).await.map(drop),
        ];
        for error in errors.map(Result::unwrap_err) {
            assert_eq!(error.status(), StatusCode::NOT_FOUND, "{unknown}: {error}");
        }
        assert!(!world.socket(unknown.as_str()), "{unknown}");
    }
    assert!(world.engine.changes().is_empty());
    assert_eq!(world.modules.names().await.unwrap(), BTreeSet::from(["mm".to_owned()]));
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_leaves_the_old_module_running() {
    let world = World::with_module().await;
    let error = world.modules.update(&name("mm"), pulling("mm", "r.example/x:2"), true).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::NOT_FOUND);
    assert_eq!(error.message(), r#"registry operation error: pull image "r.example/x:2": pull access denied"#);
    assert_eq!(world.engine.changes(), ["POST /images/create?fromImage=r.example%2Fx%3A2"]);
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "running")]);

    world.engine.publish("r.example/x:2");
    world.modules.prepare_update(&name("mm"), pulling("mm", "r.example/x:2")).await.unwrap();
    world.modules.update(&name("mm"), pulling("mm", "r.example/x:2"), true).await.unwrap();
    assert_eq!(world.engine.container("mm").unwrap().image, "sha256:r.example/x:2");
}

#[tokio::test]
async fn an_unreachable_registry_is_overcome_by_an_image_that_is_there() {
    let world = World::with_module().await;
    let offline = Fault::Refuse(500, "dial tcp: lookup registry.example: no such host");
    world.engine.fail("POST /images/create", offline);
    world.modules.update(&name("mm"), pulling("mm", "image:1"), true).await.unwrap();
    assert_eq!(world.mark("mm").unwrap(), "new");

    world.engine.fail("POST /images/create", offline);
    let error = world.modules.create(pulling("other", "absent:1")).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
    // A registry that says no is heard, though the image is here.
    let error = world.modules.create(pulling("other", "image:1")).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_update_makes_the_new_before_it_takes_the_old_away() {
    let world = World::with_module().await;
    let details = world.update(true).await.unwrap();
    assert_eq!(details.status.runtime_status.status, Status::Running);
    let old = format!("{:064x}", 1);
    let new = format!("{:064x}", 2);
    assert_eq!(
        world.engine.changes(),
        [
            "POST /containers/create?name=mm.aziot-edged-replacement".to_owned(),
            format!("POST /containers/{old}/stop"),
            format!("POST /containers/{old}/rename?name=mm.aziot-edged-retired-{old}"),
            format!("POST /containers/{new}/rename?name=mm"),
            format!("DELETE /containers/{old}?force=true&v=false"),
            format!("POST /containers/{new}/start"),
        ]
    );
    assert_eq!((world.mark("mm").unwrap().as_str(), world.engine.containers().len()), ("new", 1));
    assert!(world.socket("mm"));

    let details = world.update(false).await.unwrap();
    assert_eq!(details.status.runtime_status.status, Status::Stopped);
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "created")]);
}

#[tokio::test]
async fn a_new_container_that_cannot_be_made_leaves_the_old_one_running() {
    let world = World::with_module().await;
    world.engine.fail("POST /containers/create", Fault::Refuse(400, "invalid mount"));
    let error = world.update(true).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    assert_eq!(error.message(), r#"runtime operation error: create module "mm": invalid mount"#);
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "running")]);
}

#[tokio::test]
async fn a_failing_start_is_the_updates_failure() {
    let world = World::with_module().await;
    let new = format!("POST /containers/{:064x}/start", 2);
    world.engine.fail(&new, Fault::Refuse(500, "port is already allocated"));
    let error = world.update(true).await.unwrap_err();
    assert_eq!(error.message(), r#"runtime operation error: start module "mm": port is already allocated"#);
    assert_eq!(world.mark("mm").unwrap(), "new");
}

#[tokio::test]
async fn a_container_that_can_never_be_started_again_is_made_anew() {
    for restart in [false, true] {
        let world = World::new().await;
        world.engine.add_container(
            "mm",
            "created",
            json!({ "Image": "image:1", "Mark": "stuck", "HostConfig": { "Memory": 5 },
            "Labels": { OWNER_LABEL: OWNER } }),
        );
        let text = "task 0000000000000000000000000000000000000000000000000000000000000001: already exists";
        world.engine.fail(&format!("POST /containers/{:064x}/", 1), Fault::Refuse(500, text));
        if restart {
            world.modules.restart(&name("mm")).await.unwrap();
        } else {
            world.modules.start(&name("mm")).await.unwrap();
        }
        let made = world.engine.container("mm").unwrap();
        assert_eq!((made.id, made.status), (format!("{:064x}", 2), "running"));
        assert_eq!(
            (made.options["Mark"].as_str(), made.options["HostConfig"]["Memory"].as_i64()),
            (Some("stuck"), Some(5))
        );
        assert_eq!(world.engine.containers().len(), 1);
        assert!(world.socket("mm"));
    }
}

#[tokio::test]
async fn what_an_interrupted_update_left_is_no_module_and_gives_way() {
    let world = World::with_module().await;
    world.engine.add_container("mm.aziot-edged-replacement", "created", options("stale"));
    assert_eq!(world.modules.names().await.unwrap().len(), 1);
    assert_eq!(world.modules.list().await.unwrap().len(), 1);
    world.modules.mend().await.unwrap();
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "running")]);
    assert_eq!(world.mark("mm").unwrap(), "old");

    world.engine.add_container("nn.aziot-edged-replacement", "created", options("saved"));
    world.modules.start(&name("nn")).await.unwrap();
    assert_eq!(world.mark("nn").unwrap(), "saved");

    // Nobody knows yet whether another one can be made.
    world.engine.add_container("oo.aziot-edged-replacement", "created", options("saved"));
    let error = world.modules.create(request("oo", "image:1")).await.unwrap_err();
    assert_eq!((error.status(), world.mark("oo").unwrap().as_str()), (StatusCode::CONFLICT, "saved"));
    assert_eq!(world.engine.containers().len(), 3);
}

#[tokio::test]
async fn the_agent_is_replaced_after_the_answer_and_nobody_comes_between() {
    let world = World::new().await;
    world.engine.add_container(AGENT, "running", options("old"));
    let agent = name(AGENT);
    let turn = world.modules.hold(&agent).await;
    let details = world.modules.update(&agent, request(AGENT, "image:1"), true).await.unwrap();
    assert_eq!(details.status.runtime_status.status, Status::Running);
    assert_eq!(world.mark(AGENT).unwrap(), "old");
    assert!(world.modules.try_hold(&agent).is_none());
    drop(turn);
    world.modules.settled().await;
    assert_eq!(world.mark(AGENT).unwrap(), "new");
    assert_eq!(world.engine.containers(), [(AGENT.to_owned(), "running")]);
    assert!(world.modules.try_hold(&agent).is_some());
}

#[tokio::test]
async fn bad_requests_change_nothing() {
    let world = World::with_module().await;
    let other = world.modules.update(&name("mm"), request("nn", "image:1"), true).await.unwrap_err();
    assert_eq!(
        (other.status(), other.message().as_str()),
        (StatusCode::BAD_REQUEST, "module name in spec does not match URI")
    );
    assert!(world.modules.prepare_update(&name("mm"), request("nn", "image:1")).await.is_err());
    assert!(world.modules.create(request("../x", "image:1")).await.is_err());
    assert!(world.modules.create(request("nn", "")).await.is_err());
    let taken = world.modules.create(request("mm", "image:1")).await.unwrap_err();
    assert_eq!(taken.status(), StatusCode::CONFLICT);
    let absent = world.modules.create(request("nn", "absent")).await.unwrap_err();
    assert_eq!(absent.status(), StatusCode::NOT_FOUND);
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "running")]);
}

#[tokio::test(start_paused = true)]
async fn one_container_that_hangs_the_engine_does_not_hide_the_others() {
    let world = World::with_module().await;
    world.engine.add_container("nn", "exited", options("other"));
    world.engine.fail(&format!("GET /containers/{:064x}/json", 2), Fault::Hang);
    world.engine.fail(&format!("GET /containers/{:064x}/stats", 1), Fault::Hang);
    let listed = world.modules.list().await.unwrap();
    let statuses: Vec<_> =
        listed.iter().map(|module| (module.name.as_str(), module.status.runtime_status.status)).collect();
    assert_eq!(statuses, [("mm", Status::Running), ("nn", Status::Failed)]);
    assert_eq!(world.modules.statistics().await.unwrap(), r#"[{"name":"/nn"}]"#);
}

#[tokio::test(start_paused = true)]
async fn stopping_all_ends_in_time_whatever_hangs() {
    let world = World::with_module().await;
    world.engine.add_container("nn", "running", options("other"));
    world.engine.fail(&format!("POST /containers/{:064x}/stop?t=20", 1), Fault::Hang);
    let begun = tokio::time::Instant::now();
    assert_eq!(world.modules.stop_all(Duration::from_secs(20)).await.unwrap(), [name("mm")]);
    assert_eq!(begun.elapsed().as_secs(), 25);
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "running"), ("nn".to_owned(), "exited")]);
}

#[tokio::test]
async fn modules_that_cannot_be_removed_are_told() {
    let world = World::with_module().await;
    world.engine.add_container("nn", "running", options("other"));
    world.engine.fail(&format!("DELETE /containers/{:064x}", 1), Fault::Refuse(500, "busy"));
    world.engine.add_container("oo.aziot-edged-replacement", "created", options("other"));
    assert_eq!(world.modules.remove_all().await.unwrap(), [name("mm")]);
    assert_eq!(world.engine.containers(), [("mm".to_owned(), "running")]);
    assert_eq!(world.modules.remove_all().await.unwrap(), []);
    assert!(world.engine.containers().is_empty());
}

#[tokio::test]
async fn work_on_one_module_keeps_nobody_from_another() {
    let world = World::with_module().await;
    world.engine.add_container("nn", "exited", options("other"));
    let _turn = world.modules.hold(&name("mm")).await;
    world.modules.start(&name("nn")).await.unwrap();
    assert_eq!(world.modules.list().await.unwrap().len(), 2);
    world.modules.get(&name("mm")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_module_that_is_gone_leaves_no_socket() {
    let world = World::with_module().await;
    world.modules.start(&name("mm")).await.unwrap();
    assert!(world.socket("mm"));
    world.engine.fail(&format!("DELETE /containers/{:064x}", 1), Fault::DownAfter);
    assert!(world.modules.remove(&name("mm")).await.is_err());
    world.engine.recover();
    let error = world.modules.remove(&name("mm")).await.unwrap_err();
    assert_eq!(error.status(), StatusCode::NOT_FOUND);
    assert!(!world.socket("mm"));
}

#[tokio::test]
async fn the_use_of_images_is_noted() {
    let world = World::new().await;
    world.modules.create(request("mm", "image:1")).await.unwrap();
    let text =
        String::from_utf8(aziot_files::read_limited(world.folder.path().join("image_use"), 1000).unwrap()).unwrap();
    assert!(text.starts_with("sha256:01 ") && text.ends_with('\n'), "{text}");
}
