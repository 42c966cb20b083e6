//! Secrets of modules: encrypted with one key of the device, and bound to a module by what is authenticated with them.
//!
//! The key service does not tell a secret that is not authentic from a key that cannot be used: both are failures of it. The difference matters,
//! because clients repeat what failed and not what was wrong, so after a failed decryption the key is tried.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aziot_edged_api::config::MASTER_ENCRYPTION_KEY;
use aziot_http::{Base64, Client, SecretBytes};
use aziot_keyd_api::{
    is_absent,
    key::{CreateKey, KeyHandle, KeyUsage, LoadKey},
    operation::{Decrypt, Encrypt, EncryptMechanism},
};
use aziot_log::fields;
use tokio::sync::Semaphore;

use super::Error;
use crate::places;

/// Bytes of a usual vector.
const TRIAL_VECTOR: usize = 12;

/// The key of all secrets, as it is used.
pub(super) struct Secrets {
    keyd: Client,
    /// Good until the key service refuses it.
    handle: ArcSwapOption<KeyHandle>,
    operations: Semaphore,
}

impl Secrets {
    pub(super) fn new(keyd: Client) -> Self {
        Self { keyd, handle: ArcSwapOption::empty(), operations: Semaphore::new(places::SECRETS) }
    }

    /// Encrypts `plaintext`, and authenticates `aad` with it. The key is made if there is none.
    pub(super) async fn encrypt(&self, iv: Vec<u8>, aad: Vec<u8>, plaintext: SecretBytes) -> Result<Vec<u8>, Error> {
        let _place = self.operations.acquire().await;
        let mechanism = EncryptMechanism::Aead { iv: Base64(iv), aad: Base64(aad) };
        let mut call = Encrypt { key_handle: self.handle_or_new().await?, mechanism, plaintext };
        let mut encrypted = self.keyd.send(&call).await;
        if encrypted.as_ref().is_err_and(is_absent) {
            self.forget(&call.key_handle);
            call.key_handle = self.handle_or_new().await?;
            encrypted = self.keyd.send(&call).await;
        }
        Ok(encrypted.map_err(Error::Encrypt)?.ciphertext.0)
    }

    /// Decrypts what was encrypted with the same `iv` and `aad`. No key is made for that.
    pub(super) async fn decrypt(&self, iv: Vec<u8>, aad: Vec<u8>, ciphertext: Vec<u8>) -> Result<SecretBytes, Error> {
        let _place = self.operations.acquire().await;
        let mechanism = EncryptMechanism::Aead { iv: Base64(iv), aad: Base64(aad) };
        let Some(key_handle) = self.handle().await? else {
            tracing::warn!(
                { fields::KEY_ID } = MASTER_ENCRYPTION_KEY,
                "a module has secrets, but their key is not there"
            );
            return Err(Error::Ciphertext);
        };
        let mut call = Decrypt { key_handle, mechanism, ciphertext: Base64(ciphertext) };
        let mut decrypted = self.keyd.send(&call).await;
        // The handle, or the layout of the ciphertext: a module's nonsense takes nobody's handle away.
        if decrypted.as_ref().is_err_and(is_absent) && !self.is_key_good(&call.key_handle).await {
            self.forget(&call.key_handle);
            let Some(key_handle) = self.handle().await? else { return Err(Error::Ciphertext) };
            call.key_handle = key_handle;
            decrypted = self.keyd.send(&call).await;
        }
        match decrypted {
            Ok(decrypted) => Ok(decrypted.plaintext),
            Err(error) if is_absent(&error) => Err(Error::Ciphertext),
            Err(error) if error.status().is_some() && self.is_key_good(&call.key_handle).await => {
                Err(Error::Ciphertext)
            }
            Err(error) => Err(Error::Decrypt(error)),
        }
    }

    /// Whether the key encrypts. With a vector of its own: nothing is to be learnt about secrets from the result, not even by the key service's log.
    async fn is_key_good(&self, key_handle: &KeyHandle) -> bool {
        let iv: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(TRIAL_VECTOR).collect();
        let mechanism = EncryptMechanism::Aead { iv: Base64(iv), aad: Base64(Vec::new()) };
        let call = Encrypt { key_handle: key_handle.clone(), mechanism, plaintext: SecretBytes::default() };
        self.keyd.send(&call).await.is_ok()
    }

    /// A handle of the key; `None` only if the key service says itself that there is no such key.
    async fn handle(&self) -> Result<Option<KeyHandle>, Error> {
        if let Some(handle) = self.handle.load_full() {
            return Ok(Some(KeyHandle::clone(&handle)));
        }
        match self.keyd.send(&LoadKey { key_id: MASTER_ENCRYPTION_KEY.to_owned() }).await {
            Ok(loaded) => Ok(Some(self.remember(loaded.key_handle))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::MasterKey(error)),
        }
    }

    async fn handle_or_new(&self) -> Result<KeyHandle, Error> {
        if let Some(handle) = self.handle().await? {
            return Ok(handle);
        }
        // Keeps a key that is there after all.
        let call = CreateKey { key_id: MASTER_ENCRYPTION_KEY.to_owned(), usage: KeyUsage::ENCRYPT, key_bytes: None };
        let created = self.keyd.send(&call).await.map_err(Error::MasterKey)?;
        tracing::info!({ fields::KEY_ID } = MASTER_ENCRYPTION_KEY, "made the key of modules' secrets");
        Ok(self.remember(created.key_handle))
    }

    /// The key service has refused `refused`. Another one that somebody has got meanwhile stays.
    fn forget(&self, refused: &KeyHandle) {
        let known = self.handle.load();
        if known.as_deref() == Some(refused) {
            self.handle.compare_and_swap(&known, None);
        }
    }

    fn remember(&self, handle: KeyHandle) -> KeyHandle {
        self.handle.store(Some(Arc::new(handle.clone())));
        handle
    }
}
