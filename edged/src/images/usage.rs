//! When each image was used last, as the public system keeps it: `<home>/gc/image_use`, a line `<image id> <seconds since 1970>` each.
//!
//! A line that cannot be read costs that line. A file that cannot be read costs nothing: it is left alone, and nothing is removed until it can be
//! read. Failures never stop what a module waits for.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aziot_files::Mode;
use aziot_log::{chain, fields};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

const FILE: &str = "image_use";
/// What the public system leaves behind when it is killed while it writes.
const PUBLIC_TEMPORARY: &str = "image_use_tmp";
/// Bytes of the file that are read: some hundred thousand images.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// The images that the runtime has used, and when.
#[derive(Debug)]
pub(crate) struct Use {
    file: PathBuf,
    state: Mutex<State>,
    /// Held by who writes the file.
    writing: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Seconds since 1970 by image id.
    times: BTreeMap<String, u64>,
    /// When this process saw them used. The wall clock may have been set since, and this one not.
    seen: BTreeMap<String, Instant>,
    /// Whether what the file held is among `times`.
    is_read: bool,
    /// Counts changes.
    version: u64,
    written: u64,
}

impl Use {
    /// Reads what is remembered in `folder`.
    pub(crate) async fn open(folder: &Path) -> Self {
        let usage = Self { file: folder.join(FILE), state: Mutex::default(), writing: AsyncMutex::default() };
        usage.is_readable().await;
        let temporary = folder.join(PUBLIC_TEMPORARY);
        // Left where it is if it cannot be removed: nobody reads it.
        let _ = tokio::task::spawn_blocking(move || aziot_files::remove(temporary)).await;
        usage
    }

    /// Whether the file is known; it is read if that failed before.
    pub(super) async fn is_readable(&self) -> bool {
        let _writing = self.writing.lock().await;
        if self.state().is_read {
            return true;
        }
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || match aziot_files::read_limited(file, FILE_LIMIT) {
            Err(error) if error.is_not_found() => Ok(None),
            outcome => outcome.map(Some),
        });
        match read.await {
            Ok(Ok(bytes)) => {
                let (times, bad) = parse(&String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()));
                if bad > 0 {
                    tracing::warn!({ fields::FILE } = %self.file.display(), "{bad} lines that make no sense are left out");
                }
                let mut state = self.state();
                for (id, time) in times {
                    state.times.entry(id).or_insert(time);
                }
                state.is_read = true;
                if bytes.is_none() || bad > 0 {
                    state.version += 1;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!({ fields::ERROR } = %chain(&error), "no image is removed until it is known when they were used");
                return false;
            }
            // The runtime ends.
            Err(_) => return false,
        }
        self.write_locked().await;
        true
    }

    /// Notes that an image is used now.
    pub(crate) async fn used(&self, id: &str) {
        self.change(|state| {
            state.seen.insert(id.to_owned(), Instant::now());
            let time = state.times.entry(id.to_owned()).or_default();
            *time = now().max(*time);
        })
        .await;
    }

    /// Notes that what `is_in_use` is so at `now`, and returns the images that were used before `since`. No time gets earlier: a clock that is
    /// behind must not make images old, and one that was ahead leaves some young for longer.
    pub(super) async fn refresh(&self, is_in_use: impl Fn(&str) -> bool, now: u64, since: u64) -> Vec<String> {
        let mut old = Vec::new();
        self.change(|State { times, seen, .. }| {
            for (id, time) in times {
                if is_in_use(id) {
                    seen.insert(id.clone(), Instant::now());
                }
                // What was noted by a clock that was behind is noted again by the present one.
                if let Some(seen) = seen.get(id) {
                    *time = now.saturating_sub(seen.elapsed().as_secs()).max(*time);
                }
                if *time < since {
                    old.push(id.clone());
                }
            }
        })
        .await;
        old
    }

    /// Whether an image was last used before `since`.
    pub(super) fn is_older(&self, id: &str, since: u64) -> bool {
        self.state().times.get(id).is_some_and(|time| *time < since)
    }

    /// Forgets an image that is gone.
    pub(super) async fn forget(&self, id: &str) {
        self.change(|state| {
            state.times.remove(id);
            state.seen.remove(id);
        })
        .await;
    }

    async fn change(&self, change: impl FnOnce(&mut State)) {
        {
            let mut state = self.state();
            change(&mut state);
            state.version += 1;
        }
        let _writing = self.writing.lock().await;
        self.write_locked().await;
    }

    /// Writes what has changed, if nobody has meanwhile. The caller holds `writing`.
    async fn write_locked(&self) {
        let (version, text) = {
            let state = self.state();
            if !state.is_read || state.version == state.written {
                return;
            }
            (state.version, print(&state.times))
        };
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || aziot_files::write(file, Mode::SHARED, text)).await {
            Ok(Ok(())) => self.state().written = version,
            Ok(Err(error)) => {
                tracing::warn!({ fields::ERROR } = %chain(&error), "the use of images is remembered until the runtime ends, not longer");
            }
            // The runtime ends.
            Err(_) => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970; 0 before.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Reads the file; also tells how many lines make no sense. Of two times for one image the later counts.
fn parse(text: &str) -> (BTreeMap<String, u64>, usize) {
    let mut times = BTreeMap::new();
    let mut bad = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match entry(line) {
            Some((id, seconds)) => {
                let time = times.entry(id.to_owned()).or_insert(seconds);
                *time = seconds.max(*time);
            }
            None => bad += 1,
        }
    }
    (times, bad)
}

fn entry(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (id, seconds) = (words.next()?, words.next()?);
    let fits = words.next().is_none() && is_id(id);
    Some((id, seconds.parse().ok().filter(|_| fits)?))
}

/// Whether it is the whole id of an image, with Docker's algorithm before it or, as Podman writes it, without. A name, or the beginning of an
/// id, would have the engine remove an image that nobody spoke of.
fn is_id(text: &str) -> bool {
    let (digits, length) = match text.split_once(':') {
        Some(("sha512", digits)) => (digits, 128),
        Some(("sha256", digits)) => (digits, 64),
        None => (text, 64),
        Some(_) => return false,
    };
    digits.len() == length && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn print(times: &BTreeMap<String, u64>) -> String {
    times.iter().fold(String::new(), |mut text, (id, seconds)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{id} {seconds}");
        text
    })
}

#[cfg(test)]
mod tests;
