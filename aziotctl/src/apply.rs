//! Putting planned files in place: folders first, then all files under another name beside their place, then one rename after the other.
//!
//! Until the first rename nothing that a service reads has changed, and a full disk or a missing permission shows before it. Secrets get their
//! place before the configurations that name them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use aziot_files::{Created, Mode, Options, Owner};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::layout::{Layout, Service};
use crate::pending::Pending;
use crate::plan::{Kind, Plan, PlannedFile, State};
use crate::product::Product;

/// Files or folders that could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A folder that the package makes is missing.
    #[error("the folder {} is missing", .0.display())]
    FolderMissing(PathBuf),
    /// Before anything was changed.
    #[error("nothing was changed, because not all files could be prepared")]
    Prepare(#[source] aziot_files::Error),
    /// A folder's owner or permissions could not be set.
    #[error("nothing was changed, because the folder {} could not be prepared", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else is at it.
    #[error("another `config apply` is writing to {}", .0.display())]
    Busy(PathBuf),
    /// Between two files: those named are the new ones, all others the old.
    #[error("only some files could be put in place: {}", done(.in_place))]
    Partial {
        /// Those that are.
        in_place: Vec<PathBuf>,
        /// Why the next is not.
        source: aziot_files::Error,
    },
}

fn done(in_place: &[PathBuf]) -> String {
    if in_place.is_empty() {
        return "none".to_owned();
    }
    in_place.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A plan that has been put in place. Until this goes out of scope no other run puts another there.
#[derive(Debug)]
#[must_use = "the services are restarted under its lock"]
pub struct Applied {
    /// What an administrator should know about it, such as permissions that had to be widened.
    pub remarks: Vec<String>,
    /// The services that earlier runs left without their restart.
    pub left_by_earlier_runs: Vec<Service>,
    _lock: File,
}

/// Does what `plan` says, brought up to date first. `pending` gets the services whose files change.
pub fn apply(
    plan: &mut Plan,
    product: Product,
    layout: &Layout,
    pending: Option<&Pending>,
) -> Result<Applied, ApplyError> {
    make_folders(product, layout)?;
    let lock = lock(parent(&layout.on_disk(&layout.service_config(Service::Keyd))))?;
    remove_leftovers(product, layout)?;
    plan.refresh();
    let changed: Vec<&PlannedFile> = plan.files.iter().filter(|file| file.state != State::Unchanged).collect();
    // All secrets lie in one folder.
    let secret = changed.iter().find(|file| file.kind != Kind::Config);
    if let Some(secret) = secret {
        make_secret_folder(secret)?;
    }
    let mut staged = Staged(Vec::new());
    for file in &changed {
        let temporary = beside(&file.on_disk);
        let options = file.owner.map_or(Options::from(Mode::PRIVATE), |owner| Mode::PRIVATE.owned_by(owner));
        aziot_files::write(&temporary, options, &*file.contents).map_err(ApplyError::Prepare)?;
        staged.0.push(temporary);
    }
    let remarks = secret.map_or(Ok(Vec::new()), |secret| open_way(layout, secret))?;
    let left_by_earlier_runs = pending.map_or_else(Vec::new, Pending::services);
    if let Some(pending) = pending {
        pending.add(&plan.changed_services()).map_err(ApplyError::Prepare)?;
    }
    let mut in_place = Vec::new();
    for (file, temporary) in changed.iter().zip(&staged.0) {
        if let Err(source) = aziot_files::rename(temporary, &file.on_disk) {
            return Err(ApplyError::Partial { in_place, source });
        }
        in_place.push(file.on_disk.clone());
    }
    Ok(Applied { remarks, left_by_earlier_runs, _lock: lock })
}

/// Two runs at once could leave one file of each. The lock goes with the process.
fn lock(folder: &Path) -> Result<File, ApplyError> {
    let failed = |source| ApplyError::Folder { path: folder.to_owned(), source };
    let file = File::open(folder).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(ApplyError::Busy(folder.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Files under another name, removed unless they got their own. A service does not read them: they are not called `*.toml`.
struct Staged(Vec<PathBuf>);

impl Drop for Staged {
    fn drop(&mut self) {
        for path in &self.0 {
            // Those that have been renamed are not there; of the others nothing worse than a private file stays.
            let _ = aziot_files::remove(path);
        }
    }
}

/// What a run that was killed has left, a secret perhaps.
fn remove_leftovers(product: Product, layout: &Layout) -> Result<(), ApplyError> {
    let configs = product.services().iter().map(|&service| layout.service_config(service));
    for path in configs.chain([layout.device_key(), layout.master_key()]) {
        aziot_files::remove(beside(&layout.on_disk(&path))).map_err(ApplyError::Prepare)?;
    }
    Ok(())
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    path.with_file_name(name)
}

/// In a normal installation the packages have made them; elsewhere there is nobody else to do it.
fn make_folders(product: Product, layout: &Layout) -> Result<(), ApplyError> {
    let services = product.services();
    let mut config_folders =
        services.iter().map(|&service| parent(&layout.on_disk(&layout.service_config(service))).to_owned());
    let make = |path: &Path, mode: Mode| -> Result<(), ApplyError> {
        let _: Created = aziot_files::create_directory(path, mode).map_err(ApplyError::Prepare)?;
        Ok(())
    };
    match layout {
        Layout::Normal => {
            if let Some(folder) = config_folders.find(|folder| !folder.is_dir()) {
                return Err(ApplyError::FolderMissing(folder));
            }
        }
        Layout::Staged(_) => {
            for folder in config_folders {
                make(&folder, Mode::PRIVATE_DIRECTORY)?;
            }
        }
        Layout::Relocated(_) => {
            for folder in config_folders {
                make(&folder, Mode::PRIVATE_DIRECTORY)?;
            }
            for &service in services {
                // Containers reach their sockets through the home of the module runtime.
                let mode = if service == Service::Edged { Mode::SHARED_DIRECTORY } else { Mode::PRIVATE_DIRECTORY };
                make(&layout.home(service), mode)?;
            }
            make(&layout.sockets(), Mode::SHARED_DIRECTORY)?;
            if services.contains(&Service::Edged) {
                make(&layout.edge_sockets(), Mode::SHARED_DIRECTORY)?;
            }
        }
    }
    Ok(())
}

/// 0700 and the key service's.
fn make_secret_folder(key: &PlannedFile) -> Result<(), ApplyError> {
    let folder = parent(&key.on_disk);
    let options =
        key.owner.map_or(Options::from(Mode::PRIVATE_DIRECTORY), |owner| Mode::PRIVATE_DIRECTORY.owned_by(owner));
    match aziot_files::create_directory(folder, options).map_err(ApplyError::Prepare)? {
        Created::New => {}
        Created::AlreadyThere => tighten(folder, key.owner)?,
    }
    Ok(())
}

/// Lets the owner of a secret reach it, in a normal installation; elsewhere the folders are the caller's.
fn open_way(layout: &Layout, key: &PlannedFile) -> Result<Vec<String>, ApplyError> {
    let (Layout::Normal, Some(owner)) = (layout, key.owner) else { return Ok(Vec::new()) };
    let above = parent(&key.on_disk).ancestors().skip(1);
    above.filter_map(|folder| let_through(folder, owner).transpose()).collect()
}

fn tighten(folder: &Path, owner: Option<Owner>) -> Result<(), ApplyError> {
    let failed = |source| ApplyError::Folder { path: folder.to_owned(), source };
    let metadata = fs::metadata(folder).map_err(failed)?;
    if let Some(owner) = owner
        && owner != (Owner { uid: metadata.uid(), gid: metadata.gid() })
    {
        chown(folder, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    if Mode::from_bits(metadata.mode()) != Mode::PRIVATE_DIRECTORY {
        let permissions = fs::Permissions::from_mode(Mode::PRIVATE_DIRECTORY.bits());
        fs::set_permissions(folder, permissions).map_err(failed)?;
    }
    Ok(())
}

/// Lets everybody pass through `folder`, without seeing what is in it, if `user` could not.
fn let_through(folder: &Path, user: Owner) -> Result<Option<String>, ApplyError> {
    let failed = |source| ApplyError::Folder { path: folder.to_owned(), source };
    let metadata = fs::metadata(folder).map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    let needed = if metadata.uid() == user.uid {
        0o100
    } else if metadata.gid() == user.gid {
        0o010
    } else {
        0o001
    };
    if mode & needed != 0 {
        return Ok(None);
    }
    let wider = mode | needed;
    fs::set_permissions(folder, fs::Permissions::from_mode(wider)).map_err(failed)?;
    Ok(Some(format!(
        "{} now has mode {wider:04o} instead of {mode:04o}, so that the key service can reach its key",
        folder.display()
    )))
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("files of a layout lie in folders")
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::reprovisioning::Reprovisioning;

    const PRODUCT: Product = Product::Edge;

    fn plan(layout: &Layout) -> Plan {
        let file = |service: Service| {
            let path = layout.service_config(service);
            let contents = Zeroizing::new(b"new".to_vec());
            let on_disk = layout.on_disk(&path);
            let (kind, state, presentable) = (Kind::Config, State::New, String::new());
            PlannedFile { kind, service, path, on_disk, state, owner: None, contents, presentable }
        };
        let files = Service::ALL.map(file).into();
        Plan { files, stale_secrets: Vec::new(), reprovisioning: Reprovisioning::None }
    }

    #[test]
    fn a_run_that_breaks_off_has_noted_every_service_that_it_would_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::Relocated(folder.path().join("device"));
        let pending = Pending::at(folder.path().join("pending"), PRODUCT);
        let keyd = layout.service_config(Service::Keyd);
        let in_the_way = layout.service_config(Service::Certd);
        fs::create_dir_all(&in_the_way).unwrap();
        let broken = apply(&mut plan(&layout), PRODUCT, &layout, Some(&pending));
        assert!(matches!(broken, Err(ApplyError::Partial { in_place, .. }) if in_place == [keyd]));
        assert_eq!(pending.services(), Service::ALL);

        fs::remove_dir(&in_the_way).unwrap();
        let applied = apply(&mut plan(&layout), PRODUCT, &layout, Some(&pending)).unwrap();
        assert_eq!(applied.left_by_earlier_runs, Service::ALL);
        let busy = apply(&mut plan(&layout), PRODUCT, &layout, Some(&pending));
        assert!(matches!(busy, Err(ApplyError::Busy(_))), "the restart is made under the lock");
    }

    #[test]
    fn nothing_is_put_in_place_whose_restart_would_be_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::Relocated(folder.path().to_owned());
        let pending = Pending::at("/nonexistent/pending", PRODUCT);
        let outcome = apply(&mut plan(&layout), PRODUCT, &layout, Some(&pending));
        assert!(matches!(outcome, Err(ApplyError::Prepare(_))));
        assert!(!layout.service_config(Service::Keyd).exists());
    }
}
