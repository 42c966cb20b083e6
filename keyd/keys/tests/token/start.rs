//! PKCS#11 libraries and tokens that cannot be used from the beginning.

use aziot_keys::{Keys, Settings, SettingsError, TokenError};

use crate::softhsm;
use crate::text;

#[test]
fn unusable_libraries_and_tokens_show_at_the_start() {
    softhsm::run("start::unusable_libraries_and_tokens_show_at_the_start", 1, |device, _| {
        let with = |library: &str, base_slot: &str| {
            let settings = Settings {
                pkcs11_lib_path: Some(library.into()),
                pkcs11_base_slot: Some(base_slot.to_owned()),
                ..device.settings()
            };
            Keys::new(settings).map(|_| ()).unwrap_err()
        };
        let softhsm = softhsm::module();
        let softhsm = softhsm.to_str().unwrap();
        let error = with(softhsm, "pkcs11:token=missing?pin-value=1234");
        assert!(matches!(error, SettingsError::BaseToken(TokenError::NoToken { .. })), "{error:?}");
        assert!(text(&error).contains("\"missing\"") && !text(&error).contains("1234"));
        let error = with(softhsm, "pkcs11:slot-id=4242");
        assert!(matches!(error, SettingsError::BaseToken(TokenError::Call { .. })), "{error:?}");
        assert!(text(&error).contains("slot 4242") && text(&error).contains("SlotIdInvalid"), "{}", text(&error));
        for library in ["/nonexistent.so", "libm.so.6", "/etc/passwd"] {
            let error = with(library, "pkcs11:token=x");
            assert!(matches!(error, SettingsError::Library(TokenError::Load { .. })), "{error:?}");
            assert!(text(&error).contains(library));
        }
    });
}
