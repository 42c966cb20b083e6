//! The checked-in header says what the Rust side is: each constant, size, offset and prototype, as the compiler sees them.

use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;

use aziot_keys::abi::{self, *};

use crate::compile;

/// `_Static_assert`s about the members of a structure.
macro_rules! members {
    ($text:expr, $rust:ident, $c:literal, $($member:ident),+) => {
        writeln!($text, "_Static_assert(sizeof({}) == {}, \"size\");", $c, size_of::<$rust>()).unwrap();
        $(writeln!(
            $text,
            "_Static_assert(offsetof({}, {}) == {}, \"offset\");",
            $c, stringify!($member), offset_of!($rust, $member)
        ).unwrap();)+
    };
}

/// `_Static_assert`s about constants.
macro_rules! constants {
    ($text:expr, $($name:ident),+) => {
        $(writeln!($text, "_Static_assert(AZIOT_KEYS_{0} == {1}u, \"{0}\");", stringify!($name), abi::$name).unwrap();)+
    };
}

#[test]
fn the_header_is_the_rust_side() {
    let mut text = "#include <stddef.h>\n#include \"aziot-keys.h\"\n".to_owned();
    let text = &mut text;
    constants!(
        text,
        RC_OK,
        RC_ERR_INVALID_PARAMETER,
        RC_ERR_EXTERNAL,
        VERSION_2_0_0_0,
        VERSION_2_1_0_0,
        KEY_PAIR_PARAMETER_TYPE_ALGORITHM,
        KEY_PAIR_PARAMETER_TYPE_EC_CURVE_OID,
        KEY_PAIR_PARAMETER_TYPE_EC_POINT,
        KEY_PAIR_PARAMETER_TYPE_RSA_MODULUS,
        KEY_PAIR_PARAMETER_TYPE_RSA_EXPONENT,
        KEY_PAIR_PARAMETER_ALGORITHM_EC,
        KEY_PAIR_PARAMETER_ALGORITHM_RSA,
        KEY_USAGE_DERIVE,
        KEY_USAGE_SIGN,
        KEY_USAGE_ENCRYPT,
        SIGN_MECHANISM_ECDSA,
        SIGN_MECHANISM_HMAC_SHA256,
        SIGN_MECHANISM_DERIVED,
        ENCRYPT_MECHANISM_AEAD,
        ENCRYPT_MECHANISM_RSA_PKCS1,
        ENCRYPT_MECHANISM_RSA_NO_PADDING,
        ENCRYPT_MECHANISM_DERIVED
    );
    members!(text, FunctionList, "AZIOT_KEYS_FUNCTION_LIST", version);
    members!(
        text,
        FunctionList2000,
        "AZIOT_KEYS_FUNCTION_LIST_2_0_0_0",
        version,
        set_parameter,
        create_key_pair_if_not_exists,
        load_key_pair,
        get_key_pair_parameter,
        create_key_if_not_exists,
        load_key,
        import_key,
        derive_key,
        sign,
        verify,
        encrypt,
        decrypt
    );
    members!(
        text,
        FunctionList2100,
        "AZIOT_KEYS_FUNCTION_LIST_2_1_0_0",
        version,
        set_parameter,
        create_key_pair_if_not_exists,
        move_key_pair,
        load_key_pair,
        get_key_pair_parameter,
        delete_key_pair,
        create_key_if_not_exists,
        load_key,
        import_key,
        delete_key,
        derive_key,
        sign,
        verify,
        encrypt,
        decrypt
    );
    members!(
        text,
        SignDerivedParameters,
        "AZIOT_KEYS_SIGN_DERIVED_PARAMETERS",
        derivation_data,
        derivation_data_len,
        mechanism,
        parameters
    );
    members!(
        text,
        EncryptDerivedParameters,
        "AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS",
        derivation_data,
        derivation_data_len,
        mechanism,
        parameters
    );
    members!(text, EncryptAeadParameters, "AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS", iv, iv_len, aad, aad_len);
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.c");
    fs::File::create(&source).and_then(|file| std::io::Write::write_all(&mut &file, text.as_bytes())).unwrap();
    compile(&source, &folder.path().join("layout.o"), &["-pedantic", "-c"]);
}

/// The numbers of the public system, by which programs were compiled that nobody compiles again (LP64).
#[test]
#[cfg(target_pointer_width = "64")]
fn the_layout_is_that_of_the_public_system() {
    assert_eq!((size_of::<FunctionList2000>(), size_of::<FunctionList2100>()), (104, 128));
    assert_eq!((offset_of!(FunctionList2000, decrypt), offset_of!(FunctionList2100, decrypt)), (96, 120));
    assert_eq!((offset_of!(FunctionList2000, import_key), offset_of!(FunctionList2100, import_key)), (56, 72));
    assert_eq!((offset_of!(FunctionList2100, move_key_pair), offset_of!(FunctionList2100, delete_key)), (24, 80));
    assert_eq!((VERSION_2_0_0_0, VERSION_2_1_0_0), (0x0200_0000, 0x0201_0000));
}
