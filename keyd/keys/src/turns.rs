//! Turns: one writer per key file at a time, while other files do not wait.
//!
//! Between two threads of this process only; files are whole whatever another process does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hands out turns. Keeps nothing about files that nobody is waiting for.
#[derive(Default)]
pub(crate) struct Turns {
    files: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
}

impl Turns {
    /// Runs `work` while no other work on any of `paths` runs.
    pub(crate) fn during<T>(&self, paths: &[&Path], work: impl FnOnce() -> T) -> T {
        // Everybody takes several turns in the same order, so nobody waits in a circle.
        let mut paths = paths.to_vec();
        paths.sort_unstable();
        paths.dedup();
        let held = {
            let mut files = self.files();
            paths.iter().map(|path| Arc::clone(files.entry(path.to_path_buf()).or_default())).collect()
        };
        // Runs on a panic in `work` too.
        let leave = Leave { turns: self, paths: &paths, held };
        // The lock protects no data, so a panic under it has broken nothing.
        let _guards: Vec<_> =
            leave.held.iter().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        work()
    }

    fn files(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Mutex<()>>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the files that nobody else holds or waits for.
struct Leave<'a> {
    turns: &'a Turns,
    paths: &'a [&'a Path],
    held: Vec<Arc<Mutex<()>>>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut files = self.turns.files();
        self.held.clear();
        for path in self.paths {
            // One is the map's own.
            if files.get(*path).is_some_and(|turn| Arc::strong_count(turn) == 1) {
                files.remove(*path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn work_on_one_file_never_overlaps_and_nothing_is_kept() {
        let (turns, inside, barrier) = (Turns::default(), AtomicUsize::new(0), Barrier::new(8));
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        thread::scope(|scope| {
            for racer in 0..8 {
                let (turns, inside, barrier) = (&turns, &inside, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for _ in 0..200 {
                        // Both orders, and every one of them takes /a.
                        let paths = [vec![a, b], vec![b, a], vec![a], vec![a, a]];
                        turns.during(&paths[racer % 4], || {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert!(turns.files().is_empty());
    }

    #[test]
    fn another_file_does_not_wait() {
        let turns = Turns::default();
        let inner = turns.during(&[Path::new("/a")], || {
            thread::scope(|scope| scope.spawn(|| turns.during(&[Path::new("/b")], || 1)).join().unwrap())
        });
        assert_eq!(inner, 1);
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let turns = Turns::default();
        let path = Path::new("/a");
        let outcome = thread::scope(|scope| scope.spawn(|| turns.during(&[path], || panic!("on purpose"))).join());
        assert!(outcome.is_err());
        assert_eq!(turns.during(&[path], || 1), 1);
        assert!(turns.files().is_empty());
    }
}
