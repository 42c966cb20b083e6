//! Which test owns which engine, noted outside of the test: what a test that was killed left running is ended when the next engine starts.
//!
//! The engine itself ends with its test; this is about its containers and those that watch over them.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::containers::end_left_over;
use crate::device::write_private;

/// One note for each engine. Only root writes here, and it is empty after a reboot.
const NOTES: &str = "/run/aziot-test-engines";
/// Notes of this process so far.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A note. Dropping it removes it.
pub(super) struct Owned {
    note: PathBuf,
}

impl Owned {
    /// Notes that this process has an engine in this folder.
    pub(super) fn note(folder: &Path) -> Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(NOTES).with_context(|| format!("could not make {NOTES}"))?;
        let (pid, number) = (process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let note = Path::new(NOTES).join(format!("{pid}-{number}"));
        let owner = json!({ "pid": pid, "started": started(u64::from(pid)), "folder": folder });
        write_private(&note, owner.to_string())?;
        Ok(Self { note })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.note);
    }
}

/// Ends what is left of engines whose test has ended without a word, and removes their folders.
pub(super) fn sweep() {
    for note in fs::read_dir(NOTES).into_iter().flatten().flatten() {
        let text = fs::read_to_string(note.path()).unwrap_or_default();
        // Half a note is one that is being written.
        let Ok(owner) = serde_json::from_str::<Value>(&text) else { continue };
        let (Some(pid), Some(folder)) = (owner["pid"].as_u64(), owner["folder"].as_str()) else { continue };
        let is_alive = started(pid).is_some_and(|started| owner["started"] == started);
        if !is_alive {
            end_left_over(Path::new(folder));
            // What cannot be removed now cannot be removed here.
            let _ = fs::remove_dir_all(folder);
            let _ = fs::remove_file(note.path());
        }
    }
}

/// When a process was started, in the kernel's ticks since boot; with its pid that is nobody else. `None` if there is none.
fn started(pid: u64) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may have blanks and brackets; this is the 22nd.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        assert!(started(1).unwrap() < started(u64::from(process::id())).unwrap());
        assert_eq!(started(u64::from(u32::MAX)), None);
    }
}
