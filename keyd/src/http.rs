//! Routes of the key service, and the status of each error. Nothing is decided about keys here.

use std::sync::Arc;

use aziot_http::service::Routes;
use aziot_http::{Base64, Peer, SecretBytes, Service, Status, StatusCode, with_causes};
use aziot_keyd_api::VERSIONS;
use aziot_keyd_api::derived_key::{CreateDerivedKey, ExportDerivedKey, ExportedKey};
use aziot_keyd_api::key::{self, CreateKey, DeleteKey, Handle, KeyHandle, LoadKey, MoveKey};
use aziot_keyd_api::key_pair::{CreateKeyPair, DeleteKeyPair, GetParameter, LoadKeyPair, MoveKeyPair, Parameter};
use aziot_keyd_api::operation::{Ciphertext, Decrypt, Encrypt, Plaintext, Sign, Signature};
use aziot_keys::KeyUsage;

use crate::error::Error;
use crate::keys::Keys;

/// All calls of the service over `keys`.
pub(crate) fn routes(keys: Arc<Keys>) -> Routes {
    Service::new(keys, VERSIONS)
        .call(create_key)
        .call(load_key)
        .call(delete_key)
        .call(move_key)
        .call(create_key_pair)
        .call(load_key_pair)
        .call(move_key_pair)
        .call(delete_key_pair)
        .call(get_parameter)
        .call(create_derived_key)
        .call(export_derived_key)
        .call(sign)
        .call(encrypt)
        .call(decrypt)
        .into_routes()
}

async fn create_key(keys: Arc<Keys>, peer: Peer, call: CreateKey) -> Result<Handle, Error> {
    let bytes = call.key_bytes.map(SecretBytes::into_exposed);
    keys.create_key(&peer, call.key_id, usage(call.usage), bytes).await.map(handle)
}

async fn load_key(keys: Arc<Keys>, peer: Peer, call: LoadKey) -> Result<Handle, Error> {
    keys.load_key(&peer, call.key_id).await.map(handle)
}

async fn delete_key(keys: Arc<Keys>, peer: Peer, call: DeleteKey) -> Result<(), Error> {
    keys.delete_key(&peer, &call.key_handle).await
}

async fn move_key(_: Arc<Keys>, _: Peer, call: MoveKey) -> Result<(), Error> {
    Keys::move_key(&call.from, &call.key_id)
}

async fn create_key_pair(keys: Arc<Keys>, peer: Peer, call: CreateKeyPair) -> Result<Handle, Error> {
    keys.create_key_pair(&peer, call.key_id, call.preferred_algorithms).await.map(handle)
}

async fn load_key_pair(keys: Arc<Keys>, peer: Peer, call: LoadKeyPair) -> Result<Handle, Error> {
    keys.load_key_pair(&peer, call.key_id).await.map(handle)
}

async fn move_key_pair(keys: Arc<Keys>, peer: Peer, call: MoveKeyPair) -> Result<(), Error> {
    keys.move_key_pair(&peer, call.from, call.key_id).await
}

async fn delete_key_pair(keys: Arc<Keys>, peer: Peer, call: DeleteKeyPair) -> Result<(), Error> {
    keys.delete_key_pair(&peer, &call.key_handle).await
}

async fn get_parameter(keys: Arc<Keys>, peer: Peer, call: GetParameter) -> Result<Parameter, Error> {
    keys.parameter(&peer, &call.name, &call.key_handle).await.map(|value| Parameter { value })
}

async fn create_derived_key(keys: Arc<Keys>, peer: Peer, call: CreateDerivedKey) -> Result<Handle, Error> {
    keys.create_derived_key(&peer, call.base_key_handle, call.derivation_data.0).await.map(handle)
}

async fn export_derived_key(keys: Arc<Keys>, peer: Peer, call: ExportDerivedKey) -> Result<ExportedKey, Error> {
    let key = keys.export_derived_key(&peer, &call.key_handle).await?;
    Ok(ExportedKey { key: key.into() })
}

async fn sign(keys: Arc<Keys>, peer: Peer, call: Sign) -> Result<Signature, Error> {
    let signature = keys.sign(&peer, &call.key_handle, call.mechanism).await?;
    Ok(Signature { signature: Base64(signature) })
}

async fn encrypt(keys: Arc<Keys>, peer: Peer, call: Encrypt) -> Result<Ciphertext, Error> {
    let ciphertext = keys.encrypt(&peer, &call.key_handle, call.mechanism, call.plaintext.into_exposed()).await?;
    Ok(Ciphertext { ciphertext: Base64(ciphertext) })
}

async fn decrypt(keys: Arc<Keys>, peer: Peer, call: Decrypt) -> Result<Plaintext, Error> {
    let plaintext = keys.decrypt(&peer, &call.key_handle, call.mechanism, call.ciphertext.0).await?;
    Ok(Plaintext { plaintext: plaintext.into() })
}

fn handle(key_handle: KeyHandle) -> Handle {
    Handle { key_handle }
}

fn usage(usage: key::KeyUsage) -> KeyUsage {
    let mut bits = KeyUsage::from_bits(0);
    if usage.derive || usage.sign {
        bits = bits.and(KeyUsage::SIGN);
    }
    if usage.encrypt {
        bits = bits.and(KeyUsage::ENCRYPT);
    }
    bits
}

impl Status for Error {
    // No `_` arm: a new error does not compile until somebody has chosen its status.
    fn status(&self) -> StatusCode {
        match self {
            // The public API says 401, not 403.
            Error::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Error::Parameter { .. } | Error::MoveOntoItself | Error::MoveOfKey | Error::Refused(_) => {
                StatusCode::BAD_REQUEST
            }
            Error::Preloaded { .. } => StatusCode::FORBIDDEN,
            Error::Library(_) | Error::Handle(_) | Error::Interrupted(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn message(&self) -> String {
        match self {
            Error::Parameter { .. } => with_causes(self),
            _ => self.to_string(),
        }
    }
}
