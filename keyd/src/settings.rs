//! The key library that the configuration asks for: the built-in one, or a vendor's.

use std::sync::Arc;

use aziot_config::{Sources, problem_at};
use aziot_http::DaemonError;
use aziot_keyd_api::config::Config;
use aziot_keys::{Foreign, KeyLibrary, Keys, LoadError, PRELOADED_KEY, ParameterError, Settings, SettingsError};
use aziot_log::chain;

const PARAMETERS: &str = "aziot_keys";
const PRELOADED_KEYS: &str = "preloaded_keys";

/// Gets the key library ready. Blocks: on the disk, on a token, on a vendor's code. What it cannot use in `config` is told with its place
/// in `sources`.
pub(crate) fn library(config: &Config, sources: &Sources) -> Result<Arc<dyn KeyLibrary>, DaemonError> {
    let Some(path) = &config.keys_library else {
        let settings = settings(config).map_err(|error| {
            DaemonError::settings(problem_at(sources, &[PARAMETERS, parameter_of(&error)], chain(&error)))
        })?;
        aziot_keys::self_test().map_err(DaemonError::service)?;
        let keys = Keys::new(settings).map_err(|error| {
            DaemonError::config(error.is_permanent(), problem_at(sources, &setting_of(&error), chain(&error)))
        })?;
        return Ok(Arc::new(keys));
    };
    let library = Foreign::load(path, parameters(config), Foreign::LIMIT).map_err(|error| {
        let key_path = match &error {
            LoadError::Parameter { name, .. } => origin_of(config, name).to_vec(),
            _ => vec!["keys_library"],
        };
        DaemonError::config(error.is_permanent(), problem_at(sources, &key_path, chain(&error)))
    })?;
    Ok(Arc::new(library))
}

fn parameter_of(error: &ParameterError) -> &str {
    match error {
        ParameterError::Unknown { name } | ParameterError::Value { name, .. } => name,
        ParameterError::EmptyId => PRELOADED_KEY,
    }
}

/// Parameters were looked at before; what is wrong with a preloaded key now is so in the table of that name.
fn setting_of(error: &SettingsError) -> [&str; 2] {
    match error {
        SettingsError::EmptyId => [PRELOADED_KEYS, ""],
        SettingsError::PreloadedKey { id, .. } => [PRELOADED_KEYS, id],
        SettingsError::Library(_) => [PARAMETERS, "pkcs11_lib_path"],
        SettingsError::BaseSlot(_) | SettingsError::BaseToken(_) => [PARAMETERS, "pkcs11_base_slot"],
    }
}

/// The table and key that a vendor's parameter came from.
fn origin_of<'a>(config: &Config, name: &'a str) -> [&'a str; 2] {
    match name.strip_prefix(PRELOADED_KEY) {
        Some(id) if !config.aziot_keys.contains_key(name) => [PRELOADED_KEYS, id],
        _ => [PARAMETERS, name],
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
    fn a_parameter_that_a_vendor_refuses_leads_back_to_its_table() {
        let aziot_keys = table(&[("pin", "1"), ("preloaded_key:x", "2")]);
        let config = Config { aziot_keys, preloaded_keys: table(&[("y", "3")]), ..Config::default() };
        assert_eq!(origin_of(&config, "pin"), ["aziot_keys", "pin"]);
        assert_eq!(origin_of(&config, "preloaded_key:x"), ["aziot_keys", "preloaded_key:x"]);
        assert_eq!(origin_of(&config, "preloaded_key:y"), ["preloaded_keys", "y"]);
    }

    #[test]
    fn an_unknown_parameter_is_fatal() {
        let config = Config { aziot_keys: table(&[("homedir", "/home")]), ..Config::default() };
        let error = settings(&config).unwrap_err();
        assert!(error.to_string().contains("homedir"), "{error}");
    }
}
