//! The keys of device and modules. They live in the key service; here are handles, and for a moment what the hub has to be told.
//!
//! Module keys are derived from one master key per installation, the module's name and its generation: nothing is stored for a module, and
//! making its keys again gives the same ones.

use std::sync::Arc;

use aziot_http::{Base64, Client, ClientError, SecretBytes};
use aziot_identityd_cloud::{ModuleKeys, Signer, Signing};
use aziot_keyd_api::{
    derived_key::{CreateDerivedKey, ExportDerivedKey},
    key::{CreateKey, KeyHandle, KeyUsage, LoadKey},
    operation::{Sign, SignMechanism},
};

/// Id of the key that module keys are derived from. Losing it changes the keys of all modules.
pub(crate) const MASTER_KEY_ID: &str = "aziot_identityd_master_id";

/// One of a module's two keys.
#[derive(Clone, Copy)]
enum Which {
    Primary,
    Secondary,
}

/// The key service, as this one uses it.
#[derive(Clone)]
pub(crate) struct Keys {
    client: Arc<Client>,
}

impl Keys {
    /// Keys of the service that `client` calls.
    #[must_use]
    pub(crate) fn new(client: Client) -> Self {
        Self { client: Arc::new(client) }
    }

    /// A handle of the key with this id, which must exist.
    pub(crate) async fn load(&self, key_id: &str) -> Result<KeyHandle, ClientError> {
        Ok(self.client.send(&LoadKey { key_id: key_id.to_owned() }).await?.key_handle)
    }

    /// A handle of the key that the module itself uses.
    pub(crate) async fn module_key(&self, module_id: &str, generation_id: &str) -> Result<KeyHandle, ClientError> {
        let master = self.master_key().await?;
        self.derive(master, module_id, generation_id, Which::Primary).await
    }

    /// The bytes of both keys, which the hub has to know. Also the handle of [`module_key`](Self::module_key).
    pub(crate) async fn module_keys(
        &self,
        module_id: &str,
        generation_id: &str,
    ) -> Result<(KeyHandle, ModuleKeys), ClientError> {
        let master = self.master_key().await?;
        let primary = self.derive(master.clone(), module_id, generation_id, Which::Primary).await?;
        let secondary = self.derive(master, module_id, generation_id, Which::Secondary).await?;
        let keys =
            ModuleKeys { primary: self.export(primary.clone()).await?, secondary: self.export(secondary).await? };
        Ok((primary, keys))
    }

    /// Loads the master key. It is made only when the key service says that there is none: a service that is merely failing must not
    /// be asked to create.
    async fn master_key(&self) -> Result<KeyHandle, ClientError> {
        match self.load(MASTER_KEY_ID).await {
            // Creating keeps a key that is there after all.
            Err(error) if aziot_keyd_api::is_absent(&error) => {
                let create =
                    CreateKey { key_id: MASTER_KEY_ID.to_owned(), usage: KeyUsage::DERIVE_SIGN, key_bytes: None };
                let handle = self.client.send(&create).await?.key_handle;
                tracing::info!(key_id = MASTER_KEY_ID, "made the master key of module identities");
                Ok(handle)
            }
            loaded => loaded,
        }
    }

    async fn derive(
        &self,
        master: KeyHandle,
        module_id: &str,
        generation_id: &str,
        which: Which,
    ) -> Result<KeyHandle, ClientError> {
        let derivation_data = Base64(derivation_data(module_id, generation_id, which).into_bytes());
        Ok(self.client.send(&CreateDerivedKey { base_key_handle: master, derivation_data }).await?.key_handle)
    }

    async fn export(&self, key_handle: KeyHandle) -> Result<SecretBytes, ClientError> {
        Ok(self.client.send(&ExportDerivedKey { key_handle }).await?.key)
    }
}

fn derivation_data(module_id: &str, generation_id: &str, which: Which) -> String {
    let which = match which {
        Which::Primary => "primary",
        Which::Secondary => "secondary",
    };
    format!("{module_id}:{generation_id}:{which}")
}

/// The device's own key, which signs its tokens.
pub(crate) struct DeviceKey {
    /// The key service.
    pub(crate) keys: Keys,
    /// Id of the key there.
    pub(crate) key_id: String,
}

impl Signer for DeviceKey {
    fn sign(&self, message: Vec<u8>) -> Signing<'_> {
        Box::pin(async move {
            // A handle is loaded for each token: one kept here would outlive a change of the key service's own keys.
            let key_handle = self.keys.load(&self.key_id).await?;
            let mechanism = SignMechanism::HmacSha256 { message: Base64(message) };
            Ok(self.keys.client.send(&Sign { key_handle, mechanism }).await?.signature.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer};

    use super::*;

    #[test]
    fn module_keys_are_those_of_the_specification() {
        let master = PKey::hmac(&(0..32).collect::<Vec<u8>>()).unwrap();
        let derive = |which| {
            let data = derivation_data("testmodule", "638000000000000000", which);
            let mut signer = Signer::new(MessageDigest::sha256(), &master).unwrap();
            (STANDARD.encode(&data), STANDARD.encode(signer.sign_oneshot_to_vec(data.as_bytes()).unwrap()))
        };
        let (data, primary) = derive(Which::Primary);
        assert_eq!(data, "dGVzdG1vZHVsZTo2MzgwMDAwMDAwMDAwMDAwMDA6cHJpbWFyeQ==");
        assert_eq!(primary, "ArP6yO6YhEctUO0cYXITd/CT+5ae5EsjdWmG3Rsdrgg=");
        assert_eq!(derive(Which::Secondary).1, "OetQkqDme5T28+zuVE+VoXEX+FrNlnF6rNY39freLNE=");
    }
}
