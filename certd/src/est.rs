//! Certificates from EST servers (RFC 7030), and the identities that this service proves itself with to them.
//!
//! [`settings`] is what is configured, [`client`] talks to a server, [`identity`] is a TLS client identity that renews itself,
//! [`pair`] its certificate and key, [`enrolment`] leads a caller's request from the server to the store. Nothing here is needed to read a certificate.

mod answer;
pub(crate) mod client;
pub(crate) mod enrolment;
pub(crate) mod identity;
mod keys;
mod pair;
pub(crate) mod servers;
pub(crate) mod settings;
mod url;

use std::{collections::BTreeMap, sync::Arc};

use aziot_certd_api::config::{Issuance, KeyPair};
use aziot_http::Client;
use aziot_log::{chain, fields};
use aziot_pki::{renewal::Credential, tls::Proxy};

use crate::store::Store;
use identity::Identity;
use keys::Keys;
use pair::Pair;
use servers::{Limits, Servers, TrustError};
use settings::{EstSettings, Missing, Target};

/// What EST needs besides the configuration; it stays the same while the service runs.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) keyd: Client,
    pub(crate) proxy: Option<Arc<Proxy>>,
    pub(crate) limits: Limits,
}

/// EST in one state of the configuration.
pub(crate) struct Plan {
    settings: EstSettings,
    pub(crate) servers: Arc<Servers>,
    /// By certificate and key.
    identities: BTreeMap<(String, String), Arc<Identity>>,
}

impl Plan {
    pub(crate) fn new(issuance: &Issuance, store: &Arc<Store>, surroundings: &Surroundings) -> Self {
        let settings = EstSettings::new(issuance);
        let (proxy, limits) = (surroundings.proxy.clone(), surroundings.limits);
        let servers = Arc::new(Servers::new(&settings, Arc::clone(store), proxy, limits));
        let identity = |settings: &settings::IdentitySettings| {
            let key = (settings.pair.cert.clone(), settings.pair.pk.clone());
            let pair = Pair::new(settings.pair.clone(), Arc::clone(store), Keys::new(surroundings.keyd.clone()));
            (key, Arc::new(Identity::new(settings.clone(), pair, Arc::clone(&servers))))
        };
        let identities = settings.identities.iter().map(identity).collect();
        Self { settings, servers, identities }
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

    /// The identities that are there, for renewal. Those that are not are obtained when something needs them.
    pub(crate) async fn credentials(&self) -> Vec<Arc<dyn Credential>> {
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
