//! Where a key is when there are tokens and files, and what operators named.

use aziot_keys::{Invalid, KeyUsage, Keys, Settings};

use crate::softhsm::{self, LABEL, OTHER_LABEL, Operator, PIN};
use crate::test_vectors::k1;
use crate::{hmac, invalid, is_preloaded, point, secret, software_hmac};

#[test]
fn preloaded_token_keys_are_made_once_and_need_a_library() {
    softhsm::run("places::preloaded_token_keys_are_made_once_and_need_a_library", 1, |device, _| {
        let uri = |object| format!("pkcs11:token={OTHER_LABEL}{object}?pin-value={PIN}");
        let (first, second, third) = (uri(";object=first"), uri(";object=second"), uri(""));
        let preloaded = [("first", &*first), ("pair", &*second), ("any", &*third)];
        let keys = device.keys(&preloaded);
        keys.delete_key("first").unwrap();
        keys.create_key("first", KeyUsage::SIGN).unwrap();
        keys.create_key_pair("pair", None).unwrap();
        let operator = Operator::at(OTHER_LABEL);
        assert_eq!((operator.counts("first"), operator.counts("second")), ((1, 0, 0), (0, 1, 1)));
        assert!(is_preloaded(keys.import_key("first", KeyUsage::SIGN, &secret(&k1()))));
        assert!(is_preloaded(keys.delete_key("first")));
        assert!(is_preloaded(keys.delete_key_pair("pair")));
        // Without a label it is the first of its class.
        assert_eq!(hmac(&keys, "any").unwrap(), hmac(&keys, "first").unwrap());
        assert!(matches!(invalid(keys.delete_key("any")), Invalid::NoLabel));
        assert!(matches!(invalid(keys.delete_key_pair("any")), Invalid::NoLabel));
        assert_eq!((operator.counts("first"), operator.counts("second")), ((1, 0, 0), (0, 1, 1)));

        // Nothing goes from one token to another, nor between tokens and files.
        let empty = uri(";object=empty");
        let file = format!("file://{}", device.path("preloaded/pair").display());
        let keys = device.keys(&[("elsewhere", &empty), ("file", &file)]);
        keys.create_key_pair("pair", None).unwrap();
        for target in ["elsewhere", "file"] {
            assert!(matches!(invalid(keys.move_key_pair("pair", target)), Invalid::MoveBetweenPlaces));
        }
        keys.load_key_pair("pair").unwrap();
        device.files().create_key_pair("in a file", None).unwrap();
        assert!(matches!(invalid(keys.move_key_pair("in a file", "elsewhere")), Invalid::MoveBetweenPlaces));
        keys.load_key_pair("in a file").unwrap();

        let place = [("first".to_owned(), first.clone())];
        let without = Keys::new(Settings { preloaded_keys: place.into(), ..Settings::default() }).unwrap();
        assert!(matches!(invalid(without.load_key("first")), Invalid::TokenWithoutLibrary));
        assert!(matches!(invalid(without.create_key("first", KeyUsage::SIGN)), Invalid::TokenWithoutLibrary));
        // A library alone: preloaded keys, and no place for others.
        let place = [("first".to_owned(), first)];
        let only =
            Settings { homedir_path: None, pkcs11_base_slot: None, preloaded_keys: place.into(), ..device.settings() };
        let only = Keys::new(only).unwrap();
        only.load_key("first").unwrap();
        assert!(matches!(invalid(only.create_key("other", KeyUsage::SIGN)), Invalid::NoHome));
    });
}

#[test]
fn files_and_tokens_live_side_by_side() {
    softhsm::run("places::files_and_tokens_live_side_by_side", 1, |device, _| {
        let files = device.files();
        files.import_key("old", KeyUsage::SIGN, &secret(&k1())).unwrap();
        for id in ["old pair", "target"] {
            files.create_key_pair(id, None).unwrap();
        }
        let keys = device.keys(&[]);
        assert_eq!(hmac(&keys, "old").unwrap(), hmac(&files, "old").unwrap());
        keys.create_key("old", KeyUsage::SIGN).unwrap();
        keys.create_key_pair("old pair", None).unwrap();
        let operator = Operator::at(LABEL);
        assert_eq!((operator.counts("old"), operator.counts("old pair")), ((0, 0, 0), (0, 0, 0)));
        assert!(matches!(invalid(keys.load_key("old pair")), Invalid::NotSymmetric));
        assert!(matches!(invalid(keys.import_key("old pair", KeyUsage::SIGN, &secret(b"x"))), Invalid::NotSymmetric));

        // An import goes to the token and hides the file; a delete removes both.
        keys.import_key("old", KeyUsage::SIGN, &secret(&[7; 32])).unwrap();
        assert_eq!(operator.counts("old"), (1, 0, 0));
        assert_eq!(hmac(&keys, "old").unwrap(), software_hmac(&[7; 32], b"hello"));
        assert!(device.has_file("old"));
        keys.delete_key("old").unwrap();
        assert!(!device.has_file("old") && operator.counts("old") == (0, 0, 0));

        // A pair in a file moves as a file, over a file or over a pair on the token.
        let old = point(&keys, "old pair");
        keys.move_key_pair("old pair", "target").unwrap();
        assert_eq!(point(&keys, "target"), old);
        keys.create_key_pair("on token", None).unwrap();
        keys.move_key_pair("target", "on token").unwrap();
        assert_eq!(point(&keys, "on token"), old);
        assert_eq!((operator.counts("on token"), operator.counts("on token (replaced)")), ((0, 0, 0), (0, 0, 0)));
        assert!(device.has_file("on token") && !device.has_file("target"));
        // A pair on the token moves there and hides the file.
        keys.create_key_pair("new", None).unwrap();
        let new = point(&keys, "new");
        keys.move_key_pair("new", "on token").unwrap();
        assert_eq!((point(&keys, "on token"), operator.counts("on token")), (new, (0, 1, 1)));
        keys.delete_key_pair("on token").unwrap();
        assert!(!device.has_file("on token") && operator.counts("on token") == (0, 0, 0));
    });
}
