//! Work whose outcome is for everybody who asks meanwhile, done once at a time.
//!
//! A list of modules costs the engine a question for each of them, a trust bundle one to the certificate service, and any process of the machine
//! may ask as often as it likes. Whoever asks while somebody is served gets the next outcome, together with all who ask meanwhile: never one that
//! was begun before the question. How long the work may take is for the work to say.

use std::{sync::Arc, time::Instant};

use tokio::sync::Mutex;

/// What the work gave, or why it failed.
pub(crate) type Outcome<T, E> = Result<Arc<T>, Arc<E>>;

/// The last outcome.
pub(crate) struct Shared<T, E>(Mutex<Option<(Instant, Outcome<T, E>)>>);

impl<T, E> Default for Shared<T, E> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T, E> Shared<T, E> {
    /// What `work` gives, or gave somebody else who asked at the same time.
    pub(crate) async fn get(&self, work: impl Future<Output = Result<T, E>>) -> Outcome<T, E> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((begun, outcome)) = &*last
            && *begun > asked
        {
            return outcome.clone();
        }
        let begun = Instant::now();
        let outcome = work.await.map(Arc::new).map_err(Arc::new);
        *last = Some((begun, outcome.clone()));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_meanwhile_share_the_next_outcome_and_later_ones_get_another() {
        let (shared, done) = (Shared::<(), ()>::default(), AtomicUsize::new(0));
        let ask = || {
            shared.get(async {
                done.fetch_add(1, Ordering::Relaxed);
                // The work takes its time.
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            })
        };
        let all = futures_util::future::join_all((0..10).map(|_| ask())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(done.load(Ordering::Relaxed), 2);
        let _ = ask().await;
        assert_eq!(done.load(Ordering::Relaxed), 3, "nobody gets an old one");
    }
}
