//! What the simulated cloud remembers, and its file: written whole after each change, before the client gets its answer.
//!
//! Changes happen in memory under a short lock; writing takes turns of its own on a blocking thread, and one write covers all changes made before it
//! began.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aziot_files::Mode;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::provisioning::{self, Registrations};
use crate::registries::Registries;

/// Version 1 knew one hub and did not say where a registration's device is.
const VERSION: u32 = 2;
const OLDEST_VERSION: u32 = 1;
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
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    #[serde(flatten)]
    pub(crate) registries: Registries,
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
    /// Copied by the first change that comes while a writer still reads it.
    state: Arc<State>,
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
                if !(OLDEST_VERSION..=VERSION).contains(&file.version) {
                    return Err(Error::Version { path, version: file.version });
                }
                let mut state = file.state;
                if file.version == OLDEST_VERSION {
                    provisioning::place_in_first_hub(&mut state.registrations, &state.registries);
                }
                state
            }
            Err(error) if error.is_not_found() => State::default(),
            Err(error) => return Err(Error::Read(error)),
        };
        Ok(Self {
            path: Some(path),
            current: Mutex::new(Versioned { state: Arc::new(state), version: 0 }),
            ..Self::in_memory()
        })
    }

    /// Looks at the state. `look` must be quick: everybody else waits.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// The same, and returns when what was seen is on disk.
    pub(crate) async fn read_kept<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Error> {
        let (seen, version) = {
            let current = self.lock();
            (look(&current.state), current.version)
        };
        self.write_since(version).await?;
        Ok(seen)
    }

    /// Changes the state, and returns when the change is on disk. An error of `change` says that it changed nothing.
    pub(crate) async fn change<T, E>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<Result<T, E>, Error> {
        let (result, version) = {
            let mut current = self.lock();
            let result = change(Arc::make_mut(&mut current.state));
            current.version += u64::from(result.is_ok());
            (result, current.version)
        };
        if result.is_ok() {
            self.write_since(version).await?;
        }
        Ok(result)
    }

    async fn write_since(&self, version: u64) -> Result<(), Error> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let mut written = self.written.lock().await;
        if *written >= version {
            return Ok(()); // somebody else's write took this change along
        }
        let (state, taken) = {
            let current = self.lock();
            (Arc::clone(&current.state), current.version)
        };
        let write = move || {
            let bytes = to_bytes(&state);
            drop(state); // before the disk, so that the next change need not copy it
            aziot_files::write(path, Mode::PRIVATE, bytes.as_slice())
        };
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
    use crate::authentication::{Authentication, KeyPair};
    use crate::registries::HubKey;
    use crate::registry::{Registry, SystemModules};

    fn registry(state: &mut State) -> &mut Registry {
        state.registries.of_mut(&HubKey::FIRST)
    }

    #[tokio::test]
    async fn what_was_changed_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let store = Store::open(path.clone()).unwrap();
        let authentication = Authentication::sas(KeyPair::random());
        let expected = authentication.clone();
        store
            .change(|state| registry(state).put_device("d", authentication, SystemModules::Preset))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Store::open(path).unwrap();
        again.read(|state| {
            let kept = state.registries.of(&HubKey::FIRST).authentication("d", None).unwrap();
            assert_eq!(kept, &expected);
        });
    }

    #[test]
    fn damaged_and_future_states_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        aziot_files::write(&path, Mode::PRIVATE, "{\"version\":1,").unwrap();
        assert!(matches!(Store::open(path.clone()).unwrap_err(), Error::Damaged { line: 1, .. }));
        aziot_files::write(&path, Mode::PRIVATE, "{\"version\":3}").unwrap();
        assert!(matches!(Store::open(path).unwrap_err(), Error::Version { version: 3, .. }));
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_kept_is_an_error_and_kept_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let store = Store::open(missing.join("state.json")).unwrap();
        let put = |name: &'static str| {
            let authentication = Authentication::none();
            move |state: &mut State| registry(state).put_device(name, authentication, SystemModules::Absent)
        };
        assert!(matches!(store.change(put("a")).await, Err(Error::Write(_))));
        std::fs::create_dir(&missing).unwrap();
        store.change(put("b")).await.unwrap().unwrap();
        let again = Store::open(missing.join("state.json")).unwrap();
        assert_eq!(again.read(|state| state.registries.of(&HubKey::FIRST).devices().len()), 2);
    }

    #[tokio::test]
    async fn only_changes_are_written_and_a_look_can_wait_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/state.json");
        let store = Store::open(path.clone()).unwrap();
        let put = |name: &'static str| {
            move |state: &mut State| registry(state).put_device(name, Authentication::none(), SystemModules::Absent)
        };
        let count = |state: &State| state.registries.of(&HubKey::FIRST).devices().len();
        // Nothing was changed, so nobody misses the folder.
        store.change(put("no name")).await.unwrap().unwrap_err();
        assert_eq!(store.read_kept(count).await.unwrap(), 0);
        assert!(matches!(store.change(put("a")).await, Err(Error::Write(_))));
        assert!(matches!(store.read_kept(count).await, Err(Error::Write(_))));
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        assert_eq!(store.read_kept(count).await.unwrap(), 1);
        assert_eq!(Store::open(path.clone()).unwrap().read(count), 1);
        aziot_files::remove(&path).unwrap();
        store.change(put("no name")).await.unwrap().unwrap_err();
        assert_eq!(store.read_kept(count).await.unwrap(), 1);
        assert!(!path.exists());
    }

    #[test]
    fn a_state_of_version_1_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let device = r#"{"generationId":"1","etag":"e","authentication":{"type":"none"},"modules":{}}"#;
        let outcome =
            r#"{"status":"assigned","assignedHub":"localhost:1","deviceId":"d","substatus":"initialAssignment"}"#;
        let operation = r#"{"id":"o","remainingPolls":0,"payload":null,"outcome":{"status":"assigning"}}"#;
        let times = r#""created":"2026-01-01T00:00:00Z","lastUpdated":"2026-01-01T00:00:00Z""#;
        let text = format!(
            r#"{{"version":1,"registry":{{"devices":{{"d":{device}}},"lastGeneration":5}},
                "registrations":{{"r":{{{times},"etag":"e","outcome":{outcome},"operations":[{operation}]}}}}}}"#
        );
        aziot_files::write(&path, Mode::PRIVATE, text).unwrap();
        Store::open(path).unwrap().read(|state| {
            assert!(state.registries.of(&HubKey::FIRST).device("d").is_ok());
            let placed = state.registrations["r"].placed.as_ref().unwrap();
            assert_eq!((&placed.hub, placed.device_id.as_str()), (&HubKey::FIRST, "d"));
        });
    }
}
