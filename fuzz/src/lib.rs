//! The world of the fuzz targets: the keys of the worked examples, in files on a file system in memory.
//!
//! Handles in the seeds are signed by the same key as here, so that mutations of them get past the signature's check.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use aziot_http::Glob;
use aziot_keyd::testing::KeyService;
use aziot_keyd_api::config::Principal;
use aziot_keys::{Keys, Settings, file_name};
use tokio::runtime::{Builder, Runtime};

/// Id of the key that signs handles.
pub const HANDLE_KEY: &str = "handle-validation-key";
/// The caller of all requests; no other may use a key.
pub const USER: u32 = 1000;
/// A bounded number of ids: every other one would become a file.
const ALLOWED: &[&str] = &["k1", "k2", "", "device-id", "device-id-temp", "rsa", "a/b c%?é"];
/// The EC pair of the worked examples.
const EC_PAIR: &str = include_str!("../seeds/key_file/ec_pkcs8");
/// The RSA pair of the worked examples.
const RSA_PAIR: &str = include_str!("../seeds/key_file/rsa_pkcs8");

/// A key service and what it stands on.
pub struct World {
    /// Home of the keys.
    pub folder: PathBuf,
    /// The keys in the folder.
    pub library: Arc<Keys>,
    /// The service over them.
    pub service: KeyService,
    /// What its calls run on.
    pub runtime: Runtime,
}

impl World {
    /// The keys of the worked examples, unused yet.
    pub fn new() -> World {
        let folder = own_folder();
        fs::create_dir_all(folder.join("keys")).expect("a folder");
        let put = |id: &str, bytes: &[u8]| fs::write(path(&folder, id), bytes).expect("a key file");
        put(HANDLE_KEY, &(0..32).collect::<Vec<u8>>());
        put("k1", &(0x40..0x60).collect::<Vec<u8>>());
        put("device-id", EC_PAIR.as_bytes());
        put("rsa", RSA_PAIR.as_bytes());
        let settings = Settings { homedir_path: Some(folder.clone()), ..Settings::default() };
        let library = Arc::new(Keys::new(settings).expect("a key library"));
        let principal = Principal { uid: USER, keys: ALLOWED.iter().map(|id| Glob::new(*id)).collect() };
        let service = KeyService::new(library.clone(), &[principal]);
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        World { folder, library, service, runtime }
    }
}

/// Where the file of a key is, below a home directory.
pub fn path(home: &Path, id: &str) -> PathBuf {
    home.join("keys").join(file_name(id).expect("a short id"))
}

/// A folder for this process, on a file system without a disk where there is one: key files are synced. libFuzzer ends without a word,
/// so the folders of those that went before are removed here.
fn own_folder() -> PathBuf {
    const PREFIX: &str = "aziot-fuzz-";
    let shared = PathBuf::from("/dev/shm");
    let parent = if shared.is_dir() { shared } else { std::env::temp_dir() };
    for entry in fs::read_dir(&parent).expect("a list of files").flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    parent.join(format!("{PREFIX}{}", std::process::id()))
}
