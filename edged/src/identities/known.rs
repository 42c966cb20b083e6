//! The keys of modules that have been asked for once, so that a signature costs no identity call.
//!
//! Callers of one module who find nothing share one call. What a call brings is kept only if nobody has forgotten the module meanwhile, so
//! that a change through this runtime is never undone by an answer from before it. A failure is not kept, but for a second that of a module
//! that the hub does not have. A module that names itself in two ways, with a `$` and without, waits for itself: it has one call at a time.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_http::Client;
use aziot_identityd_api::{
    identity::{Authentication, Identity as Answer},
    module::GetModule,
};
use aziot_keyd_api::key::KeyHandle;
use aziot_turns::Turns;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use lru::LruCache;
use tokio::{sync::Semaphore, time::Instant};

use super::{Error, HUB_IDENTITY, container_name, is_not_found, parts};
use crate::places;

/// Modules that are remembered; a hub lets a device have fifty.
const ROOM: NonZeroUsize = NonZeroUsize::new(512).expect("is not 0");
/// How long what was just read is believed against a caller who names another generation.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// What a module signs with.
pub(crate) struct ModuleKey {
    /// The generation that the key belongs to.
    pub(crate) generation_id: String,
    /// Its handle in the key service.
    pub(crate) handle: KeyHandle,
    read_at: Instant,
}

impl fmt::Debug for ModuleKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ModuleKey").field("generation_id", &self.generation_id).finish_non_exhaustive()
    }
}

type Outcome = Result<Arc<ModuleKey>, Error>;
type Reading = Shared<BoxFuture<'static, Outcome>>;

enum Place {
    /// Somebody asks, and others wait for the same answer.
    Reading(Reading),
    Known(Arc<ModuleKey>),
    /// The identity service has none, as it said then.
    Absent(Error, Instant),
}

/// The calls that are under way.
struct Reads {
    /// By container.
    turns: Turns,
    places: Semaphore,
}

/// Whether the hub, as far as the identity service tells, has no such module.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Get { source, .. } if is_not_found(source))
}

/// Keys by module.
pub(super) struct ModuleKeys {
    identityd: Client,
    reads: Arc<Reads>,
    places: Mutex<LruCache<String, Place>>,
}

impl ModuleKeys {
    pub(super) fn new(identityd: Client) -> Self {
        let reads = Reads { turns: Turns::default(), places: Semaphore::new(places::IDENTITY_READS) };
        Self { identityd, reads: Arc::new(reads), places: Mutex::new(LruCache::sparse(ROOM)) }
    }

    /// The module's key, if `generation_id` is its present generation.
    pub(super) async fn get(&self, module_id: &str, generation_id: &str) -> Outcome {
        let is_it = |key: &ModuleKey| key.generation_id == generation_id;
        let known = self.known_or_read(module_id).await?;
        if is_it(&known) {
            return Ok(known);
        }
        // It may have been deleted and made again by others than this runtime.
        if known.read_at.elapsed() >= FRESH_FOR {
            self.forget_key(module_id, &known);
            let known = self.known_or_read(module_id).await?;
            if is_it(&known) {
                return Ok(known);
            }
        }
        Err(Error::OtherGeneration { module_id: module_id.to_owned(), generation_id: generation_id.to_owned() })
    }

    /// Whether `generation_id` is the present generation, as far as that is known without asking.
    pub(super) async fn check(&self, module_id: &str, generation_id: &str) -> Result<(), Error> {
        let is_other = {
            let mut places = self.places();
            matches!(places.get(module_id), Some(Place::Known(key)) if key.generation_id != generation_id)
        };
        if is_other { self.get(module_id, generation_id).await.map(drop) } else { Ok(()) }
    }

    async fn known_or_read(&self, module_id: &str) -> Outcome {
        let reading = {
            let mut places = self.places();
            match places.get(module_id) {
                Some(Place::Known(key)) => return Ok(Arc::clone(key)),
                Some(Place::Reading(reading)) => reading.clone(),
                Some(Place::Absent(error, since)) if since.elapsed() < FRESH_FOR => return Err(error.clone()),
                Some(Place::Absent(..)) | None => {
                    let reading = self.read(module_id.to_owned());
                    places.put(module_id.to_owned(), Place::Reading(reading.clone()));
                    reading
                }
            }
        };
        let outcome = reading.clone().await;
        let mut places = self.places();
        let is_this = |place: &Place| matches!(place, Place::Reading(other) if other.ptr_eq(&reading));
        if places.peek(module_id).is_some_and(is_this) {
            match &outcome {
                Ok(key) => drop(places.put(module_id.to_owned(), Place::Known(Arc::clone(key)))),
                Err(error) if is_absent(error) => {
                    drop(places.put(module_id.to_owned(), Place::Absent(error.clone(), Instant::now())));
                }
                Err(_) => drop(places.pop(module_id)),
            }
        }
        outcome
    }

    fn read(&self, module_id: String) -> Reading {
        let (identityd, reads) = (self.identityd.clone(), Arc::clone(&self.reads));
        let read = async move {
            let _turn = reads.turns.take(container_name(&module_id)).await;
            let _place = reads.places.acquire().await;
            let get = GetModule { module_id: module_id.clone(), r#type: Some(HUB_IDENTITY.to_owned()) };
            let read_at = Instant::now();
            let answer =
                identityd.send(&get).await.map_err(|source| Error::Get { module_id, source: Arc::new(source) })?;
            key(answer, read_at).map(Arc::new)
        };
        read.boxed().shared()
    }

    /// What is known of the module, or is being asked for, is old from now on.
    pub(super) fn forget(&self, module_id: &str) {
        self.places().pop(module_id);
    }

    /// As [`forget`](Self::forget), unless another key is known by now.
    pub(super) fn forget_key(&self, module_id: &str, old: &Arc<ModuleKey>) {
        let mut places = self.places();
        if matches!(places.peek(module_id), Some(Place::Known(key)) if Arc::ptr_eq(key, old)) {
            places.pop(module_id);
        }
    }

    fn places(&self) -> MutexGuard<'_, LruCache<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(answer: Answer, read_at: Instant) -> Result<ModuleKey, Error> {
    let (identity, _, generation_id) = parts(answer)?;
    match identity.auth {
        Some(Authentication::Sas { key_handle: handle }) => Ok(ModuleKey { generation_id, handle, read_at }),
        Some(Authentication::X509 { .. } | Authentication::Tpm) => Err(Error::MissingKey),
        None => Err(Error::MissingAuthentication),
    }
}
