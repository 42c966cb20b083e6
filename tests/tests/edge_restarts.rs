//! Engine, runtime and modules ended in every order: the modules that should run do so again, with the identities that they had.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aziot_test_module::Workload;
use aziot_tests::{
    Daemon, Edge, at_once,
    docker::{Kind, Settings},
    edge::Plan,
    eventually,
};

const MODULES: [&str; 3] = ["first", "second", "third"];
const LIMIT: Duration = Duration::from_secs(150);

/// Who is ended, one after the other and without a word; then all come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Engine,
    Runtime,
    Modules,
}

use Victim::{Engine, Modules, Runtime};

const ORDERS: [[Victim; 3]; 6] = [
    [Engine, Runtime, Modules],
    [Engine, Modules, Runtime],
    [Runtime, Engine, Modules],
    [Runtime, Modules, Engine],
    [Modules, Engine, Runtime],
    [Modules, Runtime, Engine],
];

fn device(settings: Settings) -> Result<Edge> {
    let edge = Plan::of(settings.kind).engine(settings).start()?;
    let wanted = MODULES.map(|name| edge.module(name, &["wait"]));
    edge.desire(&wanted.into_iter().collect::<Result<Vec<_>>>()?)?;
    edge.wait_for_modules(&MODULES)?;
    Ok(edge)
}

/// What each module signs, and so its key.
fn signatures(edge: &Edge) -> Result<Vec<Vec<u8>>> {
    MODULES.iter().map(|name| edge.eventually_signs(name)).collect()
}

fn end(edge: &mut Edge, victim: Victim, pids: &[i32]) -> Result<()> {
    match victim {
        Engine => edge.engine.kill(),
        Runtime => edge.kill(Daemon::Edge),
        // By their pids, since nobody may be there to ask.
        Modules => {
            for pid in pids {
                let pid = rustix::process::Pid::from_raw(*pid).context("no pid")?;
                // The engine's end may have been theirs.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            // Docker 20.10 that is killed before it has heard of a container's end never starts it again ("task ...: already exists").
            if edge.engine.runs() { edge.wait_for_end_of(&MODULES) } else { Ok(()) }
        }
    }
}

/// "Kill dockerd, edged and modules in every order: the set of running modules and their identities comes back without a hand."
fn everything_comes_back(settings: &Settings) -> Result<()> {
    if !settings.kind.is_under_test()? {
        return Ok(());
    }
    let mut edge = device(settings.clone())?;
    let before = signatures(&edge)?;
    for order in ORDERS {
        let pids: Vec<i32> =
            MODULES.iter().chain(&["edgeAgent"]).map(|name| edge.engine.pid(name)).collect::<Result<_>>()?;
        for victim in order {
            end(&mut edge, victim, &pids)?;
        }
        // As the service manager brings them back: the runtime wants the engine first.
        edge.engine.start_again()?;
        edge.start_runtime().with_context(|| format!("{settings:?} {order:?}"))?;
        edge.wait_for_modules(&MODULES).with_context(|| format!("{settings:?} {order:?}"))?;
        assert_eq!(signatures(&edge)?, before, "{settings:?} {order:?}: other keys");
    }
    Ok(())
}

#[test]
fn everything_comes_back_on_docker() -> Result<()> {
    everything_comes_back(&Settings::of(Kind::Docker))
}

#[test]
fn everything_comes_back_on_docker_with_live_restore() -> Result<()> {
    everything_comes_back(&Settings { live_restore: true, ..Settings::of(Kind::Docker) })
}

#[test]
fn everything_comes_back_on_podman() -> Result<()> {
    everything_comes_back(&Settings::of(Kind::Podman))
}

/// The engine alone goes and comes back under the runtime: nobody starts the runtime anew.
#[test]
fn an_engine_that_restarts_is_found_again() -> Result<()> {
    let cases = [(Kind::Docker, false), (Kind::Docker, true), (Kind::Podman, true)];
    let kinds = Kind::under_test()?;
    at_once(cases.into_iter().filter(|(kind, _)| kinds.contains(kind)), |(kind, live_restore)| {
        let mut edge = device(Settings { live_restore, ..Settings::of(kind) })?;
        let before = signatures(&edge)?;
        let mut known = edge.workload("first")?;
        known.sign(b"data")?;
        edge.engine.kill()?;
        // Its container runs on, and is known.
        known.sign(b"data").with_context(|| format!("{kind:?} live restore {live_restore}: without the engine"))?;
        let reply = edge.manage("GET", "/modules", None)?;
        assert_eq!(reply.status, 500, "{kind:?}: {reply:?}");
        edge.engine.start_again()?;
        // The watchdog looks once a minute.
        eventually("the modules", 2 * LIMIT, || {
            let running = edge.engine.running().unwrap_or_default();
            Ok((running.len() == MODULES.len() + 1).then_some(()))
        })
        .with_context(|| format!("{kind:?} live restore {live_restore}"))?;
        assert_eq!(signatures(&edge)?, before, "{kind:?}: other keys");
        Ok(())
    })
    .map(|_| ())
}

/// "dockerd … hung": callers who need it are told in time, and those whose module is known do not notice.
#[test]
fn a_hung_engine_does_not_hang_signatures() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let edge = device(Settings::of(Kind::Docker))?;
    let (mut workload, environment) = (edge.workload("first")?, edge.environment("first")?);
    workload.sign(b"data")?;
    edge.engine.hang()?;
    let begun = Instant::now();
    for _ in 0..10 {
        workload.sign(b"data")?;
    }
    // The same process by another connection.
    Workload::connect_to(&edge.door("first", "workload"), &environment)?.sign(b"data")?;
    // One question to the engine alone would take its whole limit, and be refused.
    assert!(begun.elapsed() < LIMIT, "{:?} for signatures", begun.elapsed());
    edge.engine.go_on()?;
    edge.agent()?.modules()?;
    Ok(())
}

/// A module that a signal ends is started again by the agent, and the agent by the runtime.
#[test]
fn a_dead_module_and_a_dead_agent_are_started_again() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = device(Settings::of(kind))?;
        let before = signatures(&edge)?;
        let pid = edge.engine.pid("second")?;
        edge.engine.kill_container("second")?;
        eventually("a new process", LIMIT, || Ok(edge.engine.pid("second").ok().filter(|new| *new != pid)))?;
        edge.engine.kill_container("edgeAgent")?;
        edge.engine.kill_container("third")?;
        // The watchdog looks once a minute.
        eventually("all of them", 2 * LIMIT, || Ok((edge.engine.running()?.len() == MODULES.len() + 1).then_some(())))
            .with_context(|| format!("{kind:?}"))?;
        assert_eq!(signatures(&edge)?, before, "{kind:?}: other keys");
        Ok(())
    })
    .map(|_| ())
}

/// `edged-runtime.md`, 14 and 1.1: an orderly stop takes the modules along and ends with 0; the next start brings them back.
#[test]
fn an_orderly_stop_ends_the_modules_and_a_start_brings_them_back() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let mut edge = device(Settings::of(kind))?;
        let before = signatures(&edge)?;
        assert_eq!(edge.stop_runtime()?.code(), Some(0), "{kind:?}");
        assert!(edge.engine.running()?.is_empty(), "{kind:?}: {:?}", edge.engine.running()?);
        edge.start_runtime()?;
        edge.wait_for_modules(&MODULES)?;
        assert_eq!(signatures(&edge)?, before, "{kind:?}: other keys");
        Ok(())
    })
    .map(|_| ())
}

/// "The upgrade path: a home directory as the public system leaves it (cache, image-use file) is continued, not wiped."
#[test]
fn the_home_of_the_public_runtime_is_gone_on_with() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let mut edge = device(Settings::of(Kind::Docker))?;
    let before = signatures(&edge)?;
    let container = edge.engine.inspect("first")?.context("no container")?["Id"].clone();
    edge.stop_runtime()?;
    let home = edge.path("var/lib/aziot/edged");
    let digest = fs::read_to_string(home.join("cache/provisioning_state"))?;
    assert!(digest.len() == 44 && !digest.ends_with('\n'), "{digest:?}");

    // As the public runtime leaves it: a socket and its folder of each module, images with their times, one of them long gone.
    let gone = format!("sha256:{}", "a".repeat(64));
    let used = format!("{gone} 1714550000\n");
    aziot_tests::device::write_private(&home.join("gc/image_use"), &used)?;
    fs::create_dir_all(home.join("mnt/old.sock"))?;
    edge.start_runtime()?;
    edge.wait_for_modules(&MODULES)?;
    assert_eq!(edge.engine.inspect("first")?.context("no container")?["Id"], container, "made anew");
    assert_eq!(signatures(&edge)?, before);
    assert_eq!(fs::read_to_string(home.join("cache/provisioning_state"))?, digest);
    let kept = fs::read_to_string(home.join("gc/image_use"))?;
    assert!(kept.contains(&gone), "{kept}");

    // Another device: its modules go, and the new digest is written.
    edge.stop_runtime()?;
    let other = "phx0HVLManTVnb++sfDzlbMcT+E9ZwBSlHard/gkzdk=";
    aziot_tests::device::write_private(&home.join("cache/provisioning_state"), other)?;
    edge.start_runtime()?;
    edge.wait_for_modules(&MODULES)?;
    assert_ne!(edge.engine.inspect("first")?.context("no container")?["Id"], container, "of another device");
    assert_eq!(fs::read_to_string(home.join("cache/provisioning_state"))?, digest);
    Ok(())
}
