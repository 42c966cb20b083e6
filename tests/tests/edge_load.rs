//! Signatures under load from inside a container: alone, and while another module's image comes slowly and the statistics of twenty containers are read.
//!
//! The figures are printed, and judged only where the programs are optimized (`AZIOT_TEST_PROGRAMS` names their folder).

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_test_module::Wanted;
use aziot_tests::{
    Edge, at_once,
    docker::{Kind, image, registry::Manner},
};
use serde_json::Value;

const SIGNER: &str = "signer";
const OTHERS: usize = 20;
const CONNECTIONS: &str = "8";
const SECONDS: &str = "3";
/// Signatures in a second, on two processors.
const LEAST_RATE: f64 = 10_000.0;

fn load(edge: &Edge) -> Result<Value> {
    let words = [image::PROGRAM, "sign", "--connections", CONNECTIONS, "--seconds", SECONDS];
    let exit = edge.engine.execute(SIGNER, &words)?;
    ensure!(exit.code == 0, "{exit:?}");
    serde_json::from_str(exit.output.trim()).context("no figures")
}

fn number(figures: &Value, name: &str) -> Result<f64> {
    figures[name].as_f64().with_context(|| format!("no {name} in {figures}"))
}

#[test]
fn signatures_are_made_as_fast_while_others_pull_and_are_measured() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let edge = Edge::start(Kind::Docker)?;
    let registry = edge.registry()?;
    let agent = edge.agent()?;
    edge.run_waiting(SIGNER)?;
    at_once(0..4, |first| {
        (first..OTHERS).step_by(4).try_for_each(|number| edge.run(&edge.module(&format!("other-{number}"), &["wait"])?))
    })?;
    let alone = load(&edge)?;

    registry.behave(Manner::Late(Duration::from_secs(5)));
    let slow = Wanted { image: registry.image("slow:1"), pull: "on-create".to_owned(), ..Wanted::new("slow", "") };
    let slow = agent.specification(&slow, &agent.identity("slow")?)?;
    let (is_over, read) = (AtomicBool::new(false), AtomicUsize::new(0));
    let busy = thread::scope(|scope| {
        let pull = scope.spawn(|| agent.call("POST", "/modules", Some(&slow)));
        let statistics = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::SeqCst) {
                let _ = agent.call("GET", "/systeminfo/resources", None)?.expect(&[200])?;
                read.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let busy = load(&edge);
        is_over.store(true, Ordering::SeqCst);
        statistics.join().ok().context("the reader panicked")??;
        let _ = pull.join().ok().context("the puller panicked")??.expect(&[201])?;
        busy
    })?;
    println!("alone {alone}\nwhile a pull and {} rounds of statistics go on {busy}", read.load(Ordering::SeqCst));
    assert!(read.load(Ordering::SeqCst) > 0);
    for figures in [&alone, &busy] {
        assert!(number(figures, "signatures")? > 0.0, "{figures}");
    }
    if std::env::var_os("AZIOT_TEST_PROGRAMS").is_some_and(|folder| folder.to_string_lossy().contains("release")) {
        assert!(number(&alone, "rate")? >= LEAST_RATE, "{alone}");
        assert!(number(&busy, "p99_us")? < 2.0 * number(&alone, "p99_us")?, "{alone} {busy}");
    }
    Ok(())
}
