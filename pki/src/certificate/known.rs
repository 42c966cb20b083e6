//! Issuers' chains, parsed once: OpenSSL takes a third of a millisecond for each certificate, and an authority issues many with the same ones.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;

use super::{Chain, ChainError};

/// More issuers than a device has.
const LIMIT: NonZeroUsize = NonZeroUsize::new(16).expect("is not 0");
/// Bytes of a text that is remembered; no chain of an issuer is as long.
const LONGEST: usize = 64 * 1024;

/// Chains by their text, which is looked up as a whole: a changed file is another text.
#[derive(Debug)]
pub struct KnownChains(Mutex<LruCache<String, Chain>>);

impl Default for KnownChains {
    fn default() -> Self {
        Self(Mutex::new(LruCache::sparse(LIMIT)))
    }
}

impl KnownChains {
    /// As [`Chain::from_pem`].
    pub fn parse(&self, text: &str) -> Result<Chain, ChainError> {
        if let Some(chain) = self.known().get(text) {
            return Ok(chain.clone());
        }
        let chain = Chain::from_pem(text)?;
        if text.len() <= LONGEST {
            self.known().put(text.to_owned(), chain.clone());
        }
        Ok(chain)
    }

    fn known(&self) -> MutexGuard<'_, LruCache<String, Chain>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use openssl::x509::X509;

    use super::*;

    #[test]
    fn a_known_text_is_not_parsed_again() {
        let known = KnownChains::default();
        assert!(known.parse("no certificate").unwrap().is_empty());
        // What parsing would never make of this text.
        let chain = Chain::from(vec![X509::builder().unwrap().build()]);
        known.known().put("no certificate".to_owned(), chain);
        assert_eq!(known.parse("no certificate").unwrap().certificates().len(), 1);
        assert!(known.parse("no certificate ").unwrap().is_empty());
    }

    #[test]
    fn few_are_remembered_and_errors_are_not() {
        let known = KnownChains::default();
        assert!(known.parse("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        assert!(known.known().is_empty());
        for number in 0..LIMIT.get() * 2 {
            known.parse(&number.to_string()).unwrap();
        }
        assert!(known.known().len() <= LIMIT.get());
        known.known().clear();
        known.parse(&" ".repeat(LONGEST + 1)).unwrap();
        assert!(known.known().is_empty());
    }
}
