//! `pkcs11:` and `file:` URIs of a configuration: what is understood is understood again in its own spelling.

#![no_main]

use aziot_keys::KeyUri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(uri) = text.parse::<KeyUri>() else { return };
    match uri {
        KeyUri::File(path) => assert!(path.is_absolute(), "{}", path.display()),
        KeyUri::Pkcs11(uri) => assert_eq!(uri.to_text().parse(), Ok(uri.clone()), "{uri:?}"),
    }
});
