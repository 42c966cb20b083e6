//! A certificate with its key as all see it who use the two: what is shown of it, and who may register with it or replace it.
//!
//! Settings that differ in what is done with the pair share it: while new ones come into force, those of before are in use.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use aziot_identityd_cloud::Exchange;
use aziot_pki::certificate::Validity;
use tokio::sync::{Mutex, watch};

use crate::settings::CertificateSettings;

/// What is common to all uses of a certificate with its key.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) present: watch::Sender<Present>,
    /// Held while the certificate is read and a pool made of it.
    pub(super) building: Mutex<()>,
    /// Held while somebody registers with the certificate, or replaces it: DPS must know the one that is shown afterwards. Whoever holds the
    /// pair in the engine may wait for this, and never the other way round.
    pub(super) registration: Mutex<()>,
}

/// What is so at a moment.
#[derive(Clone, Default)]
pub(super) struct Present {
    /// Counts the certificates.
    pub(super) generation: u64,
    pub(super) is_being_replaced: bool,
    /// The present certificate, once somebody needed it.
    pub(super) shown: Option<Arc<Shown>>,
}

/// A certificate as it is shown.
pub(crate) struct Shown {
    pub(super) generation: u64,
    /// Connections that show it.
    pub(crate) exchange: Arc<dyn Exchange>,
    pub(super) fingerprint: [u8; 32],
    pub(super) validity: Validity,
    /// Whom it names; absent if it has no common name.
    pub(crate) common_name: Option<String>,
}

/// A replacement under way.
pub(super) struct Replacing<'a>(&'a Pair);

impl Drop for Replacing<'_> {
    fn drop(&mut self) {
        self.0.present.send_modify(|present| present.is_being_replaced = false);
    }
}

impl Pair {
    /// Until the result is dropped, requests that are refused wait for what comes.
    pub(super) fn begin_replacement(&self) -> Replacing<'_> {
        self.present.send_modify(|present| present.is_being_replaced = true);
        Replacing(self)
    }

    /// Another certificate is stored, or another key: the next request shows it.
    pub(super) fn outdate(&self) {
        self.present.send_modify(|present| {
            present.generation += 1;
            present.shown = None;
        });
    }
}

/// All pairs that somebody uses.
#[derive(Default)]
pub(super) struct Pairs(HashMap<(String, String), Weak<Pair>>);

impl Pairs {
    /// The pair of these settings.
    pub(super) fn of(&mut self, settings: &CertificateSettings) -> Arc<Pair> {
        self.0.retain(|_, pair| pair.strong_count() > 0);
        let place = self.0.entry((settings.certificate_id.clone(), settings.key_id.clone())).or_default();
        place.upgrade().unwrap_or_else(|| {
            let pair = Arc::default();
            *place = Arc::downgrade(&pair);
            pair
        })
    }
}
