//! Key files of any bytes: read, used as a symmetric key and as a key pair. What one kind accepts the other refuses.

#![no_main]

use std::{fs, sync::LazyLock};

use aziot_fuzz::{World, path};
use aziot_keys::{KeyPairAlgorithm, PublicParameter, RsaPadding, SymmetricUse};
use libfuzzer_sys::fuzz_target;

static WORLD: LazyLock<World> = LazyLock::new(World::new);
const ID: &str = "fuzzed";

fuzz_target!(|input: &[u8]| {
    let (world, keys) = (&*WORLD, &WORLD.library);
    fs::write(path(&world.folder, ID), input).expect("a key file");
    let symmetric = keys.load_key(ID).is_ok();
    let pair = keys.load_key_pair(ID).is_ok();
    assert!(!(symmetric && pair), "both kinds at once");
    let hmac = keys.sign_hmac(SymmetricUse::Stored(ID), b"message");
    assert_eq!(hmac.is_ok(), symmetric);
    let _ = keys.encrypt_aead(SymmetricUse::Stored(ID), &[7; 12], b"", b"plaintext");
    match keys.key_pair_algorithm(ID) {
        Ok(KeyPairAlgorithm::Ec) => {
            assert!(keys.public_parameter(ID, PublicParameter::EcPoint).is_ok());
            assert!(keys.sign_ecdsa(ID, &[1; 32]).is_ok());
        }
        Ok(KeyPairAlgorithm::Rsa) => {
            let modulus = keys.public_parameter(ID, PublicParameter::RsaModulus).expect("a modulus");
            let signed = keys.encrypt_rsa(ID, RsaPadding::Pkcs1, b"x");
            assert!(signed.is_err() || signed.is_ok_and(|signed| signed.len() == modulus.len()));
        }
        Err(_) => {}
    }
});
