//! What is known of an EST identity that stands on no disk, kept while the configuration is read again.
//!
//! It belongs to a certificate and a key, not to how these are configured, and is forgotten with the last settings that have them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use aziot_certd_api::config::KeyPair;
use aziot_pki::request::Request;

use super::settings::Access;

/// The memories of all identities that some settings have.
#[derive(Debug, Default)]
pub(crate) struct Memories(Mutex<HashMap<(String, String), Weak<Memory>>>);

/// The memory of one identity.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    undecided: Mutex<Option<Arc<Asked>>>,
    key_is_fixed: AtomicBool,
}

/// A request for an identity.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    /// Where its key is.
    pub(crate) key_id: String,
    /// Whom it was sent to.
    pub(crate) access: Access,
}

impl Memories {
    /// The identity's memory, the one that others have already if there are any.
    pub(crate) fn of(&self, pair: &KeyPair) -> Arc<Memory> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, memory| memory.strong_count() > 0);
        let place = all.entry((pair.cert.clone(), pair.pk.clone())).or_default();
        place.upgrade().unwrap_or_else(|| {
            let memory = Arc::default();
            *place = Arc::downgrade(&memory);
            memory
        })
    }
}

impl Memory {
    /// The request that a server has taken and not decided on, if there is one: only the same one will be answered.
    pub(crate) fn undecided(&self) -> Option<Arc<Asked>> {
        self.request().clone()
    }

    pub(crate) fn keep(&self, asked: Arc<Asked>) {
        *self.request() = Some(asked);
    }

    /// There is nothing to come back for any more.
    pub(crate) fn decided(&self) {
        *self.request() = None;
    }

    /// Whether the key service does not let this service make a new key in place of the old one, or move it there.
    pub(crate) fn key_is_fixed(&self) -> bool {
        self.key_is_fixed.load(Ordering::Relaxed)
    }

    /// True the first time.
    pub(crate) fn fix_key(&self) -> bool {
        !self.key_is_fixed.swap(true, Ordering::Relaxed)
    }

    fn request(&self) -> MutexGuard<'_, Option<Arc<Asked>>> {
        self.undecided.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_follow_each_other_share_it_and_later_ones_do_not() {
        let memories = Memories::default();
        let pair = |pk: &str| KeyPair { cert: "i".into(), pk: pk.into() };
        let first = memories.of(&pair("k"));
        assert!(first.fix_key() && !first.fix_key());
        let second = memories.of(&pair("k"));
        assert!(second.key_is_fixed() && !memories.of(&pair("other")).key_is_fixed());
        drop((first, second));
        assert!(!memories.of(&pair("k")).key_is_fixed());
        assert_eq!(memories.0.lock().unwrap().len(), 1);
    }
}
