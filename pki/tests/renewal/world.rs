//! A wall clock over tokio's paused time, and a credential in memory that records what is asked of it.

use std::{
    collections::VecDeque,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aziot_certd_api::renewal::AutoRenew;
use aziot_pki::{
    certificate::Chain,
    renewal::{Clock, Credential, Doing, Engine, Failure, Renewed},
};
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    x509::{X509, X509NameBuilder},
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout},
};

/// 2026-01-01T00:00:00Z.
pub(crate) const NEW_YEAR: i64 = 1_767_225_600;
pub(crate) const DAY: i64 = 86_400;
/// Longer, in paused time, than whatever a test waits for.
const PATIENCE: Duration = Duration::from_secs(400 * 86_400);

pub(crate) fn policy(threshold: &str, retry: &str) -> AutoRenew {
    AutoRenew { rotate_key: true, threshold: threshold.parse().unwrap(), retry: retry.parse().unwrap() }
}

/// A wall clock that goes with tokio's time unless it is set.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<ClockState>);

struct ClockState {
    anchor: Mutex<(SystemTime, Instant)>,
    set: Notify,
    tells: bool,
    jitter: Mutex<f64>,
}

impl TestClock {
    pub(crate) fn at(seconds: i64) -> Self {
        Self::new(seconds, true)
    }

    /// A clock of a system that does not tell when it is set.
    pub(crate) fn silent(seconds: i64) -> Self {
        Self::new(seconds, false)
    }

    fn new(seconds: i64, tells: bool) -> Self {
        let anchor = Mutex::new((system_time(seconds), Instant::now()));
        Self(Arc::new(ClockState { anchor, set: Notify::new(), tells, jitter: Mutex::new(0.0) }))
    }

    pub(crate) fn with_jitter(self, jitter: f64) -> Self {
        *self.0.jitter.lock().unwrap() = jitter;
        self
    }

    pub(crate) fn set(&self, seconds: i64) {
        *self.0.anchor.lock().unwrap() = (system_time(seconds), Instant::now());
        self.0.set.notify_one();
    }

    /// Whole seconds since 1970.
    pub(crate) fn seconds(&self) -> i64 {
        self.now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
    }
}

fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap())
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        let (wall, then) = *self.0.anchor.lock().unwrap();
        wall + then.elapsed()
    }

    fn wait_until_set(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        if self.0.tells { Box::pin(self.0.set.notified()) } else { Box::pin(pending()) }
    }

    fn jitter(&self) -> f64 {
        *self.0.jitter.lock().unwrap()
    }
}

fn key() -> &'static PKey<Private> {
    static KEY: OnceLock<PKey<Private>> = OnceLock::new();
    KEY.get_or_init(|| {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
    })
}

/// A certificate with these dates; its serial number is its version.
pub(crate) fn certificate(version: u32, not_before: i64, not_after: i64) -> Chain {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "test").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(version).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(not_before).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(not_after).unwrap()).unwrap();
    builder.set_pubkey(key()).unwrap();
    builder.sign(key(), MessageDigest::sha256()).unwrap();
    Chain::from_der(&builder.build().to_der().unwrap()).unwrap()
}

pub(crate) fn version(chain: &Chain) -> u32 {
    chain.leaf().unwrap().serial_number().to_bn().unwrap().to_string().parse().unwrap()
}

/// What happens at a step of a credential.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Works,
    /// Works after so many seconds.
    Slow(u64),
    Retryable,
    Fatal,
    /// The server asks for so many seconds.
    NotYet(u64),
    Busy(u64),
    AtOnce,
    Hangs,
    Panics,
    /// The new certificate is valid for so many seconds before now and after it.
    Gives(i64, i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Repair,
    Current,
    Renew,
    Commit,
}

/// A certificate and a key in memory, each with a version; they belong together if it is the same.
pub(crate) struct TestCredential {
    id: String,
    policy: AutoRenew,
    clock: TestClock,
    pub(crate) store: Arc<Store>,
}

pub(crate) struct Store {
    state: Mutex<Stored>,
    changed: Notify,
    busy: AtomicUsize,
}

struct Stored {
    chain: Option<Chain>,
    key: u32,
    temporary_key: Option<u32>,
    next_version: u32,
    steps: Vec<(i64, Step)>,
    fates: [VecDeque<Fate>; 4],
    fallback: [Fate; 4],
}

impl TestCredential {
    pub(crate) fn new(id: &str, clock: &TestClock, policy: AutoRenew, not_before: i64, not_after: i64) -> Arc<Self> {
        let store = Arc::new(Store {
            state: Mutex::new(Stored {
                chain: Some(certificate(1, not_before, not_after)),
                key: 1,
                temporary_key: None,
                next_version: 2,
                steps: Vec::new(),
                fates: Default::default(),
                fallback: [Fate::Works; 4],
            }),
            changed: Notify::new(),
            busy: AtomicUsize::new(0),
        });
        Arc::new(Self { id: id.to_owned(), policy, clock: clock.clone(), store })
    }

    /// The same certificate and key with other settings, as after a reload.
    pub(crate) fn with_policy(&self, policy: AutoRenew) -> Arc<Self> {
        let (clock, store) = (self.clock.clone(), Arc::clone(&self.store));
        Arc::new(Self { id: self.id.clone(), policy, clock, store })
    }

    /// From now on this step goes so, each time.
    pub(crate) fn always(&self, step: Step, fate: Fate) {
        self.store.state.lock().unwrap().fallback[step as usize] = fate;
    }

    /// The next time this step goes so.
    pub(crate) fn once(&self, step: Step, fate: Fate) {
        self.store.state.lock().unwrap().fates[step as usize].push_back(fate);
    }

    /// Times at which the step began.
    pub(crate) fn times(&self, step: Step) -> Vec<i64> {
        let state = self.store.state.lock().unwrap();
        state.steps.iter().filter(|(_, other)| *other == step).map(|(time, _)| *time).collect()
    }

    /// Waits until the step has begun so often, and gives its times.
    pub(crate) async fn until(&self, step: Step, count: usize) -> Vec<i64> {
        let wait = async {
            loop {
                let changed = self.store.changed.notified();
                let times = self.times(step);
                if times.len() >= count {
                    return times;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{step:?} {count} times; was: {:?}", self.times(step)))
    }

    /// Waits until this version of the certificate is stored with its key.
    pub(crate) async fn until_version(&self, version: u32) {
        let wait = async {
            loop {
                let changed = self.store.changed.notified();
                if self.versions() == (Some(version), version) {
                    return;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("is at {:?}", self.versions()));
    }

    /// Of certificate and key.
    pub(crate) fn versions(&self) -> (Option<u32>, u32) {
        let state = self.store.state.lock().unwrap();
        (state.chain.as_ref().map(version), state.key)
    }

    /// Stores a certificate, with its key, as somebody else would.
    pub(crate) fn import(&self, version: u32, not_before: i64, not_after: i64) {
        let mut state = self.store.state.lock().unwrap();
        (state.chain, state.key) = (Some(certificate(version, not_before, not_after)), version);
    }

    /// What a crash, or somebody else, has left.
    pub(crate) fn leave(&self, chain: Option<Chain>, key: u32, temporary_key: Option<u32>) {
        let mut state = self.store.state.lock().unwrap();
        (state.chain, state.key, state.temporary_key) = (chain, key, temporary_key);
    }

    /// Leaves a key of which there never was a certificate.
    pub(crate) fn lose_key(&self) {
        self.store.state.lock().unwrap().key = 0;
    }

    async fn begin(&self, step: Step) -> Result<Fate, Failure> {
        let fate = {
            let mut state = self.store.state.lock().unwrap();
            state.steps.push((self.clock.seconds(), step));
            let fallback = state.fallback[step as usize];
            state.fates[step as usize].pop_front().unwrap_or(fallback)
        };
        self.store.changed.notify_waiters();
        match fate {
            Fate::Works | Fate::Gives(..) => {}
            Fate::Slow(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            Fate::Retryable => return Err(Failure::retryable(format!("{step:?} failed"))),
            Fate::Fatal => return Err(Failure::fatal(format!("{step:?} failed for good"))),
            Fate::NotYet(seconds) => {
                return Err(Failure::NotYet(Duration::from_secs(seconds), format!("{step:?} takes time").into()));
            }
            Fate::Busy(seconds) => {
                return Err(Failure::Busy(Duration::from_secs(seconds), format!("{step:?} is too much").into()));
            }
            Fate::AtOnce => return Err(Failure::AtOnce(format!("{step:?} failed this way").into())),
            Fate::Hangs => pending().await,
            Fate::Panics => panic!("{step:?} panics as told"),
        }
        Ok(fate)
    }
}

/// Only one renewal or commit of a credential may be under way.
struct Alone<'s>(&'s AtomicUsize);

impl<'s> Alone<'s> {
    fn enter(busy: &'s AtomicUsize) -> Self {
        assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two renewals at once");
        Self(busy)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Credential for TestCredential {
    fn certificate_id(&self) -> &str {
        &self.id
    }

    fn key_id(&self) -> &'static str {
        "key"
    }

    fn policy(&self) -> AutoRenew {
        self.policy
    }

    fn repair(&self) -> Doing<'_, ()> {
        Box::pin(async {
            self.begin(Step::Repair).await?;
            let mut state = self.store.state.lock().unwrap();
            let Some(stored) = state.chain.as_ref().map(version) else { return Ok(()) };
            if state.temporary_key == Some(stored) {
                (state.key, state.temporary_key) = (stored, None);
            }
            if state.key == stored { Ok(()) } else { Err(Failure::fatal("another key")) }
        })
    }

    fn current(&self) -> Doing<'_, Chain> {
        Box::pin(async {
            self.begin(Step::Current).await?;
            self.store.state.lock().unwrap().chain.clone().ok_or_else(|| Failure::fatal("no certificate"))
        })
    }

    /// For as long as the old one, from now on.
    fn renew(&self, old: Chain) -> Doing<'_, Renewed> {
        Box::pin(async move {
            let _alone = Alone::enter(&self.store.busy);
            let fate = self.begin(Step::Renew).await?;
            let now = self.clock.seconds();
            let validity = old.validity().unwrap();
            let (before, after) = match fate {
                Fate::Gives(before, after) => (before, after),
                _ => (0, validity.not_after - validity.not_before),
            };
            let mut state = self.store.state.lock().unwrap();
            let version = state.next_version;
            state.next_version += 1;
            state.temporary_key = Some(version);
            let chain = certificate(version, now - before, now + after);
            Ok(Renewed { chain, key_id: "key-temp".to_owned() })
        })
    }

    /// Certificate first, then, a while after, the key.
    fn commit(&self, old: Chain, new: Renewed) -> Doing<'_, ()> {
        Box::pin(async move {
            let _alone = Alone::enter(&self.store.busy);
            let old_version = version(&old);
            {
                let mut state = self.store.state.lock().unwrap();
                assert_eq!(state.chain.as_ref().map(version), Some(old_version), "the old certificate is stored");
                state.chain = Some(new.chain);
            }
            if let Err(failure) = self.begin(Step::Commit).await {
                self.store.state.lock().unwrap().chain = Some(old);
                return Err(failure);
            }
            let mut state = self.store.state.lock().unwrap();
            state.key = state.temporary_key.take().expect("a temporary key");
            drop(state);
            self.store.changed.notify_waiters();
            Ok(())
        })
    }
}

/// An engine that runs until this is dropped.
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) tasks: JoinSet<()>,
}

impl Running {
    pub(crate) fn start(clock: &TestClock, credentials: &[&Arc<TestCredential>]) -> Self {
        let engine = Engine::new(clock.clone());
        engine.replace(list(credentials));
        let mut running = Self { engine, tasks: JoinSet::new() };
        running.run();
        running
    }

    pub(crate) fn run(&mut self) {
        let engine = self.engine.clone();
        self.tasks.spawn(async move { engine.run().await });
    }

    /// As at the end of the daemon.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}

pub(crate) fn list(credentials: &[&Arc<TestCredential>]) -> Vec<Arc<dyn Credential>> {
    credentials.iter().map(|&credential| Arc::clone(credential) as Arc<dyn Credential>).collect()
}
