//! Signatures as modules get them: a process in a container asks the module runtime over its workload socket, which asks the key service.
//!
//! A whole device with its simulated cloud and a container engine of its own, in a folder. The load runs inside the container, because the
//! runtime answers nobody else; it is counted against the figures, as the engine is.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aziot_tests::{
    Daemon, Device, Programs, calls,
    docker::{
        Engine, Kind,
        image::{self, PROGRAM},
        registry::{Manner, Registry},
    },
    edge::{IMAGE, OWNER, VERSION},
    eventually,
    process::Restart,
    raw,
};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use crate::{report::Scenario, service::processor_time};

/// The module that signs: the agent, which the runtime starts by itself.
const MODULE: &str = "edgeAgent";
const CONNECTIONS: &str = "8";
/// What a second must bring.
const WANTED: f64 = 10_000.0;
/// How much longer the slow ones may take while others are at work.
const MOST: f64 = 2.0;
/// Rounds of which the best counts.
const ROUNDS: u32 = 3;
/// Further modules, whose statistics are read.
const OTHERS: usize = 20;
/// A round takes no longer: the pull must outlast all of them, and be over before anybody's patience is.
const LONGEST_ROUND: Duration = Duration::from_secs(10);
/// How long a pull takes beyond the rounds.
const MARGIN: Duration = Duration::from_secs(15);
/// How long the device, and then its module, may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the load in the container tells.
#[derive(Clone, Copy, Deserialize)]
struct Figures {
    signatures: u64,
    rate: f64,
    p50_us: f64,
    p99_us: f64,
}

struct World {
    // Dropped in this order: the runtime stops its modules before their engine goes.
    device: Device,
    registry: Registry,
    engine: Engine,
    folder: TempDir,
}

impl World {
    fn start(aziotd: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("aziot-bench-").tempdir().context("could not make a folder")?;
        let programs =
            aziotd.parent().context("aziotd has no folder")?.canonicalize().context("no folder of aziotd")?;
        let engine = Engine::start(&folder.path().join("engine"), Kind::Docker)?;
        let archive = folder.path().join("module.tar");
        image::make(&programs.join("aziot-test-module"), &archive, "bench")?;
        engine.import(&archive, IMAGE)?;
        let registry = Registry::start(&engine, &archive)?;

        let doors = folder.path().join("doors");
        std::fs::create_dir(&doors).context("could not make a folder")?;
        let mut device = Device::new(&folder.path().join("device"), Programs::in_folder(programs), Restart::Never)?;
        device.have_modules();
        device.start_cloud()?;
        device.configure(&format!(
            "hostname = \"bench\"\n\n{}\n[moby_runtime]\nuri = \"unix://{}\"\n\n\
             [agent]\nimagePullPolicy = \"never\"\n\n[agent.config]\nimage = \"{IMAGE}\"\n\n\
             [agent.config.createOptions]\nCmd = [\"{PROGRAM}\", \"--doors\", \"/doors\", \"agent\"]\n\n\
             [agent.config.createOptions.HostConfig]\nBinds = [\"{}:/doors\"]\n",
            device.dps_provisioning()?,
            engine.socket().display(),
            doors.display(),
        ))?;
        device.start_all()?;
        eventually("the device's identity", PATIENCE, || {
            Ok((calls::device_identity(&device)?.status == 200).then_some(()))
        })?;
        device.start(Daemon::Edge)?;
        let world = Self { device, registry, engine, folder };
        eventually("a signature of the module", PATIENCE, || Ok(world.sign(Duration::from_millis(100)).ok()))?;
        Ok(world)
    }

    /// Signs in the container for so long.
    fn sign(&self, length: Duration) -> Result<Figures> {
        let seconds = length.as_secs_f64().to_string();
        let command = [PROGRAM, "sign", "--connections", CONNECTIONS, "--seconds", &seconds];
        let ended = self.engine.execute(MODULE, &command)?;
        ensure!(ended.code == 0, "the load ended with {}: {}", ended.code, ended.output);
        serde_json::from_str(&ended.output).with_context(|| format!("no figures in {:?}", ended.output))
    }

    /// The same several times: the best, and the processor time that both services spend for one signature, in microseconds.
    fn best(&self, length: Duration) -> Result<(Figures, [f64; 2])> {
        let mut best: Option<(Figures, [f64; 2])> = None;
        for _ in 0..ROUNDS {
            let spent = || -> Result<[Duration; 2]> {
                let of = |daemon| processor_time(self.device.process(daemon)?);
                Ok([of(Daemon::Edge)?, of(Daemon::Keys)?])
            };
            let before = spent()?;
            let figures = self.sign(length)?;
            let after = spent()?;
            if best.is_none_or(|(best, _)| best.rate < figures.rate) {
                #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 signatures")]
                let each = |index: usize| {
                    after[index].saturating_sub(before[index]).as_secs_f64() * 1e6 / figures.signatures as f64
                };
                best = Some((figures, [each(0), each(1)]));
            }
        }
        best.context("nothing was measured")
    }

    /// Further modules, which do nothing.
    fn add_modules(&self) -> Result<()> {
        for number in 0..OTHERS {
            let (label, owner) = OWNER;
            let options = json!({ "Image": IMAGE, "Cmd": [PROGRAM, "wait"], "Labels": { label: owner } });
            self.engine.run(&format!("other-{number}"), &options)?;
        }
        Ok(())
    }

    /// Statistics of all modules, again and again.
    fn read_statistics(&self, stop: &AtomicBool) -> Result<u64> {
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) {
            let target = format!("/systeminfo/resources?{VERSION}");
            let _ = raw::call(&self.device.socket(Daemon::Edge), "GET", &target, None)?.expect(200)?;
            reads += 1;
        }
        Ok(reads)
    }

    /// Has a module's image pulled that comes late, as the agent.
    fn pull_slowly(&self, time: Duration) -> Result<()> {
        self.registry.behave(Manner::Late(time));
        let specification = json!({
            "name": "late", "type": "docker", "imagePullPolicy": "on-create",
            "config": { "settings": { "image": self.registry.image("late:1") }, "env": [] },
        });
        let door = self.folder.path().join("doors/management");
        let target = format!("/modules/late/prepareupdate?{VERSION}");
        let reply = raw::call(&door, "POST", &target, Some(&specification.to_string()))?;
        ensure!(reply.status == 204, "the image was not pulled: {reply:?}");
        Ok(())
    }
}

/// Signatures by one module on kept connections, alone, and while others keep the runtime busy.
pub(crate) fn signatures(aziotd: &Path, seconds: Duration) -> Result<Vec<Scenario>> {
    let (world, seconds) = (World::start(aziotd)?, seconds.min(LONGEST_ROUND));
    let (alone, [runtime, keys]) = world.best(seconds)?;
    let undisturbed = Scenario {
        name: "signatures of a module in a container, 8 connections",
        outcome: format!(
            "{:.0}/s, p50 {:.0} us, p99 {:.0} us; processor time of each: runtime {runtime:.1} us, key service {keys:.1} us",
            alone.rate, alone.p50_us, alone.p99_us
        ),
        target: "10,000/s",
        met: alone.rate >= WANTED,
    };

    world.add_modules()?;
    let stop = AtomicBool::new(false);
    let (disturbed, reads) = thread::scope(|scope| {
        let reading = scope.spawn(|| world.read_statistics(&stop));
        let pulling = scope.spawn(|| world.pull_slowly(seconds * ROUNDS + MARGIN));
        let begun = eventually("the pull", PATIENCE, || {
            Ok(world.registry.requests().iter().any(|request| request.contains("/blobs/")).then_some(()))
        });
        let disturbed = begun.and_then(|()| world.best(seconds));
        let was_pulling = !pulling.is_finished();
        stop.store(true, Ordering::Relaxed);
        let reads = reading.join().map_err(|_| anyhow!("the reading thread panicked"))??;
        world.registry.behave(Manner::Serve);
        pulling.join().map_err(|_| anyhow!("the pulling thread panicked"))??;
        ensure!(was_pulling, "the pull ended before the measurement");
        Ok::<_, anyhow::Error>((disturbed?.0, reads))
    })?;
    let factor = disturbed.p99_us / alone.p99_us;
    Ok(vec![
        undisturbed,
        Scenario {
            name: "the same while an image is pulled slowly and statistics of 20 modules are read",
            outcome: format!(
                "{:.0}/s, p50 {:.0} us, p99 {:.0} us: {factor:.1} times; statistics were read {reads} times",
                disturbed.rate, disturbed.p50_us, disturbed.p99_us
            ),
            target: "p99 under 2 times the undisturbed",
            met: factor < MOST,
        },
    ])
}
