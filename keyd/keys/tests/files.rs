//! What the library does to key files: made, found, replaced, moved, deleted, and above all left alone.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aziot_keys::{
    Error, Failure, Invalid, KeyPairAlgorithm, KeyUsage, Keys, LEFTOVER_AGE, NotKeyPair, PublicParameter, Secret,
    Settings, SymmetricUse, file_name,
};
use openssl::ec::{EcGroup, EcKey};
use openssl::nid::Nid;
use openssl::pkey::PKey;
use tempfile::TempDir;

const HOW: &[u8] = b"-----BEGIN PRIVATE KEY-----";

/// A home directory with its keys.
struct Device {
    folder: TempDir,
    keys: Keys,
}

impl Device {
    fn new() -> Device {
        Device::with_preloaded(&[])
    }

    /// Preloaded keys lie in the folder `preloaded`, beside the home.
    fn with_preloaded(ids: &[&str]) -> Device {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("preloaded")).unwrap();
        let place = |id: &&str| {
            let path = folder.path().join("preloaded").join(id);
            ((*id).to_owned(), format!("file://{}", path.display()))
        };
        let settings = Settings {
            homedir_path: Some(folder.path().join("home")),
            preloaded_keys: ids.iter().map(place).collect(),
            ..Settings::default()
        };
        let keys = Keys::new(settings).unwrap();
        Device { folder, keys }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.path().join("home/keys").join(file_name(id).unwrap())
    }

    fn preloaded_path(&self, id: &str) -> PathBuf {
        self.folder.path().join("preloaded").join(id)
    }

    /// Puts a file where the library would, as the public system would.
    fn put(&self, id: &str, bytes: &[u8]) {
        fs::create_dir_all(self.folder.path().join("home/keys")).unwrap();
        put(&self.path(id), bytes);
    }

    fn hmac(&self, id: &str) -> Result<Secret, Error> {
        self.keys.sign_hmac(SymmetricUse::Stored(id), b"message")
    }

    /// What signing says once it is `such`: a file that was seen a moment ago is not looked at for each signature.
    fn hmac_once(&self, id: &str, such: impl Fn(&Result<Secret, Error>) -> bool) -> Result<Secret, Error> {
        let begun = Instant::now();
        loop {
            let signed = self.hmac(id);
            if such(&signed) {
                return signed;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{id} stays as it was");
            thread::yield_now();
        }
    }

    /// Until the file is old enough that the next write cannot look like the last.
    fn wait_until_kept(&self, id: &str) {
        let begun = Instant::now();
        while !self.keys.is_ready(id) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{id} is never kept");
            // Of whichever kind it is, it is read.
            let _ = self.keys.load_key(id);
            thread::yield_now();
        }
    }

    fn point(&self, id: &str) -> Vec<u8> {
        self.keys.public_parameter(id, PublicParameter::EcPoint).unwrap()
    }
}

#[expect(clippy::disallowed_methods, reason = "stands for another program that writes in place")]
fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

fn invalid(outcome: Result<impl Sized, Error>) -> Invalid {
    match outcome.map(|_| ()) {
        Err(Error::InvalidParameter { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn failure(outcome: Result<impl Sized, Error>) -> Failure {
    match outcome.map(|_| ()) {
        Err(Error::External { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn is_preloaded(outcome: Result<impl Sized, Error>) -> bool {
    outcome.is_err_and(|error| matches!(error, Error::Preloaded { .. }))
}

#[test]
fn a_key_is_made_once_with_private_modes() {
    let device = Device::new();
    assert!(matches!(invalid(device.keys.load_key("k")), Invalid::NotFound));
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    let bytes = fs::read(device.path("k")).unwrap();
    assert_eq!(bytes.len(), 32);
    assert_eq!((mode(&device.path("k")), mode(device.path("k").parent().unwrap())), (0o600, 0o700));
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    device.keys.load_key("k").unwrap();
    assert_eq!(fs::read(device.path("k")).unwrap(), bytes);
}

#[test]
fn any_text_is_an_id_but_not_of_any_length() {
    let device = Device::new();
    for id in ["", "../../etc/passwd", "日本", "a/b c%?é"] {
        device.keys.create_key(id, KeyUsage::SIGN).unwrap();
        assert!(device.path(id).exists(), "{id}");
    }
    let long = "a".repeat(187);
    assert!(matches!(invalid(device.keys.create_key(&long, KeyUsage::SIGN)), Invalid::IdTooLong));
    assert!(matches!(invalid(device.keys.import_key(&long, KeyUsage::SIGN, &secret(b"x"))), Invalid::IdTooLong));
    assert!(matches!(invalid(device.keys.load_key_pair(&long)), Invalid::IdTooLong));
}

#[test]
fn an_import_takes_bytes_as_they_are_and_replaces() {
    let device = Device::new();
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    for bytes in [&b"a trailing newline is key material\n"[..], b"\0", HOW] {
        device.keys.import_key("k", KeyUsage::SIGN, &secret(bytes)).unwrap();
        assert_eq!(fs::read(device.path("k")).unwrap(), bytes);
        assert_eq!(mode(&device.path("k")), 0o600);
        device.hmac("k").unwrap();
    }
    assert!(matches!(invalid(device.keys.import_key("k", KeyUsage::SIGN, &secret(b""))), Invalid::EmptyImport));
    assert_eq!(fs::read(device.path("k")).unwrap(), HOW);
}

#[test]
fn keys_of_the_public_system_are_used_as_they_are() {
    let device = Device::new();
    device.put("k", &[7; 16]);
    fs::set_permissions(device.path("k"), fs::Permissions::from_mode(0o644)).unwrap();
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    device.hmac("k").unwrap();
    assert_eq!((fs::read(device.path("k")).unwrap(), mode(&device.path("k"))), (vec![7; 16], 0o644));
}

#[test]
fn an_empty_file_is_replaced_only_by_making_or_importing() {
    let device = Device::new();
    device.put("k", b"");
    device.put("pair", b"");
    assert!(matches!(failure(device.keys.load_key("k")), Failure::Empty { .. }));
    assert!(matches!(failure(device.keys.load_key_pair("pair")), Failure::Empty { .. }));
    assert!(device.path("k").exists());
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    device.keys.create_key_pair("pair", None).unwrap();
    assert_eq!(fs::read(device.path("k")).unwrap().len(), 32);
    assert_eq!(device.point("pair").len(), 33);
    device.put("other", b"");
    device.keys.import_key("other", KeyUsage::SIGN, &secret(b"x")).unwrap();
    assert_eq!(fs::read(device.path("other")).unwrap(), b"x");
}

#[test]
fn a_damaged_key_pair_is_never_made_anew() {
    let device = Device::new();
    device.keys.create_key_pair("pair", None).unwrap();
    let whole = fs::read(device.path("pair")).unwrap();
    let with_zeros = vec![0; whole.len()];
    for damaged in [&whole[..whole.len() / 2], &whole[whole.len() / 2..], &with_zeros] {
        device.put("pair", damaged);
        assert!(matches!(failure(device.keys.load_key_pair("pair")), Failure::Damaged { .. }));
        assert!(matches!(failure(device.keys.create_key_pair("pair", None)), Failure::Damaged { .. }));
        assert!(matches!(failure(device.keys.move_key_pair("pair", "new")), Failure::Damaged { .. }));
        assert_eq!(fs::read(device.path("pair")).unwrap(), damaged);
    }
    device.put("pair", &whole);
    device.keys.load_key_pair("pair").unwrap();
}

#[test]
fn neither_kind_is_used_or_replaced_as_the_other() {
    let device = Device::new();
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    device.keys.create_key_pair("pair", None).unwrap();
    let before = [fs::read(device.path("k")).unwrap(), fs::read(device.path("pair")).unwrap()];
    let keys = &device.keys;

    assert!(matches!(invalid(keys.load_key("pair")), Invalid::NotSymmetric));
    assert!(matches!(invalid(keys.create_key("pair", KeyUsage::SIGN)), Invalid::NotSymmetric));
    assert!(matches!(invalid(keys.import_key("pair", KeyUsage::SIGN, &secret(b"x"))), Invalid::NotSymmetric));
    assert!(matches!(invalid(keys.delete_key("pair")), Invalid::NotSymmetric));
    assert!(matches!(invalid(device.hmac("pair")), Invalid::NotSymmetric));
    assert!(matches!(invalid(keys.derive("pair", b"")), Invalid::NotSymmetric));

    // The public system answers 500 here, and the file might be a damaged pair.
    assert!(matches!(failure(keys.load_key_pair("k")), Failure::Damaged { source: NotKeyPair::NoPem, .. }));
    assert!(matches!(failure(keys.create_key_pair("k", None)), Failure::Damaged { .. }));
    assert!(matches!(failure(keys.sign_ecdsa("k", &[1; 32])), Failure::Damaged { .. }));
    assert!(matches!(failure(keys.move_key_pair("k", "new")), Failure::Damaged { .. }));
    assert!(matches!(invalid(keys.delete_key_pair("k")), Invalid::NotKeyPair));
    assert!(matches!(invalid(keys.move_key_pair("pair", "k")), Invalid::NotKeyPair));

    assert_eq!([fs::read(device.path("k")).unwrap(), fs::read(device.path("pair")).unwrap()], before);
    let pem = secret(&before[1]);
    assert!(matches!(invalid(keys.import_key("new", KeyUsage::SIGN, &pem)), Invalid::ImportOfPrivateKey));
}

#[test]
fn a_key_pair_is_made_with_the_first_known_algorithm_and_kept() {
    let device = Device::new();
    device.keys.create_key_pair("rsa", Some("foo:rsa-2048:*")).unwrap();
    assert_eq!(device.keys.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
    device.keys.create_key_pair("rsa", Some("ec-p256")).unwrap();
    assert_eq!(device.keys.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
    for nothing in ["", "foo"] {
        assert!(matches!(invalid(device.keys.create_key_pair("rsa", Some(nothing))), Invalid::NoKnownAlgorithm));
        assert!(matches!(invalid(device.keys.create_key_pair("new", Some(nothing))), Invalid::NoKnownAlgorithm));
    }
    assert!(!device.path("new").exists());
}

#[test]
fn a_move_replaces_the_target_and_checks_the_source_first() {
    let device = Device::new();
    device.keys.create_key_pair("old", None).unwrap();
    device.keys.create_key_pair("new", None).unwrap();
    let (old, new) = (device.point("old"), device.point("new"));
    let error = device.keys.move_key_pair("missing", "old").unwrap_err();
    assert!(matches!(error, Error::External { id, source: Failure::NothingToMove } if id == "missing"));
    assert_eq!(device.point("old"), old);
    device.keys.move_key_pair("new", "old").unwrap();
    assert_eq!(device.point("old"), new);
    assert!(matches!(invalid(device.keys.load_key_pair("new")), Invalid::NotFound));
    device.keys.move_key_pair("old", "free").unwrap();
    assert_eq!(device.point("free"), new);
    // A damaged or empty pair gives way to a good one.
    device.put("cut", &HOW[..20]);
    device.keys.move_key_pair("free", "cut").unwrap();
    device.put("empty", b"");
    device.keys.move_key_pair("cut", "empty").unwrap();
    assert_eq!(device.point("empty"), new);
}

#[test]
fn what_is_deleted_is_gone_and_deleting_nothing_is_fine() {
    let device = Device::new();
    device.keys.delete_key("k").unwrap();
    device.keys.delete_key_pair("k").unwrap();
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    let first = device.hmac("k").unwrap();
    device.keys.delete_key("k").unwrap();
    assert!(matches!(invalid(device.hmac("k")), Invalid::NotFound));
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    assert_ne!(device.hmac("k").unwrap(), first);
    device.put("empty", b"");
    device.keys.delete_key_pair("empty").unwrap();
    assert!(!device.path("empty").exists());
}

#[test]
fn a_preloaded_key_is_made_where_absent_and_never_changed() {
    let device = Device::with_preloaded(&["k", "pair", "import", "target"]);
    let keys = &device.keys;
    keys.create_key_pair("movable", None).unwrap();
    keys.delete_key("k").unwrap();
    keys.create_key("k", KeyUsage::SIGN).unwrap();
    keys.create_key_pair("pair", None).unwrap();
    keys.import_key("import", KeyUsage::SIGN, &secret(b"bytes")).unwrap();
    let before = [fs::read(device.preloaded_path("k")).unwrap(), fs::read(device.preloaded_path("pair")).unwrap()];
    assert_eq!((before[0].len(), before[1].len(), mode(&device.preloaded_path("k"))), (32, 241, 0o600));
    keys.create_key("k", KeyUsage::SIGN).unwrap();
    keys.create_key_pair("pair", Some("rsa-2048")).unwrap();

    assert!(is_preloaded(keys.import_key("k", KeyUsage::SIGN, &secret(b"x"))));
    assert!(is_preloaded(keys.import_key("import", KeyUsage::SIGN, &secret(b"x"))));
    assert!(is_preloaded(keys.delete_key("k")));
    assert!(is_preloaded(keys.delete_key_pair("pair")));
    assert!(is_preloaded(keys.move_key_pair("pair", "new")));
    assert!(is_preloaded(keys.move_key_pair("movable", "pair")));
    assert_eq!(
        [fs::read(device.preloaded_path("k")).unwrap(), fs::read(device.preloaded_path("pair")).unwrap()],
        before
    );

    keys.move_key_pair("movable", "target").unwrap();
    assert!(device.preloaded_path("target").exists());
    let error = keys.delete_key("k").unwrap_err();
    assert!(error.to_string().contains("\"k\" is preloaded"), "{error}");
}

#[test]
fn an_empty_or_damaged_preloaded_key_is_a_failure_and_stays() {
    let device = Device::with_preloaded(&["empty", "cut", "link"]);
    put(&device.preloaded_path("empty"), b"");
    put(&device.preloaded_path("cut"), HOW);
    symlink("/nonexistent/key", device.preloaded_path("link")).unwrap();
    let keys = &device.keys;
    assert!(matches!(failure(keys.create_key("empty", KeyUsage::SIGN)), Failure::Empty { .. }));
    assert!(matches!(failure(keys.create_key_pair("empty", None)), Failure::Empty { .. }));
    assert!(matches!(failure(keys.create_key_pair("cut", None)), Failure::Damaged { .. }));
    assert!(is_preloaded(keys.import_key("empty", KeyUsage::SIGN, &secret(b"x"))));
    assert!(is_preloaded(keys.import_key("link", KeyUsage::SIGN, &secret(b"x"))));
    assert!(matches!(failure(keys.create_key("link", KeyUsage::SIGN)), Failure::Vanished));
    assert_eq!(fs::read(device.preloaded_path("empty")).unwrap(), b"");
    assert_eq!(fs::read(device.preloaded_path("cut")).unwrap(), HOW);
    assert!(device.preloaded_path("link").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn the_folder_of_a_preloaded_key_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("file://{}", folder.path().join("missing/k").display());
    let settings = Settings { preloaded_keys: [("k".to_owned(), uri)].into(), ..Settings::default() };
    let keys = Keys::new(settings).unwrap();
    assert!(matches!(failure(keys.create_key("k", KeyUsage::SIGN)), Failure::File(_)));
    assert!(!folder.path().join("missing").exists());
    assert!(matches!(invalid(keys.create_key("other", KeyUsage::SIGN)), Invalid::NoHome));
}

#[test]
fn a_changed_file_is_read_again() {
    let device = Device::new();
    device.put("k", &[1; 32]);
    assert!(!device.keys.is_ready("k"));
    let first = device.hmac("k").unwrap();
    device.wait_until_kept("k");
    assert_eq!(device.hmac("k").unwrap(), first);

    // Another program renames a file of the same size over it.
    let other = device.folder.path().join("other");
    put(&other, &[2; 32]);
    fs::rename(&other, device.path("k")).unwrap();
    // Whether it is ready is asked without a look at the file; its use looks, and reads it once more.
    assert!(device.keys.is_ready("k"));
    let second = device.hmac_once("k", |signed| signed.as_ref().is_ok_and(|hmac| *hmac != first)).unwrap();
    device.wait_until_kept("k");
    assert_eq!(device.hmac("k").unwrap(), second);
    device.keys.import_key("k", KeyUsage::SIGN, &secret(&[1; 32])).unwrap();
    assert_eq!(device.hmac("k").unwrap(), first);
    fs::remove_file(device.path("k")).unwrap();
    assert!(matches!(invalid(device.hmac_once("k", Result::is_err)), Invalid::NotFound));
    assert!(!device.keys.is_ready("k"));
}

/// A second write in place within the same tick of the clock can leave all that is known of a file as it was.
#[test]
fn what_was_written_in_place_just_now_is_not_kept() {
    let device = Device::new();
    device.put("k", &[1; 32]);
    device.hmac("k").unwrap();
    assert!(!device.keys.is_ready("k"));
    device.wait_until_kept("k");

    // Not even in place of an older state that was.
    put(&device.path("k"), &[2; 32]);
    device.hmac("k").unwrap();
    assert!(!device.keys.is_ready("k"));

    // What this library has written is a file of its own, and kept.
    for id in ["k", "new"] {
        device.keys.import_key(id, KeyUsage::SIGN, &secret(&[1; 32])).unwrap();
        assert!(device.keys.is_ready(id));
    }
    device.keys.create_key("made", KeyUsage::SIGN).unwrap();
    assert!(device.keys.is_ready("made"));
}

#[test]
fn only_pairs_of_p256_in_memory_sign_at_once() {
    let device = Device::with_preloaded(&["large"]);
    device.keys.create_key("symmetric", KeyUsage::SIGN).unwrap();
    device.keys.create_key_pair("p256", None).unwrap();
    device.keys.create_key_pair("rsa", Some("rsa-2048")).unwrap();
    for curve in [Nid::SECP256K1, Nid::SECP384R1, Nid::SECP521R1] {
        let group = EcGroup::from_curve_name(curve).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        put(&device.preloaded_path("large"), &key.private_key_to_pem_pkcs8().unwrap());
        device.keys.sign_ecdsa("large", &[1; 32]).unwrap();
        device.wait_until_kept("large");
        assert!(!device.keys.is_ready_to_sign_ecdsa("large"));
    }
    for id in ["p256", "rsa", "symmetric"] {
        assert!(device.keys.is_ready(id), "{id}");
        assert_eq!(device.keys.is_ready_to_sign_ecdsa(id), id == "p256", "{id}");
    }
    assert!(!device.keys.is_ready_to_sign_ecdsa("unknown"));
    let after_restart =
        Keys::new(Settings { homedir_path: Some(device.folder.path().join("home")), ..Settings::default() });
    assert!(!after_restart.unwrap().is_ready_to_sign_ecdsa("p256"));
}

#[test]
fn what_is_no_file_or_too_large_is_a_failure() {
    let device = Device::with_preloaded(&["endless"]);
    device.keys.create_key("k", KeyUsage::SIGN).unwrap();
    fs::create_dir(device.path("folder")).unwrap();
    assert!(matches!(failure(device.keys.create_key("folder", KeyUsage::SIGN)), Failure::NotAFile { .. }));
    device.put("large", &vec![1; 1024 * 1024 + 1]);
    let error = device.keys.load_key("large").unwrap_err();
    assert!(matches!(error, Error::External { .. }));
    assert!(error.source().unwrap().to_string().contains("large"), "names the file: {error:?}");
    symlink("/dev/zero", device.preloaded_path("endless")).unwrap();
    assert!(matches!(failure(device.keys.load_key("endless")), Failure::NotAFile { .. }));
}

#[test]
fn leftovers_of_a_crash_are_removed_and_what_others_are_writing_is_not() {
    let device = Device::with_preloaded(&["preloaded"]);
    fs::create_dir_all(device.folder.path().join("home/keys")).unwrap();
    for folder in ["home/keys", "preloaded"] {
        let folder = device.folder.path().join(folder);
        let (leftover, in_flight, other) =
            (folder.join(".aziot-abc.partial"), folder.join(".aziot-def.partial"), folder.join(".other.partial"));
        for path in [&leftover, &in_flight, &other] {
            put(path, b"half a key");
        }
        for path in [&leftover, &other] {
            fs::File::open(path).unwrap().set_modified(SystemTime::now() - LEFTOVER_AGE).unwrap();
        }
        device.keys.tidy().unwrap();
        assert!(!leftover.exists(), "{}", leftover.display());
        assert!(other.exists(), "{}", folder.display());
        // To its own folder nobody else writes.
        assert_eq!(in_flight.exists(), folder.ends_with("preloaded"), "{}", folder.display());
    }
}

/// Runs `work` on eight threads that start together.
fn race<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(8);
    let racer = |number| {
        barrier.wait();
        work(number)
    };
    thread::scope(|scope| {
        let racer = &racer;
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || racer(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn callers_who_race_for_one_id_get_one_key() {
    for _ in 0..10 {
        let device = Device::new();
        let signatures = race(|_| {
            device.keys.create_key("k", KeyUsage::SIGN).unwrap();
            device.hmac("k").unwrap()
        });
        assert!(signatures.windows(2).all(|pair| pair[0] == pair[1]));
        let points = race(|_| {
            device.keys.create_key_pair("pair", None).unwrap();
            device.point("pair")
        });
        assert!(points.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn a_key_is_used_while_others_replace_it() {
    let device = Device::new();
    device.keys.import_key("k", KeyUsage::SIGN, &secret(&[0; 32])).unwrap();
    race(|number| {
        for round in 0..20u8 {
            if number == 0 {
                device.keys.import_key("k", KeyUsage::SIGN, &secret(&[round; 32])).unwrap();
            } else {
                device.hmac("k").unwrap();
            }
        }
    });
    let last = Device::new();
    last.put("k", &[19; 32]);
    assert_eq!(device.hmac("k").unwrap(), last.hmac("k").unwrap());
    assert_eq!(device.path("k").metadata().unwrap().nlink(), 1);
}

#[test]
fn verification_is_exact() {
    let device = Device::new();
    device.put("k", b"key");
    let key = SymmetricUse::Stored("k");
    let mut signature = device.keys.sign_hmac(key, b"m").unwrap();
    assert!(device.keys.verify_hmac(key, b"m", &signature).unwrap());
    assert!(!device.keys.verify_hmac(key, b"n", &signature).unwrap());
    assert!(!device.keys.verify_hmac(key, b"m", &signature[..31]).unwrap());
    assert!(!device.keys.verify_hmac(key, b"m", b"").unwrap());
    signature[31] ^= 1;
    assert!(!device.keys.verify_hmac(key, b"m", &signature).unwrap());
}
