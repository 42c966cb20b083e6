//! Configuration of the key service: `/etc/aziot/keyd/config.toml` and its drop-ins.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aziot_http::{Endpoint, Glob, server::MaxRequests};
use serde::{Deserialize, Serialize};

/// All settings; every one of them has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Requests of one uid that are worked on at once. Default 10. Read at start only.
    #[serde(default, skip_serializing_if = "MaxRequests::is_default")]
    pub max_requests: MaxRequests,
    /// Absolute path of a vendor's key library, a `libaziot_keys.so`, to use instead of the built-in one. Read at start only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_library: Option<PathBuf>,
    /// Parameters of the key library. The built-in one has `homedir_path`, `pkcs11_lib_path`, `pkcs11_base_slot`, and refuses others. Read at start only.
    #[serde(default)]
    pub aziot_keys: BTreeMap<String, String>,
    /// Key id to `file:` or `pkcs11:` URI. Read at start only.
    #[serde(default)]
    pub preloaded_keys: BTreeMap<String, String>,
    /// Who may use which keys. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principal: Vec<Principal>,
    /// Where the service listens. Read at start only.
    #[serde(default, skip_serializing_if = "Endpoints::is_default")]
    pub endpoints: Endpoints,
}

/// A user and the keys that it may create, import, load and move. Several entries of one uid add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Unix user id of the caller; 0 needs no entry.
    pub uid: u32,
    /// Patterns of key ids, with `*` and `?`.
    pub keys: Vec<Glob>,
}

/// The sockets that the key service knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Its own. Default `unix:///run/aziot/keyd.sock`.
    #[serde(default = "keyd")]
    pub aziot_keyd: Endpoint,
}

fn keyd() -> Endpoint {
    Endpoint::of_service("keyd")
}

impl Endpoints {
    /// Whether all sockets are where they always are.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { aziot_keyd: keyd() }
    }
}
