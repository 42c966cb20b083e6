//! The demo's module as a real container, where Docker answers: made on the spot, with an identity through a workload socket of its own.
//!
//! It uses the machine's engine, so it keeps away from one that runs modules of somebody else, and removes what it made.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aziot_tests::{
    Daemon, Device, Programs,
    docker::{Client, image},
    edge::OWNER,
    eventually,
};
use serde_json::{Value, json};

use super::relative;
use crate::report;

/// Where Docker listens unless somebody has moved it.
const ENGINE: &str = "/var/run/docker.sock";
const AGENT: &str = "edgeAgent";
const MODULE: &str = "sampler-container";
/// For how long containers may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A socket without a file, which one process of the machine can have, and which goes with it.
const LOCK: &[u8] = b"aziot-demo";

/// The machine's engine, and what the demo makes there. Dropping it removes that.
pub(super) struct Containers {
    engine: Client,
    version: String,
    image: String,
    network: String,
    // The names of the containers are the same in every demo. Dropped last, with the engine free again.
    _lock: UnixListener,
}

impl Containers {
    /// Looks for an engine that may be used; else tells why there is none.
    pub(super) fn find() -> Result<Self, String> {
        let socket = Path::new(ENGINE);
        if std::os::unix::net::UnixStream::connect(socket).is_err() {
            return Err(format!("no Docker at {ENGINE} that you may use"));
        }
        let lock = SocketAddr::from_abstract_name(LOCK).and_then(|address| UnixListener::bind_addr(&address));
        let lock = lock.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => "another demo uses this Docker".to_owned(),
            _ => format!("could not find out whether another demo uses this Docker: {error}"),
        })?;
        let engine = Client::new(socket);
        let examine = || -> Result<(String, bool)> {
            let version = engine.call("GET", "/version", None)?.expect(200)?.text("/Version")?;
            let filter = format!("%7B%22label%22%3A%5B%22{}%22%5D%7D", OWNER.0);
            let modules = engine.call("GET", &format!("/containers/json?all=true&filters={filter}"), None)?;
            let is_free = modules.expect(200)?.json()?.as_array().is_some_and(Vec::is_empty);
            Ok((version, is_free && engine.inspect(AGENT)?.is_none() && engine.inspect(MODULE)?.is_none()))
        };
        match examine() {
            Err(error) => Err(format!("no answer of Docker: {error:#}")),
            // A runtime stops all modules that it finds: these are another device's.
            Ok((_, false)) => Err("this Docker has modules of another device".to_owned()),
            Ok((version, true)) => {
                let own = process::id();
                let (image, network) = (format!("aziot-demo.test/module:{own}"), format!("aziot-demo-{own}"));
                Ok(Self { engine, version, image, network, _lock: lock })
            }
        }
    }

    /// What the super-config says about modules: keys for its top, and tables for its end.
    pub(super) fn settings(&self, device: &Device) -> Result<(String, String)> {
        let folder = shared(device)?;
        let words = [image::PROGRAM, "agent", "--desired", "/deployment/desired.json"];
        let keys = format!("trust_bundle_cert = \"file://{}\"\n", device.roots().display());
        let tables = format!(
            "\n[agent]\nname = \"{AGENT}\"\ntype = \"docker\"\nimagePullPolicy = \"never\"\n\n\
             [agent.config]\nimage = \"{}\"\n\n[agent.config.createOptions]\nCmd = {words:?}\n\n\
             [agent.config.createOptions.HostConfig]\nBinds = [\"{}:/deployment:ro\"]\n\n\
             [moby_runtime]\nuri = \"unix://{ENGINE}\"\nnetwork = \"{}\"\n\n[image_garbage_collection]\nenabled = false\n",
            self.image,
            folder.display(),
            self.network,
        );
        Ok((keys, tables))
    }

    /// The steps, each with its outcome and time.
    pub(super) fn show(&self, device: &mut Device, programs: &Programs) -> Result<()> {
        let size = |bytes: &u64| format!("Docker {}, image of {} KiB", self.version, bytes / 1024);
        report::step("container image", || self.make_image(device, programs), size)?;
        self.desire(device)?;
        let socket = relative(&device.socket(Daemon::Edge), device);
        report::step("edged", || device.start(Daemon::Edge), |()| format!("up on {socket}"))?;
        let told = report::step(
            "container",
            || self.module(),
            |told| format!("{MODULE}: signed token, {} certificates", told["certificates"]),
        )?;
        report::step(
            "its message",
            || Ok(told["message"].clone()),
            |status| format!("accepted by the hub: HTTP {status}"),
        )?;
        Ok(())
    }

    /// Returns the size of the image, in bytes.
    fn make_image(&self, device: &Device, programs: &Programs) -> Result<u64> {
        let archive = device.path("module/image.tar");
        image::make(&programs.path("aziot-test-module"), &archive, "demo")?;
        self.engine.import(&archive, &self.image)?;
        Ok(fs::metadata(&archive).context("could not see the size of the image")?.len())
    }

    /// What the agent is to run: one module, in the host's network, where the cloud is.
    fn desire(&self, device: &Device) -> Result<()> {
        let module = json!([{
            "name": MODULE, "image": self.image,
            "createOptions": { "Cmd": [image::PROGRAM, "module", "--stay"], "HostConfig": { "NetworkMode": "host" } },
        }]);
        aziot_tests::device::write_private(&shared(device)?.join("desired.json"), module.to_string())
    }

    /// Waits for what the module says about itself.
    fn module(&self) -> Result<Value> {
        let told = eventually("a word of the module", PATIENCE, || {
            if self.engine.inspect(MODULE)?.is_none() {
                return Ok(None);
            }
            let frames = self.engine.logs(MODULE)?;
            let text: Vec<u8> = frames.into_iter().flat_map(|frame| frame.text).collect();
            Ok(String::from_utf8_lossy(&text).lines().find_map(|line| serde_json::from_str::<Value>(line).ok()))
        })?;
        if told["message"] != 204 {
            bail!("the module says {told}");
        }
        Ok(told)
    }
}

/// The folder that the agent sees.
fn shared(device: &Device) -> Result<PathBuf> {
    let folder = device.path("module/deployment");
    fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    Ok(folder)
}

impl Drop for Containers {
    fn drop(&mut self) {
        // What cannot be removed now cannot be removed here.
        for name in [AGENT, MODULE] {
            let own = self.engine.inspect(name).ok().flatten();
            if let Some(container) = own.filter(|container| container["Config"]["Image"] == self.image.as_str()) {
                let _ = self.engine.remove(container["Id"].as_str().unwrap_or(name));
            }
        }
        let _ = self.engine.call("DELETE", &format!("/networks/{}", self.network), None);
        let _ = self.engine.call("DELETE", &format!("/images/{}", self.image), None);
    }
}
