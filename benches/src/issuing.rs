//! The certificate service: how fast the local CA issues through both sockets, and whether a hung EST server holds up anybody else.
//!
//! Each certificate is a signature of the key service and a file on the disk; beside the figure stands what the disk alone can do.

use std::{
    fmt::Write as _,
    net::TcpListener,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use aziot_files::Mode;
use aziot_tests::openssl;
use serde_json::json;

use crate::{
    connection::Connection,
    load::{Connections, Load},
    operation::Requests,
    report::Scenario,
    service::{CertificateService, Service},
};

const VERSION: &str = "api-version=2020-09-01";
const CLIENTS: usize = 8;
/// More certificates than clients, so that no two clients want the same one at a time.
const CERTIFICATES: usize = 64;
/// What a second of issuing must bring.
const WANTED: f64 = 1000.0;

/// A certificate service with a local CA, and certificates that it issues.
struct World {
    // Dropped first: it has its folder there.
    service: CertificateService,
    keys: Service,
    /// Of nobody in particular; its key is thrown away.
    request: String,
}

impl World {
    /// `est` is the URL of an EST server that issues the certificate `enrolled`.
    fn start(aziotd: &Path, est: &str) -> Result<Self> {
        let keys = Service::start(aziotd)?;
        let (key, certificate) = (keys.folder().join("ca.key.pem"), keys.folder().join("ca.pem"));
        openssl::make_ca(&key, &certificate, "bench CA")?;
        let keys = keys.reconfigured(aziotd, &format!("[preloaded_keys]\nca = \"file://{}\"\n", key.display()))?;
        let mut more = format!(
            "[preloaded_certs]\nca = \"file://{}\"\n\n[cert_issuance.local_ca]\ncert = \"ca\"\npk = \"ca\"\n\n\
             [cert_issuance.est]\nusername = \"u\"\npassword = \"p\"\nurls = {{ default = \"{est}\" }}\n\n[cert_issuance]\n",
            certificate.display()
        );
        for number in 0..CERTIFICATES {
            writeln!(more, "bench-{number} = {{ method = \"local_ca\" }}\nenrolled-{number} = {{ method = \"est\" }}")?;
        }
        let service = CertificateService::start(aziotd, &keys, &more)?;
        let request = openssl::make_request(&keys.folder().join("leaf.key.pem"), "leaf.example")?;
        Ok(Self { service, keys, request })
    }

    /// Requests for the certificates `name-0` and so on.
    fn requests(&self, name: &str) -> Requests {
        let request = |number| post(&json!({ "certId": format!("{name}-{number}"), "csr": self.request }));
        Requests::InTurn { requests: (0..CERTIFICATES).map(request).collect(), next: 0, status: 201 }
    }

    fn load(&self, concurrency: usize, seconds: Duration) -> Load<'_> {
        Load { socket: self.service.socket(), connections: Connections::Kept, concurrency, seconds }
    }
}

/// How fast 8 clients have certificates issued by the local CA.
pub(crate) fn issuing(aziotd: &Path, seconds: Duration) -> Result<Scenario> {
    let world = World::start(aziotd, "http://127.0.0.1:9/")?;
    let (worked_before, keys_before) = (world.service.processor_time()?, world.keys.processor_time()?);
    let outcome = world.load(CLIENTS, seconds).run(&mut world.requests("bench"))?;
    let worked = outcome.share(world.service.processor_time()?.saturating_sub(worked_before));
    let keys_worked = outcome.share(world.keys.processor_time()?.saturating_sub(keys_before));
    let figures = outcome.figures();
    let files = files(world.keys.folder(), seconds)?;
    Ok(Scenario {
        name: "certificates of the local CA, 8 clients",
        outcome: format!(
            "{:.0}/s, p50 {:.0} us, p99 {:.0} us; processor time of each: certd {worked:.0} us, keyd {keys_worked:.0} us; \
             the disk alone takes {files:.0} such files a second from 8 threads",
            figures.requests_per_second, figures.p50_us, figures.p99_us
        ),
        target: "1,000/s",
        met: figures.requests_per_second >= WANTED,
    })
}

/// Rounds with and without hung enrolments, in turn; the best one of each counts, as in the table.
const ROUNDS: usize = 7;

/// What 8 enrolments that a hung EST server holds do to somebody who reads and somebody who has certificates issued.
pub(crate) fn hung_server(aziotd: &Path, seconds: Duration) -> Result<Vec<Scenario>> {
    let server = TcpListener::bind("127.0.0.1:0").context("could not listen")?;
    let world = World::start(aziotd, &format!("http://{}/", server.local_addr()?))?;
    world.load(1, Duration::ZERO).count(&mut world.requests("bench"), CERTIFICATES as u64)?;
    let read = || {
        let request = format!("GET /certificates/bench-0?{VERSION} HTTP/1.1\r\nhost: certd.sock\r\n\r\n").into_bytes();
        Requests::Fixed { request, status: 200 }
    };
    let (mut reading, mut issuing) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        // As many as keep the processors awake: waking them is what takes longest, and most differently, of a lone request.
        let load = world.load(CLIENTS, seconds);
        reading.calm.push(load.run(&mut read())?.figures().p99_us);
        issuing.calm.push(load.run(&mut world.requests("bench"))?.figures().p99_us);
        // Answered by nobody, and given up when the round ends.
        let mut enrolments = world.requests("enrolled");
        let mut hung = Vec::new();
        for _ in 0..CLIENTS {
            let mut connection = Connection::open(world.service.socket())?;
            connection.send(enrolments.next())?;
            hung.push((connection, server.accept().context("no enrolment reached the server")?));
        }
        reading.disturbed.push(load.run(&mut read())?.figures().p99_us);
        issuing.disturbed.push(load.run(&mut world.requests("bench"))?.figures().p99_us);
    }
    Ok(vec![
        reading.scenario("reading a certificate while a hung EST server holds 8 enrolments"),
        issuing.scenario("issuing by the local CA while a hung EST server holds 8 enrolments"),
    ])
}

/// p99 in microseconds, round by round.
#[derive(Default)]
struct Pair {
    calm: Vec<f64>,
    disturbed: Vec<f64>,
}

impl Pair {
    fn scenario(self, name: &'static str) -> Scenario {
        let best = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        let (calm, disturbed) = (best(&self.calm), best(&self.disturbed));
        let change = (disturbed / calm - 1.0) * 100.0;
        Scenario {
            name,
            outcome: format!("p99 {disturbed:.0} us, otherwise {calm:.0} us: {change:+.1}%"),
            target: "p99 less than a tenth longer",
            met: change < 10.0,
        }
    }
}

fn post(body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /certificates?{VERSION} HTTP/1.1\r\nhost: certd.sock\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Files of a certificate's size that are written a second, each as the service writes it.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 files")]
fn files(folder: &Path, seconds: Duration) -> Result<f64> {
    let folder = tempfile::tempdir_in(folder).context("could not make a folder")?;
    let (ready, written) = (Barrier::new(CLIENTS), AtomicU64::new(0));
    let begun = Instant::now();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..CLIENTS)
            .map(|writer| {
                let (ready, written, folder) = (&ready, &written, folder.path());
                scope.spawn(move || -> Result<()> {
                    ready.wait();
                    for number in (0..CERTIFICATES / CLIENTS).cycle() {
                        aziot_files::write(folder.join(format!("{writer}-{number}")), Mode::SHARED, [b'x'; 1500])?;
                        written.fetch_add(1, Ordering::Relaxed);
                        if begun.elapsed() > seconds {
                            break;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writing thread panicked"))?)
    })?;
    Ok(written.into_inner() as f64 / begun.elapsed().as_secs_f64())
}
