//! Where a key is: on a token, in a file of the home directory, or where an operator put it (`keys.md`, 4.3, 5.1 and 5.3).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::sha::Sha256;

use crate::error::{Invalid, Problem};
use crate::paths::Paths;
use crate::token::{Module, Token, TokenError, TokenLocation, is_reserved};
use crate::uri::{KeyUri, Pkcs11Uri, UriError};

/// The longest file name that Linux file systems take.
const LONGEST_NAME: usize = 255;

/// The settings of the key library: `[aziot_keys]` and `[preloaded_keys]` of the key service's configuration. `Debug` shows no URI, which
/// may hold a PIN.
#[derive(Clone, Default)]
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

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { homedir_path, pkcs11_lib_path, pkcs11_base_slot, preloaded_keys } = self;
        formatter
            .debug_struct("Settings")
            .field("homedir_path", homedir_path)
            .field("pkcs11_lib_path", pkcs11_lib_path)
            .field("pkcs11_base_slot", &pkcs11_base_slot.as_ref().map(|_| "..."))
            .field("preloaded_keys", &preloaded_keys.keys())
            .finish()
    }
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
    /// Going on without the library would put keys that belong on a token into files.
    #[error("pkcs11_lib_path in [aziot_keys] is not usable")]
    Library(#[source] TokenError),
    /// Going on without the token would put keys that belong on it into files.
    #[error("the token of pkcs11_base_slot in [aziot_keys] is not usable")]
    BaseToken(#[source] TokenError),
}

impl SettingsError {
    /// Whether the configuration must change before another start can succeed. A token or a library that is not ready may be so the next
    /// time.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(self, SettingsError::Library(error) | SettingsError::BaseToken(error) if error.may_pass())
    }
}

/// One place of a key.
pub(crate) enum Location {
    File(FileLocation),
    Token(TokenLocation),
}

impl Location {
    /// What writers of this place take turns by.
    pub(crate) fn turn(&self) -> Result<PathBuf, Problem> {
        match self {
            Location::File(file) => Ok(file.path.clone()),
            Location::Token(token) => token.turn(),
        }
    }

    pub(crate) fn is_preloaded(&self) -> Result<bool, Problem> {
        match self {
            Location::File(file) => Ok(file.preloaded),
            Location::Token(token) => token.is_preloaded(),
        }
    }
}

/// The file of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct FileLocation {
    pub(crate) path: PathBuf,
    /// Put there by an operator: made where absent, and otherwise only read.
    pub(crate) preloaded: bool,
}

impl FileLocation {
    /// Whether this is a preloaded key whose file is there, be it empty, damaged or a dangling link.
    pub(crate) fn is_untouchable(&self) -> bool {
        self.preloaded && self.path.symlink_metadata().is_ok()
    }
}

/// Knows where each key is.
pub(crate) struct Locations {
    files: Option<Paths>,
    preloaded: BTreeMap<String, Preloaded>,
    /// Where new keys go first.
    base: Option<Arc<Token>>,
}

/// The place that an operator gave a key.
enum Preloaded {
    File(PathBuf),
    Token(TokenLocation),
    /// On a token, and there is no library to reach it with.
    OutOfReach,
}

impl Locations {
    /// Loads the PKCS#11 library, and opens the base slot if there is one.
    pub(crate) fn new(settings: Settings) -> Result<Locations, SettingsError> {
        let base_slot = settings.pkcs11_base_slot.map(|uri| uri.parse::<Pkcs11Uri>()).transpose();
        // A slip in it shows even where no library uses it yet.
        let base_slot = base_slot.map_err(SettingsError::BaseSlot)?;
        let mut places = BTreeMap::new();
        for (id, uri) in settings.preloaded_keys {
            if id.is_empty() {
                return Err(SettingsError::EmptyId);
            }
            match uri.parse::<KeyUri>() {
                Ok(KeyUri::Pkcs11(uri)) if uri.object.as_deref().is_some_and(is_reserved) => {
                    return Err(SettingsError::PreloadedKey { id, source: UriError::ReservedObject });
                }
                Ok(uri) => places.insert(id, uri),
                Err(source) => return Err(SettingsError::PreloadedKey { id, source }),
            };
        }
        let library = settings.pkcs11_lib_path.as_deref().map(Module::load).transpose();
        let library = library.map_err(SettingsError::Library)?;
        let mut tokens: Vec<Arc<Token>> = Vec::new();
        let mut base = None;
        if let (Some(library), Some(uri)) = (&library, &base_slot) {
            let token = shared(&mut tokens, library, uri);
            token.open_at_start().map_err(SettingsError::BaseToken)?;
            base = Some(token);
        }
        let place = |(id, uri)| {
            let place = match (uri, &library) {
                (KeyUri::File(path), _) => Preloaded::File(path),
                (KeyUri::Pkcs11(_), None) => Preloaded::OutOfReach,
                (KeyUri::Pkcs11(uri), Some(library)) => {
                    Preloaded::Token(TokenLocation::preloaded(shared(&mut tokens, library, &uri), uri.object))
                }
            };
            (id, place)
        };
        let preloaded = places.into_iter().map(place).collect();
        let files = settings.homedir_path.map(|home| Paths::below(home.join("keys")));
        Ok(Locations { files, preloaded, base })
    }

    /// The folder of the keys that are not preloaded.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.files.as_ref().map(Paths::folder)
    }

    /// Every folder that key files may be written to.
    pub(crate) fn folders(&self) -> BTreeSet<PathBuf> {
        let preloaded = self.preloaded.values().filter_map(|place| match place {
            Preloaded::File(path) => path.parent(),
            Preloaded::Token(_) | Preloaded::OutOfReach => None,
        });
        self.folder().into_iter().chain(preloaded).map(Path::to_owned).collect()
    }

    /// The places of the key `id`, the one that counts most first; at least one.
    pub(crate) fn of(&self, id: &str) -> Result<Vec<Location>, Invalid> {
        match self.preloaded.get(id) {
            Some(Preloaded::File(path)) => {
                return Ok(vec![Location::File(FileLocation { path: path.clone(), preloaded: true })]);
            }
            Some(Preloaded::Token(place)) => return Ok(vec![Location::Token(place.clone())]),
            Some(Preloaded::OutOfReach) => return Err(Invalid::TokenWithoutLibrary),
            None => {}
        }
        let mut locations = Vec::new();
        let path = self.files.as_ref().map(|files| files.of(id).ok_or(Invalid::IdTooLong)).transpose()?;
        if let Some(token) = &self.base {
            if is_reserved(id) {
                return Err(Invalid::ReservedId);
            }
            let place = TokenLocation::dynamic(Arc::clone(token), id, self.namesakes(id), path.clone());
            locations.push(Location::Token(place));
        }
        if let Some(path) = path {
            locations.push(Location::File(FileLocation { path, preloaded: false }));
        }
        if locations.is_empty() { Err(Invalid::NoHome) } else { Ok(locations) }
    }

    /// The tokens on which an operator named the object `label`.
    fn namesakes(&self, label: &str) -> Vec<Arc<Token>> {
        let named = |place: &Preloaded| match place {
            Preloaded::Token(place) => place.token_with(label),
            Preloaded::File(_) | Preloaded::OutOfReach => None,
        };
        self.preloaded.values().filter_map(named).collect()
    }
}

/// The token of `uri` with its PIN, which keys share with their sessions.
fn shared(tokens: &mut Vec<Arc<Token>>, library: &Arc<Module>, uri: &Pkcs11Uri) -> Arc<Token> {
    if let Some(token) = tokens.iter().find(|token| token.is_of(uri)) {
        return Arc::clone(token);
    }
    let token = Arc::new(Token::new(Arc::clone(library), uri));
    tokens.push(Arc::clone(&token));
    token
}

/// The file name of the key `id`, or `None` if it would be longer than a file name can be.
///
/// The ASCII letters and digits of the id, `-`, the SHA-256 of the whole id in hex, `.key`. Part of what a home directory promises, so
/// that others can lay one out: the benchmarks and fuzz targets do.
#[must_use]
pub fn file_name(id: &str) -> Option<String> {
    // By hand, because every use of a key asks for the name: `write!` and the one-call hash took a tenth of an HMAC request.
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hash = Sha256::new();
    hash.update(id.as_bytes());
    let mut name = String::with_capacity(id.len() + 1 + 64 + 4);
    name.extend(id.bytes().filter(u8::is_ascii_alphanumeric).map(char::from));
    name.push('-');
    for byte in hash.finish() {
        name.push(char::from(DIGITS[usize::from(byte >> 4)]));
        name.push(char::from(DIGITS[usize::from(byte & 15)]));
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
        let expected = FileLocation { path: "/k".into(), preloaded: true };
        assert!(matches!(&locations.of("known").unwrap()[..], [Location::File(file)] if *file == expected));
        assert!(matches!(locations.of("other"), Err(Invalid::NoHome)));
    }

    #[test]
    fn a_preloaded_token_key_needs_a_library() {
        let locations = locations(preloaded("known", "pkcs11:token=t;object=o")).unwrap();
        assert!(matches!(locations.of("known"), Err(Invalid::TokenWithoutLibrary)));
    }

    #[test]
    fn no_pin_shows() {
        let uri = "pkcs11:token=t?pin-value=4711";
        let settings = Settings { pkcs11_base_slot: Some(uri.to_owned()), ..preloaded("k", uri) };
        let shown = format!("{settings:?}");
        assert!(shown.contains("\"k\"") && !shown.contains("4711"), "{shown}");
    }

    #[test]
    fn bad_settings_are_refused() {
        assert!(matches!(locations(preloaded("", "file:///k")), Err(SettingsError::EmptyId)));
        assert!(matches!(locations(preloaded("k", "http://x")), Err(SettingsError::PreloadedKey { .. })));
        let base_slot = Settings { pkcs11_base_slot: Some("pkcs11:".into()), ..Settings::default() };
        assert!(matches!(locations(base_slot), Err(SettingsError::BaseSlot(UriError::NoToken))));
        let library = Settings { pkcs11_lib_path: Some("/lib.so".into()), ..Settings::default() };
        assert!(matches!(locations(library), Err(SettingsError::Library(TokenError::Load { .. }))));
    }
}
