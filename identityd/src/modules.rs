//! Modules of the device at its hub: made, found, given keys, deleted; with copies for the time without network.
//!
//! A copy is used only when the hub cannot be reached, never when it says no: a module deleted in the cloud must not live on here. For the same
//! reason what was read is kept only if nothing was changed since it was asked for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use aziot_identityd_api::{config::module_name_is_valid, identity::AziotIdentity};
use aziot_identityd_cloud as cloud;
use aziot_log::chain;
use aziot_turns::{Turn, Turns};
use futures_util::FutureExt as _;

use crate::{
    device::Device,
    error::{Error, ModuleUnavailable},
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
    state: Arc<State>,
    turns: Turns,
    /// Changes made through this service that have ended. Counted while the module's turn is held.
    changes: AtomicU64,
}

/// What a reader must know to tell later whether it was overtaken.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Moment(u64);

impl Modules {
    /// Modules with keys of this key service and copies in this state.
    #[must_use]
    pub(crate) fn new(keys: Keys, state: Arc<State>) -> Self {
        Self { keys, state, turns: Turns::default(), changes: AtomicU64::new(0) }
    }

    /// Makes a module, or takes over the one that is there: its generation stays, its keys become ours.
    pub(crate) async fn create(
        &self,
        device: &Device,
        module_id: &str,
        managed_by: Option<&str>,
    ) -> Result<AziotIdentity, Error> {
        let _turn = self.turns.take(module_id).await;
        let created = device.hub.create_module(module_id, managed_by).await;
        let module = match created {
            // Somebody else's, or one of ours that a crash left without keys.
            Err(error) if error.is_already_there() => device.hub.module(module_id).await.map_err(Error::hub)?,
            created => created.map_err(Error::hub)?,
        };
        let identity = self.set_keys(device, module, managed_by).await?;
        tracing::info!(module_id, "created a module identity");
        Ok(identity)
    }

    /// Gives a module that is there the keys of this device.
    pub(crate) async fn update(&self, device: &Device, module_id: &str) -> Result<AziotIdentity, Error> {
        let _turn = self.turns.take(module_id).await;
        let module = match device.hub.module(module_id).await {
            Ok(module) => module,
            Err(error) => {
                if error.is_module_missing() {
                    self.forget(device, module_id).await;
                }
                return Err(Error::hub(error));
            }
        };
        let identity = self.set_keys(device, module, None).await?;
        tracing::info!(module_id, "updated a module identity");
        Ok(identity)
    }

    /// Deletes a module.
    pub(crate) async fn delete(&self, device: &Device, module_id: &str) -> Result<(), Error> {
        let _turn = self.turns.take(module_id).await;
        let deleted = device.hub.delete_module(module_id).await;
        if let Err(error) = deleted {
            if error.is_module_missing() {
                self.forget(device, module_id).await;
            }
            return Err(Error::hub(error));
        }
        self.forget(device, module_id).await;
        tracing::info!(module_id, "deleted a module identity");
        Ok(())
    }

    /// The identity of one module.
    pub(crate) async fn get(&self, device: &Device, module_id: &str, prefer: Prefer) -> Result<AziotIdentity, Error> {
        let record = self.find(device, module_id, prefer).await?;
        let Some(generation_id) = record.generation_id.as_deref() else { return Err(Error::ModuleNotFound) };
        let key = self.keys.module_key(&record.module_id, generation_id).await;
        let key_handle = key.map_err(|error| key_error(&record.module_id, error))?;
        Ok(device.module_identity(record, Some(key_handle)))
    }

    /// All modules, without what proves them.
    pub(crate) async fn list(&self, device: &Device, prefer: Prefer) -> Result<Vec<AziotIdentity>, Error> {
        let info = device.info.clone();
        let records = match prefer {
            Prefer::Copies => match self.on_disk(move |state| state.modules(&info)).await {
                Ok(records) => records,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "could not list the copies of modules");
                    self.refresh(device).await.map_err(Error::hub)?.iter().map(ModuleRecord::from).collect()
                }
            },
            Prefer::Hub => match self.refresh(device).await {
                Ok(modules) => modules.iter().map(ModuleRecord::from).collect(),
                Err(error) if error.is_offline() => {
                    warn_offline(&error);
                    let copies = self.on_disk(move |state| state.modules(&info)).await;
                    copies.map_err(|unreadable| {
                        tracing::warn!(error = %chain(&unreadable), "could not list the copies of modules");
                        Error::hub(error)
                    })?
                }
                Err(error) => return Err(Error::hub(error)),
            },
        };
        Ok(records.into_iter().map(|record| device.module_identity(record, None)).collect())
    }

    /// Lists the modules at the hub and makes the copies follow. Names that the hub itself would not take are left out.
    pub(crate) async fn refresh(&self, device: &Device) -> Result<Vec<cloud::Module>, cloud::Error> {
        let (info, begun) = (device.info.clone(), self.now());
        let mut before = self.on_disk(move |state| state.module_files(&info)).await;
        let mut modules = device.hub.modules().await?;
        let all = modules.len();
        modules.retain(|module| module_name_is_valid(&module.module_id));
        if modules.len() < all {
            tracing::warn!(
                hub = device.info.hub_name,
                "left {} modules out of the hub's list: no module can have such names",
                all - modules.len()
            );
        }
        let mut records: Vec<_> = modules.iter().map(ModuleRecord::from).collect();
        let mut turns = Vec::new();
        let mut free = |module_id: &str| match self.turn_if_free(module_id) {
            Some(turn) => {
                turns.push((module_id.to_owned(), turn));
                true
            }
            None => turns.iter().any(|(held, _)| held == module_id),
        };
        records.retain(|record| free(&record.module_id));
        before.retain(|_, module_id| module_id.as_deref().is_none_or(&mut free));
        if self.now() == begun {
            let info = device.info.clone();
            warn_unkept(self.on_disk(move |state| state.replace_modules(&info, before.into_keys(), &records)).await);
        }
        Ok(modules)
    }

    async fn find(&self, device: &Device, module_id: &str, prefer: Prefer) -> Result<ModuleRecord, Error> {
        if prefer == Prefer::Copies
            && let Some(record) = self.copy(device, module_id).await
        {
            return Ok(record);
        }
        let begun = self.now();
        let error = match device.hub.module(module_id).await {
            Ok(module) => {
                let record = ModuleRecord::from(&module);
                if let Some(_turn) = self.turn_since(begun, module_id) {
                    self.put(device, record.clone()).await;
                }
                return Ok(record);
            }
            Err(error) => error,
        };
        if error.is_module_missing() {
            if let Some(_turn) = self.turn_since(begun, module_id) {
                self.remove(device, module_id).await;
            }
        } else if error.is_offline() {
            warn_offline(&error);
            if let Some(record) = self.copy(device, module_id).await {
                return Ok(record);
            }
        } else {
            return Err(Error::hub(error));
        }
        let module_id = module_id.to_owned();
        Err(Error::ModuleUnavailable(ModuleUnavailable { module_id, source: Arc::new(error) }))
    }

    /// Registers this device's keys for a module as it was read.
    async fn set_keys(
        &self,
        device: &Device,
        mut module: cloud::Module,
        managed_by: Option<&str>,
    ) -> Result<AziotIdentity, Error> {
        let mut collisions = 0;
        loop {
            let module_id = module.module_id.clone();
            let Some(generation_id) = module.generation_id.as_deref() else { return Err(Error::ModuleNotFound) };
            let (key_handle, keys) =
                self.keys.module_keys(&module_id, generation_id).await.map_err(|error| key_error(&module_id, error))?;
            match device.hub.set_keys(&module, managed_by, &keys).await {
                Ok(module) => {
                    let record = ModuleRecord::from(&module);
                    self.keep(device, record.clone()).await;
                    return Ok(device.module_identity(record, Some(key_handle)));
                }
                Err(error) if error.is_changed_meanwhile() && collisions < COLLISIONS => {
                    collisions += 1;
                    module = device.hub.module(&module_id).await.map_err(Error::hub)?;
                }
                Err(error) => return Err(Error::hub(error)),
            }
        }
    }

    async fn copy(&self, device: &Device, module_id: &str) -> Option<ModuleRecord> {
        let (info, module_id) = (device.info.clone(), module_id.to_owned());
        self.on_disk(move |state| state.module(&info, &module_id)).await
    }

    fn now(&self) -> Moment {
        Moment(self.changes.load(Ordering::Relaxed))
    }

    /// The module's turn, unless somebody has it: whoever changes a module sees to its copy, and readers do not wait for that.
    fn turn_if_free(&self, module_id: &str) -> Option<Turn> {
        self.turns.take(module_id).now_or_never()
    }

    /// The module's turn, if what was asked for at `begun` is still true of its copy.
    fn turn_since(&self, begun: Moment, module_id: &str) -> Option<Turn> {
        self.turn_if_free(module_id).filter(|_| self.now() == begun)
    }

    /// Ends a change, in the module's turn, with the module as it is now.
    async fn keep(&self, device: &Device, record: ModuleRecord) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.put(device, record).await;
    }

    /// Ends a change, in the module's turn: the module is gone.
    async fn forget(&self, device: &Device, module_id: &str) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.remove(device, module_id).await;
    }

    /// A copy that cannot be kept costs an answer while the hub is away, not this one.
    async fn put(&self, device: &Device, record: ModuleRecord) {
        let info = device.info.clone();
        warn_unkept(self.on_disk(move |state| state.put_module(&info, &record)).await);
    }

    async fn remove(&self, device: &Device, module_id: &str) {
        let (info, module_id) = (device.info.clone(), module_id.to_owned());
        warn_unkept(self.on_disk(move |state| state.remove_module(&info, &module_id)).await);
    }

    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&State) -> T + Send + 'static) -> T {
        on_disk(&self.state, work).await
    }
}

/// Runs `work`, which blocks on files, on a thread for that.
pub(crate) async fn on_disk<T: Send + 'static>(
    state: &Arc<State>,
    work: impl FnOnce(&State) -> T + Send + 'static,
) -> T {
    let state = Arc::clone(state);
    tokio::task::spawn_blocking(move || work(&state)).await.expect("work on files does not panic")
}

fn key_error(module_id: &str, source: aziot_http::ClientError) -> Error {
    Error::ModuleKey { module_id: module_id.to_owned(), source: Arc::new(source) }
}

fn warn_offline(error: &cloud::Error) {
    tracing::warn!(error = %chain(error), "the hub is out of reach, answering from the state");
}

fn warn_unkept(outcome: Result<(), state::Error>) {
    if let Err(error) = outcome {
        tracing::warn!(error = %chain(&error), "could not update the copies of modules");
    }
}
