//! Tells when a service's config files have changed, or when SIGHUP asks for a reload.
//!
//! Watched are the folders that hold the files and those above them, or the nearest that exist: a file that appears
//! later, is replaced by a rename, or whose folder comes and goes is seen (but not when a folder still further up is
//! renamed). A burst of events is one change, and only if the bytes differ. It reads no config: whoever is told
//! loads, checks and swaps it, and keeps the old one on an error.

mod folders;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aziot_log::chain;
use notify::Event;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::sources::{self, Sources};
use folders::Folders;

/// Watching the config files could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The system gave no watch; often a user's limit on watches is used up.
    #[error("could not watch {} for changes", path.display())]
    Files {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: notify::Error,
    },
    /// The signal could not be caught.
    #[error("could not listen for SIGHUP")]
    Signal(#[source] std::io::Error),
}

/// Why to load the config again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// The files changed and have been quiet for a moment.
    Files,
    /// SIGHUP came; the files may be the same.
    Requested,
}

/// How long to wait for a burst of events to end.
#[derive(Clone, Copy)]
struct Patience {
    /// No event for so long is the end.
    quiet: Duration,
    /// A burst is cut off here, so that a file written without pause is not ignored for ever.
    most: Duration,
}

const AFTER_A_CHANGE: &str = "send SIGHUP after a change";

const PATIENCE: Patience = Patience { quiet: Duration::from_secs(1), most: Duration::from_secs(10) };

/// A watch on the config files of one service.
pub struct Watch {
    sources: Sources,
    patience: Patience,
    /// None where the system gives no watch; SIGHUP is listened for all the same.
    folders: Option<Folders>,
    /// Holds one wake-up however many events there are.
    events: Arc<Notify>,
    hangup: Signal,
    /// First and last event of the burst under way. Kept here so that a dropped `changed()` forgets nothing.
    burst: Option<(Instant, Instant)>,
    seen: Fingerprint,
}

impl Watch {
    /// Starts watching; from now on SIGHUP no longer kills the process. To miss nothing, start the watch before
    /// loading the config.
    ///
    /// Must be called within a tokio runtime. Blocks on the files for a moment, as it reads them once.
    pub fn start(sources: &Sources) -> Result<Watch, WatchError> {
        Watch::with_patience(sources, PATIENCE)
    }

    fn with_patience(sources: &Sources, patience: Patience) -> Result<Watch, WatchError> {
        let hangup = signal(SignalKind::hangup()).map_err(WatchError::Signal)?;
        // Events name absolute paths.
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let sources = Sources { main: absolute(&sources.main), directory: absolute(&sources.directory) };
        let events = Arc::new(Notify::new());
        let (waker, watched) = (Arc::clone(&events), sources.clone());
        let folders = Folders::new(&sources, move |event| {
            if is_relevant(&watched, &event) {
                waker.notify_one();
            }
        });
        let followed = folders.and_then(|mut folders| folders.follow().map(|()| folders));
        let folders = followed.inspect_err(|error| tracing::warn!("{}; {AFTER_A_CHANGE}", chain(error))).ok();
        let seen = Fingerprint::of(&sources);
        Ok(Watch { sources, patience, folders, events, hangup, burst: None, seen })
    }

    /// Waits until the files have changed and then been quiet for a second (or kept changing for ten), or until
    /// SIGHUP comes.
    ///
    /// May be dropped and called again without missing a change.
    pub async fn changed(&mut self) -> Change {
        loop {
            tokio::select! {
                biased;
                _ = self.hangup.recv() => {
                    self.take_notice().await;
                    return Change::Requested;
                }
                () = settled(&self.events, &mut self.burst, self.patience) => {}
            }
            if self.take_notice().await {
                return Change::Files;
            }
        }
    }

    /// Looks at the files as they are now; tells whether they differ from what was seen last. Ends the burst.
    async fn take_notice(&mut self) -> bool {
        // Before the look: what happens in a folder that is watched only now is seen by the look, what comes after by
        // the watch.
        if let Some(Err(error)) = self.folders.as_mut().map(Folders::follow) {
            tracing::warn!("{}; {AFTER_A_CHANGE}", chain(&error));
        }
        let sources = self.sources.clone();
        let now = tokio::task::spawn_blocking(move || Fingerprint::of(&sources)).await;
        self.burst = None;
        // The look fails only if the runtime is going down.
        let Ok(now) = now else { return false };
        std::mem::replace(&mut self.seen, now) != now
    }
}

/// Waits for an event and then until the burst is over.
async fn settled(events: &Notify, burst: &mut Option<(Instant, Instant)>, patience: Patience) {
    loop {
        let Some((first, last)) = *burst else {
            events.notified().await;
            let now = Instant::now();
            *burst = Some((now, now));
            continue;
        };
        let end = (last + patience.quiet).min(first + patience.most);
        tokio::select! {
            () = sleep_until(end) => return,
            () = events.notified() => *burst = Some((first, Instant::now())),
        }
    }
}

/// Whether an event may concern the config files: those themselves, drop-ins, and the folders above.
fn is_relevant(sources: &Sources, event: &notify::Result<Event>) -> bool {
    let Ok(event) = event else { return true };
    if event.kind.is_access() {
        return false;
    }
    let resembles_drop_in =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    event.need_rescan()
        || event.paths.is_empty()
        || event.paths.iter().any(|path| {
            sources.main.starts_with(path)
                || sources.directory.starts_with(path)
                || (path.parent() == Some(&sources.directory) && resembles_drop_in(path))
        })
}

/// The bytes of all files in a few; no secret stays in memory for the comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Fingerprint(u64);

impl Fingerprint {
    fn of(sources: &Sources) -> Fingerprint {
        let mut hasher = DefaultHasher::new();
        match sources::read(sources) {
            Ok(files) => files.files.hash(&mut hasher),
            // That they cannot be read is news, too; loading will say why.
            Err(error) => error.path().hash(&mut hasher),
        }
        Fingerprint(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::Future;
    use std::sync::{Mutex, PoisonError};

    use aziot_files::{Mode, create_directory, remove, rename, write};
    use notify::EventKind;
    use notify::event::{AccessKind, CreateKind, ModifyKind};
    use tempfile::TempDir;

    use super::*;

    const SHORT: Patience = Patience { quiet: Duration::from_millis(20), most: Duration::from_millis(200) };

    /// One test at a time: the signal reaches every watch of the process.
    static WATCHING: Mutex<()> = Mutex::new(());

    #[test]
    fn a_hangup_counts_where_the_system_gives_no_watch() {
        let (_folder, sources) = folder_and_sources();
        run(|| async {
            let mut watch = Watch::with_patience(&sources, SHORT).unwrap();
            watch.folders = None;
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
            assert_eq!(watch.changed().await, Change::Requested);
        });
    }

    fn folder_and_sources() -> (TempDir, Sources) {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().join("etc/keyd");
        (folder, Sources { main: top.join("config.toml"), directory: top.join("config.d") })
    }

    fn put(path: &std::path::Path, text: &str) {
        let _ = create_directory(path.parent().unwrap(), Mode::PRIVATE_DIRECTORY).unwrap();
        write(path, Mode::PRIVATE, text).unwrap();
    }

    fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
        let _alone = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(30), test()).await.expect("a change in time") })
    }

    /// Waits for a burst, then tells whether it changed anything.
    async fn next_burst(watch: &mut Watch) -> bool {
        settled(&watch.events, &mut watch.burst, watch.patience).await;
        watch.take_notice().await
    }

    #[test]
    fn every_way_of_changing_a_file_is_seen() {
        let (_folder, sources) = folder_and_sources();
        put(&sources.main, "a = 1");
        put(&sources.directory.join("a.toml"), "b = 1");
        run(|| async {
            let mut watch = Watch::with_patience(&sources, SHORT).unwrap();
            let drop_in = sources.directory.join("b.toml");
            let changes: [&dyn Fn(); 5] = [
                &|| put(&sources.main, "a = 2"),
                &|| put(&drop_in, "c = 1"),
                &|| rename(&drop_in, sources.directory.join("c.toml")).unwrap(),
                &|| assert!(remove(sources.directory.join("a.toml")).unwrap()),
                &|| assert!(remove(&sources.main).unwrap()),
            ];
            for change in changes {
                change();
                assert_eq!(watch.changed().await, Change::Files);
            }
        });
    }

    #[test]
    fn folders_that_appear_later_or_are_replaced_are_seen() {
        let (folder, sources) = folder_and_sources();
        run(|| async {
            let mut watch = Watch::with_patience(&sources, SHORT).unwrap();
            put(&sources.main, "a = 1");
            assert_eq!(watch.changed().await, Change::Files);
            put(&sources.directory.join("a.toml"), "a = 2");
            assert_eq!(watch.changed().await, Change::Files);

            for moved in ["etc/keyd", "etc"] {
                fs::rename(folder.path().join(moved), folder.path().join(format!("old {}", moved.len()))).unwrap();
                assert_eq!(watch.changed().await, Change::Files);
                put(&sources.main, "a = 3");
                assert_eq!(watch.changed().await, Change::Files);

                // Another folder in its place before anybody looks.
                fs::rename(folder.path().join(moved), folder.path().join(format!("older {}", moved.len()))).unwrap();
                put(&sources.main, "a = 4");
                assert_eq!(watch.changed().await, Change::Files);
                put(&sources.main, "a = 5");
                assert_eq!(watch.changed().await, Change::Files);
            }

            fs::remove_dir_all(folder.path().join("etc")).unwrap();
            assert_eq!(watch.changed().await, Change::Files);
            put(&sources.directory.join("a.toml"), "a = 6");
            assert_eq!(watch.changed().await, Change::Files);
        });
    }

    #[test]
    fn the_same_bytes_again_are_no_change() {
        let (_folder, sources) = folder_and_sources();
        put(&sources.main, "a = 1");
        run(|| async {
            let mut watch = Watch::with_patience(&sources, SHORT).unwrap();
            put(&sources.main, "a = 1");
            assert!(!next_burst(&mut watch).await);
            assert_eq!(watch.burst, None);
            put(&sources.main, "a = 2");
            assert!(next_burst(&mut watch).await);
        });
    }

    #[test]
    fn a_dropped_wait_forgets_nothing() {
        let (_folder, sources) = folder_and_sources();
        put(&sources.main, "a = 1");
        run(|| async {
            let mut watch = Watch::with_patience(&sources, SHORT).unwrap();
            put(&sources.main, "a = 2");
            // Dropped at its first wait inside the burst.
            while watch.burst.is_none() {
                tokio::select! {
                    biased;
                    change = watch.changed() => panic!("{change:?} before the burst was over"),
                    () = tokio::task::yield_now() => {}
                }
            }
            assert_eq!(watch.changed().await, Change::Files);
        });
    }

    #[test]
    fn many_events_are_one_change_and_an_endless_burst_is_cut_off() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let events = Notify::new();
            let noise = async {
                loop {
                    events.notify_one();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            };
            let start = Instant::now();
            let mut burst = None;
            tokio::select! {
                () = settled(&events, &mut burst, PATIENCE) => {}
                () = noise => {}
            }
            assert_eq!(start.elapsed().as_secs(), 10);

            let (start, mut burst) = (Instant::now(), None);
            events.notify_one();
            settled(&events, &mut burst, PATIENCE).await;
            assert_eq!(start.elapsed().as_secs(), 1);
        });
    }

    #[test]
    fn other_files_and_mere_reading_do_not_matter() {
        let sources = Sources { main: "/etc/keyd/config.toml".into(), directory: "/etc/keyd/config.d".into() };
        let relevant = |kind: EventKind, path: &str| is_relevant(&sources, &Ok(Event::new(kind).add_path(path.into())));
        let create = EventKind::Create(CreateKind::Any);
        for (path, expected) in [
            ("/etc/keyd/config.toml", true),
            ("/etc/keyd/config.d", true),
            ("/etc/keyd/config.d/a.toml", true),
            ("/etc/keyd/config.d/a.TOML", true),
            ("/etc/keyd", true),
            ("/etc", true),
            ("/etc/keyd/config.d/.aziot-x.partial", false),
            ("/etc/keyd/config.toml.bak", false),
            ("/etc/keyd/other.toml", false),
            ("/etc/keyd/config.d/deep/a.toml", false),
            ("/etc/certd/config.toml", false),
        ] {
            assert_eq!(relevant(create, path), expected, "{path}");
        }
        assert!(relevant(EventKind::Modify(ModifyKind::Any), "/etc/keyd/config.toml"));
        assert!(!relevant(EventKind::Access(AccessKind::Any), "/etc/keyd/config.toml"));
        assert!(is_relevant(&sources, &Err(notify::Error::generic("lost"))));
    }
}
