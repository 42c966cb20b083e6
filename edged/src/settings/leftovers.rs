//! Socket files in the home whose modules are gone: removed without the runtime, or while it did not run. Nothing else would ever remove them.

use std::{collections::BTreeSet, fs, io, os::unix::fs::FileTypeExt as _, path::Path};

use aziot_log::fields;

/// How the names of the sockets' files end.
const ENDING: &str = ".sock";

/// Removes the sockets in `folder` that belong to none of `modules`. What cannot be removed stays, with a warning. Blocks on files.
pub(super) fn remove_stale_sockets(folder: &Path, modules: &BTreeSet<String>) {
    let is_stale = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let module = name.to_str().and_then(|name| name.strip_suffix(ENDING));
        let is_gone = module.is_some_and(|module| !modules.contains(module));
        is_gone && entry.file_type().is_ok_and(|kind| kind.is_socket())
    };
    let outcome = fs::read_dir(folder).and_then(|mut entries| {
        entries.try_for_each(|entry| {
            let entry = entry?;
            if !is_stale(&entry) {
                return Ok(());
            }
            tracing::info!({ fields::FILE } = %entry.path().display(), "removing the workload socket of a module that is gone");
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
    });
    if let Err(error) = outcome {
        tracing::warn!({ fields::FILE } = %folder.display(), { fields::ERROR } = %error, "sockets of modules that are gone stay");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use aziot_files::Mode;

    use super::*;

    #[test]
    fn only_sockets_without_a_module_go() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["kept.sock", "gone.sock", "other"] {
            let _closed = UnixListener::bind(folder.path().join(name)).unwrap();
        }
        aziot_files::write(folder.path().join("file.sock"), Mode::PRIVATE, "").unwrap();
        remove_stale_sockets(folder.path(), &BTreeSet::from(["kept".to_owned()]));
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["file.sock", "kept.sock", "other"]);
        remove_stale_sockets(&folder.path().join("missing"), &BTreeSet::new());
    }
}
