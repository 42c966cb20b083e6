//! Certificates from EST servers (RFC 7030), and the identities that this service proves itself with to them.
//!
//! [`settings`] is what is configured, [`client`] talks to a server, [`identity`] is a TLS client identity that renews itself,
//! [`pair`] its certificate and key, [`enrolment`] leads a caller's request from the server to the store. Nothing here is needed to read a certificate.

mod answer;
pub(crate) mod client;
pub(crate) mod enrolment;
pub(crate) mod identity;
mod keys;
mod memory;
pub(crate) mod pair;
pub(crate) mod servers;
pub(crate) mod settings;
mod url;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use aziot_certd_api::config::{Issuance, KeyPair};
use aziot_http::Client;
use aziot_log::{chain, fields};
use aziot_pki::{
    renewal::{Credential, Engine, Generation},
    tls::Proxy,
};
use aziot_turns::Turns;

use crate::store::Store;
use identity::Identity;
use keys::Keys;
use memory::Memories;
use pair::Pair;
use servers::{Limits, Servers, TrustError};
use settings::{EstSettings, Missing, Target};

/// What EST needs besides the configuration; it stays the same while the service runs.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) keyd: Client,
    pub(crate) proxy: Option<Arc<Proxy>>,
    pub(crate) limits: Limits,
    /// Of those who store certificates.
    pub(crate) turns: Arc<Turns>,
    pub(crate) memories: Arc<Memories>,
}

impl Surroundings {
    pub(crate) fn new(keyd: Client, proxy: Option<Arc<Proxy>>, limits: Limits) -> Self {
        Self { keyd, proxy, limits, turns: Arc::default(), memories: Arc::default() }
    }
}

/// EST in one state of the configuration.
pub(crate) struct Plan {
    settings: EstSettings,
    pub(crate) servers: Arc<Servers>,
    /// By certificate and key.
    identities: BTreeMap<(String, String), Arc<Identity>>,
    generation: OnceLock<Generation>,
}

impl Plan {
    pub(crate) fn new(issuance: &Issuance, store: &Arc<Store>, surroundings: &Surroundings) -> Self {
        let settings = EstSettings::new(issuance);
        let (proxy, limits) = (surroundings.proxy.clone(), surroundings.limits);
        let servers = Arc::new(Servers::new(&settings, Arc::clone(store), proxy, limits));
        let identity = |settings: &settings::IdentitySettings| {
            let key = (settings.pair.cert.clone(), settings.pair.pk.clone());
            let files = (Arc::clone(store), Arc::clone(&surroundings.turns));
            let keys = Keys::new(surroundings.keyd.clone());
            let memory = surroundings.memories.of(&settings.pair);
            let pair = Pair::new(settings.pair.clone(), files, keys, memory, settings.key_conflict.is_none());
            (key, Arc::new(Identity::new(settings.clone(), pair, Arc::clone(&servers))))
        };
        let identities = settings.identities.iter().map(identity).collect();
        Self { settings, servers, identities, generation: OnceLock::new() }
    }

    /// Reads the certificates that servers are trusted by, if EST is configured at all.
    pub(crate) async fn prepare(&self) -> Result<(), TrustError> {
        if self.settings.is_used() { self.servers.prepare().await } else { Ok(()) }
    }

    pub(crate) fn target(&self, id: &str) -> Result<&Target, Missing> {
        self.settings.target(id)
    }

    pub(crate) fn identity(&self, pair: &KeyPair) -> Option<&Arc<Identity>> {
        self.identities.get(&(pair.cert.clone(), pair.pk.clone()))
    }

    /// For those who add an identity of this plan to the engine.
    pub(crate) fn generation(&self) -> Generation {
        self.generation.get().copied().unwrap_or_default()
    }

    /// Has the engine renew the identities that are there, and no others; `switch` puts the plan in force. Once for each plan.
    pub(crate) async fn look_after(&self, engine: &Engine, switch: impl FnOnce()) {
        let first = self.credentials().await;
        let name = |identity: &dyn Credential| (identity.certificate_id().to_owned(), identity.key_id().to_owned());
        let found: Vec<_> = first.iter().map(|identity| name(&**identity)).collect();
        let generation = *self.generation.get_or_init(|| engine.replace(first));
        switch();
        // One that was obtained under the old settings after this had looked for it is not among them.
        for identity in self.credentials().await {
            if !found.contains(&name(&*identity)) {
                engine.add(identity, generation);
            }
        }
    }

    /// The identities that are there, for renewal. Those that are not are obtained when something needs them.
    async fn credentials(&self) -> Vec<Arc<dyn Credential>> {
        let mut found: Vec<Arc<dyn Credential>> = Vec::new();
        for identity in self.identities.values() {
            match identity.is_begun().await {
                Ok(false) => {}
                Ok(true) => found.push(Arc::clone(identity) as _),
                Err(error) => {
                    // It is tried again, and shown among the renewals until it can be read.
                    let id = &identity.ids().cert;
                    tracing::warn!({ fields::CERTIFICATE_ID } = id, "{}", chain(&error));
                    found.push(Arc::clone(identity) as _);
                }
            }
        }
        found
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Plan").field("settings", &self.settings).finish_non_exhaustive()
    }
}
