//! The schedule of all credentials of a daemon, and the tasks that keep it.
//!
//! Each credential has a task of its own, so that one whose server hangs delays no other. There are as many as are
//! configured, and all end with [`Engine::run`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_log::fields;
use tokio::{
    sync::Notify,
    task::{Id, JoinError, JoinSet},
};

use super::{
    Clock, Credential, Failure,
    attempt::Occasion,
    clock::seconds,
    entry::{Check, Entry},
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
    /// By certificate and key: whoever registers the same two again has the same place.
    entries: Mutex<BTreeMap<(String, String), Arc<Entry>>>,
    changed: Notify,
}

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
        let (entries, changed) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { clock: Box::new(clock), entries, changed }) }
    }

    /// Puts these credentials in place of all others: at the start, and after the configuration has been read again.
    ///
    /// One that has the certificate and key of an old one takes its place, schedule and all, and if that one's last attempt
    /// failed it is tried at once. A renewal that is under way is finished. Of several with the same certificate and key the
    /// last one counts.
    pub fn replace(&self, credentials: Vec<Arc<dyn Credential>>) {
        {
            let mut entries = self.shared.entries();
            for entry in entries.values() {
                entry.state().retired = true;
            }
            for credential in credentials {
                self.shared.put(&mut entries, credential);
            }
            forget_retired(&mut entries);
        }
        self.shared.changed.notify_one();
    }

    /// Adds a credential; its place is that of an old one with the same certificate and key, as in
    /// [`replace`](Self::replace).
    pub fn add(&self, credential: Arc<dyn Credential>) {
        self.shared.put(&mut self.shared.entries(), credential);
        self.shared.changed.notify_one();
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
                    forget_retired(&mut self.shared.entries());
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
                not_after: state.known.map(|known| known.not_after),
                next_attempt: state.next_attempt(now),
                last_error: state.last_failure.as_deref().map(|failure| aziot_log::chain(failure).to_string()),
                attempts_failed: state.failures,
            }
        };
        self.shared.current().into_iter().map(status).collect()
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<(String, String), Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are not on their way out.
    fn current(&self) -> Vec<Arc<Entry>> {
        self.entries().values().filter(|entry| !entry.state().retired).cloned().collect()
    }

    pub(super) fn find(&self, certificate_id: &str, key_id: &str) -> Option<Arc<Entry>> {
        let name = (certificate_id.to_owned(), key_id.to_owned());
        self.entries().get(&name).filter(|entry| !entry.state().retired).cloned()
    }

    fn put(&self, entries: &mut BTreeMap<(String, String), Arc<Entry>>, credential: Arc<dyn Credential>) {
        let name = (credential.certificate_id().to_owned(), credential.key_id().to_owned());
        match entries.get(&name) {
            Some(entry) => {
                entry.state().reconfigure(credential);
                entry.wake.notify_one();
            }
            None => {
                entries.insert(name, Arc::new(Entry::new(credential, self.clock.jitter())));
            }
        }
    }

    fn wake_all(&self) {
        for entry in self.entries().values() {
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

/// Those that somebody still works on keep their place, so that nobody begins anew beside them.
fn forget_retired(entries: &mut BTreeMap<(String, String), Arc<Entry>>) {
    entries.retain(|_, entry| !entry.state().retired || entry.is_busy());
}

async fn tend_always(shared: Arc<Shared>, entry: Arc<Entry>) {
    loop {
        {
            let _turn = entry.attempt.lock().await;
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
