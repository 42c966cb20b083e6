//! What the simulated cloud remembers, and its file: written whole after each change, before the client gets its answer.
//!
//! Changes happen in memory under a short lock; writing takes turns of its own, and one write covers all changes made before it began.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aziot_files::Mode;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::provisioning::Registrations;
use crate::registry::Registry;

const VERSION: u32 = 1;
const LIMIT_BYTES: u64 = 512 << 20;

/// Why the state cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("could not read the state")]
    Read(#[source] aziot_files::Error),
    /// The file is there but damaged. The parser's text is left out: it could quote a key.
    #[error("the state in {} is damaged at line {line}, column {column}; restore it, or remove it to start with an empty hub", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Line of the damage, from 1.
        line: usize,
        /// Column of the damage, from 1.
        column: usize,
    },
    /// The file was written by a later version.
    #[error("the state in {} has version {version}; this program knows {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// The file cannot be written. The change holds in memory and is written with the next one.
    #[error("could not keep the state")]
    Write(#[source] aziot_files::Error),
    /// The write was given up because the process ends.
    #[error("the state was not kept: the process is ending")]
    Ending,
}

/// Devices, modules and registrations.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    #[serde(default)]
    pub(crate) registry: Registry,
    #[serde(default)]
    pub(crate) registrations: Registrations,
}

#[derive(Deserialize, Serialize)]
struct File<S> {
    version: u32,
    #[serde(flatten)]
    state: S,
}

#[derive(Debug, Default)]
struct Versioned {
    state: State,
    /// Grows with each change.
    version: u64,
}

/// The state of a running simulator, and where it is kept.
#[derive(Debug)]
pub(crate) struct Store {
    path: Option<PathBuf>,
    current: Mutex<Versioned>,
    /// The version that is on disk. Holding it is the right to write.
    written: tokio::sync::Mutex<u64>,
}

impl Store {
    /// A store that forgets.
    pub(crate) fn in_memory() -> Self {
        Self { path: None, current: Mutex::default(), written: tokio::sync::Mutex::default() }
    }

    /// Reads the state at `path`; empty if there is none. Blocks.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Error> {
        let state = match aziot_files::read_limited(&path, LIMIT_BYTES) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                let file: File<State> = serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
                    path: path.clone(),
                    line: error.line(),
                    column: error.column(),
                })?;
                if file.version != VERSION {
                    return Err(Error::Version { path, version: file.version });
                }
                file.state
            }
            Err(error) if error.is_not_found() => State::default(),
            Err(error) => return Err(Error::Read(error)),
        };
        Ok(Self { path: Some(path), current: Mutex::new(Versioned { state, version: 0 }), ..Self::in_memory() })
    }

    /// Looks at the state. `look` must be quick: everybody else waits.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Changes the state, and returns when the change is on disk.
    pub(crate) async fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        let (result, version) = {
            let mut current = self.lock();
            current.version += 1;
            (change(&mut current.state), current.version)
        };
        self.write_since(version).await?;
        Ok(result)
    }

    async fn write_since(&self, version: u64) -> Result<(), Error> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let mut written = self.written.lock().await;
        if *written >= version {
            return Ok(()); // somebody else's write took this change along
        }
        let (bytes, taken) = {
            let current = self.lock();
            (to_bytes(&current.state), current.version)
        };
        let write = move || aziot_files::write(path, Mode::PRIVATE, bytes.as_slice());
        tokio::task::spawn_blocking(write).await.map_err(|_| Error::Ending)?.map_err(Error::Write)?;
        *written = taken;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Versioned> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_bytes(state: &State) -> Zeroizing<Vec<u8>> {
    let bytes = serde_json::to_vec_pretty(&File { version: VERSION, state });
    Zeroizing::new(bytes.expect("the state has only text for keys, so JSON can say it"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::registry::{Authentication, KeyPair, SystemModules};

    #[tokio::test]
    async fn what_was_changed_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let store = Store::open(path.clone()).unwrap();
        let keys = KeyPair::random();
        let authentication = Authentication::sas(keys.clone());
        store
            .change(|state| state.registry.put_device("d", authentication, SystemModules::Preset))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Store::open(path).unwrap();
        assert_eq!(again.read(|state| state.registry.keys("d", None)).unwrap(), keys.to_vec());
    }

    #[test]
    fn damaged_and_future_states_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        aziot_files::write(&path, Mode::PRIVATE, "{\"version\":1,").unwrap();
        assert!(matches!(Store::open(path.clone()).unwrap_err(), Error::Damaged { line: 1, .. }));
        aziot_files::write(&path, Mode::PRIVATE, "{\"version\":2}").unwrap();
        assert!(matches!(Store::open(path).unwrap_err(), Error::Version { version: 2, .. }));
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_kept_is_an_error_and_kept_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let store = Store::open(missing.join("state.json")).unwrap();
        let put = |name: &'static str| {
            let authentication = Authentication::none();
            move |state: &mut State| state.registry.put_device(name, authentication, SystemModules::Absent)
        };
        assert!(matches!(store.change(put("a")).await, Err(Error::Write(_))));
        std::fs::create_dir(&missing).unwrap();
        store.change(put("b")).await.unwrap().unwrap();
        let again = Store::open(missing.join("state.json")).unwrap();
        assert_eq!(again.read(|state| state.registry.devices().len()), 2);
    }
}
