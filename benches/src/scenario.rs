//! What a single line of the table does not show: callers who disturb one another, memory over a long run, a full key store.

use std::{
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use aziot_files::Mode;
use aziot_tests::eventually;

use crate::{
    latency::Latencies,
    load::{Connections, Load},
    operation::{self, Operation, rsa_4096_pairs},
    report::Scenario,
    service::Service,
};

/// How long a process may take to become idle.
const SETTLING: Duration = Duration::from_secs(60);
/// Longer than the runtime keeps an idle thread.
const KEPT_ALIVE: Duration = Duration::from_secs(11);
/// Processes of which the one in the middle is measured: where a program comes to lie in memory decides which pages a fault brings along,
/// and so over some hundred KiB.
const STARTS: usize = 5;

/// One client signs with HMAC, undisturbed and then while eight others generate RSA-4096 pairs.
pub(crate) fn key_generation(aziotd: &Path, seconds: Duration) -> Result<Scenario> {
    let service = Service::start(aziotd)?;
    let mut requests = Operation::HmacSha256.requests(service.socket())?;
    let alone = Load { socket: service.socket(), connections: Connections::Kept, concurrency: 1, seconds };
    let undisturbed = alone.run(&mut requests)?.figures();
    let (stop, started, generated) = (AtomicBool::new(false), Barrier::new(2), Latencies::default());
    let (disturbed, generated) = thread::scope(|scope| {
        let generators = scope.spawn(|| -> Result<Latencies> {
            let mut generated = generated;
            let load = Load { concurrency: 8, ..alone };
            started.wait();
            load.drive(&mut rsa_4096_pairs(), |_, latency| {
                generated.record(latency);
                !stop.load(Ordering::Relaxed)
            })?;
            Ok(generated)
        });
        started.wait();
        // Longer than the others: the rare disturbance is what this is about.
        let disturbed = Load { seconds: seconds * 4, ..alone }.run(&mut requests);
        stop.store(true, Ordering::Relaxed);
        let generated = generators.join().map_err(|_| anyhow!("the generating thread panicked"))?;
        Ok::<_, anyhow::Error>((disturbed?.figures(), generated?))
    })?;
    let factor = disturbed.p99_us / undisturbed.p99_us;
    Ok(Scenario {
        name: "HMAC while 8 clients generate RSA-4096 pairs",
        outcome: format!(
            "p99 {:.0} us, undisturbed {:.0} us: {factor:.1} times; {} pairs generated meanwhile",
            disturbed.p99_us,
            undisturbed.p99_us,
            generated.total()
        ),
        target: "p99 under 5 times the undisturbed",
        met: factor < 5.0,
    })
}

/// 10,000 keys made and 100,000 signatures: does an idle process hold more memory than at its start?
pub(crate) fn memory(aziotd: &Path) -> Result<Scenario> {
    let mut services = (0..STARTS).map(|_| Service::start(aziotd)).collect::<Result<Vec<_>>>()?;
    idle(&services)?;
    let at_starts = services.iter().map(Service::resident_kib).collect::<Result<Vec<_>>>()?;
    let mut order: Vec<usize> = (0..services.len()).collect();
    order.sort_by_key(|&index| at_starts[index]);
    let typical = order[order.len() / 2];
    let (lowest, at_start, highest) = (at_starts[order[0]], at_starts[typical], at_starts[order[order.len() - 1]]);
    let service = services.swap_remove(typical);
    drop(services);

    let anonymous_at_start = service.anonymous_kib()?;
    let load = Load {
        socket: service.socket(),
        connections: Connections::Kept,
        concurrency: 8,
        seconds: Duration::ZERO, // counted, not timed
    };
    // After the first calls too: a process that has served nothing has not touched what every server touches.
    load.count(&mut Operation::HmacSha256.requests(service.socket())?, 8)?;
    let first = service.resident_kib()?;
    load.count(&mut Operation::CreateKey.requests(service.socket())?, 10_000)?;
    for operation in [Operation::HmacSha256, Operation::EcdsaP256] {
        load.count(&mut operation.requests(service.socket())?, 50_000)?;
    }
    let loaded = service.resident_kib()?;
    idle(std::slice::from_ref(&service))?;
    let (resident, anonymous) = (service.resident_kib()?, service.anonymous_kib()?);
    #[expect(clippy::cast_precision_loss, reason = "printed as percent")]
    let growth = (resident as f64 / at_start as f64 - 1.0) * 100.0;
    Ok(Scenario {
        name: "10,000 keys made, 100,000 signatures",
        outcome: format!(
            "resident {at_start} KiB idle at the start ({lowest} to {highest} of {STARTS} processes), {first} KiB after the first calls, \
             {loaded} KiB after all, {resident} KiB idle: {growth:+.1}%; of it anonymous {anonymous_at_start} KiB at the start, \
             {anonymous} KiB idle"
        ),
        target: "idle within 20% of the start",
        met: growth < 20.0,
    })
}

/// Waits until the processes have only the threads that they keep.
fn idle(services: &[Service]) -> Result<()> {
    let count = || services.iter().map(Service::threads).sum::<Result<usize>>();
    let (mut threads, mut since) = (count()?, Instant::now());
    eventually("idleness", SETTLING, || {
        let now = count()?;
        if now != threads {
            (threads, since) = (now, Instant::now());
        }
        Ok((since.elapsed() > KEPT_ALIVE).then_some(()))
    })
}

/// Start-up and the look-up of a key, with 10 keys in the store and with 10,000.
pub(crate) fn many_keys(aziotd: &Path) -> Result<Vec<Scenario>> {
    let few = start_and_look_up(aziotd, 10)?;
    let many = start_and_look_up(aziotd, 10_000)?;
    let scenario = |name, few: Duration, many: Duration| Scenario {
        name,
        outcome: format!(
            "{:.2} ms with 10 keys, {:.2} ms with 10,000",
            few.as_secs_f64() * 1e3,
            many.as_secs_f64() * 1e3
        ),
        target: "the same",
        // Far below what reading 10,000 files or a list of them would cost.
        met: many < few * 2 + Duration::from_millis(10),
    };
    Ok(vec![
        scenario("start-up", few.start, many.start),
        scenario("first look-up of a key", few.first, many.first),
        scenario("look-up again", few.again, many.again),
    ])
}

struct Costs {
    start: Duration,
    first: Duration,
    again: Duration,
}

fn start_and_look_up(aziotd: &Path, keys: u64) -> Result<Costs> {
    let service = Service::start(aziotd)?;
    let load =
        Load { socket: service.socket(), connections: Connections::Kept, concurrency: 8, seconds: Duration::ZERO };
    load.count(&mut Operation::HmacSha256.requests(service.socket())?, 1)?;
    fill(&service, keys)?;
    let folder = service.stop()?;
    // The best of several: other processes of this machine are not what is measured.
    let mut folder = Some(folder);
    let mut best: Option<Costs> = None;
    for _ in 0..5 {
        let service = Service::start_in(aziotd, folder.take().context("no folder")?)?;
        let time = || -> Result<Duration> {
            let begun = Instant::now();
            operation::load(service.socket(), "bench-hmac")?;
            Ok(begun.elapsed())
        };
        let costs = Costs { start: service.started_in, first: time()?, again: time()? };
        best = Some(match best {
            None => costs,
            Some(best) => Costs {
                start: best.start.min(costs.start),
                first: best.first.min(costs.first),
                again: best.again.min(costs.again),
            },
        });
        folder = Some(service.stop()?);
    }
    best.context("nothing was measured")
}

/// Key files of other ids, as many as are said.
fn fill(service: &Service, keys: u64) -> Result<()> {
    let folder = service.home().join("keys");
    for number in 0..keys {
        // The names differ from real ones in their hash, which nobody computes for a key that nobody asks for.
        let path = folder.join(format!("filler{number}-{number:064x}.key"));
        aziot_files::write(path, Mode::PRIVATE, [1; 32])?;
    }
    Ok(())
}
