//! What all EST servers have in common: who vouches for them, the proxy, the time they get, and the CA certificates they once sent.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aziot_log::chain;
use aziot_pki::{
    certificate::{Chain, ChainError},
    tls::{self, ClientIdentity, Proxy, RootCertStore, TlsError, Trust},
};
use openssl::x509::X509;
use tokio::sync::OnceCell;

use super::{
    client::Client,
    settings::{Access, EstSettings},
    url::ServerUrl,
};
use crate::store::{self, Store};

/// How long servers are waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Name look-up, TCP, proxy and TLS together.
    pub(crate) connect: Duration,
    /// The CA certificates, which are wanted but not always needed.
    pub(crate) authorities: Duration,
    /// One enrolment with all its requests.
    pub(crate) exchange: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            authorities: Duration::from_secs(12),
            exchange: Duration::from_secs(60),
        }
    }
}

/// Why it is not known which servers to trust.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// A trusted certificate is not there.
    #[error("the certificate {id:?} in trusted_certs of [cert_issuance.est] does not exist")]
    Absent { id: String },
    /// Its file cannot be read.
    #[error("could not read the certificate {id:?} in trusted_certs of [cert_issuance.est]")]
    Unreadable { id: String, source: store::Error },
    /// It is broken.
    #[error("the certificate {id:?} in trusted_certs of [cert_issuance.est] is unusable")]
    Malformed { id: String, source: ChainError },
    /// Nobody is trusted, or TLS cannot be used at all.
    #[error("could not set up TLS for EST servers")]
    Tls(#[source] TlsError),
}

/// All EST servers of one state of the configuration.
pub(crate) struct Servers {
    trusted_certs: Vec<String>,
    only_trusted_certs: bool,
    store: Arc<Store>,
    proxy: Option<Arc<Proxy>>,
    limits: Limits,
    /// Read once, when it is first needed and complete.
    trust: OnceCell<Trust>,
    /// By base URL; there are as many as are configured.
    authorities: Mutex<HashMap<String, Vec<X509>>>,
}

impl Servers {
    pub(crate) fn new(settings: &EstSettings, store: Arc<Store>, proxy: Option<Arc<Proxy>>, limits: Limits) -> Self {
        Self {
            trusted_certs: settings.trusted_certs.clone(),
            only_trusted_certs: settings.only_trusted_certs,
            store,
            proxy,
            limits,
            trust: OnceCell::new(),
            authorities: Mutex::default(),
        }
    }

    /// Reads the trusted certificates unless that has succeeded before.
    pub(crate) async fn prepare(&self) -> Result<(), TrustError> {
        self.trust.get_or_try_init(|| self.read_trust()).await.map(|_| ())
    }

    async fn read_trust(&self) -> Result<Trust, TrustError> {
        let mut own = Vec::new();
        for id in &self.trusted_certs {
            own.extend_from_slice(self.trusted(id).await?.certificates());
        }
        let own = Chain::from(own);
        if self.only_trusted_certs {
            return Ok(Trust::only(&own));
        }
        let roots = tokio::task::spawn_blocking(tls::system_roots).await;
        let roots = roots.unwrap_or_else(|_| Err(TlsError::NoRoots { source: None }));
        match roots {
            Ok(roots) if own.is_empty() => Ok(Trust::system(roots)),
            Ok(roots) => Ok(Trust::system_and(roots, &own)),
            Err(error) if !own.is_empty() => {
                tracing::warn!("{}; EST servers are trusted by trusted_certs alone", chain(&error));
                Ok(Trust::only(&own))
            }
            Err(error) => Err(TrustError::Tls(error)),
        }
    }

    async fn trusted(&self, id: &str) -> Result<Chain, TrustError> {
        let wanted = id.to_owned();
        let text = self.store.run(move |store| store.read(&wanted)).await;
        let text = text.map_err(|source| TrustError::Unreadable { id: id.to_owned(), source })?;
        let text = text.ok_or_else(|| TrustError::Absent { id: id.to_owned() })?;
        let chain = Chain::from_pem(&text).map_err(|source| TrustError::Malformed { id: id.to_owned(), source })?;
        if chain.is_empty() {
            tracing::warn!("the certificate {id:?} in trusted_certs of [cert_issuance.est] holds no certificate");
        }
        Ok(chain)
    }

    /// A client of one server, for one enrolment.
    pub(crate) async fn client<'s>(
        &'s self,
        access: &'s Access,
        identity: Option<Arc<ClientIdentity>>,
    ) -> Result<Client<'s>, TrustError> {
        let nobody = Trust::system(Arc::new(RootCertStore::empty()));
        // A proxy on the way may want TLS.
        let needs_nobody = access.url.is_clear() && self.proxy.is_none();
        let trust = if needs_nobody { &nobody } else { self.trust.get_or_try_init(|| self.read_trust()).await? };
        let tls = match identity {
            Some(identity) => tls::client_config(trust, Some(identity)),
            None => tls::client_config(trust, None),
        };
        let tls = tls.map_err(TrustError::Tls)?;
        Ok(Client::new(self, access, tls, self.proxy.clone(), self.limits))
    }

    /// The CA certificates that the server sent last.
    pub(super) fn known_authorities(&self, url: &ServerUrl) -> Option<Vec<X509>> {
        self.authorities.lock().unwrap_or_else(PoisonError::into_inner).get(&url.to_string()).cloned()
    }

    pub(super) fn remember_authorities(&self, url: &ServerUrl, authorities: &[X509]) {
        let mut known = self.authorities.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(url.to_string(), authorities.to_owned());
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Servers").field("trusted_certs", &self.trusted_certs).finish_non_exhaustive()
    }
}
