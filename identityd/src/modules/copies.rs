//! Copies of the hub's modules: on disk for the time without network, and the latest ones in memory, so that reading one costs no file.
//!
//! Whoever changes a copy has the module's turn, and hands it to the work on the disk, which changes memory as well: they agree even when nobody
//! waits for that work any more. Memory also knows how old each word of the hub is, so that a late answer does not undo a newer one; that is
//! forgotten in a restart.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::time::Instant;

use super::on_disk;
use crate::state::{self, DeviceInfo, ModuleRecord, State};

/// Modules in memory, a few hundred bytes each; ten times what the hub lets a device have.
const ROOM: NonZeroUsize = NonZeroUsize::new(512).expect("is not 0");
/// How long what the hub said may stand for what it would say.
const CONFIRMED_FOR: Duration = Duration::from_secs(60);

/// The copies of the modules of one device at a time.
pub(super) struct Copies {
    state: Arc<State>,
    memory: Arc<Mutex<Memory>>,
}

struct Memory {
    /// The device whose modules are here.
    device: Option<DeviceInfo>,
    modules: LruCache<String, Known>,
    /// The age of the newest word about a module for which there was no more room. Of the others no word is newer than this.
    forgotten: Option<Instant>,
    /// Counts changes, so that what was read from the disk before one is not taken for what is there now.
    changes: u64,
}

/// What is known of a module.
struct Known {
    /// Absent: the hub has no such module.
    record: Option<ModuleRecord>,
    /// When the hub was asked, if it said yes; when it had answered, if it said no: what it was asked before that says nothing more.
    since: Option<Instant>,
    /// Whether the hub said this since the start, and nothing speaks against it.
    is_confirmed: bool,
}

impl Memory {
    /// The copies of this device; another one's are forgotten.
    fn of(&mut self, device: &DeviceInfo) -> &mut Self {
        if self.device.as_ref() != Some(device) {
            self.modules.clear();
            self.changes += 1;
            self.device = Some(device.clone());
        }
        self
    }

    /// Whether nothing newer is known of a module than what the hub said when it was asked at `asked`.
    fn is_news(&self, module_id: &str, asked: Instant) -> bool {
        let since = self.modules.peek(module_id).map_or(self.forgotten, |known| known.since);
        since.is_none_or(|since| since <= asked)
    }

    fn put(&mut self, record: ModuleRecord, asked: Instant) {
        self.changes += 1;
        self.know(record.module_id.clone(), Known { record: Some(record), since: Some(asked), is_confirmed: true });
    }

    fn remove(&mut self, module_id: &str) {
        self.changes += 1;
        let gone = Known { record: None, since: Some(Instant::now()), is_confirmed: false };
        self.know(module_id.to_owned(), gone);
    }

    fn know(&mut self, module_id: String, known: Known) {
        if !self.modules.contains(&module_id)
            && self.modules.len() >= ROOM.get()
            && let Some((_, oldest)) = self.modules.pop_lru()
        {
            self.forgotten = self.forgotten.max(oldest.since);
        }
        self.modules.put(module_id, known);
    }
}

impl Copies {
    /// Copies kept in `state`.
    pub(super) fn new(state: Arc<State>) -> Self {
        let memory = Memory { device: None, modules: LruCache::sparse(ROOM), forgotten: None, changes: 0 };
        Self { state, memory: Arc::new(Mutex::new(memory)) }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// The copy of a module, however old.
    pub(super) async fn get(&self, device: &DeviceInfo, module_id: &str) -> Option<ModuleRecord> {
        let changes = {
            let mut memory = self.memory();
            if let Some(known) = memory.of(device).modules.get(module_id) {
                return known.record.clone();
            }
            memory.changes
        };
        let (info, name) = (device.clone(), module_id.to_owned());
        let record = on_disk(&self.state, move |state| state.module(&info, &name)).await?;
        let mut memory = self.memory();
        if memory.changes == changes {
            let known = Known { record: Some(record.clone()), since: memory.forgotten, is_confirmed: false };
            memory.know(record.module_id.clone(), known);
        }
        Some(record)
    }

    /// The copy of a module about which the hub was asked a moment ago, when nothing speaks against it.
    pub(super) fn confirmed(&self, device: &DeviceInfo, module_id: &str) -> Option<ModuleRecord> {
        let mut memory = self.memory();
        let known = memory.of(device).modules.get(module_id)?;
        let is_fresh = known.is_confirmed && known.since.is_some_and(|since| since.elapsed() < CONFIRMED_FOR);
        known.record.clone().filter(|_| is_fresh)
    }

    /// Something has happened that the hub must be asked about.
    pub(super) fn doubt(&self, module_id: &str) {
        if let Some(known) = self.memory().modules.peek_mut(module_id) {
            known.is_confirmed = false;
        }
    }

    /// Keeps what the hub said when it was asked at `asked`, unless something newer is known. `turn` is held meanwhile.
    pub(super) async fn put(
        &self,
        turn: impl Send + 'static,
        device: &DeviceInfo,
        record: ModuleRecord,
        asked: Instant,
    ) -> Result<(), state::Error> {
        let (memory, device) = (Arc::clone(&self.memory), device.clone());
        let work = move |state: &State| {
            let _turn = turn;
            if !lock(&memory).of(&device).is_news(&record.module_id, asked) {
                return Ok(());
            }
            let written = state.put_module(&device, &record);
            lock(&memory).of(&device).put(record, asked);
            written
        };
        on_disk(&self.state, work).await
    }

    /// Forgets a module that the hub does not have: a no counts whenever it comes. `turn` is held meanwhile.
    pub(super) async fn remove(
        &self,
        turn: impl Send + 'static,
        device: &DeviceInfo,
        module_id: &str,
    ) -> Result<(), state::Error> {
        let (memory, device, module_id) = (Arc::clone(&self.memory), device.clone(), module_id.to_owned());
        let work = move |state: &State| {
            let _turn = turn;
            let removed = state.remove_module(&device, &module_id);
            lock(&memory).of(&device).remove(&module_id);
            removed
        };
        on_disk(&self.state, work).await
    }

    /// All copies on the disk.
    pub(super) async fn list(&self, device: &DeviceInfo) -> Result<Vec<ModuleRecord>, state::Error> {
        let info = device.clone();
        on_disk(&self.state, move |state| state.modules(&info)).await
    }

    /// The copies that there are, for [`replace`](Self::replace).
    pub(super) async fn all(&self, device: &DeviceInfo) -> Present {
        let info = device.clone();
        let files = on_disk(&self.state, move |state| state.module_files(&info)).await;
        let mut memory = self.memory();
        let known = memory.of(device).modules.iter().filter(|(_, known)| known.record.is_some());
        Present { files: files.into_iter().collect(), in_memory: known.map(|(name, _)| name.clone()).collect() }
    }

    /// Keeps copies of what the hub listed when it was asked at `asked`, and forgets those of `before` that it did not list; of what something
    /// newer is known, that stays. `turns` are held meanwhile.
    pub(super) async fn replace(
        &self,
        turns: impl Send + 'static,
        device: &DeviceInfo,
        mut before: Present,
        mut listed: Vec<ModuleRecord>,
        asked: Instant,
    ) -> Result<(), state::Error> {
        let (memory, device) = (Arc::clone(&self.memory), device.clone());
        let work = move |state: &State| {
            let _turns = turns;
            let overtaken: BTreeSet<_> = {
                let mut memory = lock(&memory);
                let memory = memory.of(&device);
                let old = listed.extract_if(.., |record| !memory.is_news(&record.module_id, asked));
                old.map(|record| record.module_id).collect()
            };
            before.retain(|module_id| !overtaken.contains(module_id));
            let files: Vec<_> = before.files.into_iter().map(|(path, _)| path).collect();
            let written = state.replace_modules(&device, files, &listed);
            let mut memory = lock(&memory);
            let memory = memory.of(&device);
            for record in &listed {
                before.in_memory.remove(&record.module_id);
            }
            for module_id in &before.in_memory {
                memory.remove(module_id);
            }
            for record in listed {
                memory.put(record, asked);
            }
            written
        };
        on_disk(&self.state, work).await
    }
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies that there were at some time.
pub(super) struct Present {
    /// Their files, and the modules that they are of; of a damaged one that is unknown.
    files: Vec<(PathBuf, Option<String>)>,
    /// Modules in memory, all of which are on the disk too, unless it failed.
    in_memory: BTreeSet<String>,
}

impl Present {
    /// Leaves out the copies of modules for which `keep` says no.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.files.retain(|(_, module_id)| module_id.as_deref().is_none_or(&mut keep));
        self.in_memory.retain(|module_id| keep(module_id));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn device(name: &str) -> DeviceInfo {
        DeviceInfo { hub_name: "h".into(), local_gateway_hostname: "h".into(), device_id: name.into() }
    }

    fn record(generation: &str) -> ModuleRecord {
        ModuleRecord {
            module_id: "m".into(),
            managed_by: None,
            device_id: "d".into(),
            generation_id: Some(generation.into()),
        }
    }

    fn copies() -> (tempfile::TempDir, Copies) {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path()).unwrap();
        state.select_device(&device("d")).unwrap();
        (folder, Copies::new(Arc::new(state)))
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_hub_said_is_good_for_a_minute_and_the_copy_for_ever() {
        let (_folder, copies) = copies();
        let device = device("d");
        copies.put((), &device, record("1"), Instant::now()).await.unwrap();
        assert_eq!(copies.confirmed(&device, "m"), Some(record("1")));
        tokio::time::advance(CONFIRMED_FOR).await;
        assert_eq!(copies.confirmed(&device, "m"), None);
        assert_eq!(copies.get(&device, "m").await, Some(record("1")));
        copies.put((), &device, record("2"), Instant::now()).await.unwrap();
        copies.doubt("m");
        assert_eq!(copies.confirmed(&device, "m"), None);
        assert_eq!(copies.get(&device, "m").await, Some(record("2")));
    }

    #[tokio::test]
    async fn memory_says_what_the_disk_says() {
        let (folder, copies) = copies();
        let device = device("d");
        copies.put((), &device, record("1"), Instant::now()).await.unwrap();
        let later = Copies::new(Arc::new(State::open(folder.path()).unwrap()));
        assert_eq!(later.get(&device, "m").await, Some(record("1")));
        assert_eq!(later.confirmed(&device, "m"), None, "the hub was not asked since the start");
        later.remove((), &device, "m").await.unwrap();
        assert_eq!(later.get(&device, "m").await, None);
        copies.put((), &device, record("2"), Instant::now()).await.unwrap();
        let before = copies.all(&device).await;
        copies.replace((), &device, before, Vec::new(), Instant::now()).await.unwrap();
        assert_eq!(copies.get(&device, "m").await, None);
        assert!(copies.list(&device).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn memory_and_turn_follow_the_disk_also_when_nobody_waits_for_it() {
        let (_folder, copies) = copies();
        let device = device("d");
        let (turn, mut is_held) = tokio::sync::oneshot::channel::<()>();
        assert!(copies.put(turn, &device, record("1"), Instant::now()).now_or_never().is_none(), "dropped halfway");
        let ended = tokio::time::timeout(Duration::from_secs(10), &mut is_held).await;
        ended.expect("the turn ends with the work").unwrap_err();
        assert_eq!(copies.list(&device).await.unwrap(), [record("1")]);
        assert_eq!(copies.confirmed(&device, "m"), Some(record("1")));
    }

    #[tokio::test]
    async fn a_late_yes_changes_nothing() {
        let (_folder, copies) = copies();
        let device = device("d");
        let (early, before) = (Instant::now(), copies.all(&device).await);
        copies.put((), &device, record("2"), Instant::now()).await.unwrap();
        copies.put((), &device, record("1"), early).await.unwrap();
        copies.replace((), &device, before, vec![record("1")], early).await.unwrap();
        assert_eq!(copies.get(&device, "m").await, Some(record("2")));
        let (asked, before) = (Instant::now(), copies.all(&device).await);
        copies.remove((), &device, "m").await.unwrap();
        copies.put((), &device, record("2"), asked).await.unwrap();
        copies.replace((), &device, before, vec![record("2")], asked).await.unwrap();
        assert_eq!(copies.get(&device, "m").await, None);
        assert!(copies.list(&device).await.unwrap().is_empty());
        copies.put((), &device, record("3"), Instant::now()).await.unwrap();
        assert_eq!(copies.confirmed(&device, "m"), Some(record("3")));
    }

    #[tokio::test]
    async fn a_late_yes_changes_nothing_about_a_module_that_memory_had_no_room_for() {
        let (_folder, copies) = copies();
        let (device, early) = (device("d"), Instant::now());
        copies.remove((), &device, "m").await.unwrap();
        for number in 0..ROOM.get() {
            copies.memory().of(&device).remove(&number.to_string());
        }
        assert!(copies.memory().modules.len() == ROOM.get() && !copies.memory().modules.contains("m"));
        copies.put((), &device, record("1"), early).await.unwrap();
        assert_eq!(copies.get(&device, "m").await, None);
    }

    #[tokio::test]
    async fn another_device_has_other_modules() {
        let (_folder, copies) = copies();
        copies.put((), &device("d"), record("1"), Instant::now()).await.unwrap();
        assert_eq!(copies.confirmed(&device("other"), "m"), None);
        assert_eq!(copies.confirmed(&device("d"), "m"), None, "forgotten in between");
    }
}
