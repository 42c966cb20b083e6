//! The library of this build, loaded as a vendor's: what the built-in one does must come out of the ABI again.

use std::fs;
use std::mem::discriminant;
use std::time::Duration;

use aziot_keys::{
    Error, Foreign, KeyLibrary, KeyPairAlgorithm, KeyUsage, Keys, PublicParameter, RsaPadding, Secret, Settings,
    SymmetricUse,
};
use tempfile::TempDir;

use crate::own_library;

/// The same home behind both libraries.
fn both() -> (TempDir, Keys, Foreign) {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    // The loader knows a library by its file: each copy has parameters of its own.
    let copy = folder.path().join("libaziot_keys.so");
    fs::copy(own_library(), &copy).unwrap();
    let parameters = vec![("homedir_path".to_owned(), home.to_str().unwrap().to_owned())];
    let foreign = Foreign::load(&copy, parameters, Duration::from_secs(60)).unwrap();
    let keys = Keys::new(Settings { homedir_path: Some(home), ..Settings::default() }).unwrap();
    (folder, keys, foreign)
}

#[test]
fn each_side_reads_and_checks_what_the_other_made() {
    let (_folder, keys, foreign) = both();
    let (key, data) = (SymmetricUse::Stored("k"), b"data".as_slice());
    let derived = SymmetricUse::Derived { base: "k", data };
    foreign.import_key("k", KeyUsage::SIGN, &Secret::new(vec![7; 32])).unwrap();
    for message in [b"".as_slice(), b"message", &vec![1; 100_000]] {
        for key in [key, derived] {
            assert_eq!(foreign.sign_hmac(key, message).unwrap(), keys.sign_hmac(key, message).unwrap());
            let ciphertext = foreign.encrypt_aead(key, &[1; 32], b"aad", message).unwrap();
            assert_eq!(&**keys.decrypt_aead(key, &[1; 32], b"aad", &ciphertext).unwrap(), message);
            assert_eq!(&**foreign.decrypt_aead(key, &[1; 32], b"aad", &ciphertext).unwrap(), message);
        }
        let signature = keys.sign_hmac(key, message).unwrap();
        assert!(foreign.verify_hmac("k", message, &signature).unwrap());
        assert!(!foreign.verify_hmac("k", message, &signature[1..]).unwrap());
    }
    assert_eq!(foreign.derive("k", data).unwrap(), keys.derive("k", data).unwrap());

    foreign.create_key_pair("rsa", Some("rsa-2048")).unwrap();
    foreign.create_key_pair("ec", None).unwrap();
    assert_eq!(foreign.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
    assert_eq!(foreign.key_pair_algorithm("ec").unwrap(), KeyPairAlgorithm::Ec);
    for (id, parameter) in [
        ("ec", PublicParameter::EcPoint),
        ("ec", PublicParameter::EcCurveOid),
        ("rsa", PublicParameter::RsaModulus),
        ("rsa", PublicParameter::RsaExponent),
    ] {
        assert_eq!(foreign.public_parameter(id, parameter).unwrap(), keys.public_parameter(id, parameter).unwrap());
    }
    let padded = RsaPadding::Pkcs1;
    assert_eq!(foreign.encrypt_rsa("rsa", padded, data).unwrap(), keys.encrypt_rsa("rsa", padded, data).unwrap());
    assert_eq!(foreign.sign_ecdsa("ec", &[1; 32]).unwrap()[0], 0x30);
}

type Call = fn(&dyn KeyLibrary, &str) -> Result<(), Error>;

#[test]
fn both_refuse_the_same() {
    let (_folder, keys, foreign) = both();
    keys.create_key("k", KeyUsage::SIGN).unwrap();
    keys.create_key_pair("pair", None).unwrap();
    let long = "a".repeat(187);
    let calls: [Call; 8] = [
        |library, _| library.load_key("absent"),
        |library, _| library.load_key("pair"),
        |library, _| library.load_key_pair("k"),
        |library, long| library.create_key(long, KeyUsage::SIGN),
        |library, _| library.create_key_pair("new", Some("none")),
        |library, _| library.move_key_pair("absent", "new"),
        |library, _| library.sign_ecdsa("k", &[1; 32]).map(|_| ()),
        |library, _| library.encrypt_aead(SymmetricUse::Stored("k"), &[], b"", b"").map(|_| ()),
    ];
    for (number, call) in calls.into_iter().enumerate() {
        let (ours, theirs) = (call(&keys, &long).unwrap_err(), call(&foreign, &long).unwrap_err());
        assert_eq!(discriminant(&ours), discriminant(&theirs), "{number}: {ours:?} {theirs:?}");
        assert!(!matches!(ours, Error::Preloaded { .. }));
    }
}
