//! From the service's configuration to the settings of the key library.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aziot_keys::Settings;

/// `[aziot_keys]` holds something that the key library does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown key {name:?} in [aziot_keys]: it takes homedir_path, pkcs11_lib_path and pkcs11_base_slot")]
pub(crate) struct UnknownParameter {
    name: String,
}

/// The library takes its parameters by name, as the C library of the public service does; an unknown one is fatal.
pub(crate) fn library_settings(
    aziot_keys: BTreeMap<String, String>,
    preloaded_keys: BTreeMap<String, String>,
) -> Result<Settings, UnknownParameter> {
    let mut settings = Settings::default();
    for (name, value) in aziot_keys {
        match name.as_str() {
            "homedir_path" => settings.homedir_path = Some(PathBuf::from(value)),
            "pkcs11_lib_path" => settings.pkcs11_lib_path = Some(PathBuf::from(value)),
            "pkcs11_base_slot" => settings.pkcs11_base_slot = Some(value),
            _ => match name.strip_prefix("preloaded_key:") {
                Some(id) => _ = settings.preloaded_keys.insert(id.to_owned(), value),
                None => return Err(UnknownParameter { name }),
            },
        }
    }
    settings.preloaded_keys.extend(preloaded_keys);
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn parameters_go_to_the_library_by_name() {
        let parameters =
            table(&[("homedir_path", "/home"), ("preloaded_key:a", "file:///1"), ("preloaded_key:b", "file:///2")]);
        let settings = library_settings(parameters, table(&[("b", "file:///3")])).unwrap();
        assert_eq!(settings.homedir_path, Some("/home".into()));
        assert_eq!(settings.preloaded_keys, table(&[("a", "file:///1"), ("b", "file:///3")]));
    }

    #[test]
    fn an_unknown_parameter_is_fatal() {
        let error = library_settings(table(&[("homedir", "/home")]), BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("homedir"), "{error}");
    }
}
