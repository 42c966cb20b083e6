//! Overwriting a file where it lies, for the one case in which none can be put beside it and renamed.
//!
//! That is what a folder of somebody else's, or a bind mount of the file alone, leaves. A reader may see the new bytes half-written here, and so
//! may a reader after a power cut: whoever can should use [`write`](crate::write) instead.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};

use crate::{Action, Error};

/// Puts `bytes` into the regular file at `path`, which must exist and keeps its owner and mode; a symbolic link is followed.
///
/// Room is reserved before the first byte changes, and should writing fail nevertheless, the old bytes are put back: they are held in memory, and a
/// file with more than `limit_bytes` of them is not overwritten ([`Action::Read`], [`io::ErrorKind::FileTooLarge`]). The file is damaged only
/// with [`Action::Restore`]. A process killed in the middle leaves the beginning of the new bytes and the rest of the old, never an empty file.
pub fn overwrite_in_place(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>, limit_bytes: u64) -> Result<(), Error> {
    let (path, bytes) = (path.as_ref(), bytes.as_ref());
    let file = open(path).map_err(Error::at(Action::Overwrite, path))?;
    let old = read(&file, limit_bytes).map_err(Error::at(Action::Read, path))?;
    if let Err(error) = reserve(&file, bytes.len()) {
        // Room that was found before there was none left; the file is as it was in any case.
        let _ = as_length(old.len()).and_then(|length| file.set_len(length));
        return Err(Error::at(Action::Overwrite, path)(error));
    }
    if let Err(error) = replace(&file, bytes) {
        replace(&file, &old).map_err(Error::at(Action::Restore, path))?;
        return Err(Error::at(Action::Overwrite, path)(error));
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

fn read(file: &File, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit_bytes) {
        return Ok(bytes);
    }
    let message = format!("it has more than the {limit_bytes} bytes that can be put back");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
}

/// The file's length stays, so that a process killed now has changed nothing.
fn reserve(file: &File, length: usize) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let length = as_length(length)?;
    match retry_on_intr(|| fallocate(file, FallocateFlags::KEEP_SIZE, 0, length)) {
        // Not every file system can; writing will show whether there is room.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The length comes last: a shorter file would be an empty one on the way.
fn replace(file: &File, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, 0)?;
    file.set_len(as_length(bytes.len())?)?;
    file.sync_all()
}

fn as_length(length: usize) -> io::Result<u64> {
    u64::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, ExitStatus};

    use super::*;
    use crate::{Mode, write};

    const LIMIT_BYTES: u64 = 4096;

    #[test]
    fn the_file_stays_the_same_one_and_nothing_of_the_old_bytes_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        write(&path, Mode::GROUP_READABLE, "old").unwrap();
        let before = path.metadata().unwrap();
        for bytes in ["new and longer", "short", ""] {
            overwrite_in_place(&path, bytes, LIMIT_BYTES).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), bytes);
        }
        let after = path.metadata().unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    }

    #[test]
    fn what_could_not_be_put_back_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        write(&path, Mode::PRIVATE, "12345").unwrap();
        let error = overwrite_in_place(&path, "new", 4).unwrap_err();
        assert_eq!((error.action(), error.kind()), (Action::Read, io::ErrorKind::FileTooLarge));
        assert_eq!(fs::read(&path).unwrap(), b"12345");
    }

    #[test]
    fn it_makes_no_file_and_writes_to_no_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing");
        let error = overwrite_in_place(&path, "new", LIMIT_BYTES).unwrap_err();
        assert_eq!(error.to_string(), format!("could not overwrite {}", path.display()));
        assert!(error.is_not_found() && !path.exists());
        assert_eq!(overwrite_in_place("/dev/null", "new", LIMIT_BYTES).unwrap_err().action(), Action::Overwrite);
    }

    const CHILD_FILE: &str = "AZIOT_FILES_TEST_OVERWRITE";

    /// Not a test of its own: the process that the two tests below start with a limit on the size of its files.
    #[test]
    fn child_that_runs_out_of_room() {
        let Some(path) = std::env::var_os(CHILD_FILE) else { return };
        let error = overwrite_in_place(Path::new(&path), vec![b'x'; 1024 * 1024], LIMIT_BYTES).unwrap_err();
        assert_eq!((error.action(), error.kind()), (Action::Overwrite, io::ErrorKind::FileTooLarge));
    }

    /// Starts the child with room for a file of `blocks` times 512 bytes; `prelude` says what happens to SIGXFSZ.
    fn run_out_of_room(path: &Path, blocks: u32, prelude: &str) -> ExitStatus {
        Command::new("sh")
            .args(["-c", &format!("ulimit -c 0; ulimit -f {blocks}; {prelude} exec \"$0\" --exact \"$1\" --quiet")])
            .arg(std::env::current_exe().unwrap())
            .arg("overwrite::tests::child_that_runs_out_of_room")
            .env(CHILD_FILE, path)
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn a_full_disk_leaves_the_old_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        write(&path, Mode::PRIVATE, "old").unwrap();
        assert!(run_out_of_room(&path, 128, "trap '' XFSZ;").success());
        assert!(fs::read(&path).unwrap() == b"old", "the old bytes are not there");
    }

    #[test]
    fn a_process_killed_before_the_first_byte_leaves_the_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        write(&path, Mode::PRIVATE, "old").unwrap();
        assert!(!run_out_of_room(&path, 0, "").success());
        assert!(fs::read(&path).unwrap() == b"old", "the old bytes are not there");
    }
}
