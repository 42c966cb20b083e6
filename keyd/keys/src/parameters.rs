//! Settings by name and value, one after another, as the C ABI and the key service's configuration give them (`keys.md`, 8.5).

use std::path::PathBuf;

use crate::location::Settings;
use crate::uri::{KeyUri, Pkcs11Uri, UriError};

/// What a parameter's name starts with that says where a key is; the id follows.
pub const PRELOADED_KEY: &str = "preloaded_key:";

/// A parameter that the library does not take. Never quotes a value, it may hold a PIN.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    /// No such name.
    #[error(
        "unknown parameter {name:?}: there are homedir_path, pkcs11_lib_path, pkcs11_base_slot and preloaded_key:<id>"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// A preloaded key without id.
    #[error("a preloaded key has an empty id")]
    EmptyId,
    /// A value that must be a URI and is none that can be used.
    #[error("the value of the parameter {name:?} is not usable")]
    Value {
        /// The name.
        name: String,
        /// What is wrong with the URI.
        source: UriError,
    },
}

impl Settings {
    /// Sets the parameter `name`; a later value replaces an earlier one. Files and libraries need not exist yet.
    pub fn set(&mut self, name: &str, value: String) -> Result<(), ParameterError> {
        let unusable = |source| ParameterError::Value { name: name.to_owned(), source };
        match name {
            "homedir_path" => self.homedir_path = Some(PathBuf::from(value)),
            "pkcs11_lib_path" => self.pkcs11_lib_path = Some(PathBuf::from(value)),
            "pkcs11_base_slot" => {
                let _: Pkcs11Uri = value.parse().map_err(unusable)?;
                self.pkcs11_base_slot = Some(value);
            }
            _ => {
                let id = name
                    .strip_prefix(PRELOADED_KEY)
                    .ok_or_else(|| ParameterError::Unknown { name: name.to_owned() })?;
                if id.is_empty() {
                    return Err(ParameterError::EmptyId);
                }
                let _: KeyUri = value.parse().map_err(unusable)?;
                self.preloaded_keys.insert(id.to_owned(), value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_sets_its_own_setting_and_the_last_value_counts() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("homedir_path", "/first"),
            ("homedir_path", "/home"),
            ("pkcs11_lib_path", "/lib.so"),
            ("pkcs11_base_slot", "pkcs11:slot-id=1"),
            ("preloaded_key:a:b", "file:///a"),
            ("preloaded_key:c", "pkcs11:token=t;object=c"),
        ] {
            settings.set(name, value.to_owned()).unwrap();
        }
        assert_eq!(settings.homedir_path, Some("/home".into()));
        assert_eq!(settings.pkcs11_lib_path, Some("/lib.so".into()));
        assert_eq!(settings.pkcs11_base_slot.as_deref(), Some("pkcs11:slot-id=1"));
        let ids: Vec<&str> = settings.preloaded_keys.keys().map(String::as_str).collect();
        assert_eq!(ids, ["a:b", "c"]);
    }

    #[test]
    fn what_is_refused_changes_nothing_and_shows_no_value() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("", "x"),
            ("homedir", "x"),
            ("Homedir_path", "x"),
            ("preloaded_key", "file:///x"),
            ("preloaded_key:", "file:///x"),
            ("preloaded_key:k", "http://x"),
            ("pkcs11_base_slot", "pkcs11:object=o?pin-value=1234"),
        ] {
            let error = settings.set(name, value.to_owned()).unwrap_err();
            assert!(!format!("{error:?} {error}").contains("1234"), "{error}");
        }
        assert!(settings.homedir_path.is_none() && settings.pkcs11_base_slot.is_none());
        assert!(settings.preloaded_keys.is_empty());
    }
}
