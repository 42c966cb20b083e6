//! The keys of the process that loaded the library. The ABI has no handle that tells one user from another, so there is one set of
//! parameters, set one after another, and one set of keys.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::error::Error;
use crate::{Keys, Settings, store};

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct State {
    settings: Settings,
    /// Opened by the first call that uses a key: the parameters before it come one by one.
    keys: Option<Arc<Keys>>,
    /// The folders that were looked through for what a crash left.
    tidied: BTreeSet<PathBuf>,
}

/// Sets a parameter. Calls under way go on with the old ones.
///
/// Once the PKCS#11 library and the base slot are both known, the token must be there.
pub(super) fn set_parameter(name: &str, value: &str) -> Result<(), Error> {
    lock().set_parameter(name, value)
}

/// The keys under the parameters so far.
pub(super) fn keys() -> Result<Arc<Keys>, Error> {
    // Under the lock: two callers must not open the same token twice, and nobody has anything to do before it is open.
    lock().keys()
}

fn lock() -> MutexGuard<'static, State> {
    // Each change is one assignment, so a panic leaves the old state or the new one.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn set_parameter(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let mut settings = self.settings.clone();
        settings.set(name, value.to_owned())?;
        // A PKCS#11 library is initialized once per process: the old keys let go of it before new ones take it up.
        self.keys = None;
        if name.starts_with("pkcs11_") && settings.pkcs11_lib_path.is_some() && settings.pkcs11_base_slot.is_some() {
            self.keys = Some(self.open(settings.clone())?);
        }
        self.settings = settings;
        Ok(())
    }

    fn keys(&mut self) -> Result<Arc<Keys>, Error> {
        if let Some(keys) = &self.keys {
            return Ok(Arc::clone(keys));
        }
        let keys = self.open(self.settings.clone())?;
        self.keys = Some(Arc::clone(&keys));
        Ok(keys)
    }

    fn open(&mut self, settings: Settings) -> Result<Arc<Keys>, Error> {
        let keys = Keys::new(settings)?;
        let folders: BTreeSet<PathBuf> = keys.folders().difference(&self.tidied).cloned().collect();
        // What cannot be cleared away does not keep keys from being used.
        let _ = store::tidy(&folders, None);
        self.tidied.extend(folders);
        Ok(Arc::new(keys))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn each_folder_is_tidied_once_and_before_its_first_key_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let leave = |path: &Path| {
            aziot_files::write(path, aziot_files::Mode::PRIVATE, b"half a key").unwrap();
            File::open(path).unwrap().set_modified(SystemTime::now() - store::LEFTOVER_AGE).unwrap();
        };
        let [first, second] = ["first", "second"].map(|home| {
            let keys = folder.path().join(home).join("keys");
            std::fs::create_dir_all(&keys).unwrap();
            let leftover = keys.join(".aziot-abc.partial");
            leave(&leftover);
            leftover
        });
        let home = |leftover: &Path| leftover.parent().unwrap().parent().unwrap().display().to_string();
        let mut state = State::default();
        state.set_parameter("homedir_path", &home(&first)).unwrap();
        assert!(first.exists());
        state.keys().unwrap();
        assert!(!first.exists());

        // Another parameter opens the keys anew, which is no reason to list the folder again.
        leave(&first);
        state.set_parameter("preloaded_key:other", "file:///nonexistent/key").unwrap();
        state.keys().unwrap();
        assert!(first.exists() && second.exists());
        state.set_parameter("homedir_path", &home(&second)).unwrap();
        state.keys().unwrap();
        assert!(!second.exists());
    }
}
