//! Lists of certificates in PEM, as operators' files hold them and as callers import them: what is understood is written and understood again.

#![no_main]

use aziot_pki::certificate::Chain;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for chain in [Chain::from_pem(&String::from_utf8_lossy(input)), Chain::from_der(input)].into_iter().flatten() {
        let _ = (chain.fingerprint(), chain.validity());
        assert_eq!(chain.is_empty(), chain.leaf().is_none());
        let text = chain.to_pem().expect("what was read can be written");
        let again = Chain::from_pem(&text).expect("what was written can be read");
        let ders =
            |chain: &Chain| chain.certificates().iter().map(|one| one.to_der().expect("DER")).collect::<Vec<_>>();
        assert_eq!(ders(&again), ders(&chain));
    }
});
