//! Turns: one writer per certificate at a time, while other certificates do not wait.
//!
//! A turn is held for one file operation only, never while another service works.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

type Locks = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// Hands out turns. Keeps nothing about ids that nobody is waiting for.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    locks: Arc<Locks>,
}

/// The right to change one certificate, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    id: String,
    guard: Option<OwnedMutexGuard<()>>,
    locks: Arc<Locks>,
}

impl Turns {
    /// Waits until nobody else has the turn of `id`.
    pub(crate) async fn take(&self, id: &str) -> Turn {
        let lock = Arc::clone(locked(&self.locks).entry(id.to_owned()).or_default());
        // Made before the wait, so that one who gives up waiting is forgotten too.
        let mut turn = Turn { id: id.to_owned(), guard: None, locks: Arc::clone(&self.locks) };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut locks = locked(&self.locks);
        self.guard = None;
        // One is the map's own.
        if locks.get(&self.id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.id);
        }
    }
}

/// The map is whole between any two statements, so a panic under the lock has broken nothing.
fn locked(locks: &Locks) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_id_waits_another_does_not_and_nothing_is_kept() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let other = turns.take("b").now_or_never().unwrap();
        let mut second = Box::pin(turns.take("a"));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(turns.take("a"));
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        drop(first);
        let third = third.await;
        drop((third, other));
        assert!(locked(&turns.locks).is_empty());
    }
}
