//! The temporary that takes the bytes before a file gets its name, and how it is told apart from other files.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use tempfile::NamedTempFile;

use crate::{Action, Error, Options};

// No dot-dir scan, glob or `*.toml` rule takes such a name for a real file, and no key or certificate file starts so.
pub(crate) const PREFIX: &str = ".aziot-";
pub(crate) const SUFFIX: &str = ".partial";

/// How the temporaries of this process begin, and of no other: what it is writing at the moment is no leftover.
pub(crate) fn own_prefix() -> &'static str {
    static OWN: LazyLock<String> =
        // The hasher's keys are random in each process, which a process id is not: in a container it is always the same.
        LazyLock::new(|| format!("{PREFIX}{:016x}-", RandomState::new().build_hasher().finish()));
    &OWN
}

/// Puts `bytes`, synced, into a new temporary in the folder of `path`. Dropping the result removes the temporary.
pub(crate) fn fill(path: &Path, options: Options, bytes: &[u8]) -> Result<NamedTempFile, Error> {
    // Made as 0600, whatever the umask.
    let mut temporary = tempfile::Builder::new()
        .prefix(own_prefix())
        .suffix(SUFFIX)
        .tempfile_in(folder_of(path))
        .map_err(Error::at(Action::Write, path))?;
    options.apply(temporary.as_file(), path)?;
    temporary.write_all(bytes).map_err(Error::at(Action::Write, path))?;
    temporary.as_file().sync_all().map_err(Error::at(Action::Sync, path))?;
    Ok(temporary)
}

/// The folder that holds `path`; the current one for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
