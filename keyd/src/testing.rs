//! The key service without its socket: what fuzz targets (`fuzz/`) and benchmarks (`benches/`) drive. No daemon is built with it.

use std::sync::Arc;

use aziot_http::service::Routes;
use aziot_keyd_api::config::Principal;
use aziot_keyd_api::key::KeyHandle;
use aziot_keys::KeyLibrary;

use crate::handle::Handles;
use crate::http;
use crate::keys::Keys;
use crate::principals::Principals;

/// A key service over some library.
pub struct KeyService {
    routes: Routes,
    handles: Handles,
}

impl KeyService {
    /// The service that these principals may use.
    #[must_use]
    pub fn new(library: Arc<dyn KeyLibrary>, principals: &[Principal]) -> KeyService {
        let handles = Handles::new(Arc::clone(&library));
        let keys = Keys::new(library, Principals::new(principals));
        KeyService { routes: http::routes(Arc::new(keys)), handles }
    }

    /// All its calls; `aziot_http::testing` answers them.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// A handle of the symmetric key `id`, whoever asks and whether it exists or not.
    ///
    /// # Panics
    /// When the key that signs handles cannot be used.
    pub async fn mint(&self, id: &str) -> String {
        self.handles.of_key(id.to_owned()).await.expect("a key that signs handles").0
    }

    /// Whether `handle` is one.
    pub async fn is_genuine(&self, handle: &str) -> bool {
        self.handles.check(&KeyHandle(handle.to_owned())).await.is_ok()
    }
}
