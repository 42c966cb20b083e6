//! The PKCS#11 library: loaded and started once and kept for the life of the process, slots found, PINs that were refused remembered.
//!
//! Never finalized: a library ends with its process, and finalizing it under calls of other threads is undefined.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use aziot_log::fields;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::slot::Slot;
use zeroize::Zeroizing;

use super::error::{Pkcs11Error, TokenError};
use crate::uri::TokenIdentifier;

/// Every library of this process.
static LOADED: Mutex<Vec<Arc<Module>>> = Mutex::new(Vec::new());

/// Without these nothing works; all libraries have them.
const REQUIRED: [Function; 24] = [
    Function::Initialize,
    Function::GetSlotList,
    Function::GetTokenInfo,
    Function::OpenSession,
    Function::CloseSession,
    Function::GetSessionInfo,
    Function::Login,
    Function::FindObjectsInit,
    Function::FindObjects,
    Function::FindObjectsFinal,
    Function::GetAttributeValue,
    Function::SetAttributeValue,
    Function::CreateObject,
    Function::DestroyObject,
    Function::GenerateKey,
    Function::GenerateKeyPair,
    Function::SignInit,
    Function::Sign,
    Function::VerifyInit,
    Function::Verify,
    Function::EncryptInit,
    Function::Encrypt,
    Function::DecryptInit,
    Function::Decrypt,
];

/// Who may do what in a slot at the same time, in this process.
#[derive(Default)]
pub(super) struct SlotLocks {
    /// One login at a time: of several callers with a wrong PIN only the first may try it.
    pub(super) login: Mutex<()>,
    /// Held shared to use objects, and alone for changes that take several steps or that the library cannot do beside other calls.
    pub(super) objects: RwLock<()>,
}

/// A loaded and started PKCS#11 library.
pub(crate) struct Module {
    path: PathBuf,
    context: Pkcs11,
    /// How often the library was started. Held shared during every call: session handles from before a start may by chance be those
    /// of other sessions after it, so no call may last from one to the other.
    starts: RwLock<u64>,
    locks: Mutex<HashMap<u64, Arc<SlotLocks>>>,
    /// SoftHSM forgets an object that one thread makes while another looks for one.
    is_softhsm: bool,
    /// Serial number of a token and a PIN that it refused.
    refused: Mutex<Vec<(String, Zeroizing<String>)>>,
}

impl Module {
    /// The library at `path`, loaded unless this process has it.
    pub(crate) fn load(path: &Path) -> Result<Arc<Module>, TokenError> {
        // Held while loading: a library must not be started twice.
        let mut loaded = lock(&LOADED);
        if let Some(module) = loaded.iter().find(|module| module.path == path) {
            return Ok(Arc::clone(module));
        }
        let context = Pkcs11::new(path)
            .map_err(|error| TokenError::Load { path: path.to_owned(), source: Pkcs11Error(error) })?;
        if let Some(function) = REQUIRED.into_iter().find(|function| !context.is_fn_supported(*function)) {
            return Err(TokenError::Function { path: path.to_owned(), function: format!("{function:?}") });
        }
        let mut module = Module {
            path: path.to_owned(),
            context,
            starts: RwLock::default(),
            locks: Mutex::default(),
            is_softhsm: false,
            refused: Mutex::default(),
        };
        module.initialize()?;
        // A library that keeps this to itself, or answers against the standard, is taken at its word.
        if let Ok(info) = module.context.get_library_info() {
            let version = info.cryptoki_version();
            if (version.major(), version.minor()) < (2, 20) {
                return Err(TokenError::Version { path: module.path, version: version.to_string() });
            }
            module.is_softhsm = info.manufacturer_id() == "SoftHSM";
            tracing::info!({ fields::FILE } = %path.display(), library = info.library_description(), %version, "loaded the PKCS#11 library");
        }
        let module = Arc::new(module);
        loaded.push(Arc::clone(&module));
        Ok(module)
    }

    fn initialize(&self) -> Result<(), TokenError> {
        match self.context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
            Err(error) => Err(TokenError::Start { path: self.path.clone(), source: Pkcs11Error(error) }),
        }
    }

    /// Keeps the library from being started again until dropped. Tells how often it was.
    pub(super) fn running(&self) -> RwLockReadGuard<'_, u64> {
        self.starts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the library again after somebody in this process finalized it, unless that was done after the start number `seen`.
    pub(super) fn restart(&self, seen: u64) -> Result<(), TokenError> {
        let mut starts = self.starts.write().unwrap_or_else(PoisonError::into_inner);
        if *starts == seen {
            self.initialize()?;
            *starts += 1;
        }
        Ok(())
    }

    pub(super) fn context(&self) -> &Pkcs11 {
        &self.context
    }

    /// The slot of a token: by label among the initialized ones, by number without asking.
    pub(super) fn slot(&self, token: &TokenIdentifier) -> Result<Slot, TokenError> {
        let fail = |error| TokenError::Call { token: token.to_string(), source: Pkcs11Error(error) };
        let label = match token {
            TokenIdentifier::SlotId(number) => return Slot::try_from(*number).map_err(fail),
            TokenIdentifier::Label(label) => label,
        };
        for slot in self.context.get_slots_with_token().map_err(fail)? {
            // Another slot's trouble, such as a card just pulled out, is no matter here.
            if let Ok(info) = self.context.get_token_info(slot)
                && info.token_initialized()
                && info.label().trim() == label.trim()
            {
                return Ok(slot);
            }
        }
        Err(TokenError::NoToken { label: label.clone() })
    }

    pub(super) fn locks(&self, slot: Slot) -> Arc<SlotLocks> {
        Arc::clone(lock(&self.locks).entry(slot.id()).or_default())
    }

    /// Whether nothing else may happen on a token while a key is made there.
    pub(super) fn makes_keys_alone(&self) -> bool {
        self.is_softhsm
    }

    pub(super) fn is_refused(&self, serial: &str, pin: &str) -> bool {
        lock(&self.refused).iter().any(|(token, refused)| token == serial && **refused == pin)
    }

    pub(super) fn remember_refused(&self, serial: &str, pin: &str) {
        lock(&self.refused).push((serial.to_owned(), Zeroizing::new(pin.to_owned())));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-changed under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
