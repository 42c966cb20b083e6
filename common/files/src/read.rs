//! Reading whole files within a limit, and telling when a private one is open to others.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Action, Error, Mode};

/// The bytes of the file at `path`; an error of kind [`io::ErrorKind::FileTooLarge`] if there are more than
/// `limit_bytes`.
pub fn read_limited(path: impl AsRef<Path>, limit_bytes: u64) -> Result<Vec<u8>, Error> {
    let path = path.as_ref();
    read(path, limit_bytes).map_err(Error::at(Action::Read, path))
}

fn read(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // Room for the whole file at once: growing the buffer would leave pieces of a secret behind in freed memory.
    let size_bytes = file.metadata()?.len().min(limit_bytes).saturating_add(1);
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?);
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit_bytes) {
        Ok(bytes)
    } else {
        Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file has more than the {limit_bytes} bytes allowed here"),
        ))
    }
}

/// A private file that its group or everybody else may read or write. Prints what is wrong and how to mend it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ModeWarning {
    /// The file.
    pub path: PathBuf,
    /// Its permissions now.
    pub mode: Mode,
}

impl fmt::Display for ModeWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, mode) = (self.path.display(), self.mode);
        write!(
            formatter,
            "{path} is private but others may access it (mode {mode}); run `chmod {} {path}`",
            Mode::PRIVATE
        )
    }
}

/// Tells when group or others may read or write the file at `path`, which holds something private.
pub fn mode_warning(path: impl AsRef<Path>) -> Result<Option<ModeWarning>, Error> {
    let path = path.as_ref();
    let mode = Mode::from_bits(path.metadata().map_err(Error::at(Action::Read, path))?.permissions().mode());
    Ok((mode.bits() & 0o066 != 0).then(|| ModeWarning { path: path.to_owned(), mode }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write;

    #[test]
    fn the_limit_is_the_largest_size_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, Mode::PRIVATE, "12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        let error = read_limited(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(error.to_string(), format!("could not read {}", path.display()));
        assert!(read_limited(folder.path().join("missing"), 4).unwrap_err().is_not_found());
    }

    #[test]
    fn an_endless_file_is_refused_too() {
        assert_eq!(read_limited("/dev/zero", 4096).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_mode_open_to_others_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for (bits, warned) in
            [(0o600, false), (0o400, false), (0o700, false), (0o640, true), (0o604, true), (0o620, true)]
        {
            write(&path, Mode::from_bits(bits), "").unwrap();
            assert_eq!(mode_warning(&path).unwrap().is_some(), warned, "{bits:o}");
        }
        write(&path, Mode::SHARED, "").unwrap();
        let text = mode_warning(&path).unwrap().unwrap().to_string();
        assert!(text.contains("mode 0644") && text.contains("chmod 0600"), "{text}");
    }
}
