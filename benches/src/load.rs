//! The load generator: so many connections, each with one request under way at all times, for so long.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
};
use serde::Serialize;

use crate::{connection::Connection, latency::Latencies, operation::Requests};

/// What is done before the measurement, as a share of its length.
const WARM_UP: u32 = 8;

/// What becomes of a connection after its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Connections {
    /// It is used for all requests that follow.
    Kept,
    /// Every request has a connection of its own.
    New,
}

/// A load to be put on the service.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) connections: Connections,
    pub(crate) concurrency: usize,
    pub(crate) seconds: Duration,
}

/// What came of a load.
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    pub(crate) latencies: Latencies,
    /// Requests of the warm-up.
    uncounted: u64,
}

/// The figures of a line of the table.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl Outcome {
    /// How many were answered, those of the warm-up included.
    pub(crate) fn requests(&self) -> u64 {
        self.latencies.total() + self.uncounted
    }

    /// Microseconds of `total` that fall to one request, those of the warm-up included.
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
    pub(crate) fn share(&self, total: Duration) -> f64 {
        total.as_secs_f64() * 1e6 / self.requests() as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
    pub(crate) fn figures(&self) -> Figures {
        let microseconds = |share| self.latencies.quantile(share).as_secs_f64() * 1e6;
        Figures {
            requests: self.latencies.total(),
            requests_per_second: self.latencies.total() as f64 / self.elapsed.as_secs_f64(),
            p50_us: microseconds(0.5),
            p99_us: microseconds(0.99),
        }
    }
}

impl Load<'_> {
    /// Runs for the load's time, after a warm-up that is not counted.
    pub(crate) fn run(self, requests: &mut Requests) -> Result<Outcome> {
        let begun = Instant::now() + self.seconds / WARM_UP;
        let end = begun + self.seconds;
        let (mut latencies, mut uncounted) = (Latencies::default(), 0);
        let ended = self.drive(requests, |now, latency| {
            if now >= begun {
                latencies.record(latency);
            } else {
                uncounted += 1;
            }
            now < end
        })?;
        // One request may be longer than the warm-up.
        if latencies.total() == 0 {
            bail!("no request was answered in {:?}", self.seconds);
        }
        Ok(Outcome { elapsed: ended - begun, latencies, uncounted })
    }

    /// Sends exactly so many requests.
    pub(crate) fn count(self, requests: &mut Requests, count: u64) -> Result<()> {
        let mut answered = 0;
        self.drive(requests, |_, _| {
            answered += 1;
            answered < count
        })?;
        Ok(())
    }

    /// Goes on until `answered`, told the time of an answer and how long it took, says no. Returns when that was.
    pub(crate) fn drive(
        self,
        requests: &mut Requests,
        mut answered: impl FnMut(Instant, Duration) -> bool,
    ) -> Result<Instant> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("could not make an epoll")?;
        let mut connections = Vec::with_capacity(self.concurrency);
        for index in 0..self.concurrency {
            let mut connection = Connection::open(self.socket)?;
            epoll::add(&epoll, &connection, EventData::new_u64(index as u64), EventFlags::IN)?;
            connection.send(requests.next())?;
            connections.push(connection);
        }
        let mut events = Vec::with_capacity(self.concurrency);
        loop {
            epoll::wait(&epoll, spare_capacity(&mut events), None).context("could not wait for answers")?;
            for event in events.drain(..) {
                let index = event.data.u64();
                let connection = &mut connections[usize::try_from(index).unwrap_or(0)];
                let Some(answer) = connection.receive()? else { continue };
                if answer.status != requests.status() {
                    bail!("answered {}: {}", answer.status, String::from_utf8_lossy(answer.body));
                }
                let now = Instant::now();
                if !answered(now, now - connection.begun) {
                    return Ok(now);
                }
                match self.connections {
                    Connections::Kept => connection.begun = now,
                    Connections::New => {
                        // Closing takes it out of the epoll.
                        connection.reopen(self.socket)?;
                        epoll::add(&epoll, &*connection, EventData::new_u64(index), EventFlags::IN)?;
                    }
                }
                connection.send(requests.next())?;
            }
        }
    }
}
