//! Modules belong to one device: when it has become another one they are removed, and only when none is left is the new one remembered.

use std::time::Duration;

use aziot_log::fields;

use crate::{
    error::{self, BoxError},
    modules::Modules,
    provisioning::{Device, Memory, MemoryError},
    service_manager,
    specification::Name,
};

/// How often removal is tried, and the least pause between, which grows.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// Why it is not certain that all modules belong to this device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What is remembered could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// It is not known which modules there are.
    #[error(transparent)]
    List(#[from] error::Error),
    /// Some could not be removed.
    #[error("modules of another device could not be removed: {0}")]
    Left(String),
    /// The runtime is ending.
    #[error("the runtime is ending")]
    Ending(#[source] BoxError),
}

/// Whoever can remove all modules.
pub(super) trait Removable {
    /// Removes them, and tells which are left.
    fn remove_all(&self) -> impl Future<Output = Result<Vec<Name>, error::Error>> + Send;
}

impl Removable for Modules {
    fn remove_all(&self) -> impl Future<Output = Result<Vec<Name>, error::Error>> + Send {
        Modules::remove_all(self)
    }
}

/// Removes all modules unless they belong to `device`.
pub(super) async fn settle(memory: &Memory, modules: &impl Removable, device: &Device) -> Result<(), Error> {
    let (known, own) = (memory.clone(), device.clone());
    if blocking(move || known.is_of(&own)).await? {
        tracing::info!("the modules belong to this device, and are kept");
        return Ok(());
    }
    tracing::info!(
        { fields::DEVICE_ID } = device.id,
        "no modules were made for this device yet: removing those that are there"
    );
    service_manager::status("Removing the modules of another device");
    let mut attempt = 1;
    loop {
        let left = modules.remove_all().await?;
        if left.is_empty() {
            let (known, own) = (memory.clone(), device.clone());
            return blocking(move || known.keep(&own)).await;
        }
        if attempt == ATTEMPTS {
            let names: Vec<String> = left.iter().map(Name::to_string).collect();
            return Err(Error::Left(names.join(", ")));
        }
        tokio::time::sleep(PAUSE.mul_f64(f64::from(attempt) + fastrand::f64())).await;
        attempt += 1;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MemoryError> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|error| Error::Ending(error.into()))??)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Modules of which one can be removed at the third attempt only, or never.
    struct Stubborn {
        gives_in_at: u32,
        attempts: AtomicU32,
    }

    impl Removable for Stubborn {
        async fn remove_all(&self) -> Result<Vec<Name>, error::Error> {
            let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
            Ok(if attempt >= self.gives_in_at { Vec::new() } else { vec![Name::new("stubborn").unwrap()] })
        }
    }

    fn stubborn(gives_in_at: u32) -> Stubborn {
        Stubborn { gives_in_at, attempts: AtomicU32::new(0) }
    }

    fn device(id: &str) -> Device {
        Device { id: id.to_owned(), hub: "hub".to_owned(), gateway: "hub".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn modules_are_kept_while_the_device_stays_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path());
        let modules = stubborn(1);
        settle(&memory, &modules, &device("a")).await.unwrap();
        settle(&memory, &modules, &device("a")).await.unwrap();
        assert_eq!(modules.attempts.load(Ordering::Relaxed), 1, "nothing was remembered at first");
        settle(&memory, &modules, &device("b")).await.unwrap();
        assert_eq!(modules.attempts.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_device_is_remembered_when_no_module_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path());
        let modules = stubborn(3);
        settle(&memory, &modules, &device("a")).await.unwrap();
        assert_eq!(modules.attempts.load(Ordering::Relaxed), 3);
        assert!(memory.is_of(&device("a")).unwrap());

        let error = settle(&memory, &stubborn(u32::MAX), &device("b")).await.unwrap_err();
        assert_eq!(error.to_string(), "modules of another device could not be removed: stubborn");
        assert!(!memory.is_of(&device("b")).unwrap());
        assert!(memory.is_of(&device("a")).unwrap(), "the next start tries again");
    }
}
