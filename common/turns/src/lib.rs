//! Turns: work on one name is done by one task at a time, and work on other names does not wait.
//!
//! What a service has instead of one lock around everything. Between the tasks of one process only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Hands out turns. Names that nobody holds or waits for take no memory.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, Arc<AsyncMutex<()>>>>);

/// The right to work on one name, until it is dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedMutexGuard<()>);

impl Turns {
    /// Waits until nobody else has the turn of `name`; they come in the order in which they were asked for.
    ///
    /// The wait is bounded by what those before do with theirs: hold a turn across nothing that has no limit.
    pub async fn take(&self, name: &str) -> Turn {
        let turn = self.turn(name);
        Turn(turn.lock_owned().await)
    }

    /// The turn of `name`, unless somebody has it or waits for it. However many are tried one after the other: a [`take`](Self::take) that is
    /// polled once would find every turn taken after a while, because the runtime lets a task do only so much between two waits.
    #[must_use]
    pub fn try_take(&self, name: &str) -> Option<Turn> {
        self.turn(name).try_lock_owned().ok().map(Turn)
    }

    fn turn(&self, name: &str) -> Arc<AsyncMutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(name.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context, task::Poll, task::Waker};

    use super::*;

    #[tokio::test]
    async fn only_the_same_name_waits_and_ended_turns_are_forgotten() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let _other = turns.take("b").await;
        let mut second = pin!(turns.take("a"));
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(second.as_mut().poll(&mut context), Poll::Pending));
        drop(first);
        drop(second.await);
        drop(turns.take("c").await);
        assert!(turns.0.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn free_turns_are_had_at_once_however_many_and_others_are_not() {
        let turns = Turns::default();
        let held: Vec<_> = (0..1000).map_while(|number| turns.try_take(&number.to_string())).collect();
        assert_eq!(held.len(), 1000);
        assert!(turns.try_take("7").is_none());
        drop(held);
        assert!(turns.try_take("7").is_some());
    }
}
