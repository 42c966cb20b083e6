//! Load: signatures over kept connections, each connection with a thread of its own.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use aziot_test_module::{Environment, Workload};
use serde_json::json;

use super::output;

/// As long as what a module signs for its token.
const MESSAGE: &[u8] = b"localhost%3A8443%2Fdevices%2Fpump-7%2Fmodules%2Fsampler\n1900000000";

/// Signs for so long and prints how fast it went: signatures in a second, and microseconds of one.
pub(crate) fn run(environment: &Environment, connections: usize, length: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut times = thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(|| one(environment, length))).collect();
        let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        ends.collect::<Result<Vec<_>>>()
    })?
    .concat();
    let elapsed = begun.elapsed();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).map(Duration::as_micros);
    output::line(&json!({
        "connections": connections,
        "signatures": times.len(),
        "rate": rate(times.len(), elapsed),
        "p50_us": at(50),
        "p99_us": at(99),
    }))
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 signatures")]
fn rate(count: usize, elapsed: Duration) -> f64 {
    (count as f64 / elapsed.as_secs_f64()).round()
}

fn one(environment: &Environment, length: Duration) -> Result<Vec<Duration>> {
    let mut workload = Workload::connect(environment)?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < length {
        let sent = Instant::now();
        workload.sign(MESSAGE)?;
        times.push(sent.elapsed());
    }
    Ok(times)
}
