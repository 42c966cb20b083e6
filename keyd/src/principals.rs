//! Who may use which key: the `[[principal]]` tables (`keys.md`, section 3).

use std::collections::HashMap;

use aziot_http::Glob;
use aziot_keyd_api::config::Principal;

use crate::handle::HANDLE_KEY;

/// One state of the tables. Replaced as a whole when the configuration changes.
#[derive(Debug, Default)]
pub(crate) struct Principals {
    patterns: HashMap<u32, Vec<Glob>>,
}

impl Principals {
    /// Several entries of one uid add up.
    pub(crate) fn new(entries: &[Principal]) -> Principals {
        let mut patterns: HashMap<u32, Vec<Glob>> = HashMap::new();
        for entry in entries {
            patterns.entry(entry.uid).or_default().extend_from_slice(&entry.keys);
        }
        Principals { patterns }
    }

    /// Whether `uid` may create, import, load and move the key `id`. Root may always, and nobody the key that signs handles.
    pub(crate) fn allow(&self, uid: u32, id: &str) -> bool {
        if id == HANDLE_KEY {
            return false;
        }
        uid == 0 || self.patterns.get(&uid).is_some_and(|patterns| patterns.iter().any(|pattern| pattern.matches(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: u32, keys: &[&str]) -> Principal {
        Principal { uid, keys: keys.iter().map(|pattern| Glob::new(*pattern)).collect() }
    }

    #[test]
    fn entries_of_one_user_add_up_and_others_get_nothing() {
        let principals = Principals::new(&[entry(7, &["a"]), entry(8, &["b"]), entry(7, &["c-*"])]);
        assert!(principals.allow(7, "a") && principals.allow(7, "c-1"));
        assert!(!principals.allow(7, "b") && !principals.allow(9, "a"));
        assert!(principals.allow(0, "b") && principals.allow(0, "anything"));
    }

    #[test]
    fn nobody_gets_the_key_that_signs_handles() {
        let principals = Principals::new(&[entry(7, &["*", "handle-*", HANDLE_KEY])]);
        assert!(!principals.allow(7, HANDLE_KEY) && !principals.allow(0, HANDLE_KEY));
        assert!(principals.allow(7, "handle-validation-key2"));
    }
}
