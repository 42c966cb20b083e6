//! The device's key in a TPM, by way of the TPM service.
//!
//! DPS's challenge and the hub's key are imported into the same place, so with a challenge the hub's key is lost until DPS has sent another
//! one. A note in the state says so from before the import of a challenge until that other one is in the TPM: whoever finds the note registers
//! anew.

use std::sync::Arc;

use aziot_http::{Base64, Client, ClientError, SecretBytes};
use aziot_identityd_cloud::{Doing, Signer, Signing, TpmKey, TpmPublicKeys};
use aziot_tpmd_api::{GetTpmKeys, ImportAuthKey, SignWithAuthKey};

use crate::{
    modules::on_disk,
    state::{self, State},
};

/// Why the TPM did nothing. A failure on this device, never one of the network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TpmFailure {
    /// The service said no, or did not answer.
    #[error("the TPM service (tpmd) could not {action}")]
    Service {
        /// What it was asked for.
        action: &'static str,
        /// What it said.
        source: ClientError,
    },
    /// The import could not be noted, so it was not begun.
    #[error("could not note that the TPM's key is about to be replaced")]
    State(#[source] state::Error),
}

/// The TPM of this device.
pub(crate) struct Tpm {
    client: Client,
    state: Arc<State>,
}

impl Tpm {
    /// The TPM behind the service that `client` calls.
    #[must_use]
    pub(crate) fn new(client: Client, state: Arc<State>) -> Self {
        Self { client, state }
    }
}

impl Signer for Tpm {
    fn sign(&self, message: Vec<u8>) -> Signing<'_> {
        Box::pin(async move {
            let signed = self.client.send(&SignWithAuthKey { data: Base64(message) }).await;
            let signed = signed.map_err(|source| TpmFailure::Service { action: "sign", source })?;
            Ok(signed.digest.0)
        })
    }
}

impl TpmKey for Tpm {
    fn public_keys(&self) -> Doing<'_, TpmPublicKeys> {
        Box::pin(async move {
            let keys = self.client.send(&GetTpmKeys {}).await;
            let keys = keys.map_err(|source| TpmFailure::Service { action: "tell its public keys", source })?;
            let (Base64(endorsement_key), Base64(storage_root_key)) = (keys.endorsement_key, keys.storage_root_key);
            Ok(TpmPublicKeys { endorsement_key, storage_root_key })
        })
    }

    fn import(&self, blob: Vec<u8>) -> Doing<'_, ()> {
        Box::pin(async move {
            // Whoever began the registration takes the note away when it has ended well.
            on_disk(&self.state, State::begin_tpm_import).await.map_err(TpmFailure::State)?;
            let imported = self.client.send(&ImportAuthKey { key: SecretBytes::new(blob) }).await;
            imported.map(drop).map_err(|source| TpmFailure::Service { action: "import a key", source })?;
            Ok(())
        })
    }
}
