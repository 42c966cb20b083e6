//! Public halves of key pairs, asked of the key service once: it takes four calls to learn one, and one to sign with it.
//!
//! A handle stands for a key *id*: after a move or a new key under the old id it signs with another key. Whoever uses what is known here
//! verifies each signature, and has the key [forgotten](KnownKeys::forget) when one does not fit or is not made.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aziot_http::{Client, ClientError};
use aziot_keyd_api::{key::KeyHandle, key_pair::LoadKeyPair};
use lru::LruCache;

use super::{KeyError, RemoteKey};

/// More issuers than a device has.
const LIMIT: NonZeroUsize = NonZeroUsize::new(64).expect("is not 0");

/// Key pairs of one key service that were used before.
#[derive(Debug)]
pub struct KnownKeys {
    keyd: Client,
    keys: Mutex<LruCache<Name, RemoteKey>>,
}

/// How a key pair is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// By its id, for whoever is authorized for it.
    Id(String),
    /// By a handle that somebody handed over.
    Handle(KeyHandle),
}

/// Why a key pair is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum UnknownKey {
    /// The key service gives no handle.
    #[error("could not get the key pair")]
    Handle(#[source] ClientError),
    /// Its public half cannot be used.
    #[error("could not use the key pair")]
    Key(#[source] KeyError),
}

impl KnownKeys {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(keyd: Client) -> Self {
        Self { keyd, keys: Mutex::new(LruCache::sparse(LIMIT)) }
    }

    /// The key service.
    #[must_use]
    pub fn keyd(&self) -> &Client {
        &self.keyd
    }

    /// The key pair, and whether it was known before and may therefore be another by now.
    pub async fn get(&self, name: &Name) -> Result<(RemoteKey, bool), UnknownKey> {
        if let Some(key) = self.keys().get(name) {
            return Ok((key.clone(), true));
        }
        let handle = match name {
            Name::Handle(handle) => handle.clone(),
            Name::Id(id) => {
                let call = LoadKeyPair { key_id: id.clone() };
                self.keyd.send(&call).await.map_err(UnknownKey::Handle)?.key_handle
            }
        };
        let key = RemoteKey::load(&self.keyd, handle).await.map_err(UnknownKey::Key)?;
        self.keys().put(name.clone(), key.clone());
        Ok((key, false))
    }

    /// Asks the key service again next time.
    pub fn forget(&self, name: &Name) {
        self.keys().pop(name);
    }

    fn keys(&self) -> MutexGuard<'_, LruCache<Name, RemoteKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
