//! The keys of the process that loaded the library. The ABI has no handle that tells one user from another, so there is one set of
//! parameters, set one after another, and one set of keys.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::error::Error;
use crate::{Keys, Settings};

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct State {
    settings: Settings,
    /// Opened by the first call that uses a key: the parameters before it come one by one.
    keys: Option<Arc<Keys>>,
}

/// Sets a parameter. Calls under way go on with the old ones.
///
/// Once the PKCS#11 library and the base slot are both known, the token must be there.
pub(super) fn set_parameter(name: &str, value: &str) -> Result<(), Error> {
    let mut state = lock();
    let mut settings = state.settings.clone();
    settings.set(name, value.to_owned())?;
    // A PKCS#11 library is initialized once per process: the old keys let go of it before new ones take it up.
    state.keys = None;
    if name.starts_with("pkcs11_") && settings.pkcs11_lib_path.is_some() && settings.pkcs11_base_slot.is_some() {
        state.keys = Some(Arc::new(Keys::new(settings.clone())?));
    }
    state.settings = settings;
    Ok(())
}

/// The keys under the parameters so far.
pub(super) fn keys() -> Result<Arc<Keys>, Error> {
    let mut state = lock();
    if let Some(keys) = &state.keys {
        return Ok(Arc::clone(keys));
    }
    // Under the lock: two callers must not open the same token twice, and nobody has anything to do before it is open.
    let keys = Arc::new(Keys::new(state.settings.clone())?);
    // What cannot be cleared away does not keep keys from being used.
    let _ = keys.tidy();
    state.keys = Some(Arc::clone(&keys));
    Ok(keys)
}

fn lock() -> MutexGuard<'static, State> {
    // Each change is one assignment, so a panic leaves the old state or the new one.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}
