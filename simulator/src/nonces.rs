//! Nonces for TPMs: the keys that DPS encrypts to a TPM, which proves itself by signing with them.
//!
//! In memory only: after a restart a TPM is challenged anew. One per registration, forgotten a while after its last use, and bounded.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::attestation::TpmKeys;
use crate::key::SymmetricKey;

/// A registration may be polled for so long with pauses in between.
const LIFETIME: Duration = Duration::from_secs(10 * 60);
/// So many registrations can be under way at once.
const MAX_NONCES: usize = 10_000;

/// What a TPM was challenged with.
#[derive(Clone, Debug)]
pub(crate) struct Nonce {
    pub(crate) key: SymmetricKey,
    pub(crate) tpm: TpmKeys,
    until: Instant,
}

/// All nonces by registration id in lower case.
#[derive(Debug, Default)]
pub(crate) struct Nonces(Mutex<HashMap<String, Nonce>>);

impl Nonces {
    /// Remembers a new nonce for a registration, in place of its former one.
    pub(crate) fn add(&self, registration_id: &str, key: SymmetricKey, tpm: TpmKeys, now: Instant) {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.len() >= MAX_NONCES {
            nonces.retain(|_, nonce| nonce.until > now);
        }
        if nonces.len() >= MAX_NONCES {
            let oldest = nonces.iter().min_by_key(|(_, nonce)| nonce.until).map(|(id, _)| id.clone());
            oldest.map(|id| nonces.remove(&id));
        }
        nonces.insert(registration_id.to_lowercase(), Nonce { key, tpm, until: now + LIFETIME });
    }

    /// The nonce of a registration, if it has one that still counts.
    pub(crate) fn find(&self, registration_id: &str, now: Instant) -> Option<Nonce> {
        let nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.get(&registration_id.to_lowercase()).filter(|nonce| nonce.until > now).cloned()
    }

    /// Lets a nonce that was used count for longer.
    pub(crate) fn renew(&self, registration_id: &str, now: Instant) {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nonce) = nonces.get_mut(&registration_id.to_lowercase()) {
            nonce.until = now + LIFETIME;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attestation::Public;

    fn tpm() -> TpmKeys {
        TpmKeys { endorsement_key: Public(vec![1]), storage_root_key: Public(vec![2]) }
    }

    #[test]
    fn a_nonce_counts_until_a_while_after_its_last_use() {
        let (nonces, begin) = (Nonces::default(), Instant::now());
        let key = SymmetricKey::random();
        nonces.add("Reg", key.clone(), tpm(), begin);
        let last = begin + LIFETIME / 2;
        assert_eq!(nonces.find("rEG", last).unwrap().key, key);
        assert!(nonces.find("reg", begin + LIFETIME).is_none());
        nonces.renew("REG", last);
        assert!(nonces.find("reg", begin + LIFETIME).is_some());
        assert!(nonces.find("other", begin).is_none());
        nonces.add("reg", SymmetricKey::random(), tpm(), begin);
        assert_ne!(nonces.find("reg", begin).unwrap().key, key);
    }

    #[test]
    fn the_oldest_makes_room() {
        let (nonces, begin) = (Nonces::default(), Instant::now());
        for number in 0..=MAX_NONCES {
            let later = begin + Duration::from_millis(u64::try_from(number).unwrap());
            nonces.add(&number.to_string(), SymmetricKey::random(), tpm(), later);
        }
        assert!(nonces.find("0", begin).is_none() && nonces.find("1", begin).is_some());
        assert_eq!(nonces.0.lock().unwrap().len(), MAX_NONCES);
    }
}
