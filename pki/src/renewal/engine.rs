//! The schedule of all credentials of a daemon, and the tasks that keep it.
//!
//! Each credential has a task of its own, so that one whose server hangs delays no other. There are as many as are
//! configured, and all end with [`Engine::run`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use aziot_log::fields;
use tokio::{
    sync::Notify,
    task::{Id, JoinError, JoinSet},
};

use super::{
    Clock, Credential, Failure, NotAvailable,
    attempt::{Occasion, limited},
    clock::seconds,
    entry::{Check, Entry, Locks},
};

/// Longest sleep before the wall clock is looked at again; it may have been set, and not every system tells.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Keeps credentials renewed. Clones share one schedule.
///
/// Without [`run`](Self::run) nothing is renewed but what [`hold`](Self::hold) finds due.
#[derive(Clone)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) clock: Box<dyn Clock>,
    schedule: Mutex<Schedule>,
    changed: Notify,
}

#[derive(Default)]
struct Schedule {
    generation: Generation,
    /// Whoever registers the same two again has the same place.
    entries: BTreeMap<Name, Arc<Entry>>,
    /// Also for what is not registered, and for what was taken out while somebody still works on it.
    locks: HashMap<Name, Weak<Locks>>,
}

/// Certificate and key.
type Name = (String, String);

/// Which of an engine's lists of credentials is meant: it has another one after each [`Engine::replace`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// What is next for one credential, for people. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Name of the certificate.
    pub certificate_id: String,
    /// Name of its key pair.
    pub key_id: String,
    /// End of the certificate that is stored; absent until one could be read.
    pub not_after: Option<i64>,
    /// When it is renewed, or tried again; not later than now while that is being done.
    pub next_attempt: i64,
    /// Why the last attempt failed, with causes; absent since one has succeeded or none is needed any more.
    pub last_error: Option<String>,
    /// Attempts that failed since one succeeded.
    pub attempts_failed: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("the renewal ended in a fault of this program")]
struct Broken(#[source] JoinError);

impl Engine {
    /// An engine without credentials.
    pub fn new(clock: impl Clock + 'static) -> Self {
        let (schedule, changed) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { clock: Box::new(clock), schedule, changed }) }
    }

    /// Puts these credentials in place of all others: at the start, and after the configuration has been read again.
    ///
    /// One that has the certificate and key of an old one takes its place, schedule and all, and if that one's last attempt
    /// failed it is tried at once. A renewal that is under way is finished. Of several with the same certificate and key the
    /// last one counts. The result is for those who [`add`](Self::add) something that is made of the same settings.
    #[expect(clippy::must_use_candidate, reason = "called for its effect; only those who add later need the result")]
    pub fn replace(&self, credentials: Vec<Arc<dyn Credential>>) -> Generation {
        let generation = {
            let mut schedule = self.shared.schedule();
            schedule.generation.0 += 1;
            for entry in schedule.entries.values() {
                entry.state().retired = true;
            }
            for credential in credentials {
                schedule.put(credential, self.shared.clock.jitter());
            }
            schedule.forget_retired();
            schedule.generation
        };
        self.shared.changed.notify_one();
        generation
    }

    /// Adds a credential; its place is that of an old one with the same certificate and key, as in
    /// [`replace`](Self::replace). One of another generation is ignored, because newer settings have been put in place of
    /// those that it is made of; whether it was taken.
    pub fn add(&self, credential: Arc<dyn Credential>, generation: Generation) -> bool {
        {
            let mut schedule = self.shared.schedule();
            if schedule.generation != generation {
                return false;
            }
            schedule.put(credential, self.shared.clock.jitter());
        }
        self.shared.changed.notify_one();
        true
    }

    /// The generation of the credentials that the engine has now; the default one before the first
    /// [`replace`](Self::replace).
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.shared.schedule().generation
    }

    /// Somebody has found that certificate and key do not belong together, or that the key is gone. Before the next use, or
    /// soon, the credential is repaired, and renewed if that does not help.
    pub fn doubt(&self, certificate_id: &str, key_id: &str) {
        if let Some(entry) = self.shared.find(certificate_id, key_id) {
            entry.state().doubt(Check::Pair);
            entry.wake.notify_one();
        }
    }

    /// Somebody has replaced or deleted the certificate: it is read again.
    pub fn look_again(&self, certificate_id: &str) {
        for entry in self.shared.current() {
            if entry.certificate_id == certificate_id {
                entry.state().doubt(Check::Certificate);
                entry.wake.notify_one();
            }
        }
    }

    /// Does `work` while nobody holds, repairs or renews the pair, whether it is registered or not; afterwards it is
    /// examined before its next use. `work` must not ask this engine for the same pair.
    pub async fn alone<T>(
        &self,
        certificate_id: &str,
        key_id: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, NotAvailable> {
        let busy = |source| NotAvailable::Busy { certificate_id: certificate_id.to_owned(), source };
        let name = (certificate_id.to_owned(), key_id.to_owned());
        let locks = self.shared.schedule().locks(&name);
        let _turn = limited("waiting for the renewal", async { Ok(locks.attempt.lock().await) }).await.map_err(busy)?;
        let pair = async { Ok(locks.pair.write().await) };
        let _pair = limited("waiting for the users of the key", pair).await.map_err(busy)?;
        // Before, too: this may be cut off.
        self.shared.doubt_all_of(&name);
        let done = work.await;
        self.shared.doubt_all_of(&name);
        Ok(done)
    }

    /// Renews what is due, for ever. Dropped in the middle of a renewal it leaves what a crash would leave, and whoever uses
    /// the credential next, in this process or after a restart, repairs that.
    pub async fn run(&self) {
        let mut tasks = JoinSet::new();
        let mut tended: HashMap<Id, Arc<Entry>> = HashMap::new();
        loop {
            for entry in self.shared.current() {
                if !tended.values().any(|other| Arc::ptr_eq(other, &entry)) {
                    let task = tasks.spawn(tend_always(Arc::clone(&self.shared), Arc::clone(&entry)));
                    tended.insert(task.id(), entry);
                }
            }
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = self.shared.clock.wait_until_set() => {
                    tracing::info!("the clock was set");
                    self.shared.wake_all();
                }
                Some(ended) = tasks.join_next_with_id() => {
                    let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
                    if let (Some(entry), Err(error)) = (tended.remove(&id), ended) {
                        self.shared.broken(&entry, error);
                    }
                    self.shared.schedule().forget_retired();
                }
            }
        }
    }

    /// What is next for each credential, by certificate and key.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let now = self.shared.now();
        let status = |entry: Arc<Entry>| {
            let state = entry.state();
            Status {
                certificate_id: entry.certificate_id.clone(),
                key_id: entry.key_id.clone(),
                not_after: state.known.map(|known| known.validity.not_after),
                next_attempt: state.next_attempt(now),
                last_error: state.last_failure.as_deref().map(|failure| aziot_log::chain(failure).to_string()),
                attempts_failed: state.failures,
            }
        };
        self.shared.current().into_iter().map(status).collect()
    }
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are not on their way out.
    fn current(&self) -> Vec<Arc<Entry>> {
        self.schedule().entries.values().filter(|entry| !entry.state().retired).cloned().collect()
    }

    pub(super) fn find(&self, certificate_id: &str, key_id: &str) -> Option<Arc<Entry>> {
        let name = (certificate_id.to_owned(), key_id.to_owned());
        self.schedule().entries.get(&name).filter(|entry| !entry.state().retired).cloned()
    }

    /// Also where it is on its way out: it may come back.
    fn doubt_all_of(&self, name: &Name) {
        if let Some(entry) = self.schedule().entries.get(name) {
            entry.state().doubt(Check::Pair);
            entry.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        for entry in self.schedule().entries.values() {
            entry.wake.notify_one();
        }
    }

    /// A panic costs the credential this attempt, and the daemon nothing.
    fn broken(&self, entry: &Entry, error: JoinError) {
        tracing::error!(
            { fields::CERTIFICATE_ID } = entry.certificate_id,
            { fields::ERROR } = %error,
            "the renewal of the certificate ended in a fault of this program, will be tried again"
        );
        let mut state = entry.state();
        state.check = Check::Pair;
        state.failed(Failure::retryable(Broken(error)), self.clock.jitter(), self.now());
    }

    pub(super) fn now(&self) -> i64 {
        seconds(self.clock.now())
    }
}

impl Schedule {
    fn put(&mut self, credential: Arc<dyn Credential>, jitter: f64) {
        let name = (credential.certificate_id().to_owned(), credential.key_id().to_owned());
        if let Some(entry) = self.entries.get(&name) {
            entry.state().reconfigure(credential);
            entry.wake.notify_one();
        } else {
            let locks = self.locks(&name);
            self.entries.insert(name, Arc::new(Entry::new(credential, locks, jitter)));
        }
    }

    /// The locks of a pair, the same for all as long as anybody has them.
    fn locks(&mut self, name: &Name) -> Arc<Locks> {
        if let Some(locks) = self.locks.get(name).and_then(Weak::upgrade) {
            return locks;
        }
        self.locks.retain(|_, locks| locks.strong_count() > 0);
        let locks = Arc::default();
        self.locks.insert(name.clone(), Arc::downgrade(&locks));
        locks
    }

    /// Those that somebody still works on keep their place, so that nobody begins anew beside them.
    fn forget_retired(&mut self) {
        self.entries.retain(|_, entry| !entry.state().retired || entry.is_busy());
    }
}

async fn tend_always(shared: Arc<Shared>, entry: Arc<Entry>) {
    loop {
        {
            let _turn = entry.locks.attempt.lock().await;
            shared.tend(&entry, Occasion::Schedule).await;
        }
        if entry.state().retired {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(shared.wait(&entry).min(LONGEST_SLEEP)) => {}
            () = entry.wake.notified() => {}
        }
    }
}
