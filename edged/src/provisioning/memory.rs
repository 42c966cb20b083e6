//! The device that the modules were made for, remembered as a digest in the home: the public daemon's, to the byte, or each module would be
//! removed when a device moves over from it.

use std::path::{Path, PathBuf};

use aziot_files::{Mode, create_directory, read_limited, write};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use openssl::sha::sha256;
use serde::Serialize;

use super::Device;

const FILE: &str = "provisioning_state";
/// A digest has 44 bytes.
const LARGEST_FILE_BYTES: u64 = 4096;

/// What is remembered could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("could not tell or keep which device the modules belong to")]
pub(crate) struct Error(#[from] aziot_files::Error);

/// The remembered device. Blocks on files.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    folder: PathBuf,
}

/// Members in this order.
#[derive(Serialize)]
struct Digested<'a> {
    device_id: &'a str,
    gateway_host_name: &'a str,
    hub_name: &'a str,
}

impl Memory {
    /// What is remembered in this folder.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Whether the modules were made for `device`. Where nothing is remembered they were not; where it cannot be read nobody can tell.
    pub(crate) fn is_of(&self, device: &Device) -> Result<bool, Error> {
        match read_limited(self.folder.join(FILE), LARGEST_FILE_BYTES) {
            Ok(bytes) => Ok(bytes == digest(device).as_bytes()),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Remembers that the modules are made for `device`.
    pub(crate) fn keep(&self, device: &Device) -> Result<(), Error> {
        let _ = create_directory(&self.folder, Mode::SHARED_DIRECTORY)?;
        Ok(write(self.folder.join(FILE), Mode::SHARED, digest(device))?)
    }
}

fn digest(device: &Device) -> String {
    let digested = Digested { device_id: &device.id, gateway_host_name: &device.gateway, hub_name: &device.hub };
    let json = serde_json::to_vec(&digested).expect("a struct of texts is JSON");
    BASE64_STANDARD.encode(sha256(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> Device {
        Device { id: id.to_owned(), hub: "h.example.net".to_owned(), gateway: "h.example.net".to_owned() }
    }

    #[test]
    fn the_digest_is_the_public_daemons() {
        assert_eq!(digest(&device("dev1")), "phx0HVLManTVnb++sfDzlbMcT+E9ZwBSlHard/gkzdk=");
    }

    #[test]
    fn a_device_is_known_again_and_another_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(&folder.path().join("cache"));
        assert!(!memory.is_of(&device("dev1")).unwrap());
        memory.keep(&device("dev1")).unwrap();
        assert!(memory.is_of(&device("dev1")).unwrap());
        assert!(!memory.is_of(&device("dev2")).unwrap());
        let file = folder.path().join("cache/provisioning_state");
        assert_eq!(std::fs::read(file).unwrap(), b"phx0HVLManTVnb++sfDzlbMcT+E9ZwBSlHard/gkzdk=");
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_other_device() {
        let folder = tempfile::tempdir().unwrap();
        let _ = create_directory(folder.path().join("provisioning_state"), Mode::SHARED_DIRECTORY).unwrap();
        assert!(Memory::new(folder.path()).is_of(&device("dev1")).is_err());
    }
}
