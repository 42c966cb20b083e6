//! A vendor's library, loaded: its functions as Rust calls that believe no length and no value without looking.
//!
//! The only code that calls into it. A library runs inside the process and can do anything; what is checked is what it says, so that a
//! slip in it ends in an error and not in memory that is not ours.

#![expect(unsafe_code, reason = "dlopen, and calls of a vendor's functions")]

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use zeroize::Zeroizing;

use super::error::{CallError, LoadError};
use crate::ffi::abi::{
    self, ENCRYPT_MECHANISM_AEAD, ENCRYPT_MECHANISM_DERIVED, EncryptAeadParameters, EncryptDerivedParameters,
    FunctionList, FunctionList2000, FunctionList2100, KEY_PAIR_PARAMETER_TYPE_ALGORITHM, RC_ERR_INVALID_PARAMETER,
    RC_OK, ReturnCode, SIGN_MECHANISM_DERIVED, SIGN_MECHANISM_HMAC_SHA256, SignDerivedParameters, VERSION_2_0_0_0,
    VERSION_2_1_0_0,
};
use crate::{KeyUsage, Secret};

/// No result is longer: a request to the key service has at most 1 MiB, and encryption adds a few bytes.
const LONGEST_RESULT: usize = 2 * 1024 * 1024;

/// The function that a member of a list leads to when it is not NULL.
trait Nullable {
    type Function;
}

impl<F> Nullable for Option<F> {
    type Function = F;
}

type Of<N> = <N as Nullable>::Function;

/// The functions of a library that stays loaded for as long as the process runs; none of them is NULL.
pub(super) struct Functions {
    version: c_uint,
    set_parameter: Of<abi::SetParameter>,
    create_key_pair_if_not_exists: Of<abi::CreateKeyPairIfNotExists>,
    load_key_pair: Of<abi::LoadKeyPair>,
    get_key_pair_parameter: Of<abi::GetKeyPairParameter>,
    create_key_if_not_exists: Of<abi::CreateKeyIfNotExists>,
    load_key: Of<abi::LoadKey>,
    import_key: Of<abi::ImportKey>,
    derive_key: Of<abi::DeriveKey>,
    sign: Of<abi::Sign>,
    verify: Of<abi::Verify>,
    encrypt: Of<abi::Encrypt>,
    decrypt: Of<abi::Decrypt>,
    added: Option<Added>,
}

/// What lists of version 2.0.0.0 do not have.
struct Added {
    move_key_pair: Of<abi::MoveKeyPair>,
    delete_key_pair: Of<abi::DeleteKeyPair>,
    delete_key: Of<abi::DeleteKey>,
}

/// A member of a list, or the error that it is NULL.
macro_rules! function {
    ($list:ident, $path:ident, $name:ident) => {
        $list.$name.ok_or_else(|| LoadError::NoFunction { path: $path.to_owned(), function: stringify!($name) })?
    };
}

/// What lists of every version have, although at different places: no type is common to them.
macro_rules! functions {
    ($list:ident, $path:ident, $added:expr) => {
        Functions {
            version: $list.version,
            set_parameter: function!($list, $path, set_parameter),
            create_key_pair_if_not_exists: function!($list, $path, create_key_pair_if_not_exists),
            load_key_pair: function!($list, $path, load_key_pair),
            get_key_pair_parameter: function!($list, $path, get_key_pair_parameter),
            create_key_if_not_exists: function!($list, $path, create_key_if_not_exists),
            load_key: function!($list, $path, load_key),
            import_key: function!($list, $path, import_key),
            derive_key: function!($list, $path, derive_key),
            sign: function!($list, $path, sign),
            verify: function!($list, $path, verify),
            encrypt: function!($list, $path, encrypt),
            decrypt: function!($list, $path, decrypt),
            added: $added,
        }
    };
}

/// A stored key, or one derived from it, and the mechanism's other parameters.
#[derive(Clone, Copy)]
pub(super) struct SymmetricKey<'a> {
    pub(super) id: &'a CStr,
    pub(super) derivation_data: Option<&'a [u8]>,
}

/// What AES-GCM takes beside key and text.
#[derive(Clone, Copy)]
pub(super) struct Aead<'a> {
    pub(super) iv: &'a [u8],
    pub(super) aad: &'a [u8],
}

impl Functions {
    /// Loads the library at `path` for good and gets its functions, in the newest version that it has.
    pub(super) fn open(path: &Path) -> Result<Functions, LoadError> {
        let owned = || path.to_owned();
        if !path.is_absolute() {
            return Err(LoadError::RelativePath { path: owned() });
        }
        let metadata = path.metadata().map_err(|source| LoadError::Missing { path: owned(), source })?;
        if !metadata.is_file() {
            return Err(LoadError::NotAFile { path: owned() });
        }
        // Everything that the library needs is looked up now: a symbol that turns out to be missing later would end the process.
        // SAFETY: the library's initializers run. It is the one that an administrator of this device has named for its keys; there is
        // nothing to check about it that would make it less able to do harm.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|source| LoadError::Open { path: owned(), source })?;
        // Never unloaded: threads that it started, and functions that it registered, may run until the process ends.
        let library = ManuallyDrop::new(library);
        // SAFETY: a symbol of this name has this type; that is what the ABI is.
        let get_function_list: Symbol<GetFunctionList> = unsafe { library.get(b"aziot_keys_get_function_list\0") }
            .map_err(|source| LoadError::NoSymbol { path: owned(), source })?;
        // A symbol can be there with the value NULL, and a NULL function is not to be called.
        let get_function_list = (*get_function_list).ok_or_else(|| LoadError::NoList { path: owned() })?;
        for version in [VERSION_2_1_0_0, VERSION_2_0_0_0] {
            let mut list = ptr::null();
            // SAFETY: `list` can be written, and the function is the library's own, which is loaded.
            if unsafe { get_function_list(version, &raw mut list) } == RC_OK {
                // SAFETY: the library says that it has put a list there, and `ManuallyDrop` keeps the library.
                return unsafe { Functions::read(path, list) };
            }
        }
        Err(LoadError::NoVersion { path: owned() })
    }

    /// # Safety
    ///
    /// `list` is NULL, or leads to the list that its version says, of a library that is never unloaded.
    unsafe fn read(path: &Path, list: *const FunctionList) -> Result<Functions, LoadError> {
        // SAFETY: this function's caller promises that every list begins as this one does.
        let version = unsafe { list_at::<FunctionList>(path, list) }?.version;
        // The version in the list decides, whatever was asked for.
        match version {
            // SAFETY: this function's caller promises that it is the list that its version says.
            VERSION_2_1_0_0 => Functions::of_2_1(unsafe { list_at(path, list) }?, path),
            // SAFETY: likewise.
            VERSION_2_0_0_0 => Functions::of_2_0(unsafe { list_at(path, list) }?, path),
            _ => Err(LoadError::UnknownVersion { path: path.to_owned(), version }),
        }
    }

    fn of_2_1(list: &FunctionList2100, path: &Path) -> Result<Functions, LoadError> {
        let added = Added {
            move_key_pair: function!(list, path, move_key_pair),
            delete_key_pair: function!(list, path, delete_key_pair),
            delete_key: function!(list, path, delete_key),
        };
        Ok(functions!(list, path, Some(added)))
    }

    fn of_2_0(list: &FunctionList2000, path: &Path) -> Result<Functions, LoadError> {
        Ok(functions!(list, path, None))
    }

    /// `2.1.0.0`.
    pub(super) fn version(&self) -> String {
        self.version.to_be_bytes().map(|part| part.to_string()).join(".")
    }

    pub(super) fn set_parameter(&self, name: &CStr, value: &CStr) -> Result<(), CallError> {
        // SAFETY: a function of the loaded library, called as the ABI says, with texts that outlive the call.
        check(unsafe { (self.set_parameter)(name.as_ptr(), value.as_ptr()) })
    }

    pub(super) fn create_key_pair(&self, id: &CStr, preferred_algorithms: Option<&CStr>) -> Result<(), CallError> {
        let algorithms = preferred_algorithms.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: a function of the loaded library, called as the ABI says, with texts that outlive the call; the second may be NULL.
        check(unsafe { (self.create_key_pair_if_not_exists)(id.as_ptr(), algorithms) })
    }

    pub(super) fn load_key_pair(&self, id: &CStr) -> Result<(), CallError> {
        // SAFETY: a function of the loaded library, called as the ABI says, with a text that outlives the call.
        check(unsafe { (self.load_key_pair)(id.as_ptr()) })
    }

    pub(super) fn move_key_pair(&self, from: &CStr, to: &CStr) -> Result<(), CallError> {
        let added = self.added.as_ref().ok_or(CallError::NotInVersion("move a key pair"))?;
        // SAFETY: a function of the loaded library, called as the ABI says, with texts that outlive the call.
        check(unsafe { (added.move_key_pair)(from.as_ptr(), to.as_ptr()) })
    }

    pub(super) fn delete_key_pair(&self, id: &CStr) -> Result<(), CallError> {
        let added = self.added.as_ref().ok_or(CallError::NotInVersion("delete a key pair"))?;
        // SAFETY: a function of the loaded library, called as the ABI says, with a text that outlives the call.
        check(unsafe { (added.delete_key_pair)(id.as_ptr()) })
    }

    /// One of `KEY_PAIR_PARAMETER_ALGORITHM_*`, or whatever the library says.
    pub(super) fn key_pair_algorithm(&self, id: &CStr) -> Result<c_uint, CallError> {
        let mut algorithm: c_uint = 0;
        let capacity = size_of::<c_uint>();
        let mut length = capacity;
        // SAFETY: a function of the loaded library, called as the ABI says: the buffer is a whole `c_uint`, of which any bytes are a
        // value, its capacity is given, and all of it outlives the call.
        check(unsafe {
            let value = (&raw mut algorithm).cast();
            (self.get_key_pair_parameter)(id.as_ptr(), KEY_PAIR_PARAMETER_TYPE_ALGORITHM, value, &raw mut length)
        })?;
        match length {
            _ if length == capacity => Ok(algorithm),
            _ if length > capacity => Err(CallError::Overflow { length, capacity }),
            _ => Err(CallError::UnknownValue { what: "the length of an algorithm", value: saturate(length) }),
        }
    }

    /// `parameter` is one of `KEY_PAIR_PARAMETER_TYPE_*`.
    pub(super) fn key_pair_parameter(&self, id: &CStr, parameter: c_uint) -> Result<Secret, CallError> {
        two_calls(|value, length| {
            // SAFETY: a function of the loaded library, called as the ABI says: `two_calls` gives NULL or a buffer of `*length` bytes.
            unsafe { (self.get_key_pair_parameter)(id.as_ptr(), parameter, value, length) }
        })
    }

    pub(super) fn create_key(&self, id: &CStr, usage: KeyUsage) -> Result<(), CallError> {
        // SAFETY: a function of the loaded library, called as the ABI says, with a text that outlives the call.
        check(unsafe { (self.create_key_if_not_exists)(id.as_ptr(), usage.bits()) })
    }

    pub(super) fn load_key(&self, id: &CStr) -> Result<(), CallError> {
        // SAFETY: a function of the loaded library, called as the ABI says, with a text that outlives the call.
        check(unsafe { (self.load_key)(id.as_ptr()) })
    }

    pub(super) fn import_key(&self, id: &CStr, bytes: &[u8], usage: KeyUsage) -> Result<(), CallError> {
        // SAFETY: a function of the loaded library, called as the ABI says, with a text and bytes that outlive the call.
        check(unsafe { (self.import_key)(id.as_ptr(), bytes.as_ptr(), bytes.len(), usage.bits()) })
    }

    pub(super) fn delete_key(&self, id: &CStr) -> Result<(), CallError> {
        let added = self.added.as_ref().ok_or(CallError::NotInVersion("delete a key"))?;
        // SAFETY: a function of the loaded library, called as the ABI says, with a text that outlives the call.
        check(unsafe { (added.delete_key)(id.as_ptr()) })
    }

    pub(super) fn derive_key(&self, base: &CStr, data: &[u8]) -> Result<Secret, CallError> {
        two_calls(|derived, length| {
            // SAFETY: a function of the loaded library, called as the ABI says: text and bytes outlive the call, and `two_calls` gives
            // NULL or a buffer of `*length` bytes.
            unsafe { (self.derive_key)(base.as_ptr(), data.as_ptr(), data.len(), derived, length) }
        })
    }

    /// A mechanism without parameters.
    pub(super) fn sign(&self, id: &CStr, mechanism: c_uint, digest: &[u8]) -> Result<Secret, CallError> {
        // SAFETY: this function's callers give a mechanism whose parameters are NULL.
        unsafe { self.sign_with(id, mechanism, ptr::null(), digest) }
    }

    pub(super) fn sign_hmac(&self, key: SymmetricKey<'_>, message: &[u8]) -> Result<Secret, CallError> {
        let Some(data) = key.derivation_data else { return self.sign(key.id, SIGN_MECHANISM_HMAC_SHA256, message) };
        let parameters = SignDerivedParameters {
            derivation_data: data.as_ptr(),
            derivation_data_len: data.len(),
            mechanism: SIGN_MECHANISM_HMAC_SHA256,
            parameters: ptr::null(),
        };
        // SAFETY: these are the parameters of this mechanism, and they and what they lead to outlive the call.
        unsafe { self.sign_with(key.id, SIGN_MECHANISM_DERIVED, (&raw const parameters).cast(), message) }
    }

    /// # Safety
    ///
    /// `parameters` are those of `mechanism`.
    unsafe fn sign_with(
        &self,
        id: &CStr,
        mechanism: c_uint,
        parameters: *const c_void,
        digest: &[u8],
    ) -> Result<Secret, CallError> {
        two_calls(|signature, length| {
            let (start, digest_length) = (digest.as_ptr(), digest.len());
            // SAFETY: a function of the loaded library, called as the ABI says: text and bytes outlive the call, this function's caller
            // answers for the parameters, and `two_calls` gives NULL or a buffer of `*length` bytes.
            unsafe { (self.sign)(id.as_ptr(), mechanism, parameters, start, digest_length, signature, length) }
        })
    }

    pub(super) fn verify_hmac(&self, id: &CStr, message: &[u8], signature: &[u8]) -> Result<bool, CallError> {
        let mut ok: c_int = 0;
        // SAFETY: a function of the loaded library, called as the ABI says: text and bytes outlive the call, this mechanism's parameters
        // are NULL, and `ok` can be written.
        check(unsafe {
            (self.verify)(
                id.as_ptr(),
                SIGN_MECHANISM_HMAC_SHA256,
                ptr::null(),
                message.as_ptr(),
                message.len(),
                signature.as_ptr(),
                signature.len(),
                &raw mut ok,
            )
        })?;
        match ok {
            0 => Ok(false),
            1 => Ok(true),
            // A signature is not good by accident.
            _ => Err(CallError::UnknownValue { what: "whether a signature is good", value: ok.into() }),
        }
    }

    /// A mechanism without parameters.
    pub(super) fn encrypt(&self, id: &CStr, mechanism: c_uint, input: &[u8]) -> Result<Secret, CallError> {
        // SAFETY: this function's callers give a mechanism whose parameters are NULL.
        unsafe { crypt(self.encrypt, id, mechanism, ptr::null(), input) }
    }

    pub(super) fn encrypt_aead(
        &self,
        key: SymmetricKey<'_>,
        aead: Aead<'_>,
        plaintext: &[u8],
    ) -> Result<Secret, CallError> {
        crypt_aead(self.encrypt, key, aead, plaintext)
    }

    pub(super) fn decrypt_aead(
        &self,
        key: SymmetricKey<'_>,
        aead: Aead<'_>,
        ciphertext: &[u8],
    ) -> Result<Secret, CallError> {
        crypt_aead(self.decrypt, key, aead, ciphertext)
    }
}

/// # Safety
///
/// `list` is NULL, or leads to an `L` that is there for good.
unsafe fn list_at<L>(path: &Path, list: *const FunctionList) -> Result<&'static L, LoadError> {
    let list = list.cast::<L>();
    if list.is_null() || !list.is_aligned() {
        return Err(LoadError::NoList { path: path.to_owned() });
    }
    // SAFETY: it is neither NULL nor misaligned, and this function's caller promises an `L` that nobody changes or frees.
    Ok(unsafe { &*list })
}

type GetFunctionList = Option<unsafe extern "C" fn(c_uint, *mut *const FunctionList) -> ReturnCode>;

/// `encrypt` or `decrypt`: they have one type.
type Crypt = Of<abi::Encrypt>;

fn crypt_aead(function: Crypt, key: SymmetricKey<'_>, aead: Aead<'_>, input: &[u8]) -> Result<Secret, CallError> {
    let aead = EncryptAeadParameters {
        iv: aead.iv.as_ptr(),
        iv_len: aead.iv.len(),
        aad: aead.aad.as_ptr(),
        aad_len: aead.aad.len(),
    };
    let aead = (&raw const aead).cast();
    let Some(data) = key.derivation_data else {
        // SAFETY: these are the parameters of this mechanism, and they and what they lead to outlive the call.
        return unsafe { crypt(function, key.id, ENCRYPT_MECHANISM_AEAD, aead, input) };
    };
    let derived = EncryptDerivedParameters {
        derivation_data: data.as_ptr(),
        derivation_data_len: data.len(),
        mechanism: ENCRYPT_MECHANISM_AEAD,
        parameters: aead,
    };
    // SAFETY: likewise.
    unsafe { crypt(function, key.id, ENCRYPT_MECHANISM_DERIVED, (&raw const derived).cast(), input) }
}

/// # Safety
///
/// `function` is one of a loaded library, and `parameters` are those of `mechanism`.
unsafe fn crypt(
    function: Crypt,
    id: &CStr,
    mechanism: c_uint,
    parameters: *const c_void,
    input: &[u8],
) -> Result<Secret, CallError> {
    two_calls(|output, length| {
        let (start, input_length) = (input.as_ptr(), input.len());
        // SAFETY: called as the ABI says: text and bytes outlive the call, this function's caller answers for the function and the
        // parameters, and `two_calls` gives NULL or a buffer of `*length` bytes.
        unsafe { function(id.as_ptr(), mechanism, parameters, start, input_length, output, length) }
    })
}

/// A result of unknown length: the first call asks how long it is at most, the second one gets it. That is how libraries have always
/// been called, so how they behave otherwise nobody has tried.
fn two_calls(call: impl Fn(*mut u8, *mut usize) -> ReturnCode) -> Result<Secret, CallError> {
    let mut length = 0;
    check(call(ptr::null_mut(), &raw mut length))?;
    if length > LONGEST_RESULT {
        return Err(CallError::TooLong { length, most: LONGEST_RESULT });
    }
    let capacity = length;
    // One byte more than it is told of: a buffer of no bytes has no place of its own.
    let mut buffer = Zeroizing::new(vec![0; capacity + 1]);
    check(call(buffer.as_mut_ptr(), &raw mut length))?;
    if length > capacity {
        return Err(CallError::Overflow { length, capacity });
    }
    buffer.truncate(length);
    Ok(buffer)
}

fn check(code: ReturnCode) -> Result<(), CallError> {
    match code {
        RC_OK => Ok(()),
        RC_ERR_INVALID_PARAMETER => Err(CallError::InvalidParameter),
        code => Err(CallError::External(code)),
    }
}

fn saturate(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
