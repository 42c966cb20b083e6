//! What the service remembers on disk, in the public packages' files: the device, the settings it was made with, copies of its modules.
//!
//! No secret is here. All functions block. A file that cannot be read counts as absent where the cloud can give its content again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use aziot_files::Mode;
use aziot_identityd_api::config::{Config, Origin};
use aziot_identityd_cloud::Module;
use aziot_log::chain;
use openssl::sha::sha256;
use serde::{Deserialize, Serialize};

const DEVICE: &str = "device_info";
const PREVIOUS: &str = "prev_state";
/// Ours, beside the public packages' files: they overlook it.
const ORIGIN: &str = "device_origin";
/// Ours too: it is there while the TPM may have a key that is not the device's.
const TPM_IMPORT: &str = "tpm_import";
const MODULES: &str = "modules";
/// What older versions wrote for a device without identity.
const UNPROVISIONED: &[u8] = b"unprovisioned";
const LIMIT_BYTES: u64 = 1024 * 1024;

/// Why the state could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file could not be read, written or removed.
    #[error("could not use the state in {}", folder.display())]
    File {
        /// The state's folder.
        folder: PathBuf,
        /// Which file, and why.
        source: aziot_files::Error,
    },
    /// A folder could not be listed or removed.
    #[error("could not use the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written as TOML or JSON.
    #[error("could not write {name} as text")]
    Serialize {
        /// Name of the file.
        name: &'static str,
        /// What the serializer said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A copy of a module is damaged.
    #[error("could not parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
}

/// The device, as `device_info` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceInfo {
    /// Host name of the hub.
    pub(crate) hub_name: String,
    /// Host to call: the hub, or the parent gateway.
    pub(crate) local_gateway_hostname: String,
    /// Name of the device.
    pub(crate) device_id: String,
}

/// A copy of a module; its keys are never in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModuleRecord {
    /// Name of the module.
    pub(crate) module_id: String,
    /// Who looks after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) managed_by: Option<String>,
    /// Name of its device.
    pub(crate) device_id: String,
    /// Sets it apart from a former module of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation_id: Option<String>,
}

impl From<&Module> for ModuleRecord {
    fn from(module: &Module) -> Self {
        let Module { module_id, managed_by, device_id, generation_id, .. } = module;
        Self {
            module_id: module_id.clone(),
            managed_by: managed_by.clone(),
            device_id: device_id.clone(),
            generation_id: generation_id.clone(),
        }
    }
}

/// The state in one folder.
#[derive(Clone, Debug)]
pub(crate) struct State {
    folder: PathBuf,
}

impl State {
    /// Opens the state in `folder`, which is made if it is not there; what a killed process left half-written is removed.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let state = Self { folder: folder.to_owned() };
        let made = aziot_files::create_directory(folder, Mode::PRIVATE_DIRECTORY);
        made.map(drop).map_err(|source| state.file_error(source))?;
        let modules = fs::read_dir(folder.join(MODULES)).into_iter().flatten().flatten().map(|entry| entry.path());
        for folder in std::iter::once(folder.to_owned()).chain(modules.filter(|path| path.is_dir())) {
            aziot_files::remove_leftovers(folder).map_err(|source| state.file_error(source))?;
        }
        Ok(state)
    }

    /// The device that this was last. A damaged file is removed.
    pub(crate) fn device(&self) -> Option<DeviceInfo> {
        let bytes = self.read(DEVICE)?;
        if bytes == UNPROVISIONED {
            return None;
        }
        let device = std::str::from_utf8(&bytes).ok().and_then(|text| toml::from_str(text).ok());
        if device.is_none() {
            tracing::warn!(file = %self.folder.join(DEVICE).display(), "the device's record is damaged and was removed");
            if let Err(error) = aziot_files::remove(self.folder.join(DEVICE)) {
                tracing::warn!(%error, "could not remove the device's record");
            }
        }
        device
    }

    /// The settings that gave the device its identity; older versions did not keep them.
    pub(crate) fn origin(&self) -> Option<Origin> {
        toml::from_str(std::str::from_utf8(&self.read(ORIGIN)?).ok()?).ok()
    }

    /// Whether the TPM's key was about to be replaced, and it is not known to be the device's since.
    pub(crate) fn has_unfinished_tpm_import(&self) -> bool {
        // What cannot be read may be there.
        !matches!(self.folder.join(TPM_IMPORT).try_exists(), Ok(false))
    }

    /// Records that the TPM's key is about to be replaced by one that is not the device's.
    pub(crate) fn begin_tpm_import(&self) -> Result<(), Error> {
        let path = self.folder.join(TPM_IMPORT);
        if path.exists() {
            return Ok(());
        }
        aziot_files::write(path, Mode::PRIVATE, "").map_err(|source| self.file_error(source))
    }

    /// Records that the TPM has the device's key again.
    pub(crate) fn end_tpm_import(&self) -> Result<(), Error> {
        aziot_files::remove(self.folder.join(TPM_IMPORT)).map(drop).map_err(|source| self.file_error(source))
    }

    /// The settings of the last reconciliation; of its principals with modules, those whose modules are ours.
    pub(crate) fn previous(&self) -> Option<Config> {
        let bytes = self.read(PREVIOUS)?;
        match aziot_config::load_str::<Config>(self.folder.join(PREVIOUS), std::str::from_utf8(&bytes).ok()?) {
            Ok(loaded) => loaded.value.check().is_ok().then_some(loaded.value),
            Err(error) => {
                tracing::warn!(file = %self.folder.join(PREVIOUS).display(), %error, "the previous settings are damaged");
                None
            }
        }
    }

    /// Records a device and which modules are ours there. After a power cut between two of the files the device registers again, or takes its
    /// modules over again; the modules of others are never taken for ours, since those of ours are written first.
    pub(crate) fn commit(&self, settings: &Config, device: &DeviceInfo, origin: &Origin) -> Result<(), Error> {
        self.write_toml(PREVIOUS, settings)?;
        self.write_toml(DEVICE, device)?;
        self.write_toml(ORIGIN, origin)
    }

    /// Records which modules of the recorded device are ours.
    pub(crate) fn commit_settings(&self, settings: &Config) -> Result<(), Error> {
        self.write_toml(PREVIOUS, settings)
    }

    /// Records that the recorded device has another origin.
    pub(crate) fn commit_origin(&self, origin: &Origin) -> Result<(), Error> {
        self.write_toml(ORIGIN, origin)
    }

    /// Makes room for the modules of this device, and removes those of any other.
    pub(crate) fn select_device(&self, device: &DeviceInfo) -> Result<(), Error> {
        let folder = self.module_folder(device);
        if folder.is_dir() {
            return Ok(());
        }
        let all = self.folder.join(MODULES);
        match fs::remove_dir_all(&all) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Folder { path: all, source });
            }
            _ => {}
        }
        let parent = aziot_files::create_directory(&all, Mode::PRIVATE_DIRECTORY);
        let made = parent.and_then(|_| aziot_files::create_directory(&folder, Mode::PRIVATE_DIRECTORY));
        made.map(|_| ()).map_err(|source| self.file_error(source))
    }

    /// The copy of a module, if there is a whole one.
    pub(crate) fn module(&self, device: &DeviceInfo, module_id: &str) -> Option<ModuleRecord> {
        let path = self.module_path(device, module_id);
        let record: ModuleRecord = serde_json::from_slice(&read(&path)?).ok()?;
        (record.module_id == module_id).then_some(record)
    }

    /// The copies of all modules. One that is damaged spoils the list, since a list with a gap would be wrong.
    pub(crate) fn modules(&self, device: &DeviceInfo) -> Result<Vec<ModuleRecord>, Error> {
        let path = self.module_folder(device);
        let entries = fs::read_dir(&path).map_err(|source| Error::Folder { path: path.clone(), source })?;
        let mut records: Vec<ModuleRecord> = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::Folder { path: path.clone(), source })?;
            if !is_copy(&entry) {
                continue;
            }
            let path = entry.path();
            let bytes = aziot_files::read_limited(&path, LIMIT_BYTES).map_err(|source| self.file_error(source))?;
            records.push(serde_json::from_slice(&bytes).map_err(|source| Error::Parse { path, source })?);
        }
        records.sort_by(|one, other| one.module_id.cmp(&other.module_id));
        Ok(records)
    }

    /// Keeps a copy of a module; unchanged ones are not written again.
    pub(crate) fn put_module(&self, device: &DeviceInfo, record: &ModuleRecord) -> Result<(), Error> {
        let path = self.module_path(device, &record.module_id);
        let bytes =
            serde_json::to_vec(record).map_err(|source| Error::Serialize { name: MODULES, source: source.into() })?;
        if read(&path).is_some_and(|present| present == bytes) {
            return Ok(());
        }
        aziot_files::write(&path, Mode::PRIVATE, &bytes).map_err(|source| self.file_error(source))
    }

    /// Forgets a module.
    pub(crate) fn remove_module(&self, device: &DeviceInfo, module_id: &str) -> Result<(), Error> {
        aziot_files::remove(self.module_path(device, module_id)).map(drop).map_err(|source| self.file_error(source))
    }

    /// The files of all copies and the modules that they are of; of a damaged one that is unknown.
    pub(crate) fn module_files(&self, device: &DeviceInfo) -> BTreeMap<PathBuf, Option<String>> {
        let module = |path: &Path| Some(serde_json::from_slice::<ModuleRecord>(&read(path)?).ok()?.module_id);
        let entries = fs::read_dir(self.module_folder(device)).into_iter().flatten().flatten();
        let files = entries.filter(is_copy).map(|entry| entry.path());
        files.map(|path| (path.clone(), module(&path))).collect()
    }

    /// Keeps copies of what the hub listed, and forgets those of `before` that it did not list: a copy made since is of a newer module. One
    /// file that cannot be written or removed does not keep the others from it; the first failure is returned.
    pub(crate) fn replace_modules(
        &self,
        device: &DeviceInfo,
        before: impl IntoIterator<Item = PathBuf>,
        listed: &[ModuleRecord],
    ) -> Result<(), Error> {
        let mut gone: BTreeSet<PathBuf> = before.into_iter().collect();
        let mut outcome = Ok(());
        for record in listed {
            gone.remove(&self.module_path(device, &record.module_id));
            let kept = self.put_module(device, record);
            outcome = outcome.and(kept);
        }
        for path in gone {
            let removed = aziot_files::remove(path).map(drop).map_err(|source| self.file_error(source));
            outcome = outcome.and(removed);
        }
        outcome
    }

    fn module_folder(&self, device: &DeviceInfo) -> PathBuf {
        self.folder.join(MODULES).join(format!("{}-{}", digest(&device.hub_name), digest(&device.device_id)))
    }

    fn module_path(&self, device: &DeviceInfo, module_id: &str) -> PathBuf {
        let shown: String = module_id.chars().filter(char::is_ascii_alphanumeric).collect();
        self.module_folder(device).join(format!("{shown}-{}", digest(module_id)))
    }

    fn read(&self, name: &'static str) -> Option<Vec<u8>> {
        read(&self.folder.join(name))
    }

    fn write_toml<T: Serialize>(&self, name: &'static str, value: &T) -> Result<(), Error> {
        let text = toml::to_string(value).map_err(|source| Error::Serialize { name, source: source.into() })?;
        if self.read(name).is_some_and(|present| present == text.as_bytes()) {
            return Ok(());
        }
        aziot_files::write(self.folder.join(name), Mode::PRIVATE, text).map_err(|source| self.file_error(source))
    }

    fn file_error(&self, source: aziot_files::Error) -> Error {
        Error::File { folder: self.folder.clone(), source }
    }
}

/// Whether this is the copy of a module, and not a folder or a file in the making.
fn is_copy(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_file()) && !entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// A file's bytes; an unreadable one is told and counts as absent.
fn read(path: &Path) -> Option<Vec<u8>> {
    match aziot_files::read_limited(path, LIMIT_BYTES) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.is_not_found() => None,
        Err(error) => {
            tracing::warn!(file = %path.display(), error = %chain(&error), "could not read a file of the state");
            None
        }
    }
}

fn digest(text: &str) -> String {
    sha256(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests;
