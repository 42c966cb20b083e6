//! Modules of the device at its hub: made, found, given keys, deleted; with copies for the time without network.
//!
//! A copy is used only while the hub does not answer, never when it says no: a module deleted in the cloud must not live on here. For the same
//! reason what was read is kept only if nothing was changed, and nothing newer learnt, since it was asked for. One module is changed by one task
//! at a time.

mod copies;
mod reads;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use aziot_identityd_api::{config::module_name_is_valid, identity::AziotIdentity};
use aziot_identityd_cloud::{self as cloud, Hub};
use aziot_log::{chain, fields};
use aziot_turns::{Turn, Turns};
use tokio::time::Instant;

use copies::Copies;
use reads::Reads;

use crate::{
    blocking,
    device::Device,
    error::Error,
    keys::Keys,
    state::{self, ModuleRecord, State},
};

/// How often a module is read again when somebody else changed it between our reading and writing.
const COLLISIONS: usize = 3;

/// Where module identities are looked for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefer {
    /// At the hub (`prefer_module_identity_cache = false`).
    Hub,
    /// Among the copies.
    Copies,
}

impl Prefer {
    /// The choice that the setting `prefer_module_identity_cache` makes.
    #[must_use]
    pub(crate) fn from_setting(prefer_module_identity_cache: bool) -> Self {
        if prefer_module_identity_cache { Self::Copies } else { Self::Hub }
    }
}

/// All modules of all devices that this one ever is.
pub(crate) struct Modules {
    keys: Keys,
    copies: Copies,
    reads: Reads,
    turns: Turns,
    /// Changes made through this service that have ended, in whatever way. Counted while the module's turn is held.
    changes: AtomicU64,
}

/// How many calls some work has made to the hub, leaving out repetitions of calls that got no answer.
#[derive(Debug, Default)]
pub(crate) struct Calls(AtomicU32);

impl Calls {
    /// Begins with the call that has listed the modules.
    #[must_use]
    pub(crate) fn of_a_list() -> Self {
        Self(AtomicU32::new(1))
    }

    /// How many there were.
    #[must_use]
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// The hub, for one call.
    fn call<'d>(&self, device: &'d Device) -> &'d Hub {
        self.0.fetch_add(1, Ordering::Relaxed);
        &device.hub
    }
}

/// What the list must know to tell later whether it was overtaken.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Moment(u64);

/// A module is being changed: no read that begins before the end of this says what is so after it. Shared with work on files, so that it does not
/// end before that.
struct Change {
    modules: Arc<Modules>,
    module_id: String,
    /// Absent while others have theirs.
    turn: Option<Turn>,
}

impl Drop for Change {
    /// Also of a change that failed or was given up: nobody knows what the hub has done.
    fn drop(&mut self) {
        self.modules.changes.fetch_add(1, Ordering::Relaxed);
        self.modules.reads.end_change(&self.module_id);
    }
}

impl Modules {
    /// Modules with keys of this key service and copies in this state.
    #[must_use]
    pub(crate) fn new(keys: Keys, state: Arc<State>) -> Self {
        let copies = Copies::new(state);
        Self { keys, copies, reads: Reads::default(), turns: Turns::default(), changes: AtomicU64::new(0) }
    }

    /// Makes a module, or takes over the one that is there: its generation stays, its keys become ours.
    pub(crate) async fn create(
        self: &Arc<Self>,
        device: &Device,
        module_id: &str,
        managed_by: Option<&str>,
        calls: &Calls,
    ) -> Result<AziotIdentity, Error> {
        let change = self.change(module_id).await;
        let created = async {
            let module = match calls.call(device).create_module(module_id, managed_by).await {
                // Somebody else's, or one of ours that a crash left without keys.
                Err(error) if error.is_already_there() => calls.call(device).module(module_id).await,
                created => created,
            };
            self.set_keys(&change, device, module.map_err(Error::hub)?, managed_by, calls).await
        };
        let identity = self.follow(&change, device, created.await).await?;
        tracing::info!({ fields::MODULE_ID } = module_id, "created a module identity");
        Ok(identity)
    }

    /// Gives a module that is there the keys of this device.
    pub(crate) async fn update(
        self: &Arc<Self>,
        device: &Device,
        module_id: &str,
        calls: &Calls,
    ) -> Result<AziotIdentity, Error> {
        let change = self.change(module_id).await;
        let updated = async {
            let module = calls.call(device).module(module_id).await.map_err(Error::hub)?;
            self.set_keys(&change, device, module, None, calls).await
        };
        let identity = self.follow(&change, device, updated.await).await?;
        tracing::info!({ fields::MODULE_ID } = module_id, "updated a module identity");
        Ok(identity)
    }

    /// Deletes a module.
    pub(crate) async fn delete(self: &Arc<Self>, device: &Device, module_id: &str, calls: &Calls) -> Result<(), Error> {
        let change = self.change(module_id).await;
        let deleted = calls.call(device).delete_module(module_id).await.map_err(Error::hub);
        self.follow(&change, device, deleted).await?;
        self.forget(&change, device).await;
        tracing::info!({ fields::MODULE_ID } = module_id, "deleted a module identity");
        Ok(())
    }

    /// The identity of one module.
    pub(crate) async fn get(
        self: &Arc<Self>,
        device: &Arc<Device>,
        module_id: &str,
        prefer: Prefer,
    ) -> Result<AziotIdentity, Error> {
        let record = self.find(device, module_id, prefer).await?;
        let Some(generation_id) = record.generation_id.as_deref() else { return Err(Error::ModuleNotFound) };
        let key = self.keys.module_key(&record.module_id, generation_id).await;
        let key_handle = key.map_err(|error| key_error(&record.module_id, error))?;
        Ok(device.module_identity(record, Some(key_handle)))
    }

    /// All modules, without what proves them.
    pub(crate) async fn list(
        self: &Arc<Self>,
        device: &Arc<Device>,
        prefer: Prefer,
    ) -> Result<Vec<AziotIdentity>, Error> {
        let copies = match prefer {
            Prefer::Copies => self.listed_copies(device).await,
            Prefer::Hub => None,
        };
        let records = match copies {
            Some(copies) => copies.into(),
            None => self.find_all(device).await?,
        };
        Ok(records.iter().map(|record| device.module_identity(record.clone(), None)).collect())
    }

    /// The copies of all modules, if they can be read.
    async fn listed_copies(&self, device: &Device) -> Option<Vec<ModuleRecord>> {
        let listed = self.copies.list(&device.info).await;
        let unreadable = |error: &state::Error| {
            tracing::warn!({ fields::ERROR } = %chain(error), "could not list the copies of modules");
        };
        listed.inspect_err(unreadable).ok()
    }

    /// Lists the modules at the hub and makes the copies follow. Names that the hub itself would not take are left out.
    pub(crate) async fn refresh(&self, device: &Device) -> Result<Vec<cloud::Module>, cloud::Error> {
        let (begun, asked) = (self.now(), Instant::now());
        let mut before = self.copies.all(&device.info).await;
        let listed = device.hub.modules().await;
        self.reads.note_reach(&device.info, listed.as_ref().is_err_and(cloud::Error::is_offline));
        let mut modules = listed?;
        let all = modules.len();
        modules.retain(|module| module_name_is_valid(&module.module_id));
        if modules.len() < all {
            tracing::warn!(
                { fields::HUB } = device.info.hub_name,
                "left {} modules out of the hub's list: no module can have such names",
                all - modules.len()
            );
        }
        let mut records: Vec<_> = modules.iter().map(ModuleRecord::from).collect();
        // Whoever changes a module sees to its copy.
        let mut turns = BTreeMap::new();
        let mut free = |module_id: &str| {
            if turns.contains_key(module_id) {
                return true;
            }
            let turn = self.turns.try_take(module_id);
            turn.map(|turn| turns.insert(module_id.to_owned(), turn)).is_some()
        };
        records.retain(|record| free(&record.module_id));
        before.retain(&mut free);
        if self.now() == begun {
            warn_unkept(self.copies.replace(turns, &device.info, before, records, asked).await);
        }
        Ok(modules)
    }

    /// Registers this device's keys for a module as it was read.
    async fn set_keys(
        &self,
        change: &Arc<Change>,
        device: &Device,
        mut module: cloud::Module,
        managed_by: Option<&str>,
        calls: &Calls,
    ) -> Result<AziotIdentity, Error> {
        let mut collisions = 0;
        loop {
            let module_id = module.module_id.clone();
            self.forget_former(change, device, &module).await;
            let Some(generation_id) = module.generation_id.as_deref() else { return Err(Error::ModuleNotFound) };
            let (key_handle, keys) =
                self.keys.module_keys(&module_id, generation_id).await.map_err(|error| key_error(&module_id, error))?;
            match calls.call(device).set_keys(&module, managed_by, &keys).await {
                Ok(module) => {
                    let record = ModuleRecord::from(&module);
                    self.keep(change, device, record.clone()).await;
                    return Ok(device.module_identity(record, Some(key_handle)));
                }
                Err(error) if error.is_changed_meanwhile() && collisions < COLLISIONS => {
                    collisions += 1;
                    module = calls.call(device).module(&module_id).await.map_err(Error::hub)?;
                }
                Err(error) => return Err(Error::hub(error)),
            }
        }
    }

    /// Begins a change of a module, in its turn.
    async fn change(self: &Arc<Self>, module_id: &str) -> Arc<Change> {
        self.reads.begin_change(module_id);
        let mut change = Change { modules: Arc::clone(self), module_id: module_id.to_owned(), turn: None };
        change.turn = Some(self.turns.take(module_id).await);
        self.reads.cut_off(module_id);
        self.copies.doubt(module_id);
        Arc::new(change)
    }

    fn now(&self) -> Moment {
        Moment(self.changes.load(Ordering::Relaxed))
    }

    /// Keeps a module as a change has left it. A copy that cannot be kept costs an answer while the hub is away, not this one.
    async fn keep(&self, change: &Arc<Change>, device: &Device, record: ModuleRecord) {
        warn_unkept(self.copies.put(Arc::clone(change), &device.info, record, Instant::now()).await);
    }

    /// Forgets a module that a change has shown to be gone.
    async fn forget(&self, change: &Arc<Change>, device: &Device) {
        warn_unkept(self.copies.remove(Arc::clone(change), &device.info, &change.module_id).await);
    }

    /// Forgets the module if this is how a change learns that the hub does not have it, at whichever step.
    async fn follow<T>(&self, change: &Arc<Change>, device: &Device, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Hub(error)) = &outcome
            && error.is_module_missing()
        {
            self.forget(change, device).await;
        }
        outcome
    }

    /// Forgets a copy of another generation than the hub's: it is of a module that is gone, also if the change ends here.
    async fn forget_former(&self, change: &Arc<Change>, device: &Device, module: &cloud::Module) {
        let copy = self.copies.get(&device.info, &module.module_id).await;
        if copy.is_some_and(|copy| copy.generation_id != module.generation_id) {
            self.forget(change, device).await;
        }
    }
}

/// Runs `work`, which blocks on files, on a thread for that. It goes on to its end when nobody waits for it any more.
pub(crate) async fn on_disk<T: Send + 'static>(
    state: &Arc<State>,
    work: impl FnOnce(&State) -> T + Send + 'static,
) -> T {
    let state = Arc::clone(state);
    blocking::run(move || work(&state)).await
}

fn key_error(module_id: &str, source: Arc<aziot_http::ClientError>) -> Error {
    Error::ModuleKey { module_id: module_id.to_owned(), source }
}

fn warn_offline(error: &cloud::Error) {
    tracing::warn!({ fields::ERROR } = %chain(error), "the hub is out of reach, answering from the state");
}

fn warn_unkept(outcome: Result<(), state::Error>) {
    if let Err(error) = outcome {
        tracing::warn!({ fields::ERROR } = %chain(&error), "could not update the copies of modules");
    }
}
