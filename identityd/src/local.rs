//! Local identities: a certificate for a name of the local network, and its private key, for programs that ask for them.
//!
//! The key is made here and leaves with the answer; the certificate service issues, under an id that is the module's name, and keeps only the
//! certificate. An identity is given out again, to the same user only, until its certificate comes near its end, for as long as this process
//! lives. What an issuer did not finish in time is asked for again with the same key, since it may be working on it. Who may have which identity
//! is not decided here.

mod request;

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_certd_api::certificate::{CreateCertificate, GetCertificate};
use aziot_http::{Client, ClientError};
use aziot_identityd_api::{
    config::CertificateUse,
    identity::{LocalAuthentication, LocalIdentity, Pem},
};
use aziot_log::fields;
use aziot_pki::certificate::{Chain, ChainError, Validity};
use jiff::{Timestamp, tz::Offset};
use lru::LruCache;
use openssl::error::ErrorStack;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use request::{Request, Subject};

use crate::{blocking, error, flight::Flight};

/// Identities that are kept, finished or not, about 5 KiB each. A device has a few; a daemon may ask for any number.
const ROOM: NonZeroUsize = NonZeroUsize::new(128).expect("is not 0");
/// Identities that are issued at once, whether or not somebody still waits for them; each may take as long as the patience of the certificate
/// service, which works on ten requests of one user at a time: the device's own certificate finds room.
const MOST_AT_ONCE: usize = 8;
/// How long a failure answers those who ask again.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// How long an identity is given out whose certificate comes near its end, or past it: the clock here or there is wrong, and the next would be no
/// better.
const KEPT_AT_LEAST: Duration = Duration::from_secs(60);
/// The part of a certificate's life at whose beginning another one is issued: a fifth, as certificates are renewed by default.
const LAST_PART: i64 = 5;

/// Why an identity was not issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// OpenSSL failed, which is mostly a lack of memory.
    #[error("could not make a key and a certificate request")]
    Request(#[source] ErrorStack),
    /// The certificate service could not be reached, or refused.
    #[error("could not have the certificate {certificate_id} issued")]
    Issue {
        /// Its id.
        certificate_id: String,
        /// What the service said.
        source: ClientError,
    },
    /// The certificate service gave something else.
    #[error("the certificate {certificate_id} that was issued cannot be read")]
    Certificate {
        /// Its id.
        certificate_id: String,
        /// What is wrong with it.
        source: ChainError,
    },
    /// The certificate is of no use.
    #[error("the certificate {0} that was issued is for another key, or has no dates")]
    Useless(String),
}

/// A name that no certificate can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {name:?} has control characters, or is longer than 64 characters and no DNS name")]
pub(crate) struct NoName {
    name: String,
}

/// An identity that somebody wants to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    module_id: String,
    subject: Subject,
    purpose: CertificateUse,
    /// Who gets the private key. Nobody else ever does.
    caller: u32,
}

impl Wanted {
    /// An identity for `module_id` on this host, for the user `caller`.
    pub(crate) fn new(
        module_id: &str,
        hostname: &str,
        domain: &str,
        purpose: CertificateUse,
        caller: u32,
    ) -> Result<Self, NoName> {
        let name = format!("{module_id}.{hostname}.{domain}");
        let subject = Subject::new(&name).ok_or(NoName { name })?;
        Ok(Self { module_id: module_id.to_owned(), subject, purpose, caller })
    }
}

type Outcome = Result<LocalIdentity, Arc<Error>>;

/// What there is of an identity that was asked for.
enum Kept {
    UnderWay(Flight<Outcome>),
    Failed {
        error: Arc<Error>,
        until: Instant,
        /// What the issuer may still be working on.
        request: Option<Arc<Request>>,
    },
    Issued {
        identity: LocalIdentity,
        validity: Validity,
        /// Given out until then in any case.
        until: Instant,
    },
}

/// What a look at what is kept has found.
enum Found {
    Outcome(Outcome),
    UnderWay(Flight<Outcome>),
    Nothing,
}

/// The local identities that this device has given out.
pub(crate) struct LocalIdentities(Arc<Issuance>);

struct Issuance {
    certificates: Client,
    kept: Mutex<LruCache<Wanted, Kept>>,
    places: Arc<Semaphore>,
}

impl LocalIdentities {
    /// Identities with certificates of the service that `certificates` calls.
    #[must_use]
    pub(crate) fn new(certificates: Client) -> Self {
        let (kept, places) = (Mutex::new(LruCache::sparse(ROOM)), Arc::new(Semaphore::new(MOST_AT_ONCE)));
        Self(Arc::new(Issuance { certificates, kept, places }))
    }

    /// The identity that was issued before, or a new one.
    pub(crate) async fn identity(&self, wanted: Wanted) -> Result<LocalIdentity, error::Error> {
        let Self(issuance) = self;
        let mut place = None;
        let outcome = loop {
            match issuance.look(&wanted, &mut place) {
                Found::Outcome(outcome) => break outcome,
                Found::UnderWay(flight) => break flight.outcome().await.ok_or(error::Error::Stopping)?,
                Found::Nothing => {
                    let free = Arc::clone(&issuance.places).acquire_owned().await;
                    place = Some(free.map_err(|_| error::Error::Stopping)?);
                }
            }
        };
        outcome.map_err(error::Error::LocalIdentity)
    }
}

impl Issuance {
    fn kept(&self) -> MutexGuard<'_, LruCache<Wanted, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is. Where there is nothing, and the caller has a place, the issuance begins.
    fn look(self: &Arc<Self>, wanted: &Wanted, place: &mut Option<OwnedSemaphorePermit>) -> Found {
        let mut kept = self.kept();
        match kept.get(wanted) {
            Some(Kept::UnderWay(flight)) if !flight.is_over() => return Found::UnderWay(flight.clone()),
            Some(Kept::Failed { error, until, .. }) if Instant::now() < *until => {
                return Found::Outcome(Err(Arc::clone(error)));
            }
            Some(Kept::Issued { identity, validity, until })
                if !is_near_end(*validity, unix_seconds()) || Instant::now() < *until =>
            {
                return Found::Outcome(Ok(identity.clone()));
            }
            _ => {}
        }
        let Some(place) = place.take() else { return Found::Nothing };
        // A key that was given out is wiped here.
        let request = match kept.pop(wanted) {
            Some(Kept::Failed { request, .. }) => request,
            _ => None,
        };
        let (issuance, name) = (Arc::clone(self), wanted.clone());
        let flight = Flight::begin(async move {
            let _place = place;
            issuance.issue(name, request).await
        });
        kept.put(wanted.clone(), Kept::UnderWay(flight.clone()));
        Found::UnderWay(flight)
    }

    /// Issues an identity, on the request of the last time if there is one, and keeps what comes of it.
    async fn issue(&self, wanted: Wanted, begun: Option<Arc<Request>>) -> Outcome {
        let request = match &begun {
            Some(request) => Ok(Arc::clone(request)),
            None => make(&wanted).await,
        };
        let issued = match &request {
            Ok(request) => self.certificate(&wanted, request, begun.is_some()).await,
            Err(error) => Err(Arc::clone(error)),
        };
        let (outcome, kept) = match issued {
            Ok((identity, validity)) => {
                let until = Instant::now() + least(validity, unix_seconds());
                (Ok(identity.clone()), Kept::Issued { identity, validity, until })
            }
            Err(error) => {
                let request = request.ok().filter(|_| matches!(*error, Error::Issue { .. }));
                let until = Instant::now() + FAILED_FOR;
                (Err(Arc::clone(&error)), Kept::Failed { error, until, request })
            }
        };
        self.kept().put(wanted, kept);
        outcome
    }

    /// The identity with the certificate on this request. If that was sent before, its certificate may have come when nobody waited for it.
    async fn certificate(
        &self,
        wanted: &Wanted,
        request: &Request,
        was_sent: bool,
    ) -> Result<(LocalIdentity, Validity), Arc<Error>> {
        let certificate_id = || wanted.module_id.clone();
        if was_sent
            && let Ok(stored) = self.certificates.send(&GetCertificate { cert_id: certificate_id() }).await
            && let Ok(identity) = examine(wanted, request, stored.pem)
        {
            return Ok(identity);
        }
        let create = CreateCertificate { cert_id: certificate_id(), csr: request.text.clone(), issuer: None };
        let issued = self.certificates.send(&create).await;
        let issued = issued.map_err(|source| Error::Issue { certificate_id: certificate_id(), source })?;
        Ok(examine(wanted, request, issued.pem)?)
    }
}

/// A new key, and a request for its certificate.
async fn make(wanted: &Wanted) -> Result<Arc<Request>, Arc<Error>> {
    let Wanted { module_id, subject, purpose, .. } = wanted;
    if let Some(name) = subject.alternative() {
        tracing::warn!(
            { fields::CERTIFICATE_ID } = module_id,
            "the name {name} is too long for a common name: it is asked for as a DNS name, and its beginning as the common name"
        );
    }
    let (subject, purpose) = (subject.clone(), *purpose);
    let made = blocking::run(move || Request::new(&subject, purpose)).await;
    Ok(Arc::new(made.map_err(Error::Request)?))
}

/// The identity with this certificate, if it is one for the key of the request.
fn examine(wanted: &Wanted, request: &Request, certificate: String) -> Result<(LocalIdentity, Validity), Error> {
    let Wanted { module_id, .. } = wanted;
    let certificate_id = || module_id.clone();
    let chain = Chain::from_pem(&certificate);
    let chain = chain.map_err(|source| Error::Certificate { certificate_id: certificate_id(), source })?;
    let is_ours = |chain: &Chain| chain.leaf()?.public_key().ok().map(|issued| issued.public_eq(&request.key));
    let validity = chain.validity().filter(|_| is_ours(&chain) == Some(true));
    let expiration = |validity: Validity| Some((validity, Timestamp::from_second(validity.not_after).ok()?));
    let (validity, end) = validity.and_then(expiration).ok_or_else(|| Error::Useless(certificate_id()))?;
    let expiration = end.display_with_offset(Offset::UTC).to_string();
    tracing::info!(
        { fields::CERTIFICATE_ID } = module_id,
        { fields::NOT_AFTER } = expiration,
        "issued a local identity"
    );
    let auth = LocalAuthentication { private_key: Pem(request.private_key.clone()), certificate, expiration };
    Ok((LocalIdentity { module_id: certificate_id(), auth }, validity))
}

fn is_near_end(validity: Validity, now: i64) -> bool {
    let Validity { not_before, not_after } = validity;
    validity.is_over(now) || not_after.saturating_sub(now) < not_after.saturating_sub(not_before) / LAST_PART
}

/// How long a new certificate is given out though it is near its end; one that has not ended goes with its end.
fn least(validity: Validity, now: i64) -> Duration {
    if !is_near_end(validity, now) {
        return Duration::ZERO;
    }
    match u64::try_from(validity.not_after.saturating_sub(now)) {
        Ok(rest @ 1..) => KEPT_AT_LEAST.min(Duration::from_secs(rest)),
        _ => KEPT_AT_LEAST,
    }
}

fn unix_seconds() -> i64 {
    Timestamp::now().as_second()
}

#[cfg(test)]
mod tests;
