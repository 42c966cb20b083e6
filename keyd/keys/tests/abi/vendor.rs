//! Libraries of vendors, compiled from `vendor.c`: what is refused at the start, and what a bad answer does to a call.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aziot_files::Mode;
use aziot_keys::{
    CallError, Error, Failure, Foreign, Invalid, KeyLibrary, KeyPairAlgorithm, KeyUsage, LoadError, PublicParameter,
    RsaPadding, Secret, SymmetricUse,
};
use tempfile::TempDir;

use crate::{SOURCES, compile};

const LONG: Duration = Duration::from_secs(60);

/// A library compiled with these definitions.
fn build(definitions: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("vendor.so");
    let mut arguments = vec!["-shared", "-fPIC", "-D_GNU_SOURCE", "-Wno-unused-parameter"];
    arguments.extend(definitions);
    compile(&Path::new(SOURCES).join("vendor.c"), &library, &arguments);
    (folder, library)
}

fn load(definitions: &[&str], parameters: &[(&str, &str)]) -> Result<Foreign, LoadError> {
    let (_folder, library) = build(definitions);
    let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Foreign::load(&library, parameters, LONG)
}

fn refused(definitions: &[&str]) -> LoadError {
    load(definitions, &[]).err().unwrap()
}

fn call_error(outcome: Result<impl Sized, Error>) -> CallError {
    match outcome.err().unwrap() {
        Error::External { source: Failure::Foreign(error), .. } => error,
        error => panic!("{error:?}"),
    }
}

fn stored(id: &str) -> SymmetricUse<'_> {
    SymmetricUse::Stored(id)
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

#[test]
fn what_is_no_key_library_is_refused_in_clear_words() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    aziot_files::write(&text, Mode::PRIVATE, "no library").unwrap();
    let load = |path: &Path| Foreign::load(path, vec![], LONG).err().unwrap();
    for (error, words) in [
        (load(Path::new("vendor.so")), "must start with a slash"),
        (load(&folder.path().join("missing.so")), "No such file"),
        (load(folder.path()), "is not a regular file"),
        (load(&text), "text.so: "),
        (refused(&["-DNO_SYMBOL"]), "is no key library"),
        (refused(&["-DANSWERS=0x02020000"]), "neither version 2.1.0.0 nor version 2.0.0.0"),
        (refused(&["-DVERSION=0x03000000"]), "unknown version 0x03000000"),
        (refused(&["-DNO_LIST"]), "no usable list"),
        (refused(&["-DLACKS=decrypt"]), "does not have the function decrypt"),
        (refused(&["-DLACKS=delete_key"]), "does not have the function delete_key"),
        (refused(&["-DLACKS=set_parameter"]), "does not have the function set_parameter"),
    ] {
        let all = format!("{error} {}", error.source().map(ToString::to_string).unwrap_or_default());
        assert!(all.contains(words), "{all}");
        assert!(error.is_permanent(), "{all}");
    }
}

#[test]
fn a_refused_parameter_is_named_and_its_value_is_not() {
    for (code, is_permanent) in [("1", true), ("2", false), ("77", false)] {
        let error = load(&[&format!("-DREFUSES={code}")], &[("fine", "x"), ("refused", "pin 1234")]).err().unwrap();
        assert!(error.to_string().contains("\"refused\""), "{error}");
        assert!(!format!("{error:?}{error}").contains("1234"));
        assert_eq!(error.is_permanent(), is_permanent, "{error}");
    }
    assert!(load(&[], &[("nul\0", "x")]).is_err());
}

#[test]
fn a_library_that_never_gets_ready_is_not_waited_for() {
    let (_folder, library) = build(&["-DHANGS"]);
    let error = Foreign::load(&library, vec![], Duration::from_millis(100)).err().unwrap();
    assert!(matches!(error, LoadError::Start { source: CallError::Late(_), .. }), "{error:?}");
    assert!(!error.is_permanent());
}

#[test]
fn every_call_arrives_as_it_was_made() {
    let parameters = [("homedir_path", "/home"), ("Own option", ""), ("preloaded_key:k", "file:///k")];
    let library = load(&[], &parameters).unwrap();
    let derived = |base| SymmetricUse::Derived { base, data: b"data" };
    assert_eq!(
        &*library.derive("parameters", b"").unwrap(),
        b"homedir_path=/home;Own option=;preloaded_key:k=file:///k;"
    );
    library.create_key("usage 0x11", KeyUsage::SIGN.and(KeyUsage::ENCRYPT)).unwrap();
    library.load_key("k").unwrap();
    library.import_key("k", KeyUsage::ENCRYPT, &secret(b"bytes")).unwrap();
    library.delete_key("k").unwrap();
    library.create_key_pair("of NULL", None).unwrap();
    library.create_key_pair("of text", Some("ec-p256:*")).unwrap();
    library.load_key_pair("k").unwrap();
    library.move_key_pair("from", "to").unwrap();
    library.delete_key_pair("k").unwrap();
    assert!(!library.is_ready("k"));

    // Of 64 bytes asked for, as many as there are.
    assert_eq!(&*library.sign_hmac(stored("k"), b"digest").unwrap(), b"plain");
    assert_eq!(&*library.sign_hmac(derived("k"), b"digest").unwrap(), b"derived");
    assert_eq!(library.sign_ecdsa("k", b"digest").unwrap(), b"plain");
    assert!(library.verify_hmac("k", b"same", b"same").unwrap());
    assert!(!library.verify_hmac("k", b"same", b"other").unwrap());
    assert_eq!(library.encrypt_aead(stored("k"), b"iv", b"", b"text").unwrap(), b"aead");
    assert_eq!(library.encrypt_aead(derived("k"), b"iv", b"", b"text").unwrap(), b"derived");
    assert_eq!(&*library.decrypt_aead(derived("k"), b"iv", b"", b"text").unwrap(), b"derived");
    assert_eq!(library.encrypt_rsa("k", RsaPadding::Pkcs1, b"text").unwrap(), b"pkcs1");
    assert_eq!(library.encrypt_rsa("k", RsaPadding::None, b"text").unwrap(), b"raw");
    assert_eq!(library.key_pair_algorithm("k").unwrap(), KeyPairAlgorithm::Rsa);
    assert_eq!(library.public_parameter("k", PublicParameter::EcPoint).unwrap(), b"value");
    assert_eq!(library.public_parameter("nothing", PublicParameter::EcPoint).unwrap(), b"");
}

#[test]
fn impossible_answers_are_errors_and_nothing_worse() {
    let library = load(&[], &[]).unwrap();
    let sign = |id: &str| library.sign_hmac(stored(id), b"digest");
    for _ in 0..3 {
        assert!(matches!(call_error(sign("overflow")), CallError::Overflow { length: 65, capacity: 64 }));
        assert!(matches!(call_error(sign("endless")), CallError::TooLong { length: usize::MAX, .. }));
        assert!(matches!(call_error(sign("long")), CallError::TooLong { .. }));
        assert!(matches!(call_error(sign("external")), CallError::External(2)));
        assert!(matches!(call_error(sign("code 7")), CallError::External(7)));
        for id in ["grows", "invalid"] {
            assert!(matches!(sign(id), Err(Error::InvalidParameter { source: Invalid::Refused, .. })), "{id}");
        }
        assert_eq!(&*sign("k").unwrap(), b"plain");
    }
    let overflow = library.key_pair_algorithm("overflow");
    assert!(matches!(call_error(overflow), CallError::Overflow { length: 5, capacity: 4 }));
    assert!(matches!(call_error(library.key_pair_algorithm("nothing")), CallError::UnknownValue { value: 0, .. }));
    assert!(matches!(call_error(library.key_pair_algorithm("algorithm 9")), CallError::UnknownValue { value: 9, .. }));
    assert!(matches!(call_error(library.verify_hmac("ok 7", b"", b"")), CallError::UnknownValue { value: 7, .. }));
    assert!(matches!(library.load_key("a\0b"), Err(Error::InvalidParameter { source: Invalid::Nul(_), .. })));
}

#[test]
fn a_library_of_version_2_0_says_what_it_cannot_do() {
    for definition in ["-DANSWERS=0x02000000", "-DOLD"] {
        let library = load(&[definition], &[]).unwrap();
        assert_eq!(&*library.sign_hmac(stored("k"), b"digest").unwrap(), b"plain");
        for outcome in [library.delete_key("k"), library.delete_key_pair("k"), library.move_key_pair("from", "to")] {
            assert!(matches!(call_error(outcome), CallError::NotInVersion(_)));
        }
    }
}

#[test]
fn calls_come_one_at_a_time_from_one_thread() {
    let library = load(&[], &[]).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(&*library.sign_hmac(stored("k"), b"digest").unwrap(), b"plain");
                }
            });
        }
    });
}

#[test]
fn a_call_that_hangs_ends_with_an_error_and_the_library_is_used_again_when_it_returns() {
    let (folder, path) = build(&[]);
    let release = folder.path().join("release");
    let parameters = vec![("release".to_owned(), release.to_str().unwrap().to_owned())];
    let library = Foreign::load(&path, parameters, Duration::from_millis(300)).unwrap();
    assert!(matches!(call_error(library.load_key("hangs")), CallError::Late(_)));
    let refused = call_error(library.load_key("k"));
    assert!(matches!(refused, CallError::Stuck(_) | CallError::Late(_)), "{refused}");
    assert!(matches!(call_error(library.load_key("k")), CallError::Stuck(_)));
    fs::create_dir(&release).unwrap();
    let outcome = loop {
        match library.load_key("k") {
            Err(Error::External { source: Failure::Foreign(CallError::Stuck(_) | CallError::Late(_)), .. }) => {
                thread::yield_now();
            }
            outcome => break outcome,
        }
    };
    outcome.unwrap();
}
