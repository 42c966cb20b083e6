//! Paths of key files, remembered: every use of a key asks for its path several times, and the name in it takes a hash.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use crate::location::file_name;

/// More keys than a device uses at a time, and some hundred kilobytes.
const LIMIT: usize = 512;

/// The paths of the keys in one folder.
pub(crate) struct Paths {
    folder: PathBuf,
    known: RwLock<HashMap<String, PathBuf>>,
}

impl Paths {
    pub(crate) fn below(folder: PathBuf) -> Paths {
        Paths { folder, known: RwLock::default() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of the key `id`; `None` if its name would be longer than a file name can be.
    pub(crate) fn of(&self, id: &str) -> Option<PathBuf> {
        if let Some(path) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Some(path.clone());
        }
        let path = self.folder.join(file_name(id)?);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= LIMIT {
            // Callers may ask for as many ids as they like. Those in use come back with their next use.
            known.clear();
        }
        known.insert(id.to_owned(), path.clone());
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_path_is_the_same_and_few_are_remembered() {
        let paths = Paths::below(PathBuf::from("/home/keys"));
        for id in (0..LIMIT * 2 + 10).map(|number| number.to_string()) {
            let expected = Path::new("/home/keys").join(file_name(&id).unwrap());
            assert_eq!(paths.of(&id), Some(expected.clone()));
            assert_eq!(paths.of(&id), Some(expected));
        }
        assert!(paths.known.read().unwrap().len() <= LIMIT);
        assert_eq!(paths.of(&"x".repeat(1000)), None);
    }
}
