//! Issuers' chains, parsed once: OpenSSL takes a third of a millisecond for each certificate, and an authority issues many with the same ones.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{Chain, ChainError};

/// More issuers than a device has.
const LIMIT: usize = 16;
/// Bytes of a text that is remembered; no chain of an issuer is as long.
const LONGEST: usize = 64 * 1024;

/// Chains by their text, which is looked up as a whole: a changed file is another text.
#[derive(Debug, Default)]
pub struct KnownChains(Mutex<HashMap<String, Chain>>);

impl KnownChains {
    /// As [`Chain::from_pem`].
    pub fn parse(&self, text: &str) -> Result<Chain, ChainError> {
        if let Some(chain) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(text) {
            return Ok(chain.clone());
        }
        let chain = Chain::from_pem(text)?;
        if text.len() <= LONGEST {
            let mut chains = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if chains.len() >= LIMIT {
                // Those in use come back with their next use.
                chains.clear();
            }
            chains.insert(text.to_owned(), chain.clone());
        }
        Ok(chain)
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
        known.0.lock().unwrap().insert("no certificate".to_owned(), chain);
        assert_eq!(known.parse("no certificate").unwrap().certificates().len(), 1);
        assert!(known.parse("no certificate ").unwrap().is_empty());
    }

    #[test]
    fn few_are_remembered_and_errors_are_not() {
        let known = KnownChains::default();
        assert!(known.parse("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
        assert!(known.0.lock().unwrap().is_empty());
        for number in 0..LIMIT * 2 {
            known.parse(&number.to_string()).unwrap();
        }
        assert!(known.0.lock().unwrap().len() <= LIMIT);
        known.0.lock().unwrap().clear();
        known.parse(&" ".repeat(LONGEST + 1)).unwrap();
        assert!(known.0.lock().unwrap().is_empty());
    }
}
