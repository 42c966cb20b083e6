//! Symmetric keys on a token: the worked examples, what a usage makes of them, and those that a token cannot hold.

use std::fs;

use aziot_keys::{Error, Failure, Invalid, KeyUsage, Keys, Settings, SymmetricUse};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};

use crate::softhsm::{self, LABEL, Operator, has_key_files};
use crate::test_vectors::{hex, k1, unhex};
use crate::{hmac, invalid, is_external, secret, software_hmac, stored};

/// Key, IV, AAD, plaintext, ciphertext in hex.
type Row<'a> = (SymmetricUse<'a>, &'a [u8], &'a [u8], &'a [u8], &'a str);

const AAD: &[u8] = b"$iotedged";
const PLAINTEXT: &[u8] = b"some plaintext";

#[test]
fn the_vectors_of_symmetric_keys() {
    softhsm::run("symmetric_keys::the_vectors_of_symmetric_keys", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.import_key("k1", KeyUsage::SIGN, &secret(&k1())).unwrap();
        assert_eq!(hmac(&keys, "k1").unwrap(), "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433");
        let empty = keys.sign_hmac(stored("k1"), b"").unwrap();
        assert_eq!(hex(&empty), "6656ed44406d8895497b1b8d854118fcd7790e181ce6ea7ca4eed793f0fcd594");
        assert!(keys.verify_hmac(stored("k1"), b"", &empty).unwrap());
        assert!(!keys.verify_hmac(stored("k1"), b"", &empty[..31]).unwrap());
        let derived = keys.derive("k1", b"modA:1:primary").unwrap();
        assert_eq!(hex(&derived), "82a2faf9a7cd82794e071c6b1a0465bde3ae46adbf05ac6d3924b364529d755c");
        let derived = SymmetricUse::Derived { base: "k1", data: b"modA:1:primary" };
        let signature = keys.sign_hmac(derived, b"hello").unwrap();
        assert_eq!(hex(&signature), "8ae8ff4488ed75342a8b279dee9478288643a22124d994d53579613ea8fdc8d6");

        keys.import_key("aes", KeyUsage::ENCRYPT, &secret(&k1())).unwrap();
        let counting = |length: u8| (0..length).collect::<Vec<u8>>();
        let iv = counting(12);
        let table: [Row; 8] = [
            (stored("aes"), &iv, AAD, PLAINTEXT, "02496a011d57fc28c1ab7cf4a7c099a39373afb7d904b0f728907694833490"),
            (stored("aes"), &iv, AAD, b"", "02b7ea4334aedf484bfc0d12346b5a8d7e"),
            (stored("aes"), &iv, b"", PLAINTEXT, "02496a011d57fc28c1ab7cf4a7c0999230889a2e2b3110ca5524b392f3f400"),
            (stored("aes"), b"abcdefgh", b"aa", b"p", "02fa2d5f461f75fa0e38ce8fdc6dfc0e794d"),
            (stored("aes"), &[0; 16], AAD, PLAINTEXT, "02767d2e61d826adb04c0a50b8b60cc8413610d0def904b740457edc5c1bac"),
            (
                stored("aes"),
                b"123e4567e89b12d3a456426614174000",
                AAD,
                PLAINTEXT,
                "0211d0c0be7b57b681df1de8a28767de359008ee0fd4ab4aea73e136932716",
            ),
            (
                stored("aes"),
                &counting(128),
                AAD,
                PLAINTEXT,
                "029f1c34e37c01aed4e9e6821c8775ed9de17887f9433800b419f953bbfde6",
            ),
            (derived, &iv, AAD, PLAINTEXT, "028d250aaa0af1de92dd19e6cfbfb503ec6d4d187d9666075cc5102d3e22ff"),
        ];
        for (key, iv, aad, plaintext, expected) in table {
            let ciphertext = keys.encrypt_aead(key, iv, aad, plaintext).unwrap();
            assert_eq!(hex(&ciphertext), expected);
            assert_eq!(*keys.decrypt_aead(key, iv, aad, &ciphertext).unwrap(), plaintext);
        }
        assert!(!has_key_files(&device.path("home/keys")));

        let decrypt = |ciphertext: &[u8]| keys.decrypt_aead(stored("aes"), &iv, AAD, ciphertext);
        let mut ciphertext = unhex("02496a011d57fc28c1ab7cf4a7c099a39373afb7d904b0f728907694833490");
        *ciphertext.last_mut().unwrap() ^= 1;
        assert!(is_external(decrypt(&ciphertext)));
        let old = unhex("01a39373afb7d904b0f728907694833490496a011d57fc28c1ab7cf4a7c099");
        assert!(matches!(invalid(decrypt(&old)), Invalid::OldCiphertextForToken));
        for short in [&[][..], &[2; 16]] {
            assert!(matches!(invalid(decrypt(short)), Invalid::CiphertextTooShort));
        }
        for iv in [&[][..], &[0; 129]] {
            assert!(is_external(keys.encrypt_aead(stored("aes"), iv, AAD, PLAINTEXT)));
        }
        // A refused call leaves the session fit for the next.
        assert!(hmac(&keys, "k1").is_ok());
    });
}

#[test]
fn symmetric_keys_are_made_by_usage_and_never_leave() {
    softhsm::run("symmetric_keys::symmetric_keys_are_made_by_usage_and_never_leave", 1, |device, _| {
        let keys = device.keys(&[]);
        assert!(matches!(invalid(keys.load_key("sign")), Invalid::NotFound));
        keys.create_key("sign", KeyUsage::SIGN).unwrap();
        keys.create_key("aes", KeyUsage::ENCRYPT).unwrap();
        for usage in [KeyUsage::SIGN.and(KeyUsage::ENCRYPT), KeyUsage::from_bits(0), KeyUsage::from_bits(2)] {
            assert!(matches!(invalid(keys.create_key("both", usage)), Invalid::Usage));
            assert!(matches!(invalid(keys.import_key("both", usage, &secret(b"x"))), Invalid::Usage));
        }
        assert!(!keys.is_ready("sign"));
        let signature = hmac(&keys, "sign").unwrap();
        keys.create_key("sign", KeyUsage::ENCRYPT).unwrap();
        assert_eq!(hmac(&keys, "sign").unwrap(), signature);
        let ciphertext = keys.encrypt_aead(stored("aes"), b"iv", AAD, PLAINTEXT).unwrap();
        assert_eq!(*keys.decrypt_aead(stored("aes"), b"iv", AAD, &ciphertext).unwrap(), PLAINTEXT);
        // Wrong uses are the token's to refuse.
        assert!(is_external(hmac(&keys, "aes")));
        assert!(is_external(keys.encrypt_aead(stored("sign"), b"iv", AAD, PLAINTEXT)));
        assert!(!has_key_files(&device.path("home/keys")));

        let operator = Operator::at(LABEL);
        keys.import_key("imported", KeyUsage::SIGN, &secret(&k1())).unwrap();
        let (sign, encrypt) = (Attribute::Sign(true), Attribute::Encrypt(true));
        for (id, use_of_it) in [("sign", &sign), ("aes", &encrypt), ("imported", &sign)] {
            let [handle] = operator.find(ObjectClass::SECRET_KEY, id)[..] else { panic!("{id}") };
            let wanted =
                [AttributeType::Extractable, AttributeType::Sensitive, AttributeType::Sign, AttributeType::Encrypt];
            let attributes = operator.session.get_attributes(handle, &wanted).unwrap();
            assert!(
                attributes.contains(&Attribute::Extractable(false)) && attributes.contains(&Attribute::Sensitive(true))
            );
            assert!(attributes.contains(use_of_it), "{id}");
            assert!(operator.session.get_attributes(handle, &[AttributeType::Value]).unwrap().is_empty());
        }
        keys.import_key("sign", KeyUsage::SIGN, &secret(&k1())).unwrap();
        assert_eq!(hmac(&keys, "sign").unwrap(), hmac(&keys, "imported").unwrap());
        assert_eq!(operator.counts("sign"), (1, 0, 0));
        keys.delete_key("sign").unwrap();
        keys.delete_key("sign").unwrap();
        assert!(matches!(invalid(hmac(&keys, "sign")), Invalid::NotFound));
        assert_eq!(operator.counts("sign"), (0, 0, 0));
    });
}

#[test]
fn what_the_token_does_not_take_goes_to_a_file() {
    softhsm::run("symmetric_keys::what_the_token_does_not_take_goes_to_a_file", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key("k", KeyUsage::ENCRYPT).unwrap();
        assert_eq!(Operator::at(LABEL).counts("k"), (1, 0, 0));
        // No AES key has five bytes.
        keys.import_key("k", KeyUsage::ENCRYPT, &secret(b"short")).unwrap();
        assert_eq!(fs::read(device.key_file("k")).unwrap(), b"short");
        assert_eq!(Operator::at(LABEL).counts("k"), (0, 0, 0), "the token's key would hide the file");
        assert_eq!(hmac(&keys, "k").unwrap(), software_hmac(b"short", b"hello"));
        keys.delete_key("k").unwrap();
        assert!(!device.has_file("k"));

        // With no home there is no other place.
        let only_token = Keys::new(Settings { homedir_path: None, ..device.settings() }).unwrap();
        let error = only_token.import_key("k", KeyUsage::ENCRYPT, &secret(b"short")).unwrap_err();
        assert!(matches!(error, Error::External { source: Failure::NoPlace(_), .. }), "{error:?}");
    });
}
