//! Which folders are watched: those of the config files or, where one is missing, the nearest above it that exists.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

use super::WatchError;
use crate::sources::Sources;

/// Device and inode of a folder; another folder under the same path needs a watch of its own.
type Identity = (u64, u64);

pub(super) struct Folders {
    watcher: RecommendedWatcher,
    /// The folders that should be watched if they existed.
    wanted: Vec<PathBuf>,
    watched: BTreeMap<PathBuf, Identity>,
}

impl Folders {
    /// Watches nothing yet. `on_event` is called on the watcher's own thread.
    pub(super) fn new(
        sources: &Sources,
        on_event: impl Fn(notify::Result<Event>) + Send + 'static,
    ) -> Result<Folders, WatchError> {
        let watcher = notify::recommended_watcher(on_event)
            .map_err(|source| WatchError::Files { path: sources.main.clone(), source })?;
        let folders =
            [sources.directory.as_path()].into_iter().chain(sources.main.parent()).chain(sources.directory.parent());
        // The folders above as well: only they tell when one of these is renamed or put in place.
        let wanted = folders.flat_map(|folder| folder.ancestors().take(2)).map(Path::to_owned).collect();
        Ok(Folders { watcher, wanted, watched: BTreeMap::new() })
    }

    /// Brings the watches in line with the folders that exist now.
    pub(super) fn follow(&mut self) -> Result<(), WatchError> {
        let now: BTreeMap<PathBuf, Identity> = self.wanted.iter().filter_map(|path| nearest_existing(path)).collect();
        let gone: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, identity)| now.get(*path) != Some(identity))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.watched.remove(&path);
            // A watch on a removed folder has ended by itself.
            let _ = self.watcher.unwatch(&path);
        }
        for (path, identity) in now {
            if !self.watched.contains_key(&path) {
                self.watcher
                    .watch(&path, RecursiveMode::NonRecursive)
                    .map_err(|source| WatchError::Files { path: path.clone(), source })?;
                self.watched.insert(path, identity);
            }
        }
        Ok(())
    }
}

fn nearest_existing(path: &Path) -> Option<(PathBuf, Identity)> {
    path.ancestors().find_map(|folder| {
        let metadata = fs::metadata(folder).ok().filter(fs::Metadata::is_dir)?;
        Some((folder.to_owned(), (metadata.dev(), metadata.ino())))
    })
}
