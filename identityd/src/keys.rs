//! The keys of device and modules. They live in the key service; here are handles, and for a moment what the hub has to be told.
//!
//! Module keys are derived from one master key per installation, the module's name and its generation: nothing is stored for a module, and
//! making its keys again gives the same ones.

mod handles;

use std::sync::Arc;

use aziot_http::{Base64, Client, ClientError, SecretBytes};
use aziot_identityd_cloud::{ModuleKeys, Signer, Signing};
use aziot_keyd_api::{
    derived_key::{CreateDerivedKey, ExportDerivedKey},
    is_absent,
    key::{CreateKey, KeyHandle, KeyUsage, LoadKey},
    key_pair::LoadKeyPair,
    operation::{Sign, SignMechanism},
};
use aziot_log::fields;

use handles::Handles;
pub(crate) use handles::Loaded;

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
pub(crate) struct Keys(Arc<Service>);

struct Service {
    client: Client,
    /// Handles of symmetric keys, by id.
    keys: Handles,
    /// Handles of key pairs, by id.
    key_pairs: Handles,
    /// Handles of the keys that modules use, by what they are derived with.
    module_keys: Handles,
}

impl Keys {
    /// Keys of the service that `client` calls.
    #[must_use]
    pub(crate) fn new(client: Client) -> Self {
        let (keys, key_pairs, module_keys) = (Handles::new(), Handles::new(), Handles::new());
        Self(Arc::new(Service { client, keys, key_pairs, module_keys }))
    }

    /// A handle of the symmetric key with this id, which must exist.
    pub(crate) async fn load(&self, key_id: &str) -> Loaded {
        let load = || {
            let (keys, call) = (self.clone(), LoadKey { key_id: key_id.to_owned() });
            async move { Ok(keys.0.client.send(&call).await?.key_handle) }
        };
        self.0.keys.get(key_id, load).await
    }

    /// A handle of the key pair with this id, which must exist.
    pub(crate) async fn load_pair(&self, key_id: &str) -> Loaded {
        let load = || {
            let (keys, call) = (self.clone(), LoadKeyPair { key_id: key_id.to_owned() });
            async move { Ok(keys.0.client.send(&call).await?.key_handle) }
        };
        self.0.key_pairs.get(key_id, load).await
    }

    /// A handle of the key that the module itself uses.
    pub(crate) async fn module_key(&self, module_id: &str, generation_id: &str) -> Loaded {
        let data = derivation_data(module_id, generation_id, Which::Primary);
        let derive = || {
            let (keys, data) = (self.clone(), data.clone());
            async move { keys.derive(data).await }
        };
        self.0.module_keys.get(&data, derive).await
    }

    /// The bytes of both keys, which the hub has to know. Also a handle of [`module_key`](Self::module_key).
    pub(crate) async fn module_keys(
        &self,
        module_id: &str,
        generation_id: &str,
    ) -> Result<(KeyHandle, ModuleKeys), Arc<ClientError>> {
        let derive = |which| self.derive(derivation_data(module_id, generation_id, which));
        let (primary, secondary) = (derive(Which::Primary).await?, derive(Which::Secondary).await?);
        let keys =
            ModuleKeys { primary: self.export(primary.clone()).await?, secondary: self.export(secondary).await? };
        Ok((primary, keys))
    }

    /// Loads the master key. It is made only when the key service says that there is none: a service that is merely failing must not
    /// be asked to create.
    async fn master_key(&self) -> Loaded {
        let load = || {
            let keys = self.clone();
            async move {
                let client = &keys.0.client;
                match client.send(&LoadKey { key_id: MASTER_KEY_ID.to_owned() }).await {
                    // Creating keeps a key that is there after all.
                    Err(error) if is_absent(&error) => {
                        let usage = KeyUsage::DERIVE_SIGN;
                        let create = CreateKey { key_id: MASTER_KEY_ID.to_owned(), usage, key_bytes: None };
                        let handle = client.send(&create).await?.key_handle;
                        tracing::info!({ fields::KEY_ID } = MASTER_KEY_ID, "made the master key of module identities");
                        Ok(handle)
                    }
                    loaded => Ok(loaded?.key_handle),
                }
            }
        };
        self.0.keys.get(MASTER_KEY_ID, load).await
    }

    async fn derive(&self, derivation_data: String) -> Loaded {
        let master = self.master_key().await?;
        let data = Base64(derivation_data.into_bytes());
        let mut derive = CreateDerivedKey { base_key_handle: master, derivation_data: data };
        let mut derived = self.0.client.send(&derive).await;
        if derived.as_ref().is_err_and(is_absent) {
            self.0.keys.forget(MASTER_KEY_ID, &derive.base_key_handle);
            derive.base_key_handle = self.master_key().await?;
            derived = self.0.client.send(&derive).await;
        }
        Ok(derived?.key_handle)
    }

    async fn export(&self, key_handle: KeyHandle) -> Result<SecretBytes, ClientError> {
        Ok(self.0.client.send(&ExportDerivedKey { key_handle }).await?.key)
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
            let Self { keys, key_id } = self;
            let mechanism = SignMechanism::HmacSha256 { message: Base64(message) };
            let mut sign = Sign { key_handle: keys.load(key_id).await?, mechanism };
            let mut signed = keys.0.client.send(&sign).await;
            if signed.as_ref().is_err_and(is_absent) {
                // The key, or the key service's own one, was changed a moment ago.
                keys.0.keys.forget(key_id, &sign.key_handle);
                sign.key_handle = keys.load(key_id).await?;
                signed = keys.0.client.send(&sign).await;
            }
            Ok(signed?.signature.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use aziot_http::{Peer, Retry, Service, Status, StatusCode, testing::TestServer};
    use aziot_keyd_api::{key::Handle, operation::Signature};
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use openssl::{hash::MessageDigest, pkey::PKey};

    use super::*;

    /// A key service whose handles are good until its own key is another.
    #[derive(Default)]
    struct Keyd {
        own_key: AtomicU32,
        loads: AtomicU32,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("invalid handle")]
    struct InvalidHandle;

    impl Status for InvalidHandle {
        fn status(&self) -> StatusCode {
            StatusCode::BAD_REQUEST
        }
    }

    impl Keyd {
        fn handle(&self) -> KeyHandle {
            KeyHandle(format!("handle {}", self.own_key.load(Ordering::SeqCst)))
        }

        fn check(&self, handle: &KeyHandle) -> Result<(), InvalidHandle> {
            if *handle == self.handle() { Ok(()) } else { Err(InvalidHandle) }
        }

        #[expect(clippy::unnecessary_wraps, reason = "the shape of a handler")]
        fn load(&self) -> Result<Handle, InvalidHandle> {
            self.loads.fetch_add(1, Ordering::SeqCst);
            Ok(Handle { key_handle: self.handle() })
        }

        fn sign(&self, call: &Sign) -> Result<Signature, InvalidHandle> {
            self.check(&call.key_handle)?;
            Ok(Signature { signature: Base64(b"signed".to_vec()) })
        }

        fn derive(&self, call: &CreateDerivedKey) -> Result<Handle, InvalidHandle> {
            self.check(&call.base_key_handle)?;
            Ok(Handle { key_handle: KeyHandle("derived".into()) })
        }
    }

    #[tokio::test]
    async fn a_handle_that_is_refused_is_replaced_unnoticed() {
        let domain = Arc::new(Keyd::default());
        let service = Service::new(Arc::clone(&domain), aziot_keyd_api::VERSIONS)
            .call(|keyd: Arc<Keyd>, _: Peer, _: LoadKey| async move { keyd.load() })
            .call(|keyd: Arc<Keyd>, _: Peer, call: Sign| async move { keyd.sign(&call) })
            .call(|keyd: Arc<Keyd>, _: Peer, call: CreateDerivedKey| async move { keyd.derive(&call) });
        let server = TestServer::start(service.into_routes());
        let keys = Keys::new(aziot_keyd_api::client(&server.endpoint(), Retry::local(0)).unwrap());
        let device = DeviceKey { keys: keys.clone(), key_id: "k".into() };
        let loads = || domain.loads.load(Ordering::SeqCst);

        assert_eq!(device.sign(b"m".to_vec()).await.unwrap(), b"signed");
        assert_eq!(device.sign(b"m".to_vec()).await.unwrap(), b"signed");
        keys.module_key("m", "1").await.unwrap();
        assert_eq!(loads(), 2, "the device's key and the master key");

        domain.own_key.store(1, Ordering::SeqCst);
        assert_eq!(device.sign(b"m".to_vec()).await.unwrap(), b"signed");
        assert_eq!(keys.load("k").await.unwrap().0, "handle 1");
        keys.module_key("m", "2").await.unwrap();
        assert_eq!(loads(), 4);
    }

    #[test]
    fn module_keys_are_those_of_the_specification() {
        let master = PKey::hmac(&(0..32).collect::<Vec<u8>>()).unwrap();
        let derive = |which| {
            let data = derivation_data("testmodule", "638000000000000000", which);
            let mut signer = openssl::sign::Signer::new(MessageDigest::sha256(), &master).unwrap();
            (STANDARD.encode(&data), STANDARD.encode(signer.sign_oneshot_to_vec(data.as_bytes()).unwrap()))
        };
        let (data, primary) = derive(Which::Primary);
        assert_eq!(data, "dGVzdG1vZHVsZTo2MzgwMDAwMDAwMDAwMDAwMDA6cHJpbWFyeQ==");
        assert_eq!(primary, "ArP6yO6YhEctUO0cYXITd/CT+5ae5EsjdWmG3Rsdrgg=");
        assert_eq!(derive(Which::Secondary).1, "OetQkqDme5T28+zuVE+VoXEX+FrNlnF6rNY39freLNE=");
    }
}
