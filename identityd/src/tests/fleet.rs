//! A fleet whose devices start in the same moment, as after a power cut, and find no cloud: they come back spread over time, and all get their hub.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use aziot_config::load_str;
use aziot_identityd_api::config::Config;
use aziot_identityd_cloud::{Exchange, exchange::Exchanges, exchange::Exchanging};
use aziot_pki::tls::ClientIdentity;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::world::{Cable, World, eventually};
use crate::{assemble, open_state, services, settings::Settings};

const DEVICES: usize = 1000;
/// Open files at most: both ends of each device's connections to DPS and to its hub, and some for all the rest.
const OPEN_FILES: u64 = 4 * DEVICES as u64 + 1000;
/// The whole fleet has its hub after so long, on a machine that does all of its cryptography.
const PATIENCE: Duration = Duration::from_secs(240);
/// Of the fleet, so many come back in one second at most. A pause of a few seconds with a fifth of it as jitter brings half of them or more.
const FAIR_SHARE: usize = DEVICES / 4;

/// When each device has sent its first requests to register, and when the first one had failed.
#[derive(Default)]
struct Seen(Mutex<HashMap<String, Times>>);

#[derive(Clone, Copy, Default)]
struct Times {
    failed: Option<Instant>,
    retried: Option<Instant>,
}

impl Seen {
    fn of<T>(&self, device: &str, look: impl FnOnce(&mut Times) -> T) -> T {
        look(self.0.lock().unwrap().entry(device.to_owned()).or_default())
    }

    fn failed(&self) -> usize {
        self.0.lock().unwrap().values().filter(|times| times.failed.is_some()).count()
    }
}

/// The network of one device, watched.
struct Watched {
    device: String,
    way: Arc<dyn Exchange>,
    seen: Arc<Seen>,
}

impl Exchange for Watched {
    fn exchange(&self, request: ::http::Request<hyper::body::Bytes>) -> Exchanging<'_> {
        if !request.uri().path().ends_with("/register") {
            return self.way.exchange(request);
        }
        Box::pin(async move {
            self.seen.of(&self.device, |times| {
                if times.failed.is_some() && times.retried.is_none() {
                    times.retried = Some(Instant::now());
                }
            });
            let answer = self.way.exchange(request).await;
            if answer.is_err() {
                self.seen.of(&self.device, |times| times.failed = times.failed.or_else(|| Some(Instant::now())));
            }
            answer
        })
    }
}

struct Ways {
    device: String,
    cable: Cable,
    seen: Arc<Seen>,
}

impl Exchanges for Ways {
    fn exchange(&self, identity: Option<Arc<ClientIdentity>>) -> Arc<dyn Exchange> {
        let (device, seen) = (self.device.clone(), Arc::clone(&self.seen));
        Arc::new(Watched { device, way: self.cable.exchange(identity), seen })
    }
}

/// Runs the service of one device until it has its hub.
async fn come_up(device: String, config: String, ways: Ways, keyd: aziot_http::Client) {
    let settings = Settings::new(load_str::<Config>("config.toml", &config).unwrap().value).unwrap();
    let mut services = services(&settings.config.endpoints, 0, Arc::new(ways)).unwrap();
    services.keyd = keyd;
    let state = open_state(&settings.config.homedir).await.unwrap();
    let (identities, schedule) = assemble(settings.share(), services, state);
    let mut situation = identities.situation.clone();
    tokio::select! {
        () = schedule.run() => unreachable!("nobody ends it"),
        known = situation.wait_for(|situation| situation.device.is_some()) => {
            assert_eq!(known.unwrap().device.as_ref().unwrap().info.device_id, device);
        }
    }
}

/// Connections of a thousand devices and both their ends take more descriptors than a process usually may have.
fn allow_many_files() {
    let limits = getrlimit(Resource::Nofile);
    let Rlimit { current, maximum } = limits;
    assert!(
        maximum.is_none_or(|maximum| maximum >= OPEN_FILES),
        "this test opens up to {OPEN_FILES} files, and {maximum:?} are allowed: raise the hard limit (`ulimit -Hn`)"
    );
    if current.is_some_and(|current| current < OPEN_FILES) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(OPEN_FILES), ..limits }).unwrap();
    }
}

/// How many of the times lie in each second.
fn by_second(times: impl IntoIterator<Item = Duration>) -> Vec<usize> {
    let mut bins = Vec::new();
    for time in times {
        let second = usize::try_from(time.as_secs()).unwrap();
        bins.resize(bins.len().max(second + 1), 0);
        bins[second] += 1;
    }
    bins
}

fn print(what: &str, bins: &[usize]) {
    println!("{what}:");
    for (second, count) in bins.iter().enumerate() {
        println!("{second:>4} s {count:>5} {}", "#".repeat(count / 5));
    }
}

#[tokio::test]
async fn a_thousand_devices_do_not_come_back_in_step() {
    allow_many_files();
    let name = |number: usize| format!("fleet-{number:04}");
    let key = super::world::DEVICE_KEY;
    let world = World::with_cloud(|cloud| {
        for number in 0..DEVICES {
            cloud.enrollments.add_argument(&format!("{}:{key}", name(number))).unwrap();
        }
    })
    .await;
    world.control("PUT", "/fault", r#"{"kind":"refuse"}"#).await;
    let keyd = aziot_keyd_api::client(&world.keyd(), aziot_http::Retry::local(0)).unwrap();
    let (seen, mut fleet, begun) = (Arc::new(Seen::default()), JoinSet::new(), Instant::now());
    for device in (0..DEVICES).map(name) {
        let config = world.dps(&device, "").replace("cloud_retries = 0\n", "");
        let config = config.replace("/identityd'", &format!("/fleet/{device}'"));
        let cable = Cable(Arc::clone(&world.network));
        let ways = Ways { device: device.clone(), cable, seen: Arc::clone(&seen) };
        fleet.spawn(come_up(device, config, ways, keyd.clone()));
    }
    eventually("all have been turned away", async || seen.failed() == DEVICES).await;
    world.control("PUT", "/fault", r#"{"kind":"none"}"#).await;
    let mut provisioned = 0;
    while let Some(device) = timeout(PATIENCE, fleet.join_next()).await.expect("the fleet gets its hub") {
        device.unwrap();
        provisioned += 1;
    }
    println!("{provisioned} devices have their hub after {:.1} s", begun.elapsed().as_secs_f64());

    let times: Vec<_> = seen.0.lock().unwrap().values().copied().collect();
    let first = times.iter().filter_map(|times| times.failed).min().unwrap();
    let arrivals = by_second(times.iter().map(|times| times.retried.unwrap() - first));
    let pauses = by_second(times.iter().map(|times| times.retried.unwrap() - times.failed.unwrap()));
    print("first retries, by second since the first device was turned away", &arrivals);
    print("first retries, by second since each device was turned away itself", &pauses);
    for bins in [arrivals, pauses] {
        assert!(bins.iter().all(|count| *count <= FAIR_SHARE), "{bins:?}");
    }
}
