//! Parsed keys, shared until their file changes; those that were not used for longest make room. Knows nothing of how a file is read.
//!
//! A change is seen by the file's identity, size and times. The lock is held for the look-up alone, never while a file is
//! read or a key is used; two callers who miss at the same time both read the file, which does no harm.

use std::ffi::OsString;
use std::fs::Metadata;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;

use crate::content::Content;

/// More keys than a device uses at a time. Most take one to five kilobytes, an RSA key six for each processor that has used it at the same
/// moment as others; `store` bounds the largest.
const LIMIT: NonZeroUsize = NonZeroUsize::new(256).expect("is not 0");

/// The clock that stamps files stands still for 1 to 10 ms at a time (kernels before 6.13, and file systems without fine stamps).
const LONGEST_TICK: Duration = Duration::from_millis(20);

/// How long a look at a file holds: one key that is used thousands of times a second is not looked up as often. A file that somebody replaces
/// by hand counts so much later.
const LOOK_HOLDS: Duration = Duration::from_millis(3);

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

impl Stamp {
    /// Whether every write after `looked_at` gives the file another stamp. One in place, of the same size and within a tick of the clock
    /// after the last, does not.
    pub(crate) fn is_settled(self, looked_at: SystemTime) -> bool {
        let nanoseconds = |since: Duration| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
        let looked_at = looked_at.duration_since(UNIX_EPOCH).map_or(0, nanoseconds);
        let changed = i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1);
        // A change in the future is from before the clock was set back: it is told from the next one like one of long ago.
        looked_at.abs_diff(changed) > LONGEST_TICK.as_nanos()
    }
}

pub(crate) struct Cache {
    /// By the bytes of the path: hashing a `Path` takes it apart.
    entries: Mutex<LruCache<OsString, Entry>>,
}

struct Entry {
    stamp: Stamp,
    /// When its file was last seen unchanged.
    seen_at: Option<Instant>,
    content: Arc<Content>,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache { entries: Mutex::new(LruCache::sparse(LIMIT)) }
    }
}

impl Cache {
    /// The key as it was a moment ago: its file need not be looked at again.
    pub(crate) fn get_just_seen(&self, path: &Path) -> Option<Arc<Content>> {
        let mut entries = self.lock();
        let entry = entries.get(path.as_os_str())?;
        let holds = entry.seen_at.is_some_and(|seen_at| seen_at.elapsed() < LOOK_HOLDS);
        holds.then(|| Arc::clone(&entry.content))
    }

    /// The key, if the file still has the `stamp` with which it was read. The file was looked at just now.
    pub(crate) fn get(&self, path: &Path, stamp: Stamp) -> Option<Arc<Content>> {
        let mut entries = self.lock();
        let entry = entries.get_mut(path.as_os_str()).filter(|entry| entry.stamp == stamp)?;
        entry.seen_at = Some(Instant::now());
        Some(Arc::clone(&entry.content))
    }

    /// Whether some state of the file is known, the present one or an older, and is such a key.
    pub(crate) fn has_such(&self, path: &Path, is_such: impl FnOnce(&Content) -> bool) -> bool {
        self.lock().peek(path.as_os_str()).is_some_and(|entry| is_such(&entry.content))
    }

    /// `stamp` is from before the file was read: if it changed meanwhile, the next look-up misses.
    pub(crate) fn put(&self, path: &Path, stamp: Stamp, content: &Arc<Content>) {
        let entry = Entry { stamp, seen_at: None, content: Arc::clone(content) };
        let replaced = self.lock().push(path.as_os_str().to_owned(), entry);
        // Wiped when nobody waits for the lock.
        drop(replaced);
    }

    /// Wipes the key from memory once its last user is done with it.
    pub(crate) fn forget(&self, path: &Path) {
        let forgotten = self.lock().pop(path.as_os_str());
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<OsString, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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
        let content = Arc::new(Content::parse(Zeroizing::new(vec![1])));
        for number in 0..LIMIT.get() + 10 {
            cache.put(Path::new(&number.to_string()), stamp, &content);
        }
        assert_eq!(cache.lock().len(), LIMIT.get());
        let last = (LIMIT.get() + 9).to_string();
        assert!(cache.get(Path::new(&last), stamp).is_some());
        assert!(cache.get(Path::new(&last), Stamp { size_bytes: 0, ..stamp }).is_none());
        cache.forget(Path::new(&last));
        assert!(cache.get(Path::new(&last), stamp).is_none());
    }

    #[test]
    fn a_key_in_use_outlasts_a_scan_of_many() {
        let cache = Cache::default();
        let stamp = Stamp::from(&Path::new("/").metadata().unwrap());
        let content = Arc::new(Content::parse(Zeroizing::new(vec![1])));
        let hot: Vec<String> = (0..10).map(|number| format!("hot{number}")).collect();
        for path in &hot {
            cache.put(Path::new(path), stamp, &content);
        }
        for number in 0..LIMIT.get() * 3 {
            cache.put(Path::new(&number.to_string()), stamp, &content);
            assert!(hot.iter().all(|path| cache.get(Path::new(path), stamp).is_some()), "after {number}");
        }
    }

    #[test]
    fn a_look_holds_for_a_moment_only() {
        let cache = Cache::default();
        let path = Path::new("key");
        let stamp = Stamp::from(&Path::new("/").metadata().unwrap());
        let content = Arc::new(Content::parse(Zeroizing::new(vec![1])));
        cache.put(path, stamp, &content);
        assert!(cache.get_just_seen(path).is_none(), "read, but not seen since");
        let age = |milliseconds| {
            let seen_at = Instant::now().checked_sub(Duration::from_millis(milliseconds)).unwrap();
            cache.lock().get_mut(path.as_os_str()).unwrap().seen_at = Some(seen_at);
        };
        age(0);
        assert!(cache.get_just_seen(path).is_some());
        age(3);
        assert!(cache.get_just_seen(path).is_none());
        assert!(cache.get(path, stamp).is_some(), "the file has not changed");
        assert!(cache.get_just_seen(path).is_some(), "and was looked at");
        cache.forget(path);
        assert!(cache.get_just_seen(path).is_none());
    }

    #[test]
    fn a_stamp_is_settled_once_the_clock_has_moved_on() {
        let changed_at = SystemTime::now();
        let since = changed_at.duration_since(UNIX_EPOCH).unwrap();
        let changed = (i64::try_from(since.as_secs()).unwrap(), i64::from(since.subsec_nanos()));
        let stamp = Stamp { changed, ..Stamp::from(&Path::new("/").metadata().unwrap()) };
        let milliseconds = Duration::from_millis;
        assert!(!stamp.is_settled(changed_at));
        assert!(!stamp.is_settled(changed_at + milliseconds(20)));
        assert!(stamp.is_settled(changed_at + milliseconds(21)));
        assert!(!stamp.is_settled(changed_at - milliseconds(20)));
        assert!(stamp.is_settled(changed_at - Duration::from_secs(3600)));
    }
}
