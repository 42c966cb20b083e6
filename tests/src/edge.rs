//! An edge device: a device in a folder whose modules are containers on an engine of its own, with a stand-in for edgeAgent.
//!
//! Tests speak as a container through its doors: sockets that a process inside leads on to the runtime's sockets, so that the runtime
//! sees that process as its caller.

use std::{
    collections::BTreeSet,
    fs,
    ops::{Deref, DerefMut},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aziot_test_module::{Agent, Environment, Wanted, Workload, http::Connection};
use serde_json::{Value, json};

use crate::{
    Daemon, Programs, Reply, World,
    device::write_private,
    docker::{Engine, Kind, Settings, image, namespaces::Forward, registry::Registry},
    eventually,
};

/// The image of the agent and all modules, which is at the engine.
pub const IMAGE: &str = "edge.test/module:1";
/// The api-version that the tests speak.
pub const VERSION: &str = "api-version=2022-08-03";
/// The label that makes a container a module.
pub const OWNER: (&str, &str) = ("net.azure-devices.edge.owner", "Microsoft.Azure.Devices.Edge.Agent");
/// Where a container finds the folder of its doors.
const DOORS: &str = "/doors";
/// For how long the device may take to get somewhere.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How an edge device is to be.
pub struct Plan {
    engine: Settings,
    keys: String,
    tables: String,
    cloud_arguments: Vec<String>,
}

impl Plan {
    /// One without anything special.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self { engine: Settings::of(kind), keys: String::new(), tables: String::new(), cloud_arguments: Vec::new() }
    }

    /// With this engine.
    #[must_use]
    pub fn engine(self, engine: Settings) -> Self {
        Self { engine, ..self }
    }

    /// With these keys at the top of the super-config.
    #[must_use]
    pub fn keys(self, keys: &str) -> Self {
        Self { keys: keys.to_owned(), ..self }
    }

    /// With these tables at its end.
    #[must_use]
    pub fn tables(self, tables: &str) -> Self {
        Self { tables: tables.to_owned(), ..self }
    }

    /// The cloud's program gets this argument.
    #[must_use]
    pub fn cloud_argument(mut self, argument: &str) -> Self {
        self.cloud_arguments.push(argument.to_owned());
        self
    }

    /// Everything is configured and everything but the runtime runs.
    pub fn prepare(self) -> Result<Edge> {
        let mut world = World::empty()?;
        world.have_modules();
        let arguments: Vec<&str> = self.cloud_arguments.iter().map(String::as_str).collect();
        world.add_cloud_arguments(&arguments);
        world.start_cloud()?;
        let engine = Engine::start_with(&world.path("engine"), self.engine.clone())?;
        let archive = world.path("image.tar");
        image::make(&Programs::of_this_build()?.path("aziot-test-module"), &archive, "1")?;
        engine.import(&archive, IMAGE)?;
        let port = world.cloud()?.rsplit_once(':').context("the cloud has a port")?.1.parse()?;
        // To modules in the engine's network the cloud is where it is to the device.
        let cloud = engine.namespaces.forward(port)?;
        let mut edge = Edge { engine, _cloud: cloud, world };
        edge.configure(&self)?;
        edge.world.start_all()?;
        Ok(edge)
    }

    /// Everything runs, and the agent has opened its doors.
    pub fn start(self) -> Result<Edge> {
        let mut edge = self.prepare()?;
        edge.start_runtime()?;
        Ok(edge)
    }
}

/// An edge device. Dropping it stops the runtime first, then its containers and its engine, then the rest.
pub struct Edge {
    /// Its engine.
    pub engine: Engine,
    _cloud: Forward,
    world: World,
}

impl Edge {
    /// A device as it comes, running.
    pub fn start(kind: Kind) -> Result<Self> {
        Plan::of(kind).start()
    }

    fn configure(&self, plan: &Plan) -> Result<()> {
        let doors = self.doors("edgeAgent")?;
        let words = [image::PROGRAM, "agent", "--doors", DOORS, "--desired", "/doors/desired.json"];
        let keys = format!("trust_bundle_cert = \"file://{}\"\n{}\n", self.world.roots().display(), plan.keys);
        let tables = format!(
            "\n[agent]\nname = \"edgeAgent\"\ntype = \"docker\"\nimagePullPolicy = \"never\"\n\n\
             [agent.config]\nimage = \"{IMAGE}\"\n\n[agent.config.createOptions]\nCmd = {words:?}\n\n\
             [agent.config.createOptions.HostConfig]\nBinds = [\"{}:{DOORS}\"]\n\n\
             [moby_runtime]\nuri = \"unix://{}\"\nnetwork = \"azure-iot-edge\"\n\n{}\n",
            doors.display(),
            self.engine.socket().display(),
            plan.tables,
        );
        self.world.apply(&format!("{keys}\n{}\n{tables}", self.world.dps_provisioning()?))
    }

    /// Starts the runtime, and waits until the agent has opened its doors.
    pub fn start_runtime(&mut self) -> Result<()> {
        self.world.start(Daemon::Edge)?;
        self.wait_for_door("edgeAgent", "management")
    }

    /// Stops the runtime in order.
    pub fn stop_runtime(&mut self) -> Result<std::process::ExitStatus> {
        self.world.stop(Daemon::Edge)
    }

    /// A registry in the engine's network, with an image like that of the modules, of which the engine has no part.
    pub fn registry(&self) -> Result<Registry> {
        let archive = self.world.path("registry.tar");
        image::make(&Programs::of_this_build()?.path("aziot-test-module"), &archive, "of the registry")?;
        Registry::start(&self.engine, &archive)
    }

    /// Folder of a container's doors, which is made.
    pub fn doors(&self, name: &str) -> Result<PathBuf> {
        let folder = self.world.path(&format!("doors/{name}"));
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        Ok(folder)
    }

    /// One of a container's doors: a socket by which a test speaks as the container.
    #[must_use]
    pub fn door(&self, name: &str, door: &str) -> PathBuf {
        self.world.path(&format!("doors/{name}/{door}"))
    }

    /// Waits until a container has opened a door.
    pub fn wait_for_door(&self, name: &str, door: &str) -> Result<()> {
        let path = self.door(name, door);
        let open = eventually(&format!("the door {door} of {name}"), PATIENCE, || {
            Ok(UnixStream::connect(&path).is_ok().then_some(()))
        });
        open.with_context(|| self.story(name))
    }

    /// What is known about a container that does not do what it should, and the runtime's last words.
    fn story(&self, name: &str) -> String {
        let printed = self.engine.logs(name).map(|frames| {
            let bytes: Vec<u8> = frames.into_iter().flat_map(|frame| frame.text).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let state = self.engine.inspect(name).ok().flatten().map(|container| container["State"].clone());
        let log = self.world.log(Daemon::Edge).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(30).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        format!("{name}: {state:?}, it printed {printed:?}; the runtime's log ends with\n{}", last.join("\n"))
    }

    /// The environment of a container.
    pub fn environment(&self, name: &str) -> Result<Environment> {
        let container = self.engine.inspect(name)?.with_context(|| format!("no container {name}"))?;
        let lines = container.pointer("/Config/Env").and_then(Value::as_array).context("no environment")?;
        Ok(Environment::of_lines(lines.iter().filter_map(Value::as_str)))
    }

    /// The agent, called from inside its container.
    pub fn agent(&self) -> Result<Agent> {
        Ok(Agent::new(&self.door("edgeAgent", "management"), self.environment("edgeAgent")?))
    }

    /// A module that runs this task of the test's program behind its doors.
    pub fn module(&self, name: &str, task: &[&str]) -> Result<Wanted> {
        let words: Vec<&str> = [image::PROGRAM].iter().chain(task).chain(&["--doors", DOORS]).copied().collect();
        let binds = [format!("{}:{DOORS}", self.doors(name)?.display())];
        let create_options = json!({ "Cmd": words, "HostConfig": { "Binds": binds } });
        Ok(Wanted { create_options, ..Wanted::new(name, IMAGE) })
    }

    /// The same in the engine's own network, from where the cloud can be reached.
    pub fn module_on_host(&self, name: &str, task: &[&str]) -> Result<Wanted> {
        let mut wanted = self.module(name, task)?;
        wanted.create_options["HostConfig"]["NetworkMode"] = json!("host");
        Ok(wanted)
    }

    /// Has the agent create and start a module.
    pub fn run(&self, wanted: &Wanted) -> Result<()> {
        let agent = self.agent()?;
        agent.create(wanted)?;
        agent.start(&wanted.name).with_context(|| self.story(&wanted.name))
    }

    /// The same for one that only waits, until it has opened its doors.
    pub fn run_waiting(&self, name: &str) -> Result<()> {
        self.run(&self.module(name, &["wait"])?)?;
        self.wait_for_door(name, "workload")
    }

    /// The workload API, called from inside a module with its own name.
    pub fn workload(&self, name: &str) -> Result<Workload> {
        Workload::connect_to(&self.door(name, "workload"), &self.environment(name)?)
    }

    /// Signs as a module; waits while that does not go.
    pub fn eventually_signs(&self, name: &str) -> Result<Vec<u8>> {
        let signed = eventually(&format!("a signature of {name}"), PATIENCE, || {
            Ok(self.workload(name).and_then(|mut workload| workload.sign(b"data")).ok())
        });
        signed.with_context(|| self.story(name))
    }

    /// What the agent is to keep, from its next round on.
    pub fn desire(&self, wanted: &[Wanted]) -> Result<()> {
        let (file, next) = (self.door("edgeAgent", "desired.json"), self.door("edgeAgent", "desired.next"));
        write_private(&next, serde_json::to_vec(wanted)?)?;
        fs::rename(next, file).context("could not put the list in its place")
    }

    /// Waits until exactly these modules run, with the agent.
    pub fn wait_for_modules(&self, names: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = names.iter().chain(&["edgeAgent"]).map(|&name| name.to_owned()).collect();
        let mut last = BTreeSet::new();
        let there = eventually(&format!("{expected:?}"), PATIENCE, || {
            // An engine that is away for a while comes back.
            last = self.engine.running().unwrap_or_default();
            Ok((last == expected).then_some(()))
        });
        there.with_context(|| format!("these run: {last:?}; {}", self.story("edgeAgent")))
    }

    /// Waits until the engine knows that none of these runs.
    pub fn wait_for_end_of(&self, names: &[&str]) -> Result<()> {
        eventually(&format!("the end of {names:?}"), PATIENCE, || {
            let running = self.engine.running()?;
            Ok((!names.iter().any(|name| running.contains(*name))).then_some(()))
        })
    }

    /// Calls the management API from the host, with a connection of its own and without any retry.
    pub fn manage(&self, method: &str, target: &str, body: Option<&Value>) -> Result<Reply> {
        call(&self.world.socket(Daemon::Edge), method, target, body)
    }

    /// Calls a door of a container.
    pub fn call_as(&self, name: &str, door: &str, method: &str, target: &str, body: Option<&Value>) -> Result<Reply> {
        call(&self.door(name, door), method, target, body)
    }
}

/// One call on a socket of the runtime; the api-version is added.
pub fn call(socket: &Path, method: &str, target: &str, body: Option<&Value>) -> Result<Reply> {
    let separator = if target.contains('?') { '&' } else { '?' };
    let body = body.map(Value::to_string);
    let headers: &[(&str, &str)] = if body.is_some() { &[("Content-Type", "application/json")] } else { &[] };
    let mut connection = Connection::unix(socket)?;
    let target = format!("{target}{separator}{VERSION}");
    let answer = connection.call(method, &target, headers, body.as_deref().map(str::as_bytes))?;
    Ok(Reply { status: answer.status, body: answer.text() })
}

impl Drop for Edge {
    fn drop(&mut self) {
        // Otherwise it would start the agent anew while the engine removes it.
        let _ = self.world.kill(Daemon::Edge);
    }
}

impl Deref for Edge {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Edge {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}
