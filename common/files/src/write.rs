//! Writing whole files, over what is there or only where nothing is.

use std::io;
use std::path::Path;

use crate::directory::sync_folder;
use crate::{Action, Error, Options, temporary};

/// Whether a call made something or found it made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Created {
    /// It was not there; now it is, as asked for.
    New,
    /// It was there and stays as it was, contents, mode and owner.
    AlreadyThere,
}

/// Puts `bytes` at `path`, in place of any file there; the folder must exist. A symbolic link at `path` is replaced,
/// not followed.
///
/// On an error the old file is whole and no temporary is left, with one exception: with [`Action::SyncFolder`] the
/// new file is in place and only its survival of a power cut is in doubt.
pub fn write(path: impl AsRef<Path>, options: impl Into<Options>, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    let path = path.as_ref();
    let temporary = temporary::fill(path, options.into(), bytes.as_ref())?;
    temporary.persist(path).map_err(|error| Error::at(Action::Rename, path)(error.error))?;
    sync_folder(path)
}

/// Puts `bytes` at `path` unless something is there, even if another process tries the same at the same time: exactly
/// one gets [`Created::New`].
pub fn write_new(
    path: impl AsRef<Path>,
    options: impl Into<Options>,
    bytes: impl AsRef<[u8]>,
) -> Result<Created, Error> {
    let path = path.as_ref();
    // Spares the disk two syncs; the answer that counts is the one of the rename below.
    if path.symlink_metadata().is_ok() {
        return Ok(Created::AlreadyThere);
    }
    let temporary = temporary::fill(path, options.into(), bytes.as_ref())?;
    match temporary.persist_noclobber(path) {
        Ok(_) => sync_folder(path).map(|()| Created::New),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::AlreadyThere),
        Err(error) => Err(Error::at(Action::Rename, path)(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::{Command, ExitStatus};
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::{Mode, Owner};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn bits(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn replaces_contents_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, Mode::SHARED, "old and longer").unwrap();
        assert_eq!(bits(&path), 0o644);
        write(&path, Mode::PRIVATE_READ_ONLY, "new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(bits(&path), 0o400);
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn the_mode_is_exact_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket-list");
        // Any usual umask would take the write bits of group and others.
        write(&path, Mode::from_bits(0o666), "").unwrap();
        assert_eq!(bits(&path), 0o666);
    }

    #[test]
    fn a_symbolic_link_is_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        write(&target, Mode::PRIVATE, "target").unwrap();
        symlink(&target, &link).unwrap();
        write(&link, Mode::PRIVATE, "link").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"target");
        assert!(link.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn the_own_user_may_be_named_as_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let own = folder.path().metadata().unwrap();
        let owner = Owner { uid: own.uid(), gid: own.gid() };
        write(&path, Mode::GROUP_READABLE.owned_by(owner), "key").unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), bits(&path)), (owner.uid, owner.gid, 0o640));
    }

    #[test]
    fn a_missing_folder_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/key");
        let error = write(&path, Mode::PRIVATE, "key").unwrap_err();
        assert_eq!(error.to_string(), format!("could not write {}", path.display()));
        assert!(error.is_not_found());
    }

    #[test]
    fn a_folder_in_the_way_stays_and_no_temporary_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::create_dir(&path).unwrap();
        let error = write(&path, Mode::PRIVATE, "key").unwrap_err();
        assert_eq!(error.action(), Action::Rename);
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn write_new_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(write_new(&path, Mode::PRIVATE, "first").unwrap(), Created::New);
        assert_eq!(bits(&path), 0o600);
        assert_eq!(write_new(&path, Mode::SHARED, "second").unwrap(), Created::AlreadyThere);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(bits(&path), 0o600);
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_dangling_link_counts_as_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        symlink("/nonexistent", &path).unwrap();
        assert_eq!(write_new(&path, Mode::PRIVATE, "key").unwrap(), Created::AlreadyThere);
    }

    #[test]
    fn of_many_racing_writers_one_wins_and_its_bytes_stay() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = folder.path().join(round.to_string());
            let barrier = Barrier::new(8);
            let outcomes: Vec<(u8, Created)> = thread::scope(|scope| {
                let racers: Vec<_> = (0..8u8)
                    .map(|racer| {
                        let (path, barrier) = (&path, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            (racer, write_new(path, Mode::PRIVATE, vec![racer; 4096]).unwrap())
                        })
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            let winners: Vec<u8> =
                outcomes.iter().filter(|(_, created)| *created == Created::New).map(|(racer, _)| *racer).collect();
            assert_eq!(winners.len(), 1);
            assert_eq!(fs::read(&path).unwrap(), vec![winners[0]; 4096]);
        }
        assert_eq!(names(folder.path()).len(), 20);
    }

    const CHILD_FOLDER: &str = "AZIOT_FILES_TEST_FOLDER";

    /// Not a test of its own: the process that the two tests below start with a limit on the size of its files.
    #[test]
    fn child_that_runs_out_of_room() {
        let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
        let folder = Path::new(&folder);
        let big = vec![b'x'; 1024 * 1024];
        for outcome in [
            write(folder.join("key"), Mode::PRIVATE, &big),
            write_new(folder.join("new"), Mode::PRIVATE, &big).map(|_| ()),
        ] {
            let error = outcome.unwrap_err();
            assert_eq!((error.action(), error.kind()), (Action::Write, io::ErrorKind::FileTooLarge));
        }
    }

    /// Starts the child with room for a file of 64 KiB at most; `prelude` says what happens to SIGXFSZ.
    fn run_out_of_room(folder: &Path, prelude: &str) -> ExitStatus {
        Command::new("sh")
            .args(["-c", &format!("ulimit -c 0; ulimit -f 128; {prelude} exec \"$0\" --exact \"$1\" --quiet")])
            .arg(std::env::current_exe().unwrap())
            .arg("write::tests::child_that_runs_out_of_room")
            .env(CHILD_FOLDER, folder)
            .output()
            .unwrap()
            .status
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, Mode::PRIVATE, "old").unwrap();
        assert!(run_out_of_room(folder.path(), "trap '' XFSZ;").success());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_process_killed_in_the_middle_leaves_the_old_file_and_a_private_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write(&path, Mode::SHARED, "old").unwrap();
        assert!(!run_out_of_room(folder.path(), "").success());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let leftovers: Vec<String> = names(folder.path()).into_iter().filter(|name| name != "key").collect();
        assert_eq!(leftovers.len(), 1, "{leftovers:?}");
        assert_eq!(bits(&folder.path().join(&leftovers[0])), 0o600);
        assert_eq!(crate::remove_leftovers(folder.path()).unwrap(), 1);
        assert_eq!(names(folder.path()), ["key"]);
    }
}
