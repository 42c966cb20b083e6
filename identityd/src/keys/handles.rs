//! Handles of keys that are kept for a moment, so that steady reading costs the key service a call a second and not one each time.
//!
//! The key service itself believes a handle for a second before it looks again; for as long it is kept here. Callers that miss it share one
//! load. A failure is not kept.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_http::ClientError;
use aziot_keyd_api::key::KeyHandle;
use lru::LruCache;
use tokio::time::Instant;

use crate::flight::Flight;

/// How long a handle is given out after it was asked for.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Handles that are kept; one of a derived key has 600 bytes. Ten times what the hub lets a device have.
const ROOM: NonZeroUsize = NonZeroUsize::new(512).expect("is not 0");

/// A handle, or what the key service said to all who waited for it.
pub(crate) type Loaded = Result<KeyHandle, Arc<ClientError>>;

enum Kept {
    Loading(Flight<Loaded>),
    Loaded { handle: KeyHandle, until: Instant },
}

/// Handles of one kind of keys, by the keys' names.
pub(crate) struct Handles {
    kept: Arc<Mutex<LruCache<String, Kept>>>,
}

impl Handles {
    /// None yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { kept: Arc::new(Mutex::new(LruCache::sparse(ROOM))) }
    }

    /// The handle of this key: the one that is kept, or the outcome of the load under way, or of `load`.
    pub(crate) async fn get<F>(&self, name: &str, load: impl Fn() -> F) -> Loaded
    where
        F: Future<Output = Loaded> + Send + 'static,
    {
        let flight = {
            let mut kept = lock(&self.kept);
            match kept.get(name) {
                Some(Kept::Loaded { handle, until }) if Instant::now() < *until => return Ok(handle.clone()),
                Some(Kept::Loading(flight)) if !flight.is_over() => flight.clone(),
                _ => {
                    let flight = self.begin(name, load());
                    kept.put(name.to_owned(), Kept::Loading(flight.clone()));
                    flight
                }
            }
        };
        match flight.outcome().await {
            Some(loaded) => loaded,
            // Cut off; whoever is still there fares as it would have alone.
            None => load().await,
        }
    }

    fn begin(&self, name: &str, load: impl Future<Output = Loaded> + Send + 'static) -> Flight<Loaded> {
        let (kept, name, until) = (Arc::clone(&self.kept), name.to_owned(), Instant::now() + KEPT_FOR);
        Flight::begin(async move {
            let loaded = load.await;
            let mut kept = lock(&kept);
            match &loaded {
                Ok(handle) => drop(kept.put(name, Kept::Loaded { handle: handle.clone(), until })),
                Err(_) => drop(kept.pop(&name)),
            }
            loaded
        })
    }

    /// Forgets this handle, which the key service does not take any more.
    pub(crate) fn forget(&self, name: &str, refused: &KeyHandle) {
        let mut kept = lock(&self.kept);
        if matches!(kept.peek(name), Some(Kept::Loaded { handle, .. }) if handle == refused) {
            kept.pop(name);
        }
    }
}

fn lock(kept: &Mutex<LruCache<String, Kept>>) -> MutexGuard<'_, LruCache<String, Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;

    /// A key service that numbers its handles.
    #[derive(Clone, Default)]
    struct Service(Arc<AtomicU32>);

    impl Service {
        fn load(&self) -> impl Future<Output = Loaded> + Send + 'static {
            let service = self.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(KeyHandle(format!("handle {}", service.0.fetch_add(1, Ordering::SeqCst))))
            }
        }
    }

    async fn get(handles: &Handles, service: &Service) -> String {
        handles.get("k", || service.load()).await.unwrap().0
    }

    #[tokio::test(start_paused = true)]
    async fn a_handle_is_loaded_once_a_second_however_many_ask() {
        let (handles, service) = (Handles::new(), Service::default());
        let all = join_all((0..8).map(|_| get(&handles, &service))).await;
        assert_eq!(all, ["handle 0"; 8]);
        tokio::time::advance(KEPT_FOR / 2).await;
        assert_eq!(get(&handles, &service).await, "handle 0");
        tokio::time::advance(KEPT_FOR / 2).await;
        assert_eq!(get(&handles, &service).await, "handle 1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_handle_is_loaded_anew_and_another_one_stays() {
        let (handles, service) = (Handles::new(), Service::default());
        let first = handles.get("k", || service.load()).await.unwrap();
        handles.forget("k", &KeyHandle("handle of before".into()));
        assert_eq!(get(&handles, &service).await, first.0);
        handles.forget("k", &first);
        assert_eq!(get(&handles, &service).await, "handle 1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_shared_and_not_kept() {
        let (handles, asked) = (Handles::new(), AtomicU32::new(0));
        let refuse = || {
            asked.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::task::yield_now().await;
                Err(Arc::new(ClientError::TimedOut { socket: "s".into(), limit: KEPT_FOR }))
            }
        };
        let (one, other) = tokio::join!(handles.get("k", refuse), handles.get("k", refuse));
        assert!(one.is_err() && other.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        handles.get("k", refuse).await.unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
