//! Paths of key files, remembered: every use of a key asks for its path several times, and the name in it takes a hash.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::location::file_name;

/// More keys than a device uses at a time. With ids of the usual length they take about 150 kilobytes.
const LIMIT: NonZeroUsize = NonZeroUsize::new(256).expect("is not 0");

/// Bytes of an id that is remembered, which bounds the memory: callers may ask for ids of any length.
const LONGEST_REMEMBERED: usize = 256;

/// The paths of the keys in one folder.
pub(crate) struct Paths {
    folder: PathBuf,
    known: Mutex<LruCache<String, PathBuf>>,
}

impl Paths {
    pub(crate) fn below(folder: PathBuf) -> Paths {
        Paths { folder, known: Mutex::new(LruCache::sparse(LIMIT)) }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of the key `id`; `None` if its name would be longer than a file name can be.
    pub(crate) fn of(&self, id: &str) -> Option<PathBuf> {
        if let Some(path) = self.known().get(id) {
            return Some(path.clone());
        }
        let path = self.folder.join(file_name(id)?);
        if id.len() <= LONGEST_REMEMBERED {
            self.known().put(id.to_owned(), path.clone());
        }
        Some(path)
    }

    fn known(&self) -> MutexGuard<'_, LruCache<String, PathBuf>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths::below(PathBuf::from("/home/keys"))
    }

    #[test]
    fn a_path_is_worked_out_once() {
        let paths = paths();
        let worked_out = Path::new("/home/keys").join(file_name("k").unwrap());
        assert_eq!(paths.of("k"), Some(worked_out));
        paths.known().put("k".to_owned(), PathBuf::from("/remembered"));
        assert_eq!(paths.of("k"), Some(PathBuf::from("/remembered")));
    }

    #[test]
    fn few_are_remembered_and_those_in_use_stay() {
        let paths = paths();
        paths.known().put("in use".to_owned(), PathBuf::from("/remembered"));
        for id in (0..LIMIT.get() * 2 + 10).map(|number| number.to_string()) {
            assert_eq!(paths.of(&id), Some(Path::new("/home/keys").join(file_name(&id).unwrap())));
            assert_eq!(paths.of("in use"), Some(PathBuf::from("/remembered")), "after {id}");
        }
        assert_eq!(paths.known().len(), LIMIT.get());
        assert_eq!(paths.of(&"x".repeat(1000)), None);
        let long = "/".repeat(LONGEST_REMEMBERED + 1);
        assert!(paths.of(&long).is_some() && !paths.known().contains(&long));
    }
}
