//! The C ABI of a key library as Rust types: function lists, constants and parameter structures (`keys.md`, section 8).
//!
//! `include/aziot-keys.h` is generated from this file; comments here are written for readers of that header. Nothing is done here:
//! `ffi` implements the ABI, `foreign` calls somebody else's implementation of it.

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};
use std::mem::{align_of, offset_of, size_of};

/// What every function returns: one of the `AZIOT_KEYS_RC_*` codes. Any other value counts as `AZIOT_KEYS_RC_ERR_EXTERNAL`.
pub type ReturnCode = c_uint;

/// Done.
pub const RC_OK: c_uint = 0;
/// The caller is at fault: a NULL pointer, text that is not UTF-8, a buffer that is too small, a key that does not exist, an
/// operation that the key cannot do.
pub const RC_ERR_INVALID_PARAMETER: c_uint = 1;
/// The library or something beneath it failed: the disk, the token, the cryptographic operation.
pub const RC_ERR_EXTERNAL: c_uint = 2;

/// Version of a function list, 0x02000000. Lists of this version have neither `move_key_pair` nor the two `delete` functions.
pub const VERSION_2_0_0_0: c_uint = 0x0200_0000;
/// Version of a function list, 0x02010000: the newest.
pub const VERSION_2_1_0_0: c_uint = 0x0201_0000;

/// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: one of `AZIOT_KEYS_KEY_PAIR_PARAMETER_ALGORITHM_*` as an `unsigned int` of this machine.
pub const KEY_PAIR_PARAMETER_TYPE_ALGORITHM: c_uint = 1;
/// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the OID of the curve as DER, tag and length included.
pub const KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID: c_uint = 2;
/// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the public point in the compressed form of SEC 1.
pub const KEY_PAIR_PARAMETER_TYPE_EC_POINT: c_uint = 3;
/// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the modulus, big-endian, without leading zeros.
pub const KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS: c_uint = 4;
/// `AZIOT_KEYS_GET_KEY_PAIR_PARAMETER`: the public exponent, big-endian, without leading zeros.
pub const KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT: c_uint = 5;

/// The key pair signs with ECDSA.
pub const KEY_PAIR_PARAMETER_ALGORITHM_EC: c_uint = 1;
/// The key pair is an RSA pair.
pub const KEY_PAIR_PARAMETER_ALGORITHM_RSA: c_uint = 2;

/// Usage flag: other keys are derived from the key. The same flag as `AZIOT_KEYS_KEY_USAGE_SIGN`.
pub const KEY_USAGE_DERIVE: c_uint = 0x01;
/// Usage flag: the key signs.
pub const KEY_USAGE_SIGN: c_uint = 0x01;
/// Usage flag: the key encrypts and decrypts.
pub const KEY_USAGE_ENCRYPT: c_uint = 0x10;

/// ECDSA over a digest that the caller has made. The signature is DER. Parameters: NULL.
pub const SIGN_MECHANISM_ECDSA: c_uint = 1;
/// HMAC-SHA256 over a message of any length. Parameters: NULL.
pub const SIGN_MECHANISM_HMAC_SHA256: c_uint = 2;
/// Another mechanism, with a key derived from the given one. Parameters: `AZIOT_KEYS_SIGN_DERIVED_PARAMETERS`.
pub const SIGN_MECHANISM_DERIVED: c_uint = 3;

/// AES-GCM with a 16-byte tag. Parameters: `AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS`.
pub const ENCRYPT_MECHANISM_AEAD: c_uint = 1;
/// The RSA private operation on input padded as PKCS #1 v1.5 signatures are (block type 1). Parameters: NULL.
pub const ENCRYPT_MECHANISM_RSA_PKCS1: c_uint = 2;
/// The RSA private operation on input as long as the modulus. Parameters: NULL.
pub const ENCRYPT_MECHANISM_RSA_NO_PADDING: c_uint = 3;
/// Another mechanism, with a key derived from the given one. Parameters: `AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS`.
pub const ENCRYPT_MECHANISM_DERIVED: c_uint = 4;

/// Sets a parameter of the library, such as where it keeps its keys. All parameters are set before the first key is used.
///
/// A parameter named `preloaded_key:` and a key id binds that id to the place in `value`, whether or not the key is there yet.
pub type SetParameter = Option<unsafe extern "C" fn(name: *const c_char, value: *const c_char) -> ReturnCode>;

/// Makes the key pair `id` unless it exists. `preferred_algorithms` is a list such as `ec-p256:rsa-2048:*`, best first, or NULL for any.
pub type CreateKeyPairIfNotExists =
    Option<unsafe extern "C" fn(id: *const c_char, preferred_algorithms: *const c_char) -> ReturnCode>;

/// Gives the key pair `from` the id `to`, in place of the pair that has it.
pub type MoveKeyPair = Option<unsafe extern "C" fn(from: *const c_char, to: *const c_char) -> ReturnCode>;

/// Makes sure that the key pair `id` exists and can be used.
pub type LoadKeyPair = Option<unsafe extern "C" fn(id: *const c_char) -> ReturnCode>;

/// Gets a public parameter of the key pair `id`; `type` is one of `AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_*`.
pub type GetKeyPairParameter = Option<
    unsafe extern "C" fn(id: *const c_char, r#type: c_uint, value: *mut c_uchar, value_len: *mut usize) -> ReturnCode,
>;

/// Deletes the key pair `id`. One that does not exist is no error.
pub type DeleteKeyPair = Option<unsafe extern "C" fn(id: *const c_char) -> ReturnCode>;

/// Makes the symmetric key `id` unless it exists. `usage` is a combination of `AZIOT_KEYS_KEY_USAGE_*`.
pub type CreateKeyIfNotExists = Option<unsafe extern "C" fn(id: *const c_char, usage: c_uint) -> ReturnCode>;

/// Makes sure that the symmetric key `id` exists and can be used.
pub type LoadKey = Option<unsafe extern "C" fn(id: *const c_char) -> ReturnCode>;

/// Makes `bytes` the symmetric key `id`, in place of the one that is there.
pub type ImportKey =
    Option<unsafe extern "C" fn(id: *const c_char, bytes: *const u8, bytes_len: usize, usage: c_uint) -> ReturnCode>;

/// Deletes the symmetric key `id`. One that does not exist is no error.
pub type DeleteKey = Option<unsafe extern "C" fn(id: *const c_char) -> ReturnCode>;

/// Derives a key: the HMAC-SHA256 of `derivation_data` under the key `base_id`.
pub type DeriveKey = Option<
    unsafe extern "C" fn(
        base_id: *const c_char,
        derivation_data: *const u8,
        derivation_data_len: usize,
        derived_key: *mut c_uchar,
        derived_key_len: *mut usize,
    ) -> ReturnCode,
>;

/// Signs `digest` with the key or key pair `id`; `mechanism` is one of `AZIOT_KEYS_SIGN_MECHANISM_*`.
pub type Sign = Option<
    unsafe extern "C" fn(
        id: *const c_char,
        mechanism: c_uint,
        parameters: *const c_void,
        digest: *const c_uchar,
        digest_len: usize,
        signature: *mut c_uchar,
        signature_len: *mut usize,
    ) -> ReturnCode,
>;

/// Checks a signature. With `AZIOT_KEYS_RC_OK`, `*ok` is 1 if it is good and otherwise 0; a signature of a wrong length is merely not good.
pub type Verify = Option<
    unsafe extern "C" fn(
        id: *const c_char,
        mechanism: c_uint,
        parameters: *const c_void,
        digest: *const c_uchar,
        digest_len: usize,
        signature: *const c_uchar,
        signature_len: usize,
        ok: *mut c_int,
    ) -> ReturnCode,
>;

/// Encrypts `plaintext` with the key or key pair `id`; `mechanism` is one of `AZIOT_KEYS_ENCRYPT_MECHANISM_*`.
pub type Encrypt = Option<
    unsafe extern "C" fn(
        id: *const c_char,
        mechanism: c_uint,
        parameters: *const c_void,
        plaintext: *const c_uchar,
        plaintext_len: usize,
        ciphertext: *mut c_uchar,
        ciphertext_len: *mut usize,
    ) -> ReturnCode,
>;

/// Decrypts `ciphertext`, which `AZIOT_KEYS_ENCRYPT` made with the same id, mechanism and parameters.
pub type Decrypt = Option<
    unsafe extern "C" fn(
        id: *const c_char,
        mechanism: c_uint,
        parameters: *const c_void,
        ciphertext: *const c_uchar,
        ciphertext_len: usize,
        plaintext: *mut c_uchar,
        plaintext_len: *mut usize,
    ) -> ReturnCode,
>;

/// What each function list begins with. `version` says which list it is; cast the pointer to that one.
#[repr(C)]
pub struct FunctionList {
    /// One of `AZIOT_KEYS_VERSION_*`.
    pub version: c_uint,
}

/// The functions of a library of version 2.0.0.0. None of them is NULL.
#[repr(C)]
#[expect(missing_docs, reason = "each function is documented at its type")]
pub struct FunctionList2000 {
    pub version: c_uint,
    pub set_parameter: SetParameter,
    pub create_key_pair_if_not_exists: CreateKeyPairIfNotExists,
    pub load_key_pair: LoadKeyPair,
    pub get_key_pair_parameter: GetKeyPairParameter,
    pub create_key_if_not_exists: CreateKeyIfNotExists,
    pub load_key: LoadKey,
    pub import_key: ImportKey,
    pub derive_key: DeriveKey,
    pub sign: Sign,
    pub verify: Verify,
    pub encrypt: Encrypt,
    pub decrypt: Decrypt,
}

/// The functions of a library of version 2.1.0.0. None of them is NULL.
#[repr(C)]
#[expect(missing_docs, reason = "each function is documented at its type")]
pub struct FunctionList2100 {
    pub version: c_uint,
    pub set_parameter: SetParameter,
    pub create_key_pair_if_not_exists: CreateKeyPairIfNotExists,
    pub move_key_pair: MoveKeyPair,
    pub load_key_pair: LoadKeyPair,
    pub get_key_pair_parameter: GetKeyPairParameter,
    pub delete_key_pair: DeleteKeyPair,
    pub create_key_if_not_exists: CreateKeyIfNotExists,
    pub load_key: LoadKey,
    pub import_key: ImportKey,
    pub delete_key: DeleteKey,
    pub derive_key: DeriveKey,
    pub sign: Sign,
    pub verify: Verify,
    pub encrypt: Encrypt,
    pub decrypt: Decrypt,
}

/// Parameters of `AZIOT_KEYS_SIGN_MECHANISM_DERIVED`. The id of the call is that of the base key.
#[repr(C)]
pub struct SignDerivedParameters {
    /// What the key is derived with.
    pub derivation_data: *const c_uchar,
    /// Length of the derivation data.
    pub derivation_data_len: usize,
    /// One of `AZIOT_KEYS_SIGN_MECHANISM_*` that the derived key can be used with.
    pub mechanism: c_uint,
    /// The parameters of that mechanism.
    pub parameters: *const c_void,
}

/// Parameters of `AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD`.
#[repr(C)]
pub struct EncryptAeadParameters {
    /// Initialization vector; the ciphertext does not hold it.
    pub iv: *const c_uchar,
    /// Length of the initialization vector. Not only 12.
    pub iv_len: usize,
    /// Additional authenticated data.
    pub aad: *const c_uchar,
    /// Length of the additional data.
    pub aad_len: usize,
}

/// Parameters of `AZIOT_KEYS_ENCRYPT_MECHANISM_DERIVED`. The id of the call is that of the base key.
#[repr(C)]
pub struct EncryptDerivedParameters {
    /// What the key is derived with.
    pub derivation_data: *const c_uchar,
    /// Length of the derivation data.
    pub derivation_data_len: usize,
    /// One of `AZIOT_KEYS_ENCRYPT_MECHANISM_*` that the derived key can be used with.
    pub mechanism: c_uint,
    /// The parameters of that mechanism.
    pub parameters: *const c_void,
}

/// Offset of member `index` of a structure whose members take a pointer's place each. On LP64: 8 times the index.
const fn place(index: usize) -> usize {
    index * size_of::<usize>()
}

// The layout is a contract with libraries and programs that were compiled long ago.
const _: () = {
    type Old = FunctionList2000;
    type New = FunctionList2100;
    assert!(size_of::<Old>() == place(13) && align_of::<Old>() == align_of::<usize>());
    assert!(offset_of!(Old, version) == 0);
    assert!(offset_of!(Old, set_parameter) == place(1));
    assert!(offset_of!(Old, create_key_pair_if_not_exists) == place(2));
    assert!(offset_of!(Old, load_key_pair) == place(3));
    assert!(offset_of!(Old, get_key_pair_parameter) == place(4));
    assert!(offset_of!(Old, create_key_if_not_exists) == place(5));
    assert!(offset_of!(Old, load_key) == place(6));
    assert!(offset_of!(Old, import_key) == place(7));
    assert!(offset_of!(Old, derive_key) == place(8));
    assert!(offset_of!(Old, sign) == place(9));
    assert!(offset_of!(Old, verify) == place(10));
    assert!(offset_of!(Old, encrypt) == place(11));
    assert!(offset_of!(Old, decrypt) == place(12));

    assert!(size_of::<New>() == place(16) && align_of::<New>() == align_of::<usize>());
    assert!(offset_of!(New, version) == 0);
    assert!(offset_of!(New, set_parameter) == place(1));
    assert!(offset_of!(New, create_key_pair_if_not_exists) == place(2));
    assert!(offset_of!(New, move_key_pair) == place(3));
    assert!(offset_of!(New, load_key_pair) == place(4));
    assert!(offset_of!(New, get_key_pair_parameter) == place(5));
    assert!(offset_of!(New, delete_key_pair) == place(6));
    assert!(offset_of!(New, create_key_if_not_exists) == place(7));
    assert!(offset_of!(New, load_key) == place(8));
    assert!(offset_of!(New, import_key) == place(9));
    assert!(offset_of!(New, delete_key) == place(10));
    assert!(offset_of!(New, derive_key) == place(11));
    assert!(offset_of!(New, sign) == place(12));
    assert!(offset_of!(New, verify) == place(13));
    assert!(offset_of!(New, encrypt) == place(14));
    assert!(offset_of!(New, decrypt) == place(15));

    assert!(size_of::<FunctionList>() == size_of::<c_uint>());
    assert!(size_of::<SignDerivedParameters>() == place(4) && size_of::<EncryptDerivedParameters>() == place(4));
    assert!(offset_of!(SignDerivedParameters, mechanism) == place(2));
    assert!(offset_of!(SignDerivedParameters, parameters) == place(3));
    assert!(offset_of!(EncryptDerivedParameters, mechanism) == place(2));
    assert!(offset_of!(EncryptDerivedParameters, parameters) == place(3));
    assert!(size_of::<EncryptAeadParameters>() == place(4));
    assert!(offset_of!(EncryptAeadParameters, aad) == place(2));
    assert!(size_of::<SetParameter>() == size_of::<usize>(), "NULL is None");
};
