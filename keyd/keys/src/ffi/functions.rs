//! The functions of the C ABI and the lists of them. Each one turns its arguments into Rust, asks `keys`, and hands back a code.

#![expect(unsafe_code, reason = "functions that C calls")]

use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use super::abi::{
    ENCRYPT_MECHANISM_AEAD, ENCRYPT_MECHANISM_DERIVED, ENCRYPT_MECHANISM_RSA_NO_PADDING, ENCRYPT_MECHANISM_RSA_PKCS1,
    EncryptAeadParameters, EncryptDerivedParameters, FunctionList, FunctionList2000, FunctionList2100,
    KEY_PAIR_PARAMETER_ALGORITHM_EC, KEY_PAIR_PARAMETER_ALGORITHM_RSA, KEY_PAIR_PARAMETER_TYPE_ALGORITHM,
    KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID, KEY_PAIR_PARAMETER_TYPE_EC_POINT, KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT,
    KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS, RC_ERR_INVALID_PARAMETER, RC_OK, ReturnCode, SIGN_MECHANISM_DERIVED,
    SIGN_MECHANISM_ECDSA, SIGN_MECHANISM_HMAC_SHA256, SignDerivedParameters, VERSION_2_0_0_0, VERSION_2_1_0_0,
};
use super::arguments::{self, Buffer};
use super::error::Error;
use super::process;
use crate::{Failure, KeyPairAlgorithm, KeyUsage, Keys, NotKeyPair, PublicParameter, RsaPadding, Secret, SymmetricUse};

/// Length of an HMAC-SHA256 and of a derived key.
const HMAC_LENGTH: usize = 32;

/// What encryption adds to a plaintext: version byte and tag.
const AEAD_OVERHEAD: usize = 17;

static LIST_2_0_0_0: FunctionList2000 = FunctionList2000 {
    version: VERSION_2_0_0_0,
    set_parameter: Some(set_parameter),
    create_key_pair_if_not_exists: Some(create_key_pair_if_not_exists),
    load_key_pair: Some(load_key_pair),
    get_key_pair_parameter: Some(get_key_pair_parameter),
    create_key_if_not_exists: Some(create_key_if_not_exists),
    load_key: Some(load_key),
    import_key: Some(import_key),
    derive_key: Some(derive_key),
    sign: Some(sign),
    verify: Some(verify),
    encrypt: Some(encrypt),
    decrypt: Some(decrypt),
};

static LIST_2_1_0_0: FunctionList2100 = FunctionList2100 {
    version: VERSION_2_1_0_0,
    set_parameter: Some(set_parameter),
    create_key_pair_if_not_exists: Some(create_key_pair_if_not_exists),
    move_key_pair: Some(move_key_pair),
    load_key_pair: Some(load_key_pair),
    get_key_pair_parameter: Some(get_key_pair_parameter),
    delete_key_pair: Some(delete_key_pair),
    create_key_if_not_exists: Some(create_key_if_not_exists),
    load_key: Some(load_key),
    import_key: Some(import_key),
    delete_key: Some(delete_key),
    derive_key: Some(derive_key),
    sign: Some(sign),
    verify: Some(verify),
    encrypt: Some(encrypt),
    decrypt: Some(decrypt),
};

/// Gets the functions of this library: the only symbol that it exports.
///
/// `*out` becomes a pointer to a list that is never freed and never changes. Its `version` says which list it is, and is the version asked
/// for. A version that this library does not have, and an `out` of NULL, are `AZIOT_KEYS_RC_ERR_INVALID_PARAMETER`.
///
/// # Safety
///
/// `out` is NULL, or a pointer can be written there.
// SAFETY: the name is that of the public key library, and no other function of this library or of the programs that load it has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aziot_keys_get_function_list(version: c_uint, out: *mut *const FunctionList) -> ReturnCode {
    let list = match version {
        VERSION_2_0_0_0 => ptr::from_ref(&LIST_2_0_0_0).cast::<FunctionList>(),
        VERSION_2_1_0_0 => ptr::from_ref(&LIST_2_1_0_0).cast::<FunctionList>(),
        _ => return RC_ERR_INVALID_PARAMETER,
    };
    // SAFETY: this function's caller promises that a pointer can be written there if it is not NULL.
    answer(|| unsafe { arguments::put(out, list) })
}

/// Runs `call`; what goes wrong becomes a code, a panic too.
fn answer(call: impl FnOnce() -> Result<(), Error>) -> ReturnCode {
    // Unwind safe: `process` and `Keys` put back in order what a panic interrupts, and the caller's memory is written last.
    let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Error::Panic));
    match outcome {
        Ok(()) => RC_OK,
        Err(error) => error.report(),
    }
}

unsafe extern "C" fn set_parameter(name: *const c_char, value: *const c_char) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes both texts that stay as they are during the call.
        let (name, value) = unsafe { (arguments::text("name", name)?, arguments::text("value", value)?) };
        process::set_parameter(name, value)
    })
}

unsafe extern "C" fn create_key_pair_if_not_exists(
    id: *const c_char,
    preferred_algorithms: *const c_char,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes it NULL or such a text.
        let algorithms = unsafe { arguments::optional_text("preferred_algorithms", preferred_algorithms) }?;
        Ok(process::keys()?.create_key_pair(id, algorithms)?)
    })
}

unsafe extern "C" fn move_key_pair(from: *const c_char, to: *const c_char) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes both texts that stay as they are during the call.
        let (from, to) = unsafe { (arguments::text("from", from)?, arguments::text("to", to)?) };
        Ok(process::keys()?.move_key_pair(from, to)?)
    })
}

unsafe extern "C" fn load_key_pair(id: *const c_char) -> ReturnCode {
    // SAFETY: the ABI makes it a text that stays as it is during the call.
    answer(|| Ok(process::keys()?.load_key_pair(unsafe { arguments::text("id", id) }?)?))
}

unsafe extern "C" fn get_key_pair_parameter(
    id: *const c_char,
    r#type: c_uint,
    value: *mut c_uchar,
    value_len: *mut usize,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes `value_len` the capacity of `value`, and both writable.
        let buffer = unsafe { Buffer::new(value, value_len) }?;
        // Short, and got without an operation: there is no need for a bound.
        let bytes = key_pair_parameter(&*process::keys()?, id, r#type)?;
        buffer.answer(|| Ok(bytes.len()), || Ok(&bytes))
    })
}

unsafe extern "C" fn delete_key_pair(id: *const c_char) -> ReturnCode {
    // SAFETY: the ABI makes it a text that stays as it is during the call.
    answer(|| Ok(process::keys()?.delete_key_pair(unsafe { arguments::text("id", id) }?)?))
}

unsafe extern "C" fn create_key_if_not_exists(id: *const c_char, usage: c_uint) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        Ok(process::keys()?.create_key(id, KeyUsage::from_bits(usage))?)
    })
}

unsafe extern "C" fn load_key(id: *const c_char) -> ReturnCode {
    // SAFETY: the ABI makes it a text that stays as it is during the call.
    answer(|| Ok(process::keys()?.load_key(unsafe { arguments::text("id", id) }?)?))
}

unsafe extern "C" fn import_key(id: *const c_char, bytes: *const u8, bytes_len: usize, usage: c_uint) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes them so many bytes that stay as they are during the call.
        let bytes = Secret::new(unsafe { arguments::bytes("bytes", bytes, bytes_len) }?.to_vec());
        Ok(process::keys()?.import_key(id, KeyUsage::from_bits(usage), &bytes)?)
    })
}

unsafe extern "C" fn delete_key(id: *const c_char) -> ReturnCode {
    // SAFETY: the ABI makes it a text that stays as it is during the call.
    answer(|| Ok(process::keys()?.delete_key(unsafe { arguments::text("id", id) }?)?))
}

unsafe extern "C" fn derive_key(
    base_id: *const c_char,
    derivation_data: *const u8,
    derivation_data_len: usize,
    derived_key: *mut c_uchar,
    derived_key_len: *mut usize,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let base = unsafe { arguments::text("base_id", base_id) }?;
        // SAFETY: the ABI makes it so many bytes that stay as they are during the call.
        let data = unsafe { arguments::bytes("derivation_data", derivation_data, derivation_data_len) }?;
        // SAFETY: the ABI makes `derived_key_len` the capacity of `derived_key`, and both writable.
        let buffer = unsafe { Buffer::new(derived_key, derived_key_len) }?;
        let keys = process::keys()?;
        buffer.answer(|| bound_of_symmetric(&keys, base, HMAC_LENGTH), || Ok(keys.derive(base, data)?))
    })
}

unsafe extern "C" fn sign(
    id: *const c_char,
    mechanism: c_uint,
    parameters: *const c_void,
    digest: *const c_uchar,
    digest_len: usize,
    signature: *mut c_uchar,
    signature_len: *mut usize,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes it so many bytes that stay as they are during the call.
        let digest = unsafe { arguments::bytes("digest", digest, digest_len) }?;
        // SAFETY: the ABI makes `signature_len` the capacity of `signature`, and both writable.
        let buffer = unsafe { Buffer::new(signature, signature_len) }?;
        let key = match mechanism {
            SIGN_MECHANISM_ECDSA => {
                let keys = process::keys()?;
                return buffer.answer(|| bound_of_ecdsa(&keys, id), || Ok(keys.sign_ecdsa(id, digest)?));
            }
            SIGN_MECHANISM_HMAC_SHA256 => SymmetricUse::Stored(id),
            // SAFETY: for this mechanism the ABI makes them the structure that the function reads, unchanged during the call.
            SIGN_MECHANISM_DERIVED => unsafe { derived_signer(id, parameters) }?,
            _ => return Err(Error::Mechanism(mechanism)),
        };
        let keys = process::keys()?;
        buffer.answer(|| bound_of_symmetric(&keys, id, HMAC_LENGTH), || Ok(keys.sign_hmac(key, digest)?))
    })
}

unsafe extern "C" fn verify(
    id: *const c_char,
    mechanism: c_uint,
    _parameters: *const c_void,
    digest: *const c_uchar,
    digest_len: usize,
    signature: *const c_uchar,
    signature_len: usize,
    ok: *mut c_int,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it writable. Nobody may mistake a failed call for a good signature.
        unsafe { arguments::put(ok, 0) }?;
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes it so many bytes that stay as they are during the call.
        let digest = unsafe { arguments::bytes("digest", digest, digest_len) }?;
        // SAFETY: likewise.
        let signature = unsafe { arguments::bytes("signature", signature, signature_len) }?;
        // As in the public library: whoever can sign otherwise has a public key to verify with.
        if mechanism != SIGN_MECHANISM_HMAC_SHA256 {
            return Err(Error::Mechanism(mechanism));
        }
        let is_good = process::keys()?.verify_hmac(SymmetricUse::Stored(id), digest, signature)?;
        // SAFETY: as above.
        unsafe { arguments::put(ok, c_int::from(is_good)) }
    })
}

unsafe extern "C" fn encrypt(
    id: *const c_char,
    mechanism: c_uint,
    parameters: *const c_void,
    plaintext: *const c_uchar,
    plaintext_len: usize,
    ciphertext: *mut c_uchar,
    ciphertext_len: *mut usize,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes it so many bytes that stay as they are during the call.
        let plaintext = unsafe { arguments::bytes("plaintext", plaintext, plaintext_len) }?;
        // SAFETY: the ABI makes `ciphertext_len` the capacity of `ciphertext`, and both writable.
        let buffer = unsafe { Buffer::new(ciphertext, ciphertext_len) }?;
        let padding = match mechanism {
            ENCRYPT_MECHANISM_RSA_PKCS1 => RsaPadding::Pkcs1,
            ENCRYPT_MECHANISM_RSA_NO_PADDING => RsaPadding::None,
            _ => {
                // SAFETY: the ABI makes them the structure that belongs to the mechanism, unchanged during the call.
                let (key, aead) = unsafe { aead(id, mechanism, parameters) }?;
                let keys = process::keys()?;
                let bound = || bound_of_symmetric(&keys, id, plaintext.len() + AEAD_OVERHEAD);
                return buffer.answer(bound, || Ok(keys.encrypt_aead(key, aead.iv, aead.aad, plaintext)?));
            }
        };
        let keys = process::keys()?;
        let bound = || Ok(keys.public_parameter(id, PublicParameter::RsaModulus)?.len());
        buffer.answer(bound, || Ok(keys.encrypt_rsa(id, padding, plaintext)?))
    })
}

unsafe extern "C" fn decrypt(
    id: *const c_char,
    mechanism: c_uint,
    parameters: *const c_void,
    ciphertext: *const c_uchar,
    ciphertext_len: usize,
    plaintext: *mut c_uchar,
    plaintext_len: *mut usize,
) -> ReturnCode {
    answer(|| {
        // SAFETY: the ABI makes it a text that stays as it is during the call.
        let id = unsafe { arguments::text("id", id) }?;
        // SAFETY: the ABI makes it so many bytes that stay as they are during the call.
        let ciphertext = unsafe { arguments::bytes("ciphertext", ciphertext, ciphertext_len) }?;
        // SAFETY: the ABI makes `plaintext_len` the capacity of `plaintext`, and both writable.
        let buffer = unsafe { Buffer::new(plaintext, plaintext_len) }?;
        // SAFETY: the ABI makes them the structure that belongs to the mechanism, unchanged during the call.
        let (key, aead) = unsafe { aead(id, mechanism, parameters) }?;
        let keys = process::keys()?;
        // More than the plaintext needs, on purpose: a caller that allocates a buffer of no bytes may get NULL, would then ask for the
        // bound again, and would take that answer for an authentic plaintext of no bytes.
        let bound = || bound_of_symmetric(&keys, id, ciphertext.len());
        buffer.answer(bound, || Ok(keys.decrypt_aead(key, aead.iv, aead.aad, ciphertext)?))
    })
}

fn key_pair_parameter(keys: &Keys, id: &str, r#type: c_uint) -> Result<Vec<u8>, Error> {
    let parameter = match r#type {
        KEY_PAIR_PARAMETER_TYPE_ALGORITHM => None,
        KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID => Some(PublicParameter::EcCurveOid),
        KEY_PAIR_PARAMETER_TYPE_EC_POINT => Some(PublicParameter::EcPoint),
        KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS => Some(PublicParameter::RsaModulus),
        KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT => Some(PublicParameter::RsaExponent),
        _ => return Err(Error::Mechanism(r#type)),
    };
    let bytes = match parameter {
        None => keys.key_pair_algorithm(id).map(|algorithm| {
            let algorithm = match algorithm {
                KeyPairAlgorithm::Ec => KEY_PAIR_PARAMETER_ALGORITHM_EC,
                KeyPairAlgorithm::Rsa => KEY_PAIR_PARAMETER_ALGORITHM_RSA,
            };
            algorithm.to_ne_bytes().to_vec()
        }),
        Some(parameter) => keys.public_parameter(id, parameter),
    };
    match bytes {
        // The id of a symmetric key: the caller's mistake, not a damaged key pair.
        Err(crate::Error::External { source: Failure::Damaged { source: NotKeyPair::NoPem, .. }, .. }) => {
            Err(Error::Mechanism(r#type))
        }
        bytes => Ok(bytes?),
    }
}

/// `length`, if the symmetric key is there: whoever asks how long the result would be wants to hear that there will be none.
fn bound_of_symmetric(keys: &Keys, id: &str, length: usize) -> Result<usize, Error> {
    keys.load_key(id)?;
    Ok(length)
}

fn bound_of_ecdsa(keys: &Keys, id: &str) -> Result<usize, Error> {
    Ok(longest_signature(keys.public_parameter(id, PublicParameter::EcPoint)?.len()))
}

/// A sequence of two integers, each as long as the curve's order and with a zero byte in front.
fn longest_signature(compressed_point_length: usize) -> usize {
    /// Tag and length.
    const HEADER: usize = 2;
    // A compressed point is one byte longer than a coordinate, and so is an integer with its zero byte.
    let integers = 2 * (HEADER + compressed_point_length);
    // The length of what is longer than 127 bytes takes a byte more.
    integers + HEADER + usize::from(integers > 127)
}

/// The key that an HMAC with a derived key takes.
///
/// # Safety
///
/// `parameters` is NULL, or leads to [`SignDerivedParameters`] with what they lead to, all unchanged for as long as the result
/// is used.
unsafe fn derived_signer(base: &str, parameters: *const c_void) -> Result<SymmetricUse<'_>, Error> {
    // SAFETY: this function's caller promises the structure.
    let parameters: &SignDerivedParameters = unsafe { arguments::structure(parameters) }?;
    if parameters.mechanism != SIGN_MECHANISM_HMAC_SHA256 {
        return Err(Error::Mechanism(parameters.mechanism));
    }
    let (data, length) = (parameters.derivation_data, parameters.derivation_data_len);
    // SAFETY: and what it leads to.
    let data = unsafe { arguments::bytes("derivation_data", data, length) }?;
    Ok(SymmetricUse::Derived { base, data })
}

/// What AES-GCM takes beside key and text.
struct Aead<'a> {
    iv: &'a [u8],
    aad: &'a [u8],
}

/// The key, initialization vector and additional data of an AEAD mechanism.
///
/// # Safety
///
/// `parameters` is NULL, or leads to the structure that belongs to `mechanism` with what it leads to, all unchanged for as long as
/// the result is used.
unsafe fn aead(id: &str, mechanism: c_uint, parameters: *const c_void) -> Result<(SymmetricUse<'_>, Aead<'_>), Error> {
    let (key, parameters) = match mechanism {
        ENCRYPT_MECHANISM_AEAD => (SymmetricUse::Stored(id), parameters),
        ENCRYPT_MECHANISM_DERIVED => {
            // SAFETY: this function's caller promises this structure for this mechanism.
            let derived: &EncryptDerivedParameters = unsafe { arguments::structure(parameters) }?;
            if derived.mechanism != ENCRYPT_MECHANISM_AEAD {
                return Err(Error::Mechanism(derived.mechanism));
            }
            // SAFETY: and what it leads to.
            let data =
                unsafe { arguments::bytes("derivation_data", derived.derivation_data, derived.derivation_data_len) }?;
            (SymmetricUse::Derived { base: id, data }, derived.parameters)
        }
        _ => return Err(Error::Mechanism(mechanism)),
    };
    // SAFETY: this function's caller promises this structure for this mechanism, be it the outer or the inner one.
    let parameters: &EncryptAeadParameters = unsafe { arguments::structure(parameters) }?;
    // SAFETY: and what it leads to.
    let iv = unsafe { arguments::bytes("iv", parameters.iv, parameters.iv_len) }?;
    // SAFETY: likewise.
    let aad = unsafe { arguments::bytes("aad", parameters.aad, parameters.aad_len) }?;
    Ok((key, Aead { iv, aad }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::abi::RC_ERR_EXTERNAL;

    #[test]
    fn a_panic_ends_at_the_boundary() {
        assert_eq!(answer(|| panic!("on purpose")), RC_ERR_EXTERNAL);
        assert_eq!(answer(|| Ok(())), RC_OK);
    }

    #[test]
    fn a_signature_is_never_longer_than_was_said() {
        // P-256, P-384 and P-521; integers of the last one have no zero byte in front, their order has 521 bits.
        for (point, longest) in [(33, 72), (49, 104), (67, 139)] {
            let said = longest_signature(point);
            assert!((longest..longest + 4).contains(&said), "{said}");
        }
    }
}
