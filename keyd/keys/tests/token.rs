//! The library on real tokens of `SoftHSM2`: keys made, imported, used, moved and deleted, and what happens when the token is not there.
//!
//! `SoftHSM2` locks no token after wrong PINs, knows all algorithms used here, and has as many sessions as one wants.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

#[path = "../src/test_vectors.rs"]
mod test_vectors;

#[path = "token/softhsm.rs"]
mod softhsm;

use std::sync::Barrier;
use std::{fs, thread};

use aziot_keys::{
    Class, Error, Failure, Invalid, KeyPairAlgorithm, KeyUsage, Keys, PublicParameter, RsaPadding, Secret, Settings,
    SettingsError, SymmetricUse, TokenError,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cryptoki::object::{Attribute, AttributeType, CertificateType, KeyType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNumContext;
use openssl::ec::{EcGroup, EcKey, EcPoint, PointConversionForm};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sha::sha256;
use openssl::x509::{X509, X509NameBuilder};

use softhsm::{LABEL, OTHER_LABEL, Operator, PIN, SO_PIN, has_key_files};
use test_vectors::{EC_PEM, RSA_PEM, hex, k1, unhex};

const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const AAD: &[u8] = b"$iotedged";
const PLAINTEXT: &[u8] = b"some plaintext";

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

fn stored(id: &str) -> SymmetricUse<'_> {
    SymmetricUse::Stored(id)
}

fn hmac(keys: &Keys, id: &str) -> Result<String, Error> {
    keys.sign_hmac(stored(id), b"hello").map(|signature| hex(&signature))
}

fn software_hmac(key: &[u8], message: &[u8]) -> String {
    let key = PKey::hmac(key).unwrap();
    let mut signer = openssl::sign::Signer::new(MessageDigest::sha256(), &key).unwrap();
    hex(&signer.sign_oneshot_to_vec(message).unwrap())
}

fn invalid(outcome: Result<impl Sized, Error>) -> Invalid {
    match outcome.map(|_| ()) {
        Err(Error::InvalidParameter { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn token_failure(outcome: Result<impl Sized, Error>) -> TokenError {
    match outcome.map(|_| ()) {
        Err(Error::External { source: Failure::Token(error), .. }) => error,
        other => panic!("{other:?}"),
    }
}

fn is_preloaded(outcome: Result<impl Sized, Error>) -> bool {
    outcome.is_err_and(|error| error.class() == Class::Preloaded)
}

fn point(keys: &Keys, id: &str) -> Vec<u8> {
    keys.public_parameter(id, PublicParameter::EcPoint).unwrap()
}

fn verifies(point: &[u8], digest: &[u8], signature: &[u8]) -> bool {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let mut context = BigNumContext::new().unwrap();
    let point = EcPoint::from_bytes(&group, point, &mut context).unwrap();
    let key = EcKey::from_public_key(&group, &point).unwrap();
    EcdsaSig::from_der(signature).unwrap().verify(digest, &key).unwrap()
}

/// The whole chain of an error, as a log would show it.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

/// Key, IV, AAD, plaintext, ciphertext in hex.
type Row<'a> = (SymmetricUse<'a>, &'a [u8], &'a [u8], &'a [u8], &'a str);

#[test]
fn the_vectors_of_symmetric_keys() {
    softhsm::run("the_vectors_of_symmetric_keys", 1, |device, _| {
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
        assert_eq!(decrypt(&ciphertext).unwrap_err().class(), Class::External);
        let old = unhex("01a39373afb7d904b0f728907694833490496a011d57fc28c1ab7cf4a7c099");
        assert!(matches!(invalid(decrypt(&old)), Invalid::OldCiphertextForToken));
        for short in [&[][..], &[2; 16]] {
            assert!(matches!(invalid(decrypt(short)), Invalid::CiphertextTooShort));
        }
        for iv in [&[][..], &[0; 129]] {
            let outcome = keys.encrypt_aead(stored("aes"), iv, AAD, PLAINTEXT);
            assert_eq!(outcome.unwrap_err().class(), Class::External);
        }
        // A refused call leaves the session fit for the next.
        assert!(hmac(&keys, "k1").is_ok());
    });
}

#[test]
fn symmetric_keys_are_made_by_usage_and_never_leave() {
    softhsm::run("symmetric_keys_are_made_by_usage_and_never_leave", 1, |device, _| {
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
        assert_eq!(hmac(&keys, "aes").unwrap_err().class(), Class::External);
        let wrong = keys.encrypt_aead(stored("sign"), b"iv", AAD, PLAINTEXT);
        assert_eq!(wrong.unwrap_err().class(), Class::External);
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
    softhsm::run("what_the_token_does_not_take_goes_to_a_file", 1, |device, _| {
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

#[test]
fn key_pairs_are_made_used_moved_and_deleted() {
    softhsm::run("key_pairs_are_made_used_moved_and_deleted", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key_pair("ec", None).unwrap();
        keys.create_key_pair("rsa", Some("foo:rsa-2048:*")).unwrap();
        keys.create_key_pair("ec", Some("rsa-2048")).unwrap();
        assert_eq!(keys.key_pair_algorithm("ec").unwrap(), KeyPairAlgorithm::Ec);
        assert_eq!(keys.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
        assert_eq!(keys.public_parameter("ec", PublicParameter::EcCurveOid).unwrap(), P256_OID);
        assert_eq!(keys.public_parameter("rsa", PublicParameter::RsaModulus).unwrap().len(), 256);
        assert_eq!(keys.public_parameter("rsa", PublicParameter::RsaExponent).unwrap(), [1, 0, 1]);
        let wrong = keys.public_parameter("rsa", PublicParameter::EcPoint);
        assert!(matches!(invalid(wrong), Invalid::WrongAlgorithm));
        assert!(matches!(invalid(keys.sign_ecdsa("rsa", &[1; 32])), Invalid::WrongAlgorithm));
        assert!(matches!(invalid(keys.encrypt_rsa("ec", RsaPadding::Pkcs1, &[1])), Invalid::WrongAlgorithm));
        assert!(matches!(invalid(keys.create_key_pair("new", Some("foo"))), Invalid::NoKnownAlgorithm));
        for length in [1, 20, 31, 32, 48, 64] {
            let digest = &[0xab; 64][..length];
            let signature = keys.sign_ecdsa("ec", digest).unwrap();
            assert!(verifies(&point(&keys, "ec"), &digest[..length.min(32)], &signature), "{length}");
        }
        assert!(!has_key_files(&device.path("home/keys")));

        let operator = Operator::at(LABEL);
        let [private] = operator.find(ObjectClass::PRIVATE_KEY, "ec")[..] else { panic!("one private key") };
        let wanted = [AttributeType::Extractable, AttributeType::Sensitive, AttributeType::Decrypt];
        let attributes = operator.session.get_attributes(private, &wanted).unwrap();
        assert!(
            attributes.contains(&Attribute::Extractable(false)) && attributes.contains(&Attribute::Sensitive(true))
        );

        // A move of nothing leaves its target alone.
        let ec = point(&keys, "ec");
        let error = keys.move_key_pair("missing", "ec").unwrap_err();
        assert_eq!((error.class(), error.id()), (Class::External, "missing"));
        assert_eq!(point(&keys, "ec"), ec);
        keys.create_key_pair("next", None).unwrap();
        let next = point(&keys, "next");
        keys.move_key_pair("next", "ec").unwrap();
        assert_eq!(point(&keys, "ec"), next);
        assert!(verifies(&next, &[1; 32], &keys.sign_ecdsa("ec", &[1; 32]).unwrap()));
        assert!(matches!(invalid(keys.load_key_pair("next")), Invalid::NotFound));
        assert_eq!((operator.counts("ec"), operator.counts("next")), ((0, 1, 1), (0, 0, 0)));
        assert_eq!(operator.counts("ec (replaced)"), (0, 0, 0));
        keys.move_key_pair("ec", "free").unwrap();
        assert_eq!(point(&keys, "free"), next);

        // A symmetric key and a pair may share an id on a token.
        keys.create_key("free", KeyUsage::SIGN).unwrap();
        keys.delete_key_pair("free").unwrap();
        keys.delete_key_pair("free").unwrap();
        assert_eq!(operator.counts("free"), (1, 0, 0));
        assert!(matches!(invalid(keys.sign_ecdsa("free", &[1; 32])), Invalid::NotFound));
    });
}

/// Puts the halves of a key on the token, as an operator would.
fn put_key_pair(operator: &Operator, label: &str, pem: &str, with_public: bool) -> PKey<Private> {
    let key = PKey::private_key_from_pem(pem.as_bytes()).unwrap();
    let common = |class, key_type| {
        vec![
            Attribute::Class(class),
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Label(label.into()),
        ]
    };
    let key_type = if key.ec_key().is_ok() { KeyType::EC } else { KeyType::RSA };
    let mut private = common(ObjectClass::PRIVATE_KEY, key_type);
    let mut public = common(ObjectClass::PUBLIC_KEY, key_type);
    private.extend([Attribute::Private(true), Attribute::Sensitive(true), Attribute::Sign(true)]);
    public.extend([Attribute::Private(false), Attribute::Verify(true)]);
    if let Ok(ec) = key.ec_key() {
        let mut context = BigNumContext::new().unwrap();
        let point = ec.public_key().to_bytes(ec.group(), PointConversionForm::UNCOMPRESSED, &mut context).unwrap();
        private.extend([Attribute::EcParams(P256_OID.to_vec()), Attribute::Value(ec.private_key().to_vec())]);
        public.extend([
            Attribute::EcParams(P256_OID.to_vec()),
            Attribute::EcPoint([&[4, u8::try_from(point.len()).unwrap()][..], &point].concat()),
        ]);
    } else {
        let rsa = key.rsa().unwrap();
        let numbers = [Attribute::Modulus(rsa.n().to_vec()), Attribute::PublicExponent(rsa.e().to_vec())];
        public.extend(numbers.clone());
        private.extend(numbers);
        private.extend([
            Attribute::PrivateExponent(rsa.d().to_vec()),
            Attribute::Prime1(rsa.p().unwrap().to_vec()),
            Attribute::Prime2(rsa.q().unwrap().to_vec()),
            Attribute::Exponent1(rsa.dmp1().unwrap().to_vec()),
            Attribute::Exponent2(rsa.dmq1().unwrap().to_vec()),
            Attribute::Coefficient(rsa.iqmp().unwrap().to_vec()),
        ]);
    }
    operator.put(&private);
    if with_public {
        operator.put(&public);
    }
    key
}

#[test]
fn the_vectors_of_key_pairs_of_an_operator() {
    softhsm::run("the_vectors_of_key_pairs_of_an_operator", 1, |device, _| {
        let uri = |object| format!("pkcs11:token={OTHER_LABEL};object={object}?pin-value={PIN}");
        let keys = device.keys(&[("device", &uri("their%20ec")), ("rsa", &uri("their-rsa"))]);
        let operator = Operator::at(OTHER_LABEL);
        put_key_pair(&operator, "their ec", EC_PEM, true);
        put_key_pair(&operator, "their-rsa", RSA_PEM, true);

        let base64 = |id, parameter| STANDARD.encode(keys.public_parameter(id, parameter).unwrap());
        assert_eq!(base64("device", PublicParameter::EcCurveOid), "BggqhkjOPQMBBw==");
        assert_eq!(base64("device", PublicParameter::EcPoint), "AgBe1KRMW3SVnV37q4nMzqox2T9+doTRuCVeA8rFwMms");
        let signature = keys.sign_ecdsa("device", &sha256(b"abc")).unwrap();
        assert!(verifies(&point(&keys, "device"), &sha256(b"abc"), &signature));
        assert_eq!(base64("rsa", PublicParameter::RsaExponent), "AQAB");
        assert!(base64("rsa", PublicParameter::RsaModulus).starts_with("xQtH2iBFBi/UWvnHd0mcxhiW4gx4Ec0q"));
        let digest_info =
            STANDARD.decode("MDEwDQYJYIZIAWUDBAIBBQAEILp4Fr+PAc/qQUFA3l2uIiOwA2Gjlhd6nLQQ/2HyABWt").unwrap();
        assert_eq!(
            STANDARD.encode(keys.encrypt_rsa("rsa", RsaPadding::Pkcs1, &digest_info).unwrap()),
            "KLAQzw/KICXJLz/bRMR4Js/eq/4ksVsTgKDQsG70N7eFlUEXuqzsxIjP8XgKAZXnKcFOIfXYYTLiP6TmfP2gBZTgVrcTRnVrzAzjU2rQzDa\
             /2WfHmEf+F2LOcZ02pql3kmrrF5PNEqKGD6wNq3uj/73Wi4UT+6QQlJ/8xnP0PJY="
        );
        let all: Vec<u8> = (0..128).collect();
        assert_eq!(
            STANDARD.encode(keys.encrypt_rsa("rsa", RsaPadding::None, &all).unwrap()),
            "XgTwdYY+0LvQhe1VKwkE2hsdZuO8D7kW0S6IKrnx9n0ceLg5n1Duk+i4ELZqktKJGmDwn//PdmcF7DkKT+331ZmAd83nWT3nqcHZqXnNKky\
             fZwpyHc22o64elMI9wK21EAg0ihVNGxrwur8gTY5dvJvSm5PaLkYG67M/s/o8GG4="
        );
        for (padding, input) in
            [(RsaPadding::Pkcs1, &all[..118]), (RsaPadding::None, &all[..127]), (RsaPadding::None, &[0xff; 128])]
        {
            assert_eq!(keys.encrypt_rsa("rsa", padding, input).unwrap_err().class(), Class::External);
        }

        // What an operator put there stays, whatever is asked.
        keys.create_key_pair("movable", None).unwrap();
        keys.create_key_pair("device", Some("rsa-2048")).unwrap();
        assert!(is_preloaded(keys.delete_key_pair("device")));
        assert!(is_preloaded(keys.move_key_pair("device", "new")));
        assert!(is_preloaded(keys.move_key_pair("movable", "device")));
        assert_eq!(operator.counts("their ec"), (0, 1, 1));
        keys.load_key_pair("movable").unwrap();
    });
}

#[test]
fn preloaded_token_keys_are_made_once_and_need_a_library() {
    softhsm::run("preloaded_token_keys_are_made_once_and_need_a_library", 1, |device, _| {
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
    softhsm::run("files_and_tokens_live_side_by_side", 1, |device, _| {
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

fn certificate(key: &PKey<Private>) -> X509 {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, "device").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.sign(key, MessageDigest::sha256()).unwrap();
    builder.build()
}

#[test]
fn a_private_key_without_its_public_object_is_never_destroyed() {
    softhsm::run("a_private_key_without_its_public_object_is_never_destroyed", 1, |device, _| {
        let keys = device.keys(&[]);
        let operator = Operator::at(LABEL);
        let key = put_key_pair(&operator, "ec", EC_PEM, false);
        put_key_pair(&operator, "rsa", RSA_PEM, false);
        assert!(matches!(token_failure(keys.load_key_pair("ec")), TokenError::NoPublicKey { .. }));
        assert!(matches!(token_failure(keys.create_key_pair("ec", None)), TokenError::NoPublicKey { .. }));
        assert_eq!(operator.counts("ec"), (0, 0, 1));
        // An RSA private key tells its public half itself.
        keys.create_key_pair("rsa", None).unwrap();
        assert_eq!(keys.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
        assert_eq!(keys.public_parameter("rsa", PublicParameter::RsaModulus).unwrap().len(), 128);
        assert_eq!(operator.counts("rsa"), (0, 0, 1));

        let put_certificate = |certificate: &X509| {
            let subject = certificate.subject_name().to_der().unwrap();
            operator.put(&[
                Attribute::Class(ObjectClass::CERTIFICATE),
                Attribute::CertificateType(CertificateType::X_509),
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::Label("ec".into()),
                Attribute::Subject(subject),
                Attribute::Value(certificate.to_der().unwrap()),
            ])
        };
        // Of another key: the name alone proves nothing.
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let stranger = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let wrong = put_certificate(&certificate(&stranger));
        assert!(matches!(token_failure(keys.load_key_pair("ec")), TokenError::NoPublicKey { .. }));
        operator.session.destroy_object(wrong).unwrap();
        put_certificate(&certificate(&key));
        keys.create_key_pair("ec", None).unwrap();
        assert_eq!(STANDARD.encode(point(&keys, "ec")), "AgBe1KRMW3SVnV37q4nMzqox2T9+doTRuCVeA8rFwMms");
        assert_eq!(operator.counts("ec"), (0, 0, 1));
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    softhsm::run("a_wrong_pin_is_tried_once", 1, |device, _| {
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
    softhsm::run("without_a_pin_nothing_private_is_made", 1, |device, _| {
        let base_slot = Some(format!("pkcs11:token={LABEL}"));
        let keys = Keys::new(Settings { pkcs11_base_slot: base_slot, ..device.settings() }).unwrap();
        let error = keys.create_key("k", KeyUsage::SIGN).unwrap_err();
        assert!(text(&error).contains("UserNotLoggedIn"), "{}", text(&error));
        assert!(matches!(invalid(keys.create_key_pair("pair", None)), Invalid::NoAlgorithmOfToken));
        assert!(!has_key_files(&device.path("home/keys")));
    });
}

#[test]
fn a_token_that_was_gone_is_used_again() {
    softhsm::run("a_token_that_was_gone_is_used_again", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key("k", KeyUsage::SIGN).unwrap();
        keys.create_key_pair("pair", None).unwrap();
        let signature = hmac(&keys, "k").unwrap();
        // All sessions lost, and the token still there: nobody notices.
        softhsm::stop();
        assert_eq!(hmac(&keys, "k").unwrap(), signature);
        softhsm::stop();
        keys.move_key_pair("pair", "moved").unwrap();
        softhsm::stop();
        keys.sign_ecdsa("moved", &[1; 32]).unwrap();

        device.move_tokens("tokens", "away");
        for _ in 0..3 {
            assert!(matches!(token_failure(hmac(&keys, "k")), TokenError::NoToken { .. }));
            assert!(matches!(token_failure(keys.create_key("k", KeyUsage::SIGN)), TokenError::NoToken { .. }));
            assert!(matches!(token_failure(keys.create_key_pair("pair", None)), TokenError::NoToken { .. }));
            let import = keys.import_key("k", KeyUsage::SIGN, &secret(&k1()));
            assert!(matches!(token_failure(import), TokenError::NoToken { .. }));
            assert!(matches!(token_failure(keys.delete_key("k")), TokenError::NoToken { .. }));
        }
        assert!(!has_key_files(&device.path("home/keys")), "no key goes to a file because its token is away");
        device.return_tokens("away");
        assert_eq!(hmac(&keys, "k").unwrap(), signature);
        keys.sign_ecdsa("moved", &[1; 32]).unwrap();
    });
}

#[test]
fn a_token_that_vanishes_under_its_sessions_fails_and_recovers() {
    softhsm::run("a_token_that_vanishes_under_its_sessions_fails_and_recovers", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key("k", KeyUsage::SIGN).unwrap();
        let signature = hmac(&keys, "k").unwrap();
        // SoftHSM goes on with what it has read, or fails, as it likes; making a key must fail.
        fs::rename(device.path("tokens"), device.path("away")).unwrap();
        assert_eq!(keys.create_key("new", KeyUsage::SIGN).unwrap_err().class(), Class::External);
        let _ = hmac(&keys, "k");
        fs::rename(device.path("away"), device.path("tokens")).unwrap();
        softhsm::stop();
        assert_eq!(hmac(&keys, "k").unwrap(), signature);
        keys.create_key("new", KeyUsage::SIGN).unwrap();
        assert!(!has_key_files(&device.path("home/keys")));
    });
}

#[test]
fn many_threads_share_a_token() {
    softhsm::run("many_threads_share_a_token", 1, |device, _| {
        const THREADS: usize = 12;
        let keys = device.keys(&[]);
        keys.import_key("k", KeyUsage::SIGN, &secret(&k1())).unwrap();
        keys.create_key_pair("pair", None).unwrap();
        let public = point(&keys, "pair");
        let barrier = Barrier::new(THREADS);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (keys, public, barrier) = (&keys, &public, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    // All at once: one makes it.
                    keys.create_key("same", KeyUsage::SIGN).unwrap();
                    keys.create_key_pair("same", None).unwrap();
                    for round in 0..20_u8 {
                        let expected = "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433";
                        assert_eq!(hmac(keys, "k").unwrap(), expected);
                        let signature = keys.sign_ecdsa("pair", &[round; 32]).unwrap();
                        assert!(verifies(public, &[round; 32], &signature));
                        // Stopping it under calls of others is undefined, so all wait; then all find it stopped.
                        if round % 8 == 7 {
                            barrier.wait();
                            if thread == 0 {
                                softhsm::stop();
                            }
                            barrier.wait();
                        }
                    }
                });
            }
        });
        assert_eq!(Operator::at(LABEL).counts("same"), (1, 1, 1));
    });
}

#[test]
fn a_reader_never_misses_a_pair_that_is_being_replaced() {
    softhsm::run("a_reader_never_misses_a_pair_that_is_being_replaced", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key_pair("pair", None).unwrap();
        thread::scope(|scope| {
            let mover = scope.spawn(|| {
                for _ in 0..10 {
                    keys.create_key_pair("next", None).unwrap();
                    keys.move_key_pair("next", "pair").unwrap();
                }
            });
            while !mover.is_finished() {
                keys.sign_ecdsa("pair", &[1; 32]).unwrap();
            }
            mover.join().unwrap();
        });
        assert_eq!(Operator::at(LABEL).counts("pair"), (0, 1, 1));
    });
}

#[test]
fn keys_are_found_after_a_restart() {
    softhsm::run("keys_are_found_after_a_restart", 2, |device, phase| {
        let keys = device.keys(&[]);
        if phase == 0 {
            keys.create_key("k", KeyUsage::SIGN).unwrap();
            keys.create_key_pair("pair", None).unwrap();
            aziot_files::write(device.path("seen"), aziot_files::Mode::PRIVATE, hmac(&keys, "k").unwrap()).unwrap();
        } else {
            keys.load_key_pair("pair").unwrap();
            assert_eq!(fs::read_to_string(device.path("seen")).unwrap(), hmac(&keys, "k").unwrap());
        }
    });
}

#[test]
fn unusable_libraries_and_tokens_show_at_the_start() {
    softhsm::run("unusable_libraries_and_tokens_show_at_the_start", 1, |device, _| {
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
