//! Parsed keys, shared until their file changes. Knows nothing of how a file is read.
//!
//! A change is seen by the file's identity, size and times. The lock is held for the look-up alone, never while a file is
//! read or a key is used; two callers who miss at the same time both read the file, which does no harm.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::content::Content;

/// More keys than a device uses at a time, and less than half a megabyte.
const LIMIT: usize = 512;

/// What tells one state of a file from the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    /// Cannot be set back, as the time of modification can.
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Default)]
pub(crate) struct Cache {
    /// By the bytes of the path: hashing a `Path` takes it apart.
    entries: RwLock<HashMap<OsString, (Stamp, Arc<Content>)>>,
}

impl Cache {
    pub(crate) fn get(&self, path: &Path, stamp: Stamp) -> Option<Arc<Content>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(path.as_os_str()).filter(|(known, _)| *known == stamp).map(|(_, content)| Arc::clone(content))
    }

    /// Whether some state of the file is known, the present one or an older.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).contains_key(path.as_os_str())
    }

    /// `stamp` is from before the file was read: if it changed meanwhile, the next look-up misses.
    pub(crate) fn put(&self, path: &Path, stamp: Stamp, content: &Arc<Content>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= LIMIT && !entries.contains_key(path.as_os_str()) {
            // Any will do: it is read again when it is used again.
            if let Some(victim) = entries.keys().next().cloned() {
                entries.remove(&victim);
            }
        }
        entries.insert(path.as_os_str().to_owned(), (stamp, Arc::clone(content)));
    }

    /// Wipes the key from memory once its last user is done with it.
    pub(crate) fn forget(&self, path: &Path) {
        if self.has(path) {
            self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(path.as_os_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn holds_at_most_its_limit() {
        let cache = Cache::default();
        let stamp = Stamp::from(&Path::new("/").metadata().unwrap());
        let content = Arc::new(Content::parse(Zeroizing::new(vec![1])).unwrap());
        for number in 0..LIMIT + 10 {
            cache.put(Path::new(&number.to_string()), stamp, &content);
        }
        assert_eq!(cache.entries.read().unwrap().len(), LIMIT);
        let last = (LIMIT + 9).to_string();
        assert!(cache.get(Path::new(&last), stamp).is_some());
        assert!(cache.get(Path::new(&last), Stamp { size_bytes: 0, ..stamp }).is_none());
        cache.forget(Path::new(&last));
        assert!(cache.get(Path::new(&last), stamp).is_none());
    }
}
