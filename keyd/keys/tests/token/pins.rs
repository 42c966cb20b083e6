//! Tokens with the wrong PIN, or none.

use aziot_keys::{Error, Failure, Invalid, KeyUsage, Keys, Settings, TokenError};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;

use crate::softhsm::{self, LABEL, OTHER_LABEL, PIN, SO_PIN, has_key_files};
use crate::{invalid, text};

#[test]
fn a_wrong_pin_is_tried_once() {
    softhsm::run("pins::a_wrong_pin_is_tried_once", 1, |device, _| {
        let wrong = "secret-4711";
        let uri = format!("pkcs11:token={LABEL}?pin-value={wrong}");
        let other = format!("pkcs11:token={OTHER_LABEL};object=o?pin-value={PIN}");
        let settings = || Settings {
            pkcs11_base_slot: Some(uri.clone()),
            preloaded_keys: [("other".to_owned(), other.clone())].into(),
            ..device.settings()
        };
        let keys = Keys::new(settings()).unwrap();
        let refused = |keys: &Keys| {
            for error in [keys.load_key("k").unwrap_err(), keys.create_key("k", KeyUsage::SIGN).unwrap_err()] {
                assert!(!text(&error).contains(wrong), "{}", text(&error));
                assert!(
                    matches!(error, Error::External { source: Failure::Token(TokenError::PinRefused { .. }), .. }),
                    "{error:?}"
                );
            }
        };
        refused(&keys);
        // Made the right one, it would be taken if it were tried again.
        let context = softhsm::context();
        let session = context.open_rw_session(softhsm::slot(&context, LABEL)).unwrap();
        session.login(UserType::So, Some(&AuthPin::new(SO_PIN.into()))).unwrap();
        session.init_pin(&AuthPin::new(wrong.into())).unwrap();
        session.logout().unwrap();
        refused(&keys);
        // Not by another name of the token either, nor after it was gone.
        let slot = softhsm::slot(&context, LABEL).id();
        let by_slot =
            Settings { pkcs11_base_slot: Some(format!("pkcs11:slot-id={slot}?pin-value={wrong}")), ..settings() };
        refused(&Keys::new(by_slot).unwrap());
        drop(session);
        softhsm::stop();
        refused(&keys);
        assert!(!has_key_files(&device.path("home/keys")));
        // Another token is no worse for it, and another PIN is another matter.
        keys.create_key("other", KeyUsage::SIGN).unwrap();
        let session = context.open_rw_session(softhsm::slot(&context, LABEL)).unwrap();
        session.login(UserType::So, Some(&AuthPin::new(SO_PIN.into()))).unwrap();
        session.init_pin(&AuthPin::new(PIN.into())).unwrap();
        session.logout().unwrap();
        drop(session);
        device.keys(&[]).create_key("k", KeyUsage::SIGN).unwrap();
    });
}

#[test]
fn without_a_pin_nothing_private_is_made() {
    softhsm::run("pins::without_a_pin_nothing_private_is_made", 1, |device, _| {
        let base_slot = Some(format!("pkcs11:token={LABEL}"));
        let keys = Keys::new(Settings { pkcs11_base_slot: base_slot, ..device.settings() }).unwrap();
        let error = keys.create_key("k", KeyUsage::SIGN).unwrap_err();
        assert!(text(&error).contains("UserNotLoggedIn"), "{}", text(&error));
        assert!(matches!(invalid(keys.create_key_pair("pair", None)), Invalid::NoAlgorithmOfToken));
        assert!(!has_key_files(&device.path("home/keys")));
    });
}
