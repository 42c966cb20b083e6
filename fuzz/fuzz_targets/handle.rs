//! Handles: as a stranger sends them, and with any bytes under a true signature, which a leaked handle key would allow.

#![no_main]

use std::sync::LazyLock;

use aziot_fuzz::{HANDLE_KEY, World};
use aziot_keys::SymmetricUse;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use libfuzzer_sys::fuzz_target;

static WORLD: LazyLock<World> = LazyLock::new(World::new);

fuzz_target!(|input: &[u8]| {
    let check = |handle: &str| WORLD.runtime.block_on(WORLD.service.is_genuine(handle));
    if let Ok(text) = std::str::from_utf8(input) {
        let genuine = check(text);
        // Nobody guesses a signature: what is genuine holds a seed's.
        assert!(!genuine || text.contains("sig=0t97o") || text.contains("sig=YHTvp") || text.contains("sig=n20Xo"));
    }
    let signature = WORLD.library.sign_hmac(SymmetricUse::Stored(HANDLE_KEY), input).expect("a signature");
    check(&format!("sr={}&sig={}", STANDARD.encode(input), STANDARD.encode(&*signature)));
});
