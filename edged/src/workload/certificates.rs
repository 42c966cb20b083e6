//! Certificates of modules: made for a new key each time, issued by the Edge CA, and given out with the key, which is kept nowhere.
//!
//! The certificate service stores each under an id that names the module, and for a server its generation. A module that names itself in ever
//! new ways is no means of filling the disk: of each module and kind the last one stays.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use aziot_certd_api::certificate::{CreateCertificate, DeleteCertificate};
use aziot_edged_api::workload::{IssuedCertificate, PrivateKey};
use aziot_http::Client;
use aziot_log::fields;
use aziot_pki::certificate::Chain;
use aziot_turns::Turns;
use jiff::{Timestamp, tz::Offset};
use lru::LruCache;
use tokio::sync::Semaphore;

use super::{
    Device, Error,
    request::{Request, Subject},
};
use crate::{edge_ca::EdgeCa, identities::container_name, places};

/// Last certificates that are remembered; a hub lets a device have fifty modules, which have two kinds.
const ROOM: NonZeroUsize = NonZeroUsize::new(1024).expect("is not 0");
/// Keys that are made at a time: each takes all of one processor for a good part of a second.
const MOST_KEYS: usize = 2;

/// Issues certificates.
pub(super) struct Certificates {
    certd: Client,
    edge_ca: Arc<EdgeCa>,
    device: Device,
    /// One at a time for each module, so that none keeps others from having theirs.
    turns: Turns,
    keys: Semaphore,
    requests: Semaphore,
    /// Ids under which certificates were asked for last, by container and kind.
    last: Mutex<LruCache<String, String>>,
}

impl Certificates {
    pub(super) fn new(certd: Client, edge_ca: Arc<EdgeCa>, device: Device) -> Self {
        let (keys, requests) = (Semaphore::new(MOST_KEYS), Semaphore::new(places::CERTIFICATES));
        let last = Mutex::new(LruCache::sparse(ROOM));
        Self { certd, edge_ca, device, turns: Turns::default(), keys, requests, last }
    }

    /// A certificate for a TLS server of the module, reached as `common_name`.
    pub(super) async fn server(
        &self,
        module_id: &str,
        generation_id: &str,
        common_name: &str,
    ) -> Result<IssuedCertificate, Error> {
        let subject = Subject::server(module_id, common_name)?;
        let name = container_name(module_id);
        let id = format!("aziot-edged/module/{name}:{generation_id}:server");
        let _turn = self.turns.take(name).await;
        self.issue(format!("{name}:server"), &id, subject).await
    }

    /// A certificate with which the module proves itself to TLS servers.
    pub(super) async fn identity(&self, module_id: &str) -> Result<IssuedCertificate, Error> {
        let subject = Subject::identity(module_id, &self.device)?;
        let name = container_name(module_id);
        let _turn = self.turns.take(name).await;
        self.issue(format!("{name}:identity"), &format!("aziot-edged/module/{module_id}:identity"), subject).await
    }

    /// `kind` is what the certificate is one of, of which only this one stays.
    async fn issue(&self, kind: String, id: &str, subject: Subject) -> Result<IssuedCertificate, Error> {
        let place = self.keys.acquire().await;
        let made = tokio::task::spawn_blocking(move || Request::new(&subject)).await;
        drop(place);
        let request = made.map_err(|_| Error::Stopping)?.map_err(Error::Request)?;
        let _place = self.requests.acquire().await;
        // Before the certificate service is asked: it may store what it does not get to tell about.
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).put(kind, id.to_owned());
        if let Some(last) = last.filter(|last| last != id) {
            self.discard(last).await;
        }
        let issuing = self.edge_ca.issuer().await.map_err(|error| Error::EdgeCa(error.into()))?;
        let call = CreateCertificate {
            cert_id: id.to_owned(),
            csr: request.text.clone(),
            issuer: Some(issuing.issuer.clone()),
        };
        let issued = self.certd.send(&call).await.map_err(|source| {
            if source.status().is_some_and(|status| status.is_server_error()) {
                self.edge_ca.doubt();
            }
            Error::Issue { id: id.to_owned(), source }
        })?;
        drop(issuing);
        examine(id, request, issued.pem)
    }

    /// Deletes a certificate that a newer one replaces; one that stays is no harm.
    async fn discard(&self, id: String) {
        if let Err(error) = self.certd.send(&DeleteCertificate { cert_id: id.clone() }).await {
            tracing::debug!(
                { fields::CERTIFICATE_ID } = id,
                { fields::ERROR } = %aziot_log::chain(&error),
                "could not delete an older certificate of the module"
            );
        }
    }
}

/// The certificate with its key, if it is one for the key of the request.
pub(super) fn examine(id: &str, request: Request, certificate: String) -> Result<IssuedCertificate, Error> {
    let unreadable = |source| Error::Certificate { id: id.to_owned(), source };
    let chain = Chain::from_pem(&certificate).map_err(unreadable)?;
    let is_ours = |chain: &Chain| chain.leaf()?.public_key().ok().map(|issued| issued.public_eq(&request.key));
    let validity = chain.validity().filter(|_| is_ours(&chain) == Some(true));
    let end = validity.and_then(|validity| Timestamp::from_second(validity.not_after).ok());
    let expiration = end.ok_or_else(|| Error::Useless(id.to_owned()))?.display_with_offset(Offset::UTC).to_string();
    tracing::info!(
        { fields::CERTIFICATE_ID } = id,
        { fields::NOT_AFTER } = expiration,
        "issued a certificate of a module"
    );
    let private_key = PrivateKey::Key { bytes: request.private_key };
    Ok(IssuedCertificate { private_key, certificate, expiration })
}
