//! The temporary that takes the bytes before a file gets its name, and how it is told apart from other files.

use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::{Action, Error, Options};

// No dot-dir scan, glob or `*.toml` rule takes such a name for a real file, and no key or certificate file starts so.
pub(crate) const PREFIX: &str = ".aziot-";
pub(crate) const SUFFIX: &str = ".partial";

/// Puts `bytes`, synced, into a new temporary in the folder of `path`. Dropping the result removes the temporary.
pub(crate) fn fill(path: &Path, options: Options, bytes: &[u8]) -> Result<NamedTempFile, Error> {
    // Made as 0600, whatever the umask.
    let mut temporary = tempfile::Builder::new()
        .prefix(PREFIX)
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
