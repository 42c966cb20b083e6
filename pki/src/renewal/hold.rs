//! Using a certificate and its key while they stay as they are.

use std::sync::Arc;

use tokio::sync::OwnedRwLockReadGuard;

use super::{
    Engine, Failure,
    attempt::{LOOKS, Occasion, Refused, limited},
    engine::Shared,
    entry::{Check, Entry, Known},
};
use crate::certificate::Chain;

/// A certificate whose key is neither moved nor replaced until this is dropped.
///
/// Keep it for one exchange with a server, not longer: a renewal waits for it, and others who come then wait for the renewal.
#[derive(Debug)]
pub struct Held {
    chain: Chain,
    _pair: OwnedRwLockReadGuard<()>,
}

impl Held {
    /// The certificate, the leaf first.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// Why there is no certificate to use.
#[derive(Debug, thiserror::Error)]
pub enum NotAvailable {
    /// The engine has no such credential.
    #[error("no certificate {certificate_id} with the key {key_id} is kept renewed")]
    Unknown {
        /// Name of the certificate.
        certificate_id: String,
        /// Name of the key.
        key_id: String,
    },
    /// It could not be read, which says nothing about whether it is good; if fatal, it is absent or broken.
    #[error("could not read the certificate {certificate_id}")]
    Unreadable {
        /// Name of the certificate.
        certificate_id: String,
        /// What the credential said.
        source: Failure,
    },
    /// It is over, or its key is another's, and it could not be renewed; or whether that is so could not be found out.
    #[error("the certificate {certificate_id} is of no use and was not renewed")]
    Unusable {
        /// Name of the certificate.
        certificate_id: String,
        /// Why the last attempt failed.
        source: Option<Arc<Failure>>,
    },
    /// Somebody uses or replaces it for longer than one waits.
    #[error("the certificate {certificate_id} is in use")]
    Busy {
        /// Name of the certificate.
        certificate_id: String,
        /// What one waited for.
        source: Failure,
    },
}

/// What one finds.
enum Look {
    /// It is good.
    Good(Held),
    /// It is good, and time to renew it.
    Due(Held),
    /// It is of no use as it is.
    Useless,
}

impl Engine {
    /// The certificate of a credential, which stays with its key until the result is dropped.
    ///
    /// One that is due is renewed first, unless that has just failed or is being done; one that is of no use, always, but for
    /// the minutes for which its server has asked to be left alone. A credential must not hold itself.
    pub async fn hold(&self, certificate_id: &str, key_id: &str) -> Result<Held, NotAvailable> {
        let unknown = || NotAvailable::Unknown { certificate_id: certificate_id.to_owned(), key_id: key_id.to_owned() };
        let entry = self.shared.find(certificate_id, key_id).ok_or_else(unknown)?;
        match self.shared.look(&entry).await? {
            Look::Good(held) => return Ok(held),
            // Somebody is at it, and the old one will do.
            Look::Due(held) if entry.locks.attempt.try_lock().is_err() => return Ok(held),
            Look::Due(_) | Look::Useless => {}
        }
        let mut looks = 0;
        loop {
            self.shared.tend_for_use(&entry).await;
            if let Look::Good(held) | Look::Due(held) = self.shared.look(&entry).await? {
                return Ok(held);
            }
            looks += 1;
            // Without a failure it has been replaced from outside since.
            let failure = entry.state().last_failure.clone();
            if failure.is_some() || looks == LOOKS {
                let source = failure.or_else(|| Some(Arc::new(Failure::retryable(Refused::Restless))));
                return Err(NotAvailable::Unusable { certificate_id: certificate_id.to_owned(), source });
            }
        }
    }
}

impl Shared {
    async fn look(&self, entry: &Entry) -> Result<Look, NotAvailable> {
        let unreadable = |source| NotAvailable::Unreadable { certificate_id: entry.certificate_id.clone(), source };
        let pair = async { Ok(Arc::clone(&entry.locks.pair).read_owned().await) };
        let pair = limited("waiting for the replacement of the certificate", pair).await.map_err(unreadable)?;
        let credential = {
            let state = entry.state();
            if state.check == Check::Pair || state.mismatched {
                return Ok(Look::Useless);
            }
            Arc::clone(&state.credential)
        };
        let chain = limited("reading the certificate", credential.current()).await.map_err(unreadable)?;
        let stored = Known::of(&chain).map_err(Failure::fatal).map_err(unreadable)?;
        if entry.state().known != Some(stored) {
            self.take_imported(entry, stored);
            return Ok(Look::Useless);
        }
        let now = self.now();
        if stored.validity.is_over(now) {
            return Ok(Look::Useless);
        }
        let is_due = entry.state().next_attempt(now) <= now;
        let held = Held { chain, _pair: pair };
        Ok(if is_due { Look::Due(held) } else { Look::Good(held) })
    }

    /// Tends the credential, or waits for somebody who does.
    async fn tend_for_use(&self, entry: &Entry) {
        let attempts = entry.state().attempts;
        let turn = async { Ok(entry.locks.attempt.lock().await) };
        // The limit shows in the state that is found afterwards.
        let Ok(_turn) = limited("waiting for the renewal", turn).await else { return };
        // What has failed a moment ago fails again, and others wait as well.
        if entry.state().attempts == attempts {
            self.tend(entry, Occasion::Need).await;
        }
        entry.wake.notify_one();
    }
}
