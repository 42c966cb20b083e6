//! Fifty modules: started, listed, used, stopped and removed, with the time and memory that this takes.
//!
//! The times are printed and judge nobody: how fast containers start is the engine's affair.

use std::time::{Duration, Instant};

use anyhow::Result;
use aziot_tests::{Daemon, Edge, at_once, docker::Kind, edge::Plan};

const MODULES: usize = 50;
/// So many calls at a time, as edgeAgent makes at most.
const AT_ONCE: usize = 5;
/// What the runtime may take of the machine's memory, in KiB. Unoptimized code alone takes some of it.
const MOST_MEMORY: u64 = if cfg!(debug_assertions) { 32 << 10 } else { 20 << 10 };
/// What it may take more of it for these modules.
const MOST_GROWTH: u64 = 5 << 10;

fn name(number: usize) -> String {
    format!("module-{number:02}")
}

/// Works on all modules, some at a time, and tells how long that took.
fn all(work: impl Fn(usize) -> Result<()> + Sync) -> Result<Duration> {
    let begun = Instant::now();
    at_once(0..AT_ONCE, |first| (first..MODULES).step_by(AT_ONCE).try_for_each(&work))?;
    Ok(begun.elapsed())
}

fn memory(edge: &Edge) -> Result<(u64, Option<u64>)> {
    edge.process(Daemon::Edge)?.memory()
}

#[test]
fn fifty_modules_are_no_burden() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let edge = Plan::of(Kind::Docker).cloud_argument("--max-modules=100").start()?;
    let agent = edge.agent()?;
    let alone = memory(&edge)?;
    let create = all(|number| agent.create(&edge.module(&name(number), &["wait"])?))?;
    let start = all(|number| agent.start(&name(number)))?;
    let begun = Instant::now();
    let listed = agent.modules()?;
    let list = begun.elapsed();
    assert_eq!(listed.values().filter(|status| *status == "running").count(), MODULES + 1, "{listed:?}");
    let sign = all(|number| {
        edge.wait_for_door(&name(number), "workload")?;
        edge.workload(&name(number))?.sign(b"data").map(|_| ())
    })?;
    let begun = Instant::now();
    let _ = agent.call("GET", "/systeminfo/resources", None)?.expect(&[200])?;
    let statistics = begun.elapsed();
    let with_all = memory(&edge)?;
    let stop = all(|number| {
        let _ = agent.call("POST", &format!("/modules/{}/stop", name(number)), None)?.expect(&[204])?;
        Ok(())
    })?;
    let remove = all(|number| agent.remove(&name(number)))?;
    assert_eq!(agent.modules()?.len(), 1);
    let after = memory(&edge)?;
    println!(
        "{MODULES} modules: create {create:.2?}, start {start:.2?}, list {list:.2?}, first signatures {sign:.2?}, statistics {statistics:.2?}, \
         stop {stop:.2?}, remove {remove:.2?}; resident KiB (and proportional): alone {alone:?}, with all {with_all:?}, after {after:?}"
    );
    for (resident, _) in [alone, with_all, after] {
        assert!(resident < MOST_MEMORY, "{resident} KiB");
        assert!(resident < alone.0 + MOST_GROWTH, "from {} to {resident} KiB", alone.0);
    }
    Ok(())
}
