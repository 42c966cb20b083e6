//! A certificate in the store and its key in the key service, which replace their predecessors together.
//!
//! The two lie in two services and cannot change in one step. So the new certificate is first noted beside the old one, then the
//! key is moved, then the certificate takes its place; whoever comes after a crash tells by comparing keys how far it came.
//! Without the note, a key that may not be moved would leave the new certificate in place and the old one lost. Meanwhile the turn of
//! the certificate is held, so that nobody imports or deletes it in between.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use aziot_certd_api::config::KeyPair;
use aziot_log::{chain, fields};
use aziot_pki::{
    certificate::{Chain, ChainError},
    key::{RemoteKey, next_id},
    renewal::Renewed,
};
use aziot_turns::{Turn, Turns};

use super::{
    keys::{self, Keys},
    memory::Memory,
};
use crate::store::{self, Store};

/// Why a certificate or a key is not there, or not in its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The certificate is not there, or its file holds none.
    #[error("there is no certificate {id:?}")]
    Absent { id: String },
    /// Its file cannot be read, written or removed.
    #[error("could not {action} the certificate {id:?}")]
    Store { action: &'static str, id: String, source: store::Error },
    /// It is broken.
    #[error("the certificate {id:?} is unusable")]
    Certificate { id: String, source: ChainError },
    /// The key pair.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// Somebody else has stored or deleted it.
    #[error("the certificate {id:?} was replaced or deleted meanwhile, which is not undone")]
    Overtaken { id: String },
    /// Somebody else has made another key in its place.
    #[error("the key pair {id:?} is not the one that the new certificate {certificate:?} is for")]
    AnotherKey { id: String, certificate: String },
    /// The key is the operator's, or this service may not replace it.
    #[error("the key pair {id:?} cannot be replaced by a new one; a renewal keeps it")]
    KeyIsFixed { id: String, source: keys::Error },
}

impl Error {
    /// Whether there is no certificate that could be used, as opposed to not being able to tell.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Certificate { .. })
    }

    /// Whether the same is done otherwise the next time, or not at all.
    pub(crate) fn is_other_next_time(&self) -> bool {
        matches!(self, Self::KeyIsFixed { .. } | Self::Overtaken { .. })
    }
}

/// One certificate and its key.
pub(crate) struct Pair {
    ids: KeyPair,
    store: Arc<Store>,
    keys: Keys,
    /// Of those who store certificates.
    turns: Arc<Turns>,
    memory: Arc<Memory>,
    /// Nobody else needs the key, or the name of the next one.
    owns_key: bool,
}

/// The right to change a certificate, kept until the disk is done with the last change.
type Right = Arc<Turn>;

impl Pair {
    pub(crate) fn new(
        ids: KeyPair,
        (store, turns): (Arc<Store>, Arc<Turns>),
        keys: Keys,
        memory: Arc<Memory>,
        owns_key: bool,
    ) -> Self {
        Self { ids, store, keys, turns, memory, owns_key }
    }

    pub(crate) fn ids(&self) -> &KeyPair {
        &self.ids
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The certificate as it is stored.
    pub(crate) async fn certificate(&self) -> Result<Chain, Error> {
        self.read(&self.ids.cert).await
    }

    /// The key.
    pub(crate) async fn key(&self) -> Result<Option<RemoteKey>, Error> {
        Ok(self.keys.find(&self.ids.pk).await?)
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether a replacement was begun and not finished.
    pub(crate) async fn is_noted(&self) -> Result<bool, Error> {
        Ok(self.readable(&note(&self.ids.cert)).await?.is_some())
    }

    /// A key for the next certificate, with its id: a new one beside the old if `rotate`, or else the old one itself.
    pub(crate) async fn next_key(&self, rotate: bool) -> Result<(String, RemoteKey), Error> {
        let id = &self.ids.pk;
        if rotate && self.owns_key && !self.memory.key_is_fixed() {
            let next = next_id(id);
            match self.keys.create_anew(&next).await {
                Ok(key) => return Ok((next, key)),
                Err(error) if error.is_forbidden() => self.fix_key(&error),
                Err(error) => return Err(error.into()),
            }
        }
        // Made if it is absent; one that is there is good enough, and is never replaced before its time.
        Ok((id.clone(), self.keys.create(id).await?))
    }

    /// Puts certificate and key in the place of the old ones; `old` is the certificate that was there when the new one was
    /// asked for.
    pub(crate) async fn install(&self, old: Option<&Chain>, new: &Renewed) -> Result<(), Error> {
        let right = self.right().await;
        let stored = self.readable(&self.ids.cert).await?;
        if fingerprint(stored.as_ref()) != fingerprint(old) {
            return Err(Error::Overtaken { id: self.ids.cert.clone() });
        }
        self.put(&right, new).await
    }

    async fn put(&self, right: &Right, new: &Renewed) -> Result<(), Error> {
        let KeyPair { cert, pk } = &self.ids;
        let note = note(cert);
        let is_moved = new.key_id != *pk;
        // By its name alone it might be anybody's.
        if !fits(Some(&new.chain), self.keys.find(&new.key_id).await?.as_ref()) {
            return Err(Error::AnotherKey { id: new.key_id.clone(), certificate: cert.clone() });
        }
        self.write(right, &note, &new.chain).await?;
        if is_moved {
            match self.keys.rename(&new.key_id, pk).await {
                Ok(()) => {}
                Err(source) if source.is_forbidden() => {
                    // Nothing has changed yet.
                    self.remove(right, &note).await?;
                    self.fix_key(&source);
                    if let Err(error) = self.keys.delete(&new.key_id).await {
                        tracing::debug!({ fields::KEY_ID } = new.key_id, "{}", chain(&error));
                    }
                    return Err(Error::KeyIsFixed { id: pk.clone(), source });
                }
                // It may have been done all the same, which the repair finds out.
                Err(error) => return Err(error.into()),
            }
        }
        // Without a folder to rename in, the operator's file is overwritten where it is, and a crash leaves half of it.
        self.write(right, cert, &new.chain).await?;
        self.remove(right, &note).await
    }

    /// Finishes what a crash, or a failure of the key service, has left half done. Whether certificate and key belong together
    /// then; true where there is no certificate at all.
    pub(crate) async fn settle(&self) -> Result<bool, Error> {
        let KeyPair { cert, pk } = &self.ids;
        let (note, next) = (note(cert), next_id(pk));
        let right = self.right().await;
        let (noted, stored) = (self.readable(&note).await?, self.readable(cert).await?);
        let key = self.key().await?;
        let is_whole = fits(stored.as_ref(), key.as_ref());
        if let Some(new) = noted.filter(|new| !(is_whole && is_over(new))) {
            let is_moved = fits(Some(&new), key.as_ref());
            if is_moved || self.is_next(&new).await? {
                self.tell_repair();
                let key_id = if is_moved { pk.clone() } else { next };
                self.put(&right, &Renewed { chain: new, key_id }).await?;
                return Ok(true);
            }
        }
        // Whatever it was, it goes on without it.
        self.remove(&right, &note).await?;
        let Some(stored) = stored.filter(|_| !is_whole) else { return Ok(true) };
        // The public service writes the certificate first, then moves the key.
        if self.is_next(&stored).await? {
            self.tell_repair();
            match self.keys.rename(&next, pk).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_forbidden() => self.fix_key(&error),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    async fn right(&self) -> Right {
        Arc::new(self.turns.take(&self.ids.cert).await)
    }

    /// Whether the certificate is for the key that is to take the place of the present one.
    async fn is_next(&self, certificate: &Chain) -> Result<bool, Error> {
        if !self.owns_key {
            return Ok(false);
        }
        match self.keys.find(&next_id(&self.ids.pk)).await {
            Ok(next) => Ok(fits(Some(certificate), next.as_ref())),
            // Then this service has not made one.
            Err(error) if error.is_forbidden() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn fix_key(&self, error: &keys::Error) {
        if self.memory.fix_key() {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = self.ids.cert,
                { fields::KEY_ID } = self.ids.pk,
                "{}; the EST identity keeps its key from now on",
                chain(error)
            );
        }
    }

    fn tell_repair(&self) {
        tracing::warn!(
            { fields::CERTIFICATE_ID } = self.ids.cert,
            { fields::KEY_ID } = self.ids.pk,
            "finishing the replacement of an EST identity, which was cut off"
        );
    }

    /// A certificate of the store, this pair's or another.
    pub(crate) async fn read(&self, id: &str) -> Result<Chain, Error> {
        let wanted = id.to_owned();
        let text = self.store.run(move |store| store.read(&wanted)).await;
        let text = text.map_err(|source| Error::Store { action: "read", id: id.to_owned(), source })?;
        let absent = || Error::Absent { id: id.to_owned() };
        let parsed = Chain::from_pem(&text.ok_or_else(absent)?);
        let chain = parsed.map_err(|source| Error::Certificate { id: id.to_owned(), source })?;
        if chain.is_empty() { Err(absent()) } else { Ok(chain) }
    }

    /// A certificate that is there and can be understood.
    async fn readable(&self, id: &str) -> Result<Option<Chain>, Error> {
        match self.read(id).await {
            Ok(chain) => Ok(Some(chain)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, right: &Right, id: &str, certificate: &Chain) -> Result<(), Error> {
        let pem = certificate.to_pem().map_err(|source| Error::Certificate { id: id.to_owned(), source })?;
        let (wanted, right) = (id.to_owned(), Arc::clone(right));
        let written = self.store.run(move |store| {
            let _right = right;
            store.write(&wanted, &pem)
        });
        written.await.map_err(|source| Error::Store { action: "write", id: id.to_owned(), source })
    }

    async fn remove(&self, right: &Right, id: &str) -> Result<(), Error> {
        let (wanted, right) = (id.to_owned(), Arc::clone(right));
        let removed = self.store.run(move |store| {
            let _right = right;
            store.remove(&wanted)
        });
        removed.await.map(|_| ()).map_err(|source| Error::Store { action: "remove", id: id.to_owned(), source })
    }
}

/// Ends a replacement that was begun: whoever else stores or deletes the certificate does not want it back. For those who have
/// the certificate's turn.
pub(crate) fn forget_note(store: &Store, id: &str) -> Result<(), store::Error> {
    store.remove(&note(id)).map(|_| ())
}

/// Where the next certificate is noted: an id like no other, and of a file name no longer than that of the certificate.
fn note(id: &str) -> String {
    format!("\0/{id}")
}

fn fingerprint(certificate: Option<&Chain>) -> Option<[u8; 32]> {
    certificate.and_then(Chain::fingerprint)
}

fn fits(certificate: Option<&Chain>, key: Option<&RemoteKey>) -> bool {
    certificate.zip(key).is_some_and(|(certificate, key)| belongs(certificate, key))
}

/// Whether the certificate is for this key.
pub(crate) fn belongs(certificate: &Chain, key: &RemoteKey) -> bool {
    let leaf = certificate.leaf().and_then(|leaf| leaf.public_key().ok());
    leaf.is_some_and(|leaf| leaf.public_eq(key.public_key()))
}

/// Whether the certificate has ended, or never begins.
pub(crate) fn is_over(certificate: &Chain) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    certificate.validity().is_none_or(|validity| validity.is_over(now))
}
