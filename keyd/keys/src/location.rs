//! Where a key is: the folder, the file name, and the keys that an operator put somewhere else (`keys.md`, 4.3, 5.1 and 5.3).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use openssl::sha::sha256;

use crate::error::Invalid;
use crate::uri::{KeyUri, Pkcs11Uri, UriError};

/// The longest file name that Linux file systems take.
const LONGEST_NAME: usize = 255;

/// The settings of the key library: `[aziot_keys]` and `[preloaded_keys]` of the key service's configuration.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Home directory of the service; keys that are not preloaded lie in `keys` below it. Without it there are only preloaded keys.
    pub homedir_path: Option<PathBuf>,
    /// A PKCS#11 library.
    pub pkcs11_lib_path: Option<PathBuf>,
    /// `pkcs11:` URI of the token on which keys are made.
    pub pkcs11_base_slot: Option<String>,
    /// Key ids with the `file:` or `pkcs11:` URI of their place.
    pub preloaded_keys: BTreeMap<String, String>,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An entry of `[preloaded_keys]` without id.
    #[error("a key in [preloaded_keys] has an empty id")]
    EmptyId,
    /// A place that is no usable URI.
    #[error("the place of the key {id:?} in [preloaded_keys] is not usable")]
    PreloadedKey {
        /// The key.
        id: String,
        /// What is wrong with the URI.
        source: UriError,
    },
    /// A base slot that is no usable URI.
    #[error("pkcs11_base_slot in [aziot_keys] is not usable")]
    BaseSlot(#[source] UriError),
    /// Going on without the token would put keys that belong on it into files.
    #[error("pkcs11_lib_path in [aziot_keys] is set, but this version keeps keys in files only; remove it to do so")]
    Pkcs11,
    /// The folder of the key files could not be tidied up.
    #[error("could not prepare the folder of the keys")]
    Folder(#[from] aziot_files::Error),
}

/// One place of a key. `Token`, an object on a PKCS#11 token, will be the second variant, and a key will then have a list of locations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Location {
    File {
        path: PathBuf,
        /// Put there by an operator: made where absent, and otherwise only read.
        preloaded: bool,
    },
}

impl Location {
    pub(crate) fn path(&self) -> &Path {
        let Location::File { path, .. } = self;
        path
    }

    pub(crate) fn is_preloaded(&self) -> bool {
        let Location::File { preloaded, .. } = self;
        *preloaded
    }

    /// Whether this is a preloaded key whose file is there, be it empty, damaged or a dangling link.
    pub(crate) fn is_untouchable(&self) -> bool {
        self.is_preloaded() && self.path().symlink_metadata().is_ok()
    }
}

/// Knows where each key is.
pub(crate) struct Locations {
    folder: Option<PathBuf>,
    preloaded: BTreeMap<String, KeyUri>,
}

impl Locations {
    pub(crate) fn new(settings: Settings) -> Result<Locations, SettingsError> {
        if settings.pkcs11_lib_path.is_some() {
            return Err(SettingsError::Pkcs11);
        }
        if let Some(base_slot) = settings.pkcs11_base_slot {
            // Without a library nothing uses it, but a slip in it should show now rather than on the day there is one.
            let _: Pkcs11Uri = base_slot.parse().map_err(SettingsError::BaseSlot)?;
        }
        let mut preloaded = BTreeMap::new();
        for (id, uri) in settings.preloaded_keys {
            if id.is_empty() {
                return Err(SettingsError::EmptyId);
            }
            match uri.parse() {
                Ok(uri) => preloaded.insert(id, uri),
                Err(source) => return Err(SettingsError::PreloadedKey { id, source }),
            };
        }
        Ok(Locations { folder: settings.homedir_path.map(|home| home.join("keys")), preloaded })
    }

    /// The folder of the keys that are not preloaded.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    pub(crate) fn of(&self, id: &str) -> Result<Location, Invalid> {
        match self.preloaded.get(id) {
            Some(KeyUri::File(path)) => Ok(Location::File { path: path.clone(), preloaded: true }),
            Some(KeyUri::Pkcs11(_)) => Err(Invalid::TokenWithoutLibrary),
            None => {
                let folder = self.folder.as_ref().ok_or(Invalid::NoHome)?;
                let name = file_name(id).ok_or(Invalid::IdTooLong)?;
                Ok(Location::File { path: folder.join(name), preloaded: false })
            }
        }
    }
}

/// The file name of the key `id`, or `None` if it would be longer than a file name can be.
///
/// The ASCII letters and digits of the id, `-`, the SHA-256 of the whole id in hex, `.key`.
#[must_use]
pub fn file_name(id: &str) -> Option<String> {
    use std::fmt::Write;

    let mut name: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    name.push('-');
    for byte in sha256(id.as_bytes()) {
        write!(name, "{byte:02x}").ok()?;
    }
    name.push_str(".key");
    (name.len() <= LONGEST_NAME).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_of_file_names() {
        let table = [
            (
                "handle-validation-key",
                "handlevalidationkey-40f1ca41fe8b50f53e10f3e3a580dcae24087f37aa498ba9903f2612b03e90ba.key",
            ),
            ("device-id", "deviceid-bd732105ef89cf8edd2606a5309c8a26b7b5599a4e124a0fe6199b6b2f60e655.key"),
            ("device-id-temp", "deviceidtemp-18529c9171bde94d93057c5ae38aa55de93bd188cf902aae402ccff020205f2b.key"),
            ("est-id", "estid-c45f3e96a312cc524fecceddbc40dfc2aa789eae911d8bc7dd4eda19b93be900.key"),
            (
                "aziot_identityd_master_id",
                "aziotidentitydmasterid-91b92c2c06a5a5dda5fbc9c48b4d428d930b9c1b8b2956a1044ccbc7a266afc9.key",
            ),
            ("k1", "k1-6ab9f1eb8f7d3388f4f9d586f66e99fd54080df2c446f0e58668b09c08a16dd0.key"),
            ("a/b c%?é", "abc-98eccc62eae486ab5d0420554b26ebb4f78d56d73d62308180b3a04f57cedfb4.key"),
            ("日本", "-cf2abf0c5be326cb922a70f8163f91079c4d9aa8655c60ead89ad545c9de2e92.key"),
            ("", "-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.key"),
        ];
        for (id, name) in table {
            assert_eq!(file_name(id).as_deref(), Some(name), "{id}");
        }
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        assert_eq!(file_name(&"a".repeat(186)).unwrap().len(), 255);
        assert_eq!(file_name(&"a".repeat(187)), None);
        assert!(file_name(&"/".repeat(10_000)).is_some());
    }

    proptest! {
        #[test]
        fn a_name_never_leaves_its_folder_and_tells_ids_apart(id in ".{0,60}", other in ".{0,60}") {
            let name = file_name(&id).unwrap();
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.'));
            prop_assert!(!name.starts_with('.') && !name.contains(".."));
            prop_assert_eq!(name == file_name(&other).unwrap(), id == other);
        }
    }

    fn locations(settings: Settings) -> Result<Locations, SettingsError> {
        Locations::new(settings)
    }

    fn preloaded(id: &str, uri: &str) -> Settings {
        Settings { preloaded_keys: BTreeMap::from([(id.to_owned(), uri.to_owned())]), ..Settings::default() }
    }

    #[test]
    fn without_a_home_only_preloaded_files_have_a_place() {
        let locations = locations(preloaded("known", "file:///k")).unwrap();
        assert_eq!(locations.of("known").unwrap(), Location::File { path: "/k".into(), preloaded: true });
        assert!(matches!(locations.of("other"), Err(Invalid::NoHome)));
    }

    #[test]
    fn a_preloaded_token_key_needs_a_library() {
        let locations = locations(preloaded("known", "pkcs11:token=t;object=o")).unwrap();
        assert!(matches!(locations.of("known"), Err(Invalid::TokenWithoutLibrary)));
    }

    #[test]
    fn bad_settings_are_refused() {
        assert!(matches!(locations(preloaded("", "file:///k")), Err(SettingsError::EmptyId)));
        assert!(matches!(locations(preloaded("k", "http://x")), Err(SettingsError::PreloadedKey { .. })));
        let base_slot = Settings { pkcs11_base_slot: Some("pkcs11:".into()), ..Settings::default() };
        assert!(matches!(locations(base_slot), Err(SettingsError::BaseSlot(UriError::NoToken))));
        let library = Settings { pkcs11_lib_path: Some("/lib.so".into()), ..Settings::default() };
        assert!(matches!(locations(library), Err(SettingsError::Pkcs11)));
    }
}
