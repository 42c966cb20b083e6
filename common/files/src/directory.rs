//! Changes to the list of names in a folder: making folders, removing and renaming files, each on disk when the call
//! returns.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::temporary::{PREFIX, SUFFIX, folder_of, own_prefix};
use crate::{Action, Created, Error, Mode, Options};

/// Makes the folder `path`; missing parents are made too, with mode 0755 and the process's own user. A folder that is
/// there stays as it is.
pub fn create_directory(path: impl AsRef<Path>, options: impl Into<Options>) -> Result<Created, Error> {
    let path = path.as_ref();
    if path.is_dir() {
        return Ok(Created::AlreadyThere);
    }
    let parent = folder_of(path);
    if !parent.is_dir() {
        // The result does not matter: made now or by somebody else just before, it is there.
        let _ = create_directory(parent, Mode::SHARED_DIRECTORY)?;
    }
    match DirBuilder::new().mode(Mode::PRIVATE_DIRECTORY.bits()).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            return Ok(Created::AlreadyThere);
        }
        Err(error) => return Err(Error::at(Action::CreateDirectory, path)(error)),
    }
    let folder = open_folder(path).map_err(Error::at(Action::CreateDirectory, path))?;
    options.into().apply(&folder, path)?;
    sync(&folder).map_err(Error::at(Action::Sync, path))?;
    sync_folder(path)?;
    Ok(Created::New)
}

/// Removes the file or symbolic link `path`; tells whether it was there. A missing folder means that it was not.
pub fn remove(path: impl AsRef<Path>) -> Result<bool, Error> {
    let path = path.as_ref();
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::at(Action::Remove, path)(error)),
    }
}

/// Gives the file `from` the name `to`, on the same file system, in place of any file there.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
    let (from, to) = (from.as_ref(), to.as_ref());
    fs::rename(from, to).map_err(Error::at(Action::Rename, from))?;
    // The new name first: a power cut between the two leaves two names rather than none.
    sync_folder(to)?;
    if folder_of(from) == folder_of(to) { Ok(()) } else { sync_folder(from) }
}

/// Removes temporaries of this crate from `folder` (not from folders below), which only a process killed while
/// writing leaves; returns how many.
///
/// For a folder that one service owns: another process's file in the making would be removed too, this process's own is not.
pub fn remove_leftovers(folder: impl AsRef<Path>) -> Result<usize, Error> {
    remove_old_leftovers(folder, Duration::ZERO)
}

/// [`remove_leftovers`] for a folder that others write to as well: leaves alone what was written less than `age` ago, by the
/// file's time of modification.
pub fn remove_old_leftovers(folder: impl AsRef<Path>, age: Duration) -> Result<usize, Error> {
    let folder = folder.as_ref();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::at(Action::List, folder)(error)),
    };
    let now = SystemTime::now();
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(Error::at(Action::List, folder))?;
        if is_leftover(&entry.file_name()) && is_older(&entry, age, now) && remove(entry.path())? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// What is gone, or has a time in the future, is not.
fn is_older(entry: &DirEntry, age: Duration, now: SystemTime) -> bool {
    let written = entry.metadata().and_then(|metadata| metadata.modified());
    age.is_zero() || written.is_ok_and(|written| now.duration_since(written).is_ok_and(|passed| passed >= age))
}

fn is_leftover(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let is_temporary = name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes());
    is_temporary && !name.starts_with(own_prefix().as_bytes())
}

/// Makes a rename, creation or removal of `path` survive a power cut.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Error> {
    open_folder(folder_of(path)).and_then(|folder| sync(&folder)).map_err(Error::at(Action::SyncFolder, path))
}

fn open_folder(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// Some file systems (network, FUSE) cannot sync a folder and say so by `EINVAL`; there is nothing more one could do
/// there.
fn sync(folder: &File) -> io::Result<()> {
    match folder.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::write;

    fn bits(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn parents_are_shared_and_the_last_folder_is_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var/lib/keyd");
        assert_eq!(create_directory(&path, Mode::PRIVATE_DIRECTORY).unwrap(), Created::New);
        assert_eq!(bits(&folder.path().join("var/lib")), 0o755);
        assert_eq!(bits(&path), 0o700);
        assert_eq!(create_directory(&path, Mode::SHARED_DIRECTORY).unwrap(), Created::AlreadyThere);
        assert_eq!(bits(&path), 0o700);
    }

    #[test]
    fn a_file_in_the_way_of_a_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keyd");
        write(&path, Mode::PRIVATE, "").unwrap();
        let error = create_directory(&path, Mode::PRIVATE_DIRECTORY).unwrap_err();
        assert_eq!(error.to_string(), format!("could not make the folder {}", path.display()));
    }

    #[test]
    fn remove_tells_whether_it_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, Mode::PRIVATE, "").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert!(!remove(folder.path().join("missing/key")).unwrap());
        assert_eq!(remove(folder.path()).unwrap_err().action(), Action::Remove);
    }

    #[test]
    fn rename_replaces_across_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a/key"), folder.path().join("b/key"));
        for path in [&from, &to] {
            create_directory(folder_of(path), Mode::PRIVATE_DIRECTORY).map(|_| ()).unwrap();
            write(path, Mode::PRIVATE, path.display().to_string()).unwrap();
        }
        rename(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), from.display().to_string());
        assert!(rename(&from, &to).unwrap_err().is_not_found());
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".aziot-abcdef.partial", ".aziot-keep", "x.partial"] {
            write(folder.path().join(name), Mode::PRIVATE, "").unwrap();
        }
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        assert_eq!(remove_leftovers(folder.path().join("missing")).unwrap(), 0);
        let being_written = crate::temporary::fill(&folder.path().join("new"), Mode::PRIVATE.into(), b"half").unwrap();
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 0);
        assert!(being_written.path().exists());
    }

    #[test]
    fn what_somebody_else_may_be_writing_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let age = Duration::from_secs(300);
        for (name, written) in [("old", SystemTime::now() - age), ("new", SystemTime::now())] {
            let path = folder.path().join(format!(".aziot-{name}.partial"));
            write(&path, Mode::PRIVATE, "").unwrap();
            File::open(&path).unwrap().set_modified(written).unwrap();
        }
        assert_eq!(remove_old_leftovers(folder.path(), age).unwrap(), 1);
        assert!(folder.path().join(".aziot-new.partial").exists());
        assert_eq!(remove_old_leftovers(folder.path().join("missing"), age).unwrap(), 0);
    }
}
