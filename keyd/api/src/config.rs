//! Configuration of the key service: `/etc/aziot/keyd/config.toml` and its drop-ins.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use aziot_http::{Endpoint, Glob, endpoint::built_in, server::MaxRequests};
use serde::{Deserialize, Serialize};

/// All settings; every one of them has a default. `Debug` shows no parameter of the key library and no URI, which may hold a PIN.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { max_requests, keys_library, aziot_keys, preloaded_keys, principal, endpoints } = self;
        formatter
            .debug_struct("Config")
            .field("max_requests", max_requests)
            .field("keys_library", keys_library)
            .field("aziot_keys", &aziot_keys.keys())
            .field("preloaded_keys", &preloaded_keys.keys())
            .field("principal", principal)
            .field("endpoints", endpoints)
            .finish()
    }
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
    #[serde(default = "built_in::keyd")]
    pub aziot_keyd: Endpoint,
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
        Self { aziot_keyd: built_in::keyd() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pin_shows() {
        let uri = "pkcs11:token=t?pin-value=4711".to_owned();
        let config = Config {
            aziot_keys: BTreeMap::from([("pkcs11_base_slot".to_owned(), uri.clone())]),
            preloaded_keys: BTreeMap::from([("device-id".to_owned(), uri)]),
            ..Config::default()
        };
        let shown = format!("{config:?}");
        assert!(shown.contains("device-id") && shown.contains("pkcs11_base_slot"), "{shown}");
        assert!(!shown.contains("4711"), "{shown}");
    }
}
