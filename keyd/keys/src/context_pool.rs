//! OpenSSL's contexts that know their key already, kept between the key's uses: to prepare one costs as much as to sign a short message.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

/// How many contexts of a key are kept: one for each processor, as more are seldom in use at once.
pub(crate) static SIZE: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

/// Contexts that are prepared for one and the same key. Who uses one has it to himself.
pub(crate) struct ContextPool<T> {
    idle: Mutex<Vec<T>>,
}

impl<T> Default for ContextPool<T> {
    fn default() -> Self {
        Self { idle: Mutex::default() }
    }
}

impl<T> ContextPool<T> {
    /// One that nobody uses.
    pub(crate) fn take(&self) -> Option<T> {
        self.idle().pop()
    }

    /// Keeps a context for its next use; not after an error, as what that leaves behind in a context is not known.
    pub(crate) fn keep(&self, context: T) {
        let mut idle = self.idle();
        if idle.len() < *SIZE {
            idle.push(context);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<T>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_one_for_each_processor_at_most() {
        let contexts = ContextPool::default();
        assert!(contexts.take().is_none());
        (0..=*SIZE).for_each(|number| contexts.keep(number));
        assert_eq!(std::iter::from_fn(|| contexts.take()).count(), *SIZE);
    }
}
