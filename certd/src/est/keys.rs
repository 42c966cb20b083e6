//! Key pairs of EST identities in the key service: what is there, new ones, and moving one into the place of another.
//!
//! What the key service does not say is never taken for absence: somebody might make a new key in the place of a good one.

use aziot_http::{Client, ClientError};
use aziot_keyd_api::{
    is_absent,
    key::KeyHandle,
    key_pair::{CreateKeyPair, DeleteKeyPair, LoadKeyPair, MoveKeyPair},
};
use aziot_pki::key::{KeyError, RemoteKey};

/// What a new pair is, by preference; `*` is whatever the key service likes best.
const PREFERENCE: &str = "ec-p256:rsa-4096:*";

/// Why something was not done with a key pair.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The key service did not do it.
    #[error("could not {action} the key pair {id:?}")]
    Service { action: &'static str, id: String, source: ClientError },
    /// The pair is there and cannot be used.
    #[error("could not use the key pair {id:?}")]
    Unusable { id: String, source: KeyError },
    /// There is no such pair.
    #[error("there is no key pair {id:?}")]
    Absent { id: String },
}

impl Error {
    /// Whether the key service said that this is not allowed: to this service, or for this pair, which is preloaded.
    pub(crate) fn is_forbidden(&self) -> bool {
        let status = match self {
            Self::Service { source, .. } => source.status(),
            _ => None,
        };
        status.is_some_and(|status| [401, 403].contains(&status.as_u16()))
    }
}

/// The key service.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Client);

impl Keys {
    pub(crate) fn new(keyd: Client) -> Self {
        Self(keyd)
    }

    /// The pair, or `None` if there is none.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<RemoteKey>, Error> {
        match self.handle(id).await? {
            Some(handle) => self.open(id, handle).await.map(Some),
            None => Ok(None),
        }
    }

    /// The pair, which must be there.
    pub(crate) async fn load(&self, id: &str) -> Result<RemoteKey, Error> {
        self.find(id).await?.ok_or_else(|| Error::Absent { id: id.to_owned() })
    }

    /// A new pair, or the one that is there.
    pub(crate) async fn create(&self, id: &str) -> Result<RemoteKey, Error> {
        let call = CreateKeyPair { key_id: id.to_owned(), preferred_algorithms: Some(PREFERENCE.to_owned()) };
        let handle = self.0.send(&call).await.map_err(failed("create", id))?.key_handle;
        self.open(id, handle).await
    }

    /// A new pair; one that is there is deleted.
    pub(crate) async fn create_anew(&self, id: &str) -> Result<RemoteKey, Error> {
        self.delete(id).await?;
        self.create(id).await
    }

    /// Deletes the pair if it is there.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        let Some(key_handle) = self.handle(id).await? else { return Ok(()) };
        self.0.send(&DeleteKeyPair { key_handle }).await.map_err(failed("delete", id))
    }

    /// Gives the pair `from` the id `to`; what had it is gone.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let call = MoveKeyPair { key_id: to.to_owned(), from: from.to_owned() };
        self.0.send(&call).await.map_err(failed("replace", to))
    }

    async fn handle(&self, id: &str) -> Result<Option<KeyHandle>, Error> {
        match self.0.send(&LoadKeyPair { key_id: id.to_owned() }).await {
            Ok(handle) => Ok(Some(handle.key_handle)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed("look up", id)(error)),
        }
    }

    async fn open(&self, id: &str, handle: KeyHandle) -> Result<RemoteKey, Error> {
        RemoteKey::load(&self.0, handle).await.map_err(|source| Error::Unusable { id: id.to_owned(), source })
    }
}

fn failed<'i>(action: &'static str, id: &'i str) -> impl FnOnce(ClientError) -> Error + 'i {
    move |source| Error::Service { action, id: id.to_owned(), source }
}
