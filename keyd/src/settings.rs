//! The key library that the configuration asks for: the built-in one, or a vendor's.

use std::sync::Arc;

use aziot_http::DaemonError;
use aziot_keyd_api::config::Config;
use aziot_keys::{Foreign, KeyLibrary, Keys, PRELOADED_KEY, ParameterError, Settings};

/// Gets the key library ready. Blocks: on the disk, on a token, on a vendor's code.
pub(crate) fn library(config: &Config) -> Result<Arc<dyn KeyLibrary>, DaemonError> {
    let Some(path) = &config.keys_library else {
        let settings = settings(config).map_err(DaemonError::settings)?;
        aziot_keys::self_test().map_err(DaemonError::service)?;
        let keys = Keys::new(settings).map_err(DaemonError::settings)?;
        return Ok(Arc::new(keys));
    };
    match Foreign::load(path, parameters(config), Foreign::LIMIT) {
        Ok(library) => Ok(Arc::new(library)),
        Err(error) if error.is_permanent() => Err(DaemonError::settings(error)),
        Err(error) => Err(DaemonError::service(error)),
    }
}

/// What the built-in library takes; a name in `[aziot_keys]` that it does not know is fatal.
fn settings(config: &Config) -> Result<Settings, ParameterError> {
    let mut settings = Settings::default();
    for (name, value) in &config.aziot_keys {
        settings.set(name, value.clone())?;
    }
    settings.preloaded_keys.extend(config.preloaded_keys.clone());
    Ok(settings)
}

/// What a vendor's library is handed, in this order: `[aziot_keys]` as it is, then the preloaded keys, each by the bytes of its name.
fn parameters(config: &Config) -> Vec<(String, String)> {
    let own = config.aziot_keys.iter().map(|(name, value)| (name.clone(), value.clone()));
    let preloaded = config.preloaded_keys.iter().map(|(id, uri)| (format!("{PRELOADED_KEY}{id}"), uri.clone()));
    own.chain(preloaded).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn table(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn parameters_go_to_the_library_by_name() {
        let aziot_keys =
            table(&[("homedir_path", "/home"), ("preloaded_key:a", "file:///1"), ("preloaded_key:b", "file:///2")]);
        let config = Config { aziot_keys, preloaded_keys: table(&[("b", "file:///3")]), ..Config::default() };
        let settings = settings(&config).unwrap();
        assert_eq!(settings.homedir_path, Some("/home".into()));
        assert_eq!(settings.preloaded_keys, table(&[("a", "file:///1"), ("b", "file:///3")]));
    }

    #[test]
    fn a_vendors_library_gets_every_name_as_it_is_and_preloaded_keys_last() {
        let aziot_keys = table(&[("z", "1"), ("Vendor option", "2"), ("preloaded_key:x", "3")]);
        let config = Config { aziot_keys, preloaded_keys: table(&[("b", "5"), ("B", "4")]), ..Config::default() };
        let parameters = parameters(&config);
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Vendor option", "preloaded_key:x", "z", "preloaded_key:B", "preloaded_key:b"]);
        assert_eq!(parameters[3].1, "4");
    }

    #[test]
    fn an_unknown_parameter_is_fatal() {
        let config = Config { aziot_keys: table(&[("homedir", "/home")]), ..Config::default() };
        let error = settings(&config).unwrap_err();
        assert!(error.to_string().contains("homedir"), "{error}");
    }
}
