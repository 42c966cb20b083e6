//! A credential whose certificate certd issues and whose key is in keyd: the identity of the device, and the CA of edged.
//!
//! Certificate and key are in two places, and no step changes both. The certificate is replaced first, then the key moves
//! from its temporary name. Between the two the new key is there, under the one name or the other, so that a crash at any
//! step leaves enough to tell what is missing: a certificate that belongs to the temporary key wants that key moved.
//!
//! certd keeps a note of the next certificate beside its own EST identities and moves the key first, so that a refused move
//! never costs the old certificate, which is what it would renew with. Through its API nobody can leave such a note, and
//! without one a key that is moved first takes the new certificate with it in a crash. Here a crash just before a move that
//! is then refused does cost the old certificate; the repair says that the pair is broken, and certd issues another one for
//! the old key, for which it needs no proof by the lost one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use aziot_certd_api::{
    certificate::{CreateCertificate, DeleteCertificate, GetCertificate, ImportCertificate},
    renewal::AutoRenew,
};
use aziot_http::{Client, ClientError};
use aziot_keyd_api::key_pair::{CreateKeyPair, DeleteKeyPair, LoadKeyPair, MoveKeyPair};
use aziot_log::fields;
use der::Decode as _;
use openssl::{
    pkey::{PKey, Public},
    x509::X509Ref,
};
use x509_cert::{ext::Extension, name::Name};

use super::{BoxError, Credential, Doing, Failure, Renewed};
use crate::{
    certificate::{Chain, ChainError},
    key::{self, KeyError, RemoteKey},
    request::{self, CreateError},
};

/// Keyd's statuses for a caller who may not use a key, and for a preloaded key that nobody may replace.
const REFUSALS: [u16; 2] = [401, 403];

/// What is renewed, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the certificate; with `-temp` behind it also that of the request's.
    pub certificate_id: String,
    /// Name of its key pair; with `-temp` behind it also that of a new one.
    pub key_id: String,
    /// When it is renewed, and whether with a new key.
    pub policy: AutoRenew,
    /// Whom the request names; absent: whom the old certificate names.
    pub subject: Option<Name>,
    /// What the request asks for.
    pub extensions: Vec<Extension>,
    /// Algorithms of a new key by preference, as keyd has them: `rsa-2048:*`.
    pub preferred_algorithms: String,
}

/// The caller's part in a renewal.
pub trait Observer: Send + Sync {
    /// Called with a new certificate that nobody has stored yet, and with the temporary id of its key. A failure ends the
    /// renewal and leaves the old certificate.
    fn before_commit<'a>(&'a self, new: &'a Renewed) -> Doing<'a, ()> {
        let _ = new;
        Box::pin(async { Ok(()) })
    }

    /// Called when a new certificate and its key have taken the place of the old ones.
    fn committed(&self, new: &Chain) {
        let _ = new;
    }
}

struct Nobody;

impl Observer for Nobody {}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is no certificate {0}")]
    Absent(String),
    #[error("the certificate {0} is empty")]
    Empty(String),
    #[error("the certificate {id} is broken")]
    Broken { id: String, source: BoxError },
    #[error("could not {action} the certificate {id}")]
    Certificate { action: &'static str, id: String, source: ClientError },
    #[error("could not {action} the key pair {id}")]
    Key { action: &'static str, id: String, source: ClientError },
    #[error("could not read the key pair {id}")]
    Unreadable { id: String, source: KeyError },
    #[error("could not request a certificate for the key pair {id}")]
    Request { id: String, source: CreateError },
    #[error("the certificate {0} that was issued is for another key")]
    ForeignKey(String),
    #[error("the certificate {certificate_id} does not belong to the key pair {key_id}")]
    Mismatched { certificate_id: String, key_id: String },
}

impl Error {
    /// Whether keyd forbids it, which time does not change.
    fn is_refusal(&self) -> bool {
        let Self::Key { source, .. } = self else { return false };
        source.status().is_some_and(|status| REFUSALS.contains(&status.as_u16()))
    }

    /// Whether it is not known what has become of the call.
    fn is_uncertain(&self) -> bool {
        matches!(
            self,
            Self::Key {
                source: ClientError::Interrupted { .. } | ClientError::TimedOut { .. } | ClientError::Malformed { .. },
                ..
            }
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Absent(_) | Error::Empty(_) | Error::Broken { .. } | Error::Mismatched { .. } => Self::fatal(error),
            _ => Self::retryable(error),
        }
    }
}

/// A certificate of certd with its key pair in keyd.
pub struct Issued {
    certd: Client,
    keyd: Client,
    settings: Settings,
    observer: Arc<dyn Observer>,
    /// Keyd does not let this process make or move the temporary key: the old key is kept.
    no_rotation: AtomicBool,
}

impl Issued {
    /// Nothing is asked of either service yet.
    #[must_use]
    pub fn new(certd: Client, keyd: Client, settings: Settings) -> Self {
        Self { certd, keyd, settings, observer: Arc::new(Nobody), no_rotation: AtomicBool::new(false) }
    }

    /// With somebody who takes part in each renewal.
    #[must_use]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer, ..self }
    }

    fn temporary_key(&self) -> String {
        key::next_id(&self.settings.key_id)
    }

    async fn read(&self) -> Result<Chain, Error> {
        let id = self.settings.certificate_id.clone();
        let answer = self.certd.send(&GetCertificate { cert_id: id.clone() }).await;
        let pem = match answer {
            Ok(certificate) => certificate.pem,
            Err(error) if aziot_certd_api::is_absent(&error) => return Err(Error::Absent(id)),
            Err(source) => return Err(Error::Certificate { action: "read", id, source }),
        };
        let chain = Chain::from_pem(&pem).map_err(|source| Error::Broken { id: id.clone(), source: source.into() })?;
        if chain.is_empty() { Err(Error::Empty(id)) } else { Ok(chain) }
    }

    async fn store(&self, chain: &Chain) -> Result<(), Error> {
        let cert_id = self.settings.certificate_id.clone();
        let broken = |source: ChainError| Error::Broken { id: cert_id.clone(), source: source.into() };
        let pem = chain.to_pem().map_err(broken)?;
        let call = ImportCertificate { cert_id: cert_id.clone(), pem };
        let stored = self.certd.send(&call).await;
        stored.map(drop).map_err(|source| Error::Certificate { action: "store", id: cert_id, source })
    }

    /// `None`: there is no such pair.
    async fn load(&self, key_id: &str) -> Result<Option<RemoteKey>, Error> {
        let handle = match self.keyd.send(&LoadKeyPair { key_id: key_id.to_owned() }).await {
            Ok(answer) => answer.key_handle,
            Err(error) if aziot_keyd_api::is_absent(&error) => return Ok(None),
            Err(source) => return Err(Error::Key { action: "load", id: key_id.to_owned(), source }),
        };
        let unreadable = |source| Error::Unreadable { id: key_id.to_owned(), source };
        Ok(Some(RemoteKey::load(&self.keyd, handle).await.map_err(unreadable)?))
    }

    async fn is_key_of(&self, key_id: &str, leaf: &PKey<Public>) -> Result<bool, Error> {
        Ok(self.load(key_id).await?.is_some_and(|key| key.public_key().public_eq(leaf)))
    }

    async fn discard(&self, key_id: &str) -> Result<(), Error> {
        let failed = |source| Error::Key { action: "delete", id: key_id.to_owned(), source };
        match self.keyd.send(&LoadKeyPair { key_id: key_id.to_owned() }).await {
            Ok(answer) => {
                self.keyd.send(&DeleteKeyPair { key_handle: answer.key_handle }).await.map_err(failed)?;
                Ok(())
            }
            Err(error) if aziot_keyd_api::is_absent(&error) => Ok(()),
            Err(source) => Err(failed(source)),
        }
    }

    /// Deletes the temporary key where that is tidy but no more.
    async fn tidy(&self) {
        if let Err(error) = self.discard(&self.temporary_key()).await {
            tracing::debug!({ fields::ERROR } = %aziot_log::chain(&error), "a temporary key may be left behind");
        }
    }

    async fn new_key(&self) -> Result<RemoteKey, Error> {
        let key_id = self.temporary_key();
        // Keyd gives an existing pair for a new one.
        self.discard(&key_id).await?;
        let preferred_algorithms = Some(self.settings.preferred_algorithms.clone());
        let call = CreateKeyPair { key_id: key_id.clone(), preferred_algorithms };
        let answer = self.keyd.send(&call).await;
        let handle = answer.map_err(|source| Error::Key { action: "create", id: key_id.clone(), source })?.key_handle;
        RemoteKey::load(&self.keyd, handle).await.map_err(|source| Error::Unreadable { id: key_id, source })
    }

    /// The temporary key takes the place of the old one.
    async fn move_key(&self) -> Result<(), Error> {
        let call = MoveKeyPair { key_id: self.settings.key_id.clone(), from: self.temporary_key() };
        let moved = self.keyd.send(&call).await;
        moved.map_err(|source| Error::Key { action: "move", id: self.temporary_key(), source }).inspect_err(|error| {
            if error.is_refusal() {
                self.keep_key(error);
            }
        })
    }

    /// Says once why the key stays as it is.
    fn keep_key(&self, error: &Error) {
        if !self.no_rotation.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                { fields::KEY_ID } = self.settings.key_id,
                { fields::ERROR } = %aziot_log::chain(error),
                "keyd refuses a new key; the certificate is renewed for the old one"
            );
        }
    }

    fn rotates(&self) -> bool {
        self.settings.policy.rotate_key && !self.no_rotation.load(Ordering::Relaxed)
    }

    async fn key_for_renewal(&self) -> Result<(RemoteKey, String), Error> {
        if self.rotates() {
            match self.new_key().await {
                Ok(key) => return Ok((key, self.temporary_key())),
                Err(error) if error.is_refusal() => self.keep_key(&error),
                Err(error) => return Err(error),
            }
        }
        let key_id = self.settings.key_id.clone();
        let mismatched =
            || Error::Mismatched { certificate_id: self.settings.certificate_id.clone(), key_id: key_id.clone() };
        Ok((self.load(&key_id).await?.ok_or_else(mismatched)?, key_id))
    }

    async fn issue(&self, old: &Chain, key: &RemoteKey, key_id: &str) -> Result<Chain, Error> {
        let id = &self.settings.certificate_id;
        let subject = match &self.settings.subject {
            Some(subject) => subject.clone(),
            None => old
                .leaf()
                .ok_or_else(|| Error::Empty(id.clone()))
                .and_then(|leaf| subject(leaf).map_err(|source| Error::Broken { id: id.clone(), source }))?,
        };
        let request = request::create(subject, &self.settings.extensions, key).await;
        let csr = request.map_err(|source| Error::Request { id: key_id.to_owned(), source })?;
        let temporary = key::next_id(id);
        let failed = |action| {
            let id = temporary.clone();
            move |source| Error::Certificate { action, id, source }
        };
        let call = CreateCertificate { cert_id: temporary.clone(), csr, issuer: None };
        let pem = self.certd.send(&call).await.map_err(failed("issue"))?.pem;
        if let Err(error) = self.certd.send(&DeleteCertificate { cert_id: temporary.clone() }).await {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = temporary,
                { fields::ERROR } = %aziot_log::chain(&error),
                "could not delete the temporary certificate"
            );
        }
        let chain =
            Chain::from_pem(&pem).map_err(|source| Error::Broken { id: temporary.clone(), source: source.into() })?;
        let leaf_key = chain.leaf().and_then(|leaf| leaf.public_key().ok());
        if leaf_key.is_some_and(|leaf_key| key.public_key().public_eq(&leaf_key)) {
            Ok(chain)
        } else {
            Err(Error::ForeignKey(temporary))
        }
    }

    async fn renew_chain(&self, old: &Chain) -> Result<Renewed, Error> {
        let (key, key_id) = self.key_for_renewal().await?;
        let issued = self.issue(old, &key, &key_id).await;
        if issued.is_err() && key_id != self.settings.key_id {
            self.tidy().await;
        }
        Ok(Renewed { chain: issued?, key_id })
    }

    async fn replace(&self, old: &Chain, new: &Renewed) -> Result<(), Failure> {
        self.observer.before_commit(new).await?;
        // If it is not known whether it was stored, the repair sees it.
        self.store(&new.chain).await?;
        if new.key_id != self.settings.key_id
            && let Err(error) = self.move_key().await
        {
            // If so, the key is kept from now on.
            let is_refusal = error.is_refusal();
            let taken_back = self.take_back(old, new, error).await;
            taken_back.map_err(|error| if is_refusal { Failure::AtOnce(error.into()) } else { error.into() })?;
        }
        self.observer.committed(&new.chain);
        Ok(())
    }

    /// The key was not moved, or so it seems. Success: it was. Where that cannot be told, everything stays as it is: with the
    /// new certificate stored, the repair finds the key under either of its names.
    async fn take_back(&self, old: &Chain, new: &Renewed, error: Error) -> Result<(), Error> {
        if error.is_uncertain() {
            return Err(error);
        }
        if let Some(leaf_key) = new.chain.leaf().and_then(|leaf| leaf.public_key().ok()) {
            match self.is_key_of(&self.settings.key_id, &leaf_key).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => return Err(error),
            }
        }
        if let Err(second) = self.store(old).await {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = self.settings.certificate_id,
                { fields::ERROR } = %aziot_log::chain(&second),
                "could not put the old certificate back"
            );
        }
        Err(error)
    }

    async fn mend(&self) -> Result<(), Error> {
        let chain = match self.read().await {
            Ok(chain) => chain,
            // Nothing that a key could belong to; reading it again will say so.
            Err(Error::Absent(_) | Error::Empty(_) | Error::Broken { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let id = || self.settings.certificate_id.clone();
        let leaf_key = chain.leaf().ok_or_else(|| Error::Empty(id()))?.public_key();
        let leaf_key = leaf_key.map_err(|source| Error::Broken { id: id(), source: source.into() })?;
        if self.is_key_of(&self.settings.key_id, &leaf_key).await? {
            if self.settings.policy.rotate_key {
                self.tidy().await;
            }
            return Ok(());
        }
        let belongs = match self.is_key_of(&self.temporary_key(), &leaf_key).await {
            Err(error) if error.is_refusal() => false,
            belongs => belongs?,
        };
        if !belongs {
            return Err(Error::Mismatched { certificate_id: id(), key_id: self.settings.key_id.clone() });
        }
        match self.move_key().await {
            Err(error) if error.is_refusal() => {
                Err(Error::Mismatched { certificate_id: id(), key_id: self.settings.key_id.clone() })
            }
            Err(error) => Err(error),
            Ok(()) => {
                tracing::info!(
                    { fields::CERTIFICATE_ID } = self.settings.certificate_id,
                    { fields::KEY_ID } = self.settings.key_id,
                    "finished a renewal that was cut off: moved the new key to its place"
                );
                self.observer.committed(&chain);
                Ok(())
            }
        }
    }
}

impl Credential for Issued {
    fn certificate_id(&self) -> &str {
        &self.settings.certificate_id
    }

    fn key_id(&self) -> &str {
        &self.settings.key_id
    }

    fn policy(&self) -> AutoRenew {
        self.settings.policy
    }

    fn repair(&self) -> Doing<'_, ()> {
        Box::pin(async { Ok(self.mend().await?) })
    }

    fn current(&self) -> Doing<'_, Chain> {
        Box::pin(async { Ok(self.read().await?) })
    }

    fn renew(&self, old: Chain) -> Doing<'_, Renewed> {
        Box::pin(async move {
            self.renew_chain(&old).await.map_err(|error| match error {
                // The stored certificate is not at fault.
                error @ Error::Broken { .. } => Failure::retryable(error),
                error => error.into(),
            })
        })
    }

    fn commit(&self, old: Chain, new: Renewed) -> Doing<'_, ()> {
        Box::pin(async move { self.replace(&old, &new).await })
    }
}

fn subject(certificate: &X509Ref) -> Result<Name, BoxError> {
    Ok(Name::from_der(&certificate.subject_name().to_der()?)?)
}
