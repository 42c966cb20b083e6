//! Answers of EST servers, whose certificates are put in order for the key of each of them.

#![no_main]

use aziot_pki::{certificate::Chain, pkcs7};
use libfuzzer_sys::fuzz_target;
use spki::{SubjectPublicKeyInfoOwned, der::Decode as _};

fuzz_target!(|input: &[u8]| {
    let Ok(found) = pkcs7::certificates(input) else { return };
    assert!(found.len() <= 100);
    let ders = |list: &[openssl::x509::X509]| list.iter().map(|one| one.to_der().expect("DER")).collect::<Vec<_>>();
    if let Ok(written) = pkcs7::from_certificates(&found) {
        assert_eq!(ders(&pkcs7::certificates(&written).expect("what was written can be read")), ders(&found));
    }
    for one in found.iter().take(5) {
        let Ok(key) = one.public_key() else { continue };
        let Ok(info) = key.public_key_to_der() else { continue };
        let Ok(info) = SubjectPublicKeyInfoOwned::from_der(&info) else { continue };
        // Some kinds of keys are not for us.
        let Ok(chain) = Chain::for_key(&info, found.clone(), &found[..found.len() / 2]) else { continue };
        let leaf = chain.leaf().expect("a chain for a key has a leaf").public_key().expect("its key was found");
        assert!(leaf.public_eq(&key));
        let mut all = ders(chain.certificates());
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "a certificate is there twice");
    }
});
