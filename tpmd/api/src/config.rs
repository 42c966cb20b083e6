//! Configuration of the TPM service: `/etc/aziot/tpmd/config.toml` and its drop-ins.

mod auth_value;
mod index;
mod tcti;

use aziot_http::{Endpoint, endpoint::built_in, server::MaxRequests};
use serde::{Deserialize, Serialize};

pub use auth_value::{AuthValue, Invalid as InvalidAuthValue};
pub use index::{AuthKeyIndex, OutOfRange};
pub use tcti::{Invalid as InvalidTcti, Tcti};

/// All settings; every one of them has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Requests of one uid that are worked on at once. Default 10. Read at start only.
    #[serde(default, skip_serializing_if = "MaxRequests::is_default")]
    pub max_requests: MaxRequests,
    /// How the TPM is reached. Default `device`. Read at start only.
    #[serde(default, skip_serializing_if = "Tcti::is_default")]
    pub tcti: Tcti,
    /// Where the imported key is kept. Default `0x00_01_00`. Read at start only.
    #[serde(default, skip_serializing_if = "AuthKeyIndex::is_default")]
    pub auth_key_index: AuthKeyIndex,
    /// What the TPM asks for before it makes and replaces keys. Read at start only.
    #[serde(default, skip_serializing_if = "HierarchyAuthorization::is_default")]
    pub hierarchy_authorization: HierarchyAuthorization,
    /// Who may call, beside root. Absent: everybody who may connect to the socket. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Vec<Principal>>,
    /// Where the service listens. Read at start only.
    #[serde(default, skip_serializing_if = "Endpoints::is_default")]
    pub endpoints: Endpoints,
}

/// Authorization values of the TPM's hierarchies, as its owner has set them. Default: empty, as a TPM leaves the factory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HierarchyAuthorization {
    /// Of the endorsement hierarchy.
    #[serde(default, skip_serializing_if = "AuthValue::is_empty")]
    pub endorsement: AuthValue,
    /// Of the owner (storage) hierarchy.
    #[serde(default, skip_serializing_if = "AuthValue::is_empty")]
    pub owner: AuthValue,
}

impl HierarchyAuthorization {
    /// Whether both are empty.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A user that may call the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Unix user id of the caller; 0 needs no entry.
    pub uid: u32,
}

/// The sockets that the TPM service knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Its own. Default `unix:///run/aziot/tpmd.sock`.
    #[serde(default = "built_in::tpmd")]
    pub aziot_tpmd: Endpoint,
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
        Self { aziot_tpmd: built_in::tpmd() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        let loaded = aziot_config::load_str::<Config>("config.toml", text).unwrap();
        assert!(loaded.findings.is_empty(), "{:?}", loaded.findings);
        loaded.value
    }

    /// What an operator is told; the sources of the error are left out of its own text.
    fn refusal(text: &str) -> String {
        let error = aziot_config::load_str::<Config>("config.toml", text).unwrap_err();
        error.problem().unwrap().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default_and_the_default_an_empty_file() {
        assert_eq!(read(""), Config::default());
        assert_eq!(toml::to_string(&Config::default()).unwrap(), "");
    }

    #[test]
    fn the_documented_example_is_read_and_written_again() {
        let config = read(
            "tcti = \"swtpm:host=127.0.0.1,port=2321\"\nauth_key_index = 0x00_01_01\nmax_requests = 11\n\
             [hierarchy_authorization]\nendorsement = \"hello\"\nowner = { hex = \"00FF\" }\n[[principal]]\nuid = 7\n\
             [endpoints]\naziot_tpmd = \"unix:///tmp/tpmd.sock\"\n",
        );
        assert_eq!(config.auth_key_index.handle(), 0x8100_0101);
        assert_eq!(config.hierarchy_authorization.endorsement.expose(), b"hello");
        assert_eq!(config.hierarchy_authorization.owner.expose(), [0, 0xff]);
        assert_eq!(config.principal, Some(vec![Principal { uid: 7 }]));
        assert_eq!(read(&toml::to_string(&config).unwrap()), config);
    }

    /// `tpm.md`, section 15: the index was the setting whose error named no key.
    #[test]
    fn errors_name_line_and_key() {
        for (text, expected) in [
            ("auth_key_index = 0x80_00_00", "integer in range 0x00_00_00..=0x7F_FF_FF"),
            ("auth_key_index = -1", "integer in range 0x00_00_00..=0x7F_FF_FF"),
            ("auth_key_index = \"256\"", "0x00_00_00..=0x7F_FF_FF"),
            ("tcti = \"cmd:sh\"", "cmd"),
            ("tcti = 5", "tcti"),
            ("max_requests = 0", "max_requests"),
        ] {
            let message = refusal(text);
            let key = text.split(' ').next().unwrap();
            assert!(message.contains("config.toml:1") && message.contains(key), "{message}");
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn an_unusable_password_is_refused_and_not_shown() {
        let long = format!("hunter2{}", "x".repeat(58));
        for value in [
            format!("\"{long}\""),
            "\"hunter2\\u0000\"".to_owned(),
            "[\"hunter2\"]".to_owned(),
            "{ hex = \"hunter2\" }".to_owned(),
            "{ text = \"hunter2\" }".to_owned(),
        ] {
            let message = refusal(&format!("[hierarchy_authorization]\nowner = {value}\n"));
            assert!(message.contains("owner") && message.contains("config.toml:2"), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        let config =
            read("[hierarchy_authorization]\nowner = \"hunter2\"\nendorsement = { hex = \"68756e74657232\" }\n");
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("68, 75") && !shown.contains("104"), "{shown}");
    }

    #[test]
    fn an_unknown_key_is_found() {
        let loaded = aziot_config::load_str::<Config>("config.toml", "auth_key_indx = 1\n").unwrap();
        assert_eq!(loaded.findings.len(), 1);
        assert!(loaded.findings[0].to_string().contains("auth_key_index"), "{}", loaded.findings[0]);
    }
}
