//! Tokens at their worst: changes that a kill cuts off at any step, sessions that run out, logins that fail, and places that overlap.
//!
//! The token is `SoftHSM2` behind a library in C that puts faults in its way (`token_recovery/faulty.c`). Needs `cc`.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "token/softhsm.rs"]
mod softhsm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;
use std::{fs, thread};

use aziot_files::Mode;
use aziot_keys::{
    Error, Failure, Invalid, KeyUsage, Keys, PublicParameter, Secret, Settings, SettingsError, SymmetricUse, TokenError,
};
use cryptoki::object::{Attribute, ObjectClass};

use softhsm::{Device, LABEL, OTHER_LABEL, Operator, PIN};

const HANDLE_KEY: &str = "handle-validation-key";

/// `CKR_` values.
const FUNCTION_FAILED: u32 = 0x06;
const ATTRIBUTE_READ_ONLY: u32 = 0x10;
const DEVICE_ERROR: u32 = 0x30;
const DEVICE_MEMORY: u32 = 0x31;
const SESSION_COUNT: u32 = 0xb1;
const TOKEN_NOT_PRESENT: u32 = 0xe0;
const TOKEN_NOT_RECOGNIZED: u32 = 0xe1;

/// A device whose token has faults.
struct Faulty<'a> {
    device: &'a Device,
}

impl<'a> Faulty<'a> {
    fn new(device: &'a Device) -> Faulty<'a> {
        let output = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
            .arg(format!("-DSOFTHSM=\"{}\"", softhsm::module().display()))
            .arg("-o")
            .arg(device.path("faulty.so"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/token_recovery/faulty.c"))
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Faulty { device }
    }

    fn library(&self) -> PathBuf {
        self.device.path("faulty.so")
    }

    fn settings(&self) -> Settings {
        Settings { pkcs11_lib_path: Some(self.library()), ..self.device.settings() }
    }

    fn keys(&self, preloaded: &[(&str, &str)]) -> Keys {
        let preloaded_keys = preloaded.iter().map(|(id, uri)| ((*id).to_owned(), (*uri).to_owned())).collect();
        Keys::new(Settings { preloaded_keys, ..self.settings() }).unwrap()
    }

    /// Does `work` with a fault.
    fn with<T>(&self, fault: &str, number: u32, work: impl FnOnce() -> T) -> T {
        let path = self.device.path(&format!("fault-{fault}"));
        aziot_files::write(&path, Mode::PRIVATE, number.to_string()).unwrap();
        let outcome = work();
        fs::remove_file(path).unwrap();
        outcome
    }
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

fn hmac(keys: &Keys, id: &str) -> Result<Vec<u8>, Error> {
    keys.sign_hmac(SymmetricUse::Stored(id), b"hello").map(|signature| signature.to_vec())
}

fn point(keys: &Keys, id: &str) -> Result<Vec<u8>, Error> {
    keys.public_parameter(id, PublicParameter::EcPoint)
}

fn is_missing(outcome: Result<impl Sized, Error>) -> bool {
    matches!(outcome.map(|_| ()), Err(Error::InvalidParameter { source: Invalid::NotFound, .. }))
}

fn is_preloaded(outcome: Result<impl Sized, Error>) -> bool {
    matches!(outcome.map(|_| ()), Err(Error::Preloaded { .. }))
}

/// How many objects of each class are on the token: symmetric keys, public keys, private keys.
fn objects(operator: &Operator) -> [usize; 3] {
    [ObjectClass::SECRET_KEY, ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY]
        .map(|class| operator.session.find_objects(&[Attribute::Class(class)]).unwrap().len())
}

/// What happens first after a move was cut off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum First {
    UseTarget,
    UseSource,
    CreateTarget,
    CreateSource,
    MoveAgain,
    DeleteBoth,
}

const FIRSTS: [First; 6] =
    [First::UseTarget, First::UseSource, First::CreateTarget, First::CreateSource, First::MoveAgain, First::DeleteBoth];

#[test]
fn a_move_that_is_cut_off_is_undone_or_finished() {
    softhsm::run("a_move_that_is_cut_off_is_undone_or_finished", 1, |device, _| {
        let faulty = Faulty::new(device);
        let operator = Operator::at(LABEL);
        for (first, with_target) in FIRSTS.into_iter().flat_map(|first| [(first, true), (first, false)]) {
            for cut in 0.. {
                let case = format!("{first:?}, {with_target}, after {cut} changes");
                if !move_cut_off(&faulty, &operator, first, with_target, cut, &case) {
                    assert!(cut > 2, "{case}");
                    break;
                }
                assert!(cut < 20, "{case}");
            }
        }
    });
}

/// Tells whether the move was cut off at all.
fn move_cut_off(faulty: &Faulty, operator: &Operator, first: First, with_target: bool, cut: u32, case: &str) -> bool {
    let keys = faulty.keys(&[]);
    keys.create_key_pair("source", None).unwrap();
    let new = point(&keys, "source").unwrap();
    let old = with_target.then(|| {
        keys.create_key_pair("target", None).unwrap();
        point(&keys, "target").unwrap()
    });
    let outcome = faulty.with("changes", cut, || keys.move_key_pair("source", "target"));
    let is_cut = outcome.is_err();
    // As another process finds it.
    drop(keys);
    let keys = faulty.keys(&[]);
    let is_new_or_missing = |id| point(&keys, id).map_or_else(|error| is_missing(Err::<(), _>(error)), |it| it == new);
    match first {
        First::UseTarget => assert!(is_new_or_missing("target") || point(&keys, "target").ok() == old, "{case}"),
        First::UseSource => assert!(is_new_or_missing("source"), "{case}"),
        First::CreateTarget if with_target => keys.create_key_pair("target", None).unwrap(),
        First::CreateSource => {
            keys.create_key_pair("source", None).unwrap();
            if point(&keys, "source").unwrap() != new {
                // One that was moved leaves room for another.
                keys.delete_key_pair("source").unwrap();
            }
        }
        First::MoveAgain if is_cut => {
            keys.move_key_pair("source", "target").unwrap_or_else(|error| panic!("{case}: {error:?}"));
        }
        First::CreateTarget | First::MoveAgain => {}
        First::DeleteBoth => {
            keys.delete_key_pair("target").unwrap();
            keys.delete_key_pair("source").unwrap();
            assert_eq!(objects(operator), [0, 0, 0], "{case}");
            return is_cut;
        }
    }
    if is_missing(keys.load_key_pair("source")) {
        // It went all the way.
    } else {
        assert!(is_cut, "{case}");
        assert_eq!(point(&keys, "source").unwrap(), new, "{case}");
        assert_eq!(point(&keys, "target").ok(), old, "{case}");
        keys.move_key_pair("source", "target").unwrap_or_else(|error| panic!("{case}: {error:?}"));
    }
    assert_eq!(point(&keys, "target").unwrap(), new, "{case}");
    keys.sign_ecdsa("target", &[1; 32]).unwrap();
    assert_eq!(operator.counts("target"), (0, 1, 1), "{case}");
    keys.delete_key_pair("target").unwrap();
    assert_eq!(objects(operator), [0, 0, 0], "{case}");
    is_cut
}

#[test]
fn a_move_of_a_file_over_a_token_that_is_cut_off_loses_neither() {
    softhsm::run("a_move_of_a_file_over_a_token_that_is_cut_off_loses_neither", 1, |device, _| {
        let faulty = Faulty::new(device);
        let operator = Operator::at(LABEL);
        for hidden in [false, true] {
            for cut in 0..8 {
                let case = format!("{hidden}, after {cut} changes");
                let files = device.files();
                files.create_key_pair("source", None).unwrap();
                let new = point(&files, "source").unwrap();
                let keys = faulty.keys(&[]);
                keys.create_key_pair("target", None).unwrap();
                let old = point(&keys, "target").unwrap();
                if hidden {
                    files.create_key_pair("target", None).unwrap();
                }
                _ = faulty.with("changes", cut, || keys.move_key_pair("source", "target"));
                drop(keys);
                let keys = faulty.keys(&[]);
                let found = point(&keys, "target").unwrap();
                if device.has_file("source") {
                    assert_eq!(found, old, "{case}");
                    keys.move_key_pair("source", "target").unwrap();
                }
                assert_eq!(point(&keys, "target").unwrap(), new, "{case}");
                keys.create_key_pair("target", None).unwrap();
                keys.delete_key_pair("target").unwrap();
                assert_eq!(objects(&operator), [0, 0, 0], "{case}");
                assert!(!device.has_file("target"));
            }
        }
    });
}

#[test]
fn an_import_that_is_cut_off_leaves_one_key() {
    softhsm::run("an_import_that_is_cut_off_leaves_one_key", 1, |device, _| {
        let faulty = Faulty::new(device);
        let operator = Operator::at(LABEL);
        for repeat in [false, true] {
            for cut in 0.. {
                let keys = faulty.keys(&[]);
                keys.import_key("k", KeyUsage::SIGN, &secret(&[1; 32])).unwrap();
                let old = hmac(&keys, "k").unwrap();
                let outcome = faulty.with("changes", cut, || keys.import_key("k", KeyUsage::SIGN, &secret(&[2; 32])));
                drop(keys);
                let keys = faulty.keys(&[]);
                let found = hmac(&keys, "k").unwrap();
                assert_eq!(operator.counts("k"), (1, 0, 0), "after {cut} changes");
                if outcome.is_ok() {
                    assert_ne!(found, old);
                }
                if repeat {
                    keys.import_key("k", KeyUsage::SIGN, &secret(&[1; 32])).unwrap();
                    assert_eq!(hmac(&keys, "k").unwrap(), old);
                    assert_eq!(objects(&operator), [1, 0, 0], "after {cut} changes");
                }
                keys.delete_key("k").unwrap();
                assert_eq!(objects(&operator), [0, 0, 0], "after {cut} changes");
                if outcome.is_ok() {
                    assert!(cut > 1);
                    break;
                }
            }
        }
        // What its token does not relabel is replaced all the same.
        let keys = faulty.keys(&[]);
        keys.create_key("k", KeyUsage::SIGN).unwrap();
        let old = hmac(&keys, "k").unwrap();
        faulty
            .with("relabel", ATTRIBUTE_READ_ONLY, || keys.import_key("k", KeyUsage::SIGN, &secret(&[2; 32])))
            .unwrap();
        assert_ne!(hmac(&keys, "k").unwrap(), old);
        assert_eq!(objects(&operator), [1, 0, 0]);
    });
}

#[test]
fn a_token_with_few_sessions_serves_many_callers() {
    softhsm::run("a_token_with_few_sessions_serves_many_callers", 1, |device, _| {
        const THREADS: usize = 8;
        let faulty = Faulty::new(device);
        faulty.with("sessions", 2, || {
            let keys = faulty.keys(&[]);
            keys.create_key_pair("pair", None).unwrap();
            let barrier = Barrier::new(THREADS);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        barrier.wait();
                        for _ in 0..40 {
                            keys.sign_ecdsa("pair", &[1; 32]).unwrap();
                        }
                    });
                }
            });
            for _ in 0..20 {
                keys.sign_ecdsa("pair", &[1; 32]).unwrap();
            }
        });
    });
}

#[test]
fn what_passes_is_no_mistake_in_the_settings() {
    softhsm::run("what_passes_is_no_mistake_in_the_settings", 1, |device, _| {
        let faulty = Faulty::new(device);
        let start = || Keys::new(faulty.settings()).map(|_| ());
        let error = faulty.with("initialize", DEVICE_ERROR, start).unwrap_err();
        assert!(matches!(error, SettingsError::Library(TokenError::Start { .. })), "{error:?}");
        assert!(!error.is_permanent());
        for value in
            [DEVICE_ERROR, DEVICE_MEMORY, SESSION_COUNT, TOKEN_NOT_PRESENT, TOKEN_NOT_RECOGNIZED, FUNCTION_FAILED]
        {
            let error = faulty.with("open", value, start).unwrap_err();
            assert!(matches!(error, SettingsError::BaseToken(_)), "{error:?}");
            assert!(!error.is_permanent(), "{value:#x}");
        }
        start().unwrap();

        let missing = Some("pkcs11:token=missing".to_owned());
        let error = Keys::new(Settings { pkcs11_base_slot: missing, ..faulty.settings() }).map(|_| ()).unwrap_err();
        assert!(!error.is_permanent(), "{error:?}");
        for library in ["/nonexistent.so", "libm.so.6"] {
            let library = Some(PathBuf::from(library));
            let error = Keys::new(Settings { pkcs11_lib_path: library, ..faulty.settings() }).map(|_| ()).unwrap_err();
            assert!(error.is_permanent(), "{error:?}");
        }
    });
}

#[test]
fn a_lone_public_key_goes_only_when_a_pair_takes_its_place() {
    softhsm::run("a_lone_public_key_goes_only_when_a_pair_takes_its_place", 1, |device, _| {
        let faulty = Faulty::new(device);
        let keys = faulty.keys(&[]);
        let operator = Operator::at(LABEL);
        for cut in 0.. {
            keys.create_key_pair("pair", None).unwrap();
            let [private] = operator.find(ObjectClass::PRIVATE_KEY, "pair")[..] else { panic!("one private key") };
            operator.session.destroy_object(private).unwrap();
            let refusal = faulty.with("pairs", 1, || keys.create_key_pair("pair", None)).unwrap_err();
            assert!(matches!(refusal, Error::InvalidParameter { source: Invalid::NoAlgorithmOfToken, .. }));
            assert_eq!(operator.counts("pair"), (0, 1, 0));
            let outcome = faulty.with("changes", cut, || keys.create_key_pair("pair", None));
            keys.create_key_pair("pair", None).unwrap();
            let signature = keys.sign_ecdsa("pair", &[1; 32]).unwrap();
            assert!(verifies(&point(&keys, "pair").unwrap(), &signature), "after {cut} changes");
            keys.delete_key_pair("pair").unwrap();
            assert_eq!(objects(&operator), [0, 0, 0], "after {cut} changes");
            if outcome.is_ok() && cut > 3 {
                break;
            }
        }
    });
}

fn verifies(point: &[u8], signature: &[u8]) -> bool {
    use openssl::bn::BigNumContext;
    use openssl::ec::{EcGroup, EcKey, EcPoint};
    use openssl::ecdsa::EcdsaSig;
    use openssl::nid::Nid;
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let mut context = BigNumContext::new().unwrap();
    let point = EcPoint::from_bytes(&group, point, &mut context).unwrap();
    let key = EcKey::from_public_key(&group, &point).unwrap();
    EcdsaSig::from_der(signature).unwrap().verify(&[1; 32], &key).unwrap()
}

#[test]
fn no_id_is_taken_for_what_is_set_aside() {
    softhsm::run("no_id_is_taken_for_what_is_set_aside", 1, |device, _| {
        let faulty = Faulty::new(device);
        let uri = format!("pkcs11:token={LABEL};object=theirs%20(replaced)?pin-value={PIN}");
        let keys = faulty.keys(&[("preloaded", &uri)]);
        let all = ["preloaded", "mine (replaced)"].map(|id| {
            keys.create_key_pair(id, None).unwrap();
            (id, point(&keys, id).unwrap())
        });
        for target in ["theirs", "mine"] {
            for _ in 0..2 {
                keys.create_key_pair("source", None).unwrap();
                keys.move_key_pair("source", target).unwrap();
            }
            keys.delete_key_pair(target).unwrap();
        }
        for (id, expected) in all {
            assert_eq!(point(&keys, id).unwrap(), expected, "{id}");
        }
        let reserved = "\u{1}replaced:mine";
        for outcome in [
            keys.create_key(reserved, KeyUsage::SIGN),
            keys.create_key_pair(reserved, None),
            keys.delete_key_pair(reserved),
            keys.move_key_pair("mine (replaced)", reserved),
            keys.sign_ecdsa(reserved, &[1; 32]).map(|_| ()),
        ] {
            assert!(matches!(outcome, Err(Error::InvalidParameter { source: Invalid::ReservedId, .. })), "{outcome:?}");
        }
        let place = format!("pkcs11:token={LABEL};object=%01replaced%3Amine?pin-value={PIN}");
        let preloaded_keys = BTreeMap::from([("preloaded".to_owned(), place)]);
        let error = Keys::new(Settings { preloaded_keys, ..faulty.settings() }).map(|_| ()).unwrap_err();
        assert!(matches!(error, SettingsError::PreloadedKey { .. }), "{error:?}");
        // A file may have any name.
        device.files().create_key(reserved, KeyUsage::SIGN).unwrap();
    });
}

#[test]
fn a_preloaded_key_is_one_by_its_label_too() {
    softhsm::run("a_preloaded_key_is_one_by_its_label_too", 1, |device, _| {
        let faulty = Faulty::new(device);
        let slot = softhsm::slot(&softhsm::context(), LABEL).id();
        let by_slot = format!("pkcs11:slot-id={slot};object=theirs?pin-value={PIN}");
        let elsewhere = format!("pkcs11:token={OTHER_LABEL};object=mine?pin-value={PIN}");
        let missing = format!("pkcs11:token=missing;object=mine?pin-value={PIN}");
        let keys = faulty.keys(&[("preloaded", &by_slot), ("elsewhere", &elsewhere), ("missing", &missing)]);
        keys.create_key("preloaded", KeyUsage::SIGN).unwrap();
        keys.create_key_pair("preloaded", None).unwrap();
        let (signature, public) = (hmac(&keys, "preloaded").unwrap(), point(&keys, "preloaded").unwrap());
        keys.create_key_pair("source", None).unwrap();
        assert!(is_preloaded(keys.delete_key("theirs")));
        assert!(is_preloaded(keys.import_key("theirs", KeyUsage::SIGN, &secret(&[1; 32]))));
        assert!(is_preloaded(keys.delete_key_pair("theirs")));
        assert!(is_preloaded(keys.move_key_pair("theirs", "new")));
        assert!(is_preloaded(keys.move_key_pair("source", "theirs")));
        assert_eq!((hmac(&keys, "theirs").unwrap(), point(&keys, "theirs").unwrap()), (signature, public));
        // On another token it is another key.
        keys.create_key("mine", KeyUsage::SIGN).unwrap();
        keys.delete_key("mine").unwrap();
    });
}

#[test]
fn no_place_without_label_is_that_of_the_handle_key() {
    softhsm::run("no_place_without_label_is_that_of_the_handle_key", 1, |device, _| {
        let faulty = Faulty::new(device);
        let any = format!("pkcs11:token={LABEL}?pin-value={PIN}");
        let keys = faulty.keys(&[("any", &any)]);
        keys.create_key(HANDLE_KEY, KeyUsage::SIGN).unwrap();
        assert!(is_missing(hmac(&keys, "any")));
        keys.create_key("other", KeyUsage::SIGN).unwrap();
        assert_eq!(hmac(&keys, "any").unwrap(), hmac(&keys, "other").unwrap());
    });
}

#[test]
fn two_names_of_one_place_take_turns() {
    softhsm::run("two_names_of_one_place_take_turns", 1, |device, _| {
        let faulty = Faulty::new(device);
        let slot = softhsm::slot(&softhsm::context(), LABEL).id();
        let by_slot = format!("pkcs11:slot-id={slot};object=same?pin-value={PIN}");
        faulty.with("maker", 1, || {
            let keys = faulty.keys(&[("preloaded", &by_slot)]);
            let barrier = Barrier::new(2);
            faulty.with("slow", 300, || {
                thread::scope(|scope| {
                    for id in ["preloaded", "same"] {
                        let (keys, barrier) = (&keys, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            keys.create_key(id, KeyUsage::SIGN).unwrap();
                        });
                    }
                });
            });
        });
        assert_eq!(Operator::at(LABEL).counts("same"), (1, 0, 0));
    });
}

#[test]
fn a_login_that_fails_for_another_reason_refuses_no_pin() {
    softhsm::run("a_login_that_fails_for_another_reason_refuses_no_pin", 1, |device, _| {
        let faulty = Faulty::new(device);
        let place = format!("pkcs11:token={OTHER_LABEL};object=o?pin-value={PIN}");
        let keys = faulty.keys(&[("preloaded", &place)]);
        faulty.with("count_low", 1, || {
            let error = faulty.with("login", FUNCTION_FAILED, || keys.load_key("preloaded")).unwrap_err();
            assert!(
                matches!(error, Error::External { source: Failure::Token(TokenError::Call { .. }), .. }),
                "{error:?}"
            );
            keys.create_key("preloaded", KeyUsage::SIGN).unwrap();
        });
    });
}
