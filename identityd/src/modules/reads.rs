//! Reading one module, or all: from the hub, which may be slow, without making callers wait for it more than they must.
//!
//! Callers who ask for the same at a time share one request to the hub. When it takes long, a copy about which the hub was asked a moment ago
//! answers meanwhile, or any copy if the hub was out of reach a moment ago; the request goes on for those who come later. What the hub says counts
//! at once, above all a no. A change through this service cuts reads that began before its end off from those that begin after it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_turns::Turn;
use tokio::time::{Instant, timeout};

use super::{Modules, Prefer, warn_offline, warn_unkept};
use crate::{
    device::Device,
    error::{Error, ModuleUnavailable},
    flight::Flight,
    state::{DeviceInfo, ModuleRecord},
};

/// How long the hub may take before a copy answers.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long a hub that was out of reach is taken to be so: a silent network costs one caller in this time the whole wait, and not each.
const OFFLINE_FOR: Duration = Duration::from_secs(30);

type Answer = Result<ModuleRecord, Error>;
type Listed = Result<Arc<[ModuleRecord]>, Error>;

/// The requests of readers to the hub that are under way.
#[derive(Default)]
pub(super) struct Reads(Mutex<UnderWay>);

#[derive(Default)]
struct UnderWay {
    by_module: HashMap<String, Read<Answer>>,
    list: Option<Read<Listed>>,
    begun: u64,
    /// How many change each module, or wait for their turn to do so.
    changing: HashMap<String, usize>,
    /// The device whose hub was out of reach when it was asked last, and until when that is believed.
    offline: Option<(DeviceInfo, Instant)>,
}

struct Read<T: Clone> {
    number: u64,
    /// Another device, or the same with other credentials, may get another answer.
    device: Arc<Device>,
    begun: Instant,
    flight: Flight<T>,
}

impl<T: Clone + Send + Sync + 'static> Read<T> {
    fn is_joined_for(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.device, device) && !self.flight.is_over()
    }
}

impl Reads {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody joins the read of this module or of all any more, and what it says of this one is not kept.
    pub(super) fn cut_off(&self, module_id: &str) {
        let mut under_way = self.under_way();
        under_way.by_module.remove(module_id);
        under_way.list = None;
    }

    /// Somebody is going to change this module, and to see to its copy: until that has ended, what reads say of it is not kept.
    pub(super) fn begin_change(&self, module_id: &str) {
        *self.under_way().changing.entry(module_id.to_owned()).or_default() += 1;
    }

    /// The change has ended; as [`cut_off`](Self::cut_off).
    pub(super) fn end_change(&self, module_id: &str) {
        let mut under_way = self.under_way();
        if let Some(changing) = under_way.changing.get_mut(module_id) {
            *changing -= 1;
            if *changing == 0 {
                under_way.changing.remove(module_id);
            }
        }
        drop(under_way);
        self.cut_off(module_id);
    }

    fn is_current(&self, module_id: &str, number: u64) -> bool {
        let under_way = self.under_way();
        let is_last = under_way.by_module.get(module_id).is_some_and(|read| read.number == number);
        is_last && !under_way.changing.contains_key(module_id)
    }

    fn end(&self, module_id: &str, number: u64) {
        let mut under_way = self.under_way();
        if under_way.by_module.get(module_id).is_some_and(|read| read.number == number) {
            under_way.by_module.remove(module_id);
        }
    }

    fn end_list(&self, number: u64) {
        self.under_way().list.take_if(|list| list.number == number);
    }

    /// Remembers whether this device's hub was out of reach when it was asked last.
    pub(super) fn note_reach(&self, device: &DeviceInfo, is_offline: bool) {
        self.under_way().offline = is_offline.then(|| (device.clone(), Instant::now() + OFFLINE_FOR));
    }

    fn was_offline(&self, device: &DeviceInfo) -> bool {
        let under_way = self.under_way();
        under_way.offline.as_ref().is_some_and(|(of, until)| of == device && Instant::now() < *until)
    }
}

impl Modules {
    /// A module as the hub or its copy has it.
    pub(super) async fn find(self: &Arc<Self>, device: &Arc<Device>, module_id: &str, prefer: Prefer) -> Answer {
        if prefer == Prefer::Copies
            && let Some(record) = self.copies.get(&device.info, module_id).await
        {
            return Ok(record);
        }
        let (begun, flight) = self.read(device, module_id);
        let patience = PATIENCE.saturating_sub(begun.elapsed());
        if self.stand_in(device, module_id).await.is_some()
            && !patience.is_zero()
            && let Ok(answer) = timeout(patience, flight.clone().outcome()).await
        {
            return answer.unwrap_or(Err(Error::Stopping));
        }
        // Asked for only now: it may have gone in the meantime.
        match self.stand_in(device, module_id).await {
            Some(record) => Ok(record),
            None => flight.outcome().await.unwrap_or(Err(Error::Stopping)),
        }
    }

    /// A copy that may answer while the hub takes its time.
    async fn stand_in(&self, device: &Device, module_id: &str) -> Option<ModuleRecord> {
        if let Some(record) = self.copies.confirmed(&device.info, module_id) {
            return Some(record);
        }
        if self.reads.was_offline(&device.info) { self.copies.get(&device.info, module_id).await } else { None }
    }

    /// All modules as the hub has them, or the copies while it does not answer.
    pub(super) async fn find_all(self: &Arc<Self>, device: &Arc<Device>) -> Listed {
        let (begun, flight) = self.read_all(device);
        if self.reads.was_offline(&device.info) {
            let patience = PATIENCE.saturating_sub(begun.elapsed());
            if let Ok(listed) = timeout(patience, flight.clone().outcome()).await {
                return listed.unwrap_or(Err(Error::Stopping));
            }
            if self.reads.was_offline(&device.info)
                && let Some(copies) = self.listed_copies(device).await
            {
                return Ok(copies.into());
            }
        }
        flight.outcome().await.unwrap_or(Err(Error::Stopping))
    }

    /// The read of this module that is under way, or a new one.
    fn read(self: &Arc<Self>, device: &Arc<Device>, module_id: &str) -> (Instant, Flight<Answer>) {
        let mut under_way = self.reads.under_way();
        if let Some(read) = under_way.by_module.get(module_id).filter(|read| read.is_joined_for(device)) {
            return (read.begun, read.flight.clone());
        }
        under_way.begun += 1;
        let (number, begun) = (under_way.begun, Instant::now());
        let (modules, asked, name) = (Arc::clone(self), Arc::clone(device), module_id.to_owned());
        let flight = Flight::begin(async move {
            let answer = modules.ask(&asked, &name, number, begun).await;
            modules.reads.end(&name, number);
            answer
        });
        let read = Read { number, device: Arc::clone(device), begun, flight: flight.clone() };
        under_way.by_module.insert(module_id.to_owned(), read);
        (begun, flight)
    }

    /// The read of all modules that is under way, or a new one.
    fn read_all(self: &Arc<Self>, device: &Arc<Device>) -> (Instant, Flight<Listed>) {
        let mut under_way = self.reads.under_way();
        if let Some(read) = under_way.list.as_ref().filter(|read| read.is_joined_for(device)) {
            return (read.begun, read.flight.clone());
        }
        under_way.begun += 1;
        let (number, begun) = (under_way.begun, Instant::now());
        let (modules, asked) = (Arc::clone(self), Arc::clone(device));
        let flight = Flight::begin(async move {
            let listed = modules.ask_for_all(&asked).await;
            modules.reads.end_list(number);
            listed
        });
        under_way.list = Some(Read { number, device: Arc::clone(device), begun, flight: flight.clone() });
        (begun, flight)
    }

    async fn ask(&self, device: &Device, module_id: &str, number: u64, begun: Instant) -> Answer {
        let answer = device.hub.module(module_id).await;
        self.reads.note_reach(&device.info, answer.as_ref().is_err_and(aziot_identityd_cloud::Error::is_offline));
        let error = match answer {
            Ok(module) => {
                let record = ModuleRecord::from(&module);
                if let Some(turn) = self.turn_of_read(module_id, number).await {
                    warn_unkept(self.copies.put(turn, &device.info, record.clone(), begun).await);
                }
                return Ok(record);
            }
            Err(error) => error,
        };
        if error.is_module_missing() {
            self.copies.doubt(module_id);
            if let Some(turn) = self.turn_of_read(module_id, number).await {
                warn_unkept(self.copies.remove(turn, &device.info, module_id).await);
            }
        } else if error.is_offline() {
            warn_offline(&error);
            if let Some(record) = self.copies.get(&device.info, module_id).await {
                return Ok(record);
            }
        } else {
            self.copies.doubt(module_id);
            return Err(Error::hub(error));
        }
        let module_id = module_id.to_owned();
        Err(Error::ModuleUnavailable(ModuleUnavailable { module_id, source: Arc::new(error) }))
    }

    async fn ask_for_all(&self, device: &Device) -> Listed {
        let error = match self.refresh(device).await {
            Ok(modules) => return Ok(modules.iter().map(ModuleRecord::from).collect()),
            Err(error) => error,
        };
        if error.is_offline() {
            warn_offline(&error);
            if let Some(copies) = self.listed_copies(device).await {
                return Ok(copies.into());
            }
        }
        Err(Error::hub(error))
    }

    /// The module's turn, if what this read was told is still true of the copy. Whoever changes the module sees to its copy, and is not waited for;
    /// only work on files is.
    async fn turn_of_read(&self, module_id: &str, number: u64) -> Option<Turn> {
        if !self.reads.is_current(module_id, number) {
            return None;
        }
        let turn = self.turns.take(module_id).await;
        self.reads.is_current(module_id, number).then_some(turn)
    }
}
