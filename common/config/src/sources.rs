//! Which files make up a service's config, and their bytes.
//!
//! Only regular files directly in the folder whose extension is exactly `toml` are drop-ins; one that misses this by
//! a little is told.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::document::Place;
use crate::error::Error;
use crate::finding::{Finding, Oddity};

/// A config file may not be larger than this; real ones have a few KiB.
const LARGEST_FILE_BYTES: u64 = 1024 * 1024;

/// The main file and the folder of drop-ins of one service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sources {
    /// Read first; if missing, it counts as empty.
    pub main: PathBuf,
    /// Its drop-ins are merged over the main file in byte order of their names; it may be missing.
    pub directory: PathBuf,
}

impl Sources {
    /// Those of a service by its short name, as `keyd`: `/etc/aziot/keyd/config.toml` and `/etc/aziot/keyd/config.d`,
    /// unless `AZIOT_KEYD_CONFIG` and `AZIOT_KEYD_CONFIG_DIR` in the environment say otherwise. An empty variable
    /// counts as unset.
    #[must_use]
    pub fn for_service(service: &str) -> Sources {
        Sources::with_environment(service, |name| std::env::var_os(name))
    }

    fn with_environment(service: &str, variable: impl Fn(&str) -> Option<OsString>) -> Sources {
        let prefix = format!("AZIOT_{}_CONFIG", service.to_uppercase());
        let path = |name: &str, default: &str| match variable(name) {
            Some(path) if !path.is_empty() => PathBuf::from(path),
            _ => Path::new("/etc/aziot").join(service).join(default),
        };
        Sources { main: path(&prefix, "config.toml"), directory: path(&format!("{prefix}_DIR"), "config.d") }
    }
}

/// The files that are there, in the order of merging, and those left out.
pub(crate) struct Files {
    pub(crate) files: Vec<(PathBuf, Vec<u8>)>,
    pub(crate) skipped: Vec<Finding>,
}

pub(crate) fn read(sources: &Sources) -> Result<Files, Error> {
    let (drop_ins, skipped) = list(&sources.directory).map_err(|error| Error::io(&sources.directory, error))?;
    let mut files = Vec::new();
    for path in std::iter::once(sources.main.clone()).chain(drop_ins) {
        match read_file(&path) {
            Ok(bytes) => files.push((path, bytes)),
            // A drop-in may have gone since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path, error)),
        }
    }
    Ok(Files { files, skipped })
}

pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    aziot_files::read_limited(path, LARGEST_FILE_BYTES).map_err(aziot_files::Error::into_source)
}

/// The drop-ins of a folder in byte order of their names, and a finding for each file that only resembles one.
fn list(directory: &Path) -> io::Result<(Vec<PathBuf>, Vec<Finding>)> {
    let mut names = Vec::new();
    let mut skipped = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        match reason_to_skip(&name, entry.file_type()?) {
            Verdict::Read => names.push(name),
            Verdict::Tell(reason) => {
                skipped.push(Finding { place: Place::whole(&entry.path()), oddity: Oddity::SkippedDropIn { reason } });
            }
            Verdict::Pass => {}
        }
    }
    names.sort();
    skipped.sort_by(|one, other| one.place.file.cmp(&other.place.file));
    Ok((names.into_iter().map(|name| directory.join(name)).collect(), skipped))
}

enum Verdict {
    Read,
    Tell(&'static str),
    /// Nobody means this to be a drop-in.
    Pass,
}

fn reason_to_skip(name: &OsStr, kind: fs::FileType) -> Verdict {
    let extension = Path::new(name).extension();
    let is_exact = extension == Some(OsStr::new("toml"));
    let is_alike = extension.is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    if name.eq_ignore_ascii_case(".toml") {
        Verdict::Tell("it has an extension but no name; call it `NAME.toml`")
    } else if !is_alike {
        Verdict::Pass
    } else if kind.is_symlink() {
        Verdict::Tell("it is a symbolic link; put the file itself here")
    } else if !kind.is_file() {
        Verdict::Tell("it is not a regular file")
    } else if is_exact {
        Verdict::Read
    } else {
        Verdict::Tell("its extension is not `toml` in lower case; rename it")
    }
}

#[cfg(test)]
mod tests {
    use aziot_files::{Mode, create_directory, write};

    use super::*;

    #[test]
    fn the_environment_replaces_the_paths_as_a_whole() {
        let plain = Sources::with_environment("keyd", |_| None);
        assert_eq!(plain.main, Path::new("/etc/aziot/keyd/config.toml"));
        assert_eq!(plain.directory, Path::new("/etc/aziot/keyd/config.d"));

        let set = Sources::with_environment("identityd", |name| match name {
            "AZIOT_IDENTITYD_CONFIG" => Some("~/a:b.toml".into()),
            "AZIOT_IDENTITYD_CONFIG_DIR" => Some("".into()),
            _ => None,
        });
        assert_eq!(set.main, Path::new("~/a:b.toml"));
        assert_eq!(set.directory, Path::new("/etc/aziot/identityd/config.d"));
    }

    #[test]
    fn only_regular_files_with_the_exact_extension_count_in_byte_order() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("config.d");
        let sources = Sources { main: folder.path().join("config.toml"), directory: directory.clone() };
        let _ = create_directory(directory.join("sub.toml"), Mode::PRIVATE_DIRECTORY).unwrap();
        for name in ["b.toml", "a.toml", "B.toml", ".x.toml", ".toml", "c.TOML", "d.toml.bak", "README", "é.toml"] {
            write(directory.join(name), Mode::PRIVATE, "").unwrap();
        }
        std::os::unix::fs::symlink("a.toml", directory.join("link.toml")).unwrap();

        let Files { files, skipped } = read(&sources).unwrap();
        let names: Vec<_> = files.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, [".x.toml", "B.toml", "a.toml", "b.toml", "é.toml"]);
        let skipped: Vec<_> =
            skipped.iter().map(|finding| finding.file().file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(skipped, [".toml", "c.TOML", "link.toml", "sub.toml"]);

        write(&sources.main, Mode::PRIVATE, "").unwrap();
        assert_eq!(read(&sources).unwrap().files[0].0, sources.main);
    }

    #[test]
    fn nothing_there_is_an_empty_config() {
        let sources = Sources { main: "/nonexistent/config.toml".into(), directory: "/nonexistent/config.d".into() };
        let Files { files, skipped } = read(&sources).unwrap();
        assert!(files.is_empty() && skipped.is_empty());
    }

    #[test]
    fn a_file_too_large_or_a_folder_in_its_place_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut sources =
            Sources { main: folder.path().join("config.toml"), directory: folder.path().join("config.d") };
        write(&sources.main, Mode::PRIVATE, vec![b'#'; 2 * 1024 * 1024]).unwrap();
        assert_eq!(read(&sources).err().unwrap().path(), sources.main);
        sources.main = folder.path().to_owned();
        assert_eq!(read(&sources).err().unwrap().path(), sources.main);
    }
}
