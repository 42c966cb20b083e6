//! The service over a real socket: what a caller reads for each call, as `keys.md` sections 1, 2 and 10 give it.
//!
//! Each test runs twice: on the built-in library, and on the same library loaded as a vendor's, through its C ABI.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aziot_http::testing::TestServer;
use aziot_http::{Glob, Peer};
use aziot_keyd_api::config::Principal;
use aziot_keyd_api::key::KeyHandle;
use aziot_keys::{Foreign, KeyLibrary, KeyUsage, Keys as Library, PRELOADED_KEY, Secret, Settings, file_name};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::handle::HANDLE_KEY;
use crate::http::routes;
use crate::keys::Keys;
use crate::principals::Principals;
use crate::test_vectors::HK;

const INVALID_HANDLE: &str = "parameter \"handle\" has an invalid value\ncaused by: invalid handle";
const MECHANISM: &str =
    "parameter \"mechanism\" has an invalid value\ncaused by: mechanism cannot be used with this key type";
const REFUSED: &str = "a parameter has an invalid value";
const PRELOADED: &str =
    "the key preloaded is preloaded: what is there is never overwritten, moved or deleted through the API";

/// The key library behind the service.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Behind {
    BuiltIn,
    Abi,
}

macro_rules! run_behind_both {
    ($($test:ident)*) => {
        mod built_in { $(#[tokio::test] async fn $test() { super::$test(super::Behind::BuiltIn).await; })* }
        mod abi { $(#[tokio::test] async fn $test() { super::$test(super::Behind::Abi).await; })* }
    };
}

run_behind_both! {
    the_worked_examples_over_the_wire
    symmetric_keys_are_made_kept_imported_loaded_and_deleted
    key_pairs_are_made_kept_moved_and_deleted
    a_move_is_checked_before_anything_else
    bad_bodies_are_422
    bad_parameters_are_400
    the_table_of_aead_refusals
    each_mechanism_wants_its_kind_of_key
    a_derived_key_is_checked_when_it_is_used
    a_handle_that_was_tampered_with_opens_nothing
    the_handle_key_is_out_of_everybodys_reach
    an_existing_preloaded_key_stays
    the_table_of_ids_in_paths
    damaged_key_files_are_500_and_stay
    texts_without_measure_are_refused
    principals_decide_and_may_change
    callers_who_race_for_one_id_get_one_key
}

/// `libaziot_keys.so` of this build with `settings`. Each copy of the file has parameters of its own in this process.
fn through_the_abi(folder: &Path, settings: &Settings) -> Foreign {
    let built = std::env::current_exe().unwrap().with_file_name("libaziot_keys.so");
    let copy = folder.join("libaziot_keys.so");
    fs::copy(built, &copy).unwrap();
    let home = settings.homedir_path.iter().map(|home| ("homedir_path".to_owned(), home.display().to_string()));
    let preloaded = settings.preloaded_keys.iter().map(|(id, uri)| (format!("{PRELOADED_KEY}{id}"), uri.clone()));
    Foreign::load(&copy, home.chain(preloaded).collect(), Foreign::LIMIT).unwrap()
}

/// A service over a home directory that holds the keys of the worked examples.
struct Daemon {
    folder: TempDir,
    keys: Arc<Keys>,
    server: TestServer,
}

impl Daemon {
    fn start(behind: Behind) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let preloaded = format!("file://{}", folder.path().join("preloaded").display());
        let settings = Settings {
            homedir_path: Some(folder.path().to_owned()),
            preloaded_keys: BTreeMap::from([
                ("preloaded".to_owned(), preloaded),
                ("on-token".to_owned(), "pkcs11:token=t;object=o".to_owned()),
            ]),
            ..Settings::default()
        };
        let library: Arc<dyn KeyLibrary> = match behind {
            Behind::BuiltIn => Arc::new(Library::new(settings).unwrap()),
            Behind::Abi => Arc::new(through_the_abi(folder.path(), &settings)),
        };
        library.import_key(HANDLE_KEY, KeyUsage::SIGN, &Secret::new((0..32).collect())).unwrap();
        library.import_key("k1", KeyUsage::SIGN, &Secret::new((0x40..0x60).collect())).unwrap();
        let everything = |uid| Principal { uid, keys: vec![Glob::new("*")] };
        // The uid of the tests, whatever it is, and the one that `peer` is given.
        let own_uid = std::os::unix::fs::MetadataExt::uid(&folder.path().metadata().unwrap());
        let keys = Arc::new(Keys::new(library, Principals::new(&[everything(own_uid)])));
        let server = TestServer::start(routes(Arc::clone(&keys)));
        Daemon { folder, keys, server }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.path().join("keys").join(file_name(id).unwrap())
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = self.server.send(method, &format!("{path}?api-version=2021-05-01"), &body).await;
        (reply.status, reply.body)
    }

    async fn post(&self, path: &str, body: Value) -> (u16, String) {
        self.call("POST", path, &body).await
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.call("GET", path, &Value::Null).await
    }

    /// The one member of a successful answer.
    async fn ok(&self, path: &str, body: Value, member: &str) -> String {
        let (status, text) = self.post(path, body).await;
        assert_eq!(status, 200, "{text}");
        member_of(&text, member)
    }

    async fn refused(&self, path: &str, body: Value, status: u16, message: &str) {
        let answer = self.post(path, body.clone()).await;
        assert_eq!(answer, (status, json!({ "message": message }).to_string()), "{path} {body}");
    }

    async fn key(&self, id: &str) -> String {
        self.ok("/key", json!({"keyId": id, "usage": "sign"}), "keyHandle").await
    }

    async fn pair(&self, id: &str, algorithms: &str) -> String {
        self.ok("/keypair", json!({"keyId": id, "preferredAlgorithms": algorithms}), "keyHandle").await
    }
}

fn member_of(text: &str, member: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(value.as_object().unwrap().len(), 1, "{text}");
    value[member].as_str().unwrap_or_else(|| panic!("no {member} in {text}")).to_owned()
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn hmac(handle: &str, message: &str) -> Value {
    json!({"keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": {"message": b64(message)}})
}

fn ecdsa(handle: &str) -> Value {
    json!({"keyHandle": handle, "algorithm": "ECDSA", "parameters": {"digest": b64([7; 32])}})
}

fn aead(handle: &str, iv: &[u8], member: &str, data: &[u8]) -> Value {
    json!({"keyHandle": handle, "algorithm": "AEAD", "parameters": {"iv": b64(iv), "aad": b64("$iotedged")}, member: b64(data)})
}

async fn the_worked_examples_over_the_wire(behind: Behind) {
    let daemon = Daemon::start(behind);
    let answer = daemon.post("/sign", hmac(HK, "hello")).await;
    assert_eq!(answer, (200, r#"{"signature":"AQQykAlNzSEQds2eZsR49XiRhWw9v1lQ9RFBkRtspDM="}"#.to_owned()));

    let derive = json!({"baseKeyHandle": HK, "derivationData": b64("modA:1:primary")});
    let derived = daemon.ok("/derivedkey", derive, "keyHandle").await;
    assert_eq!(derived.len(), 580);
    let answer = daemon.post("/derivedkey/export", json!({"keyHandle": derived})).await;
    assert_eq!(answer, (200, r#"{"key":"gqL6+afNgnlOBxxrGgRlveOuRq2/BaxtOSSzZFKddVw="}"#.to_owned()));
    let signature = daemon.ok("/sign", hmac(&derived, "hello"), "signature").await;
    assert_eq!(STANDARD.decode(signature).unwrap()[..4], [0x8a, 0xe8, 0xff, 0x44]);

    let iv: Vec<u8> = (0..12).collect();
    let ciphertext = daemon.ok("/encrypt", aead(HK, &iv, "plaintext", b"some plaintext"), "ciphertext").await;
    assert_eq!(ciphertext, b64(b"\x02\x49\x6a\x01\x1d\x57\xfc\x28\xc1\xab\x7c\xf4\xa7\xc0\x99\xa3\x93\x73\xaf\xb7\xd9\x04\xb0\xf7\x28\x90\x76\x94\x83\x34\x90"));
    let bytes = STANDARD.decode(&ciphertext).unwrap();
    let plaintext = daemon.ok("/decrypt", aead(HK, &iv, "ciphertext", &bytes), "plaintext").await;
    assert_eq!(plaintext, b64("some plaintext"));
    let derived_text = daemon.ok("/encrypt", aead(&derived, &iv, "plaintext", b"some plaintext"), "ciphertext").await;
    assert_eq!(STANDARD.decode(derived_text).unwrap()[..4], [0x02, 0x8d, 0x25, 0x0a]);
}

async fn symmetric_keys_are_made_kept_imported_loaded_and_deleted(behind: Behind) {
    let daemon = Daemon::start(behind);
    let first = daemon.key("k").await;
    let bytes = fs::read(daemon.path("k")).unwrap();
    let null = json!({"keyId": "k", "usage": "derive,encrypt", "keyBytes": null, "unknown": {}});
    let second = daemon.ok("/key", null, "keyHandle").await;
    assert_ne!(first, second);
    assert_eq!(fs::read(daemon.path("k")).unwrap(), bytes);

    let import = json!({"keyId": "k", "usage": "sign", "keyBytes": b64("bytes")});
    daemon.ok("/key", import, "keyHandle").await;
    assert_eq!(fs::read(daemon.path("k")).unwrap(), b"bytes");
    assert_eq!(daemon.get("/key/k").await.0, 200);

    let delete = json!({"keyHandle": first});
    assert_eq!(daemon.call("DELETE", "/key", &delete).await, (204, String::new()));
    assert_eq!(daemon.call("DELETE", "/key", &delete).await, (204, String::new()));
    assert_eq!(daemon.get("/key/k").await.0, 400);
    daemon.refused("/sign", hmac(&second, "m"), 400, REFUSED).await;
    daemon.key("k").await;
    assert_eq!(daemon.post("/sign", hmac(&second, "m")).await.0, 200, "works again with the new key");
}

async fn key_pairs_are_made_kept_moved_and_deleted(behind: Behind) {
    let daemon = Daemon::start(behind);
    let old = daemon.pair("old", "ec-p256").await;
    let new = daemon.pair("new", "rsa-2048:*").await;
    assert_eq!(daemon.ok("/parameters/algorithm", json!({"keyHandle": old}), "value").await, "ECDSA");
    assert_eq!(daemon.ok("/parameters/algorithm", json!({"keyHandle": new}), "value").await, "RSA");
    assert_eq!(daemon.ok("/parameters/rsa-exponent", json!({"keyHandle": new}), "value").await, "AQAB");
    let oid = daemon.ok("/parameters/ec-curve-oid", json!({"keyHandle": old}), "value").await;
    assert_eq!(oid, "BggqhkjOPQMBBw==");
    let name = "parameter \"name\" has an invalid value\ncaused by: there is no such parameter of this key";
    daemon.refused("/parameters/other", json!({"keyHandle": old}), 400, name).await;
    daemon.refused("/parameters/rsa-modulus", json!({"keyHandle": old}), 400, REFUSED).await;
    let message = if behind == Behind::Abi { REFUSED } else { name };
    daemon.refused("/parameters/algorithm", json!({"keyHandle": HK}), 400, message).await;

    let signature = daemon.ok("/sign", ecdsa(&old), "signature").await;
    assert_eq!(STANDARD.decode(signature).unwrap()[0], 0x30);
    for (algorithm, length, status) in [("RSA-PKCS1", 51, 200), ("RSA-PKCS1", 246, 500), ("RSA-NO-PADDING", 51, 500)] {
        let body = json!({"keyHandle": new, "algorithm": algorithm, "plaintext": b64(vec![1; length])});
        assert_eq!(daemon.post("/encrypt", body).await.0, status, "{algorithm} {length}");
    }
    let mut body =
        json!({"keyHandle": new, "algorithm": "RSA-NO-PADDING", "parameters": null, "plaintext": b64([1; 256])});
    let ciphertext = daemon.ok("/encrypt", body.clone(), "ciphertext").await;
    assert_eq!(STANDARD.decode(ciphertext).unwrap().len(), 256);
    body["parameters"] = json!({});
    assert_eq!(daemon.post("/encrypt", body).await.0, 422);

    assert_eq!(daemon.post("/keypair/old", json!({"from": "new"})).await, (204, String::new()));
    assert_eq!(daemon.ok("/parameters/algorithm", json!({"keyHandle": old}), "value").await, "RSA");
    assert_eq!(daemon.get("/keypair/new").await.0, 400);
    daemon.refused("/keypair/old", json!({"from": "new"}), 500, "internal error").await;
    assert_eq!(daemon.get("/keypair/old").await.0, 200, "a move of nothing leaves its target");
    let delete = json!({"keyHandle": old});
    assert_eq!(daemon.call("DELETE", "/keypair", &delete).await, (204, String::new()));
    assert_eq!(daemon.call("DELETE", "/keypair", &delete).await, (204, String::new()));
    assert!(!daemon.path("old").exists());
}

async fn a_move_is_checked_before_anything_else(behind: Behind) {
    let daemon = Daemon::start(behind);
    let identical = "source and destination for move are identical";
    daemon.refused("/keypair/handle-validation-key", json!({"from": HANDLE_KEY}), 400, identical).await;
    daemon.refused("/key/k1", json!({"from": "k1"}), 400, identical).await;
    daemon.refused("/key/k1", json!({"from": "k2"}), 400, "invalid type \"key\"").await;
    daemon.refused("/key/k1", Value::Null, 400, "missing request body").await;
    daemon.refused("/keypair/k1", Value::Null, 400, "missing request body").await;
}

async fn bad_bodies_are_422(behind: Behind) {
    let daemon = Daemon::start(behind);
    for body in [
        json!({"keyId": "k"}),
        json!({"keyId": "k", "keyBytes": b64("x")}),
        json!({"keyId": "k", "usage": ""}),
        json!({"keyId": "k", "usage": "sign,"}),
        json!({"keyId": "k", "usage": "Sign"}),
        json!({"keyId": "k", "usage": "sign", "keyBytes": "eA"}),
        json!({"usage": "sign"}),
    ] {
        assert_eq!(daemon.post("/key", body.clone()).await.0, 422, "{body}");
    }
    for body in [
        json!({"keyHandle": HK, "algorithm": "AEAD", "plaintext": ""}),
        json!({"keyHandle": HK, "algorithm": "AEAD", "parameters": {"iv": ""}, "plaintext": ""}),
        json!({"keyHandle": HK, "algorithm": "RSA", "plaintext": ""}),
        json!({"keyHandle": HK, "algorithm": "RSA-PKCS1", "parameters": {}, "plaintext": ""}),
        json!({"algorithm": "RSA-PKCS1", "plaintext": ""}),
    ] {
        assert_eq!(daemon.post("/encrypt", body.clone()).await.0, 422, "{body}");
    }
    assert!(!daemon.path("k").exists());
}

async fn bad_parameters_are_400(behind: Behind) {
    let daemon = Daemon::start(behind);
    for algorithms in ["", "foo", "EC-P256", " ec-p256"] {
        daemon.refused("/keypair", json!({"keyId": "p", "preferredAlgorithms": algorithms}), 400, REFUSED).await;
    }
    daemon.refused("/key", json!({"keyId": "k", "usage": "sign", "keyBytes": ""}), 400, REFUSED).await;
    daemon.refused("/key", json!({"keyId": "a".repeat(187), "usage": "sign"}), 400, REFUSED).await;
    daemon.refused("/key", json!({"keyId": "on-token", "usage": "sign"}), 400, REFUSED).await;
    let nul = "parameter \"id\" has an invalid value\ncaused by: nul byte found in provided data at position: 1";
    daemon.refused("/key", json!({"keyId": "a\0b", "usage": "sign"}), 400, nul).await;
    let nul = nul.replace("\"id\"", "\"preferred_algorithms\"");
    daemon.refused("/keypair", json!({"keyId": "p", "preferredAlgorithms": "*\0"}), 400, &nul).await;
    let nul = nul.replace("preferred_algorithms", "from");
    daemon.refused("/keypair/p", json!({"from": "a\0b"}), 400, &nul).await;
    assert_eq!(daemon.get("/key/a%00b").await.0, 400);
}

async fn the_table_of_aead_refusals(behind: Behind) {
    let daemon = Daemon::start(behind);
    let mut ciphertext =
        STANDARD.decode(daemon.ok("/encrypt", aead(HK, &[1; 12], "plaintext", b"text"), "ciphertext").await).unwrap();
    for iv in [0, 129] {
        daemon.refused("/encrypt", aead(HK, &vec![1; iv], "plaintext", b"text"), 500, "internal error").await;
    }
    *ciphertext.last_mut().unwrap() ^= 1;
    daemon.refused("/decrypt", aead(HK, &[1; 12], "ciphertext", &ciphertext), 500, "internal error").await;
    ciphertext[0] = 3;
    daemon.refused("/decrypt", aead(HK, &[1; 12], "ciphertext", &ciphertext), 400, REFUSED).await;
    daemon.refused("/decrypt", aead(HK, &[1; 12], "ciphertext", b""), 400, REFUSED).await;
    daemon.refused("/decrypt", aead(HK, &[1; 12], "ciphertext", &[2; 16]), 400, REFUSED).await;
    let import = json!({"keyId": "short", "usage": "encrypt", "keyBytes": b64([1; 16])});
    let short = daemon.ok("/key", import, "keyHandle").await;
    daemon.refused("/encrypt", aead(&short, &[1; 12], "plaintext", b"text"), 500, "internal error").await;
}

async fn each_mechanism_wants_its_kind_of_key(behind: Behind) {
    let daemon = Daemon::start(behind);
    let pair = daemon.pair("pair", "*").await;
    let derive = json!({"baseKeyHandle": HK, "derivationData": ""});
    let derived = daemon.ok("/derivedkey", derive, "keyHandle").await;
    daemon.refused("/sign", hmac(&pair, "m"), 400, MECHANISM).await;
    daemon.refused("/encrypt", aead(&pair, &[1; 12], "plaintext", b""), 400, MECHANISM).await;
    daemon.refused("/decrypt", aead(&pair, &[1; 12], "ciphertext", b""), 400, MECHANISM).await;
    for handle in [HK, &derived] {
        daemon.refused("/sign", ecdsa(handle), 400, MECHANISM).await;
        let body = json!({"keyHandle": handle, "algorithm": "RSA-PKCS1", "plaintext": ""});
        daemon.refused("/encrypt", body, 400, MECHANISM).await;
    }
    for algorithm in ["RSA-PKCS1", "RSA-NO-PADDING"] {
        let body = json!({"keyHandle": pair, "algorithm": algorithm, "ciphertext": ""});
        daemon.refused("/decrypt", body, 400, MECHANISM).await;
    }
    let body = json!({"keyHandle": pair, "algorithm": "RSA-PKCS1", "plaintext": ""});
    daemon.refused("/encrypt", body, 400, REFUSED).await;

    let handle = |reason: &str| format!("parameter \"handle\" has an invalid value\ncaused by: {reason}");
    for (path, wrong, reason) in [
        ("/key", &pair, "handle is not for a key"),
        ("/key", &derived, "handle is not for a key"),
        ("/keypair", &derived, "handle is not for a key pair"),
        ("/keypair", &HK.to_owned(), "handle is not for a key pair"),
    ] {
        let answer = daemon.call("DELETE", path, &json!({"keyHandle": wrong})).await;
        assert_eq!(answer, (400, json!({"message": handle(reason)}).to_string()));
    }
    let body = json!({"keyHandle": HK});
    daemon.refused("/derivedkey/export", body, 400, &handle("handle is not for a derived key")).await;
    let body = json!({"baseKeyHandle": derived, "derivationData": ""});
    let nested = "nested derived keys are not supported, import the outer derived key first";
    daemon.refused("/derivedkey", body, 400, &handle(nested)).await;
}

async fn a_derived_key_is_checked_when_it_is_used(behind: Behind) {
    let daemon = Daemon::start(behind);
    let (gone, pair) = (daemon.key("gone").await, daemon.pair("pair", "*").await);
    daemon.call("DELETE", "/key", &json!({"keyHandle": gone})).await;
    for base in [gone, pair] {
        let body = json!({"baseKeyHandle": base, "derivationData": b64("data")});
        let derived = daemon.ok("/derivedkey", body, "keyHandle").await;
        daemon.refused("/sign", hmac(&derived, "m"), 400, REFUSED).await;
        daemon.refused("/derivedkey/export", json!({"keyHandle": derived}), 400, REFUSED).await;
    }
}

async fn a_handle_that_was_tampered_with_opens_nothing(behind: Behind) {
    let daemon = Daemon::start(behind);
    for handle in ["", "k1", &HK.replace("0t97", "0t98"), HK.trim_end_matches('='), &format!("{HK}\u{e9}")] {
        let h = json!({"keyHandle": handle});
        daemon.refused("/sign", hmac(handle, "m"), 400, INVALID_HANDLE).await;
        daemon.refused("/parameters/algorithm", h.clone(), 400, INVALID_HANDLE).await;
        daemon.refused("/derivedkey/export", h.clone(), 400, INVALID_HANDLE).await;
        let answer = daemon.call("DELETE", "/key", &h).await;
        assert_eq!(answer, (400, json!({"message": INVALID_HANDLE}).to_string()));
    }
    assert!(daemon.path("k1").exists());
}

async fn the_handle_key_is_out_of_everybodys_reach(behind: Behind) {
    let daemon = Daemon::start(behind);
    let uid = std::os::unix::fs::MetadataExt::uid(&daemon.folder.path().metadata().unwrap());
    let message = format!("user {uid} is not authorized to access the key {HANDLE_KEY}");
    let create = json!({"keyId": HANDLE_KEY, "usage": "sign"});
    daemon.refused("/key", create, 401, &message).await;
    let import = json!({"keyId": HANDLE_KEY, "usage": "sign", "keyBytes": b64("x")});
    daemon.refused("/key", import, 401, &message).await;
    daemon.refused("/keypair", json!({"keyId": HANDLE_KEY}), 401, &message).await;
    daemon.refused("/keypair/handle-validation-key", json!({"from": "k1"}), 401, &message).await;
    daemon.refused("/keypair/new", json!({"from": HANDLE_KEY}), 401, &message).await;
    for path in ["/key/handle-validation-key", "/keypair/handle-validation-key", "/key/handle%2Dvalidation%2Dkey"] {
        assert_eq!(daemon.get(path).await.0, 401, "{path}");
    }

    // As the public service would have made them.
    let library =
        Library::new(Settings { homedir_path: Some(daemon.folder.path().into()), ..Settings::default() }).unwrap();
    let handles = crate::handle::Handles::new(Arc::new(library));
    let forged = handles.of_key(HANDLE_KEY.to_owned()).await.unwrap();
    let derived = handles.of_derived(forged.clone(), vec![]).await.unwrap();
    for KeyHandle(handle) in [&forged, &derived] {
        daemon.refused("/sign", hmac(handle, "m"), 401, &message).await;
        daemon.refused("/derivedkey/export", json!({"keyHandle": handle}), 401, &message).await;
        assert_eq!(daemon.call("DELETE", "/key", &json!({"keyHandle": handle})).await.0, 401);
    }
    daemon.refused("/derivedkey", json!({"baseKeyHandle": forged.0, "derivationData": ""}), 401, &message).await;
    assert_eq!(daemon.post("/sign", hmac(HK, "m")).await.0, 200);
}

async fn an_existing_preloaded_key_stays(behind: Behind) {
    // The ABI has no code for it.
    let (status, message) = match behind {
        Behind::BuiltIn => (403, PRELOADED),
        Behind::Abi => (400, REFUSED),
    };
    let daemon = Daemon::start(behind);
    let handle = daemon.pair("preloaded", "*").await;
    let pem = fs::read(daemon.folder.path().join("preloaded")).unwrap();
    let import = json!({"keyId": "preloaded", "usage": "sign", "keyBytes": b64("x")});
    daemon.refused("/key", import, status, message).await;
    daemon.refused("/keypair/new", json!({"from": "preloaded"}), status, message).await;
    daemon.pair("new", "*").await;
    daemon.refused("/keypair/preloaded", json!({"from": "new"}), status, message).await;
    assert_eq!(daemon.call("DELETE", "/keypair", &json!({"keyHandle": handle})).await.0, status);
    assert_eq!(fs::read(daemon.folder.path().join("preloaded")).unwrap(), pem);
}

async fn the_table_of_ids_in_paths(behind: Behind) {
    let daemon = Daemon::start(behind);
    for id in ["a/b c%?é", "a%41", "per%cent", "plus+x"] {
        daemon.key(id).await;
    }
    for (path, status) in [
        ("/key/a%2Fb%20c%25%3F%C3%A9", 200),
        ("/key/a%41", 400),
        ("/key/a%2541", 200),
        ("/key/per%25cent", 200),
        ("/key/per%cent", 404),
        ("/key/plus+x", 200),
        ("/k%65y/plus+x", 404),
        ("/key/plus+x/", 404),
        ("/key/", 404),
    ] {
        assert_eq!(daemon.get(path).await.0, status, "{path}");
    }
}

async fn texts_without_measure_are_refused(behind: Behind) {
    let daemon = Daemon::start(behind);
    let base = daemon.key("base").await;
    let long = "x".repeat(10_000);
    for (path, body) in [
        ("/key", json!({"keyId": long, "usage": "sign"})),
        ("/keypair", json!({"keyId": long})),
        ("/keypair", json!({"keyId": "k", "preferredAlgorithms": long})),
        ("/derivedkey", json!({"baseKeyHandle": base, "derivationData": b64("x".repeat(20_000))})),
    ] {
        let (status, answer) = daemon.call("POST", path, &body).await;
        assert_eq!(status, 400, "{path}");
        assert!(answer.ends_with(" bytes are allowed\"}") && answer.len() < 200, "{answer}");
    }
}

async fn damaged_key_files_are_500_and_stay(behind: Behind) {
    let daemon = Daemon::start(behind);
    let handle = daemon.pair("pair", "*").await;
    let pem = fs::read(daemon.path("pair")).unwrap();
    let half = &pem[..pem.len() / 2];
    fs::File::options().write(true).open(daemon.path("pair")).unwrap().set_len(half.len() as u64).unwrap();
    daemon.refused("/keypair", json!({"keyId": "pair"}), 500, "internal error").await;
    daemon.refused("/sign", ecdsa(&handle), 500, "internal error").await;
    assert_eq!(daemon.get("/keypair/pair").await.0, 500);
    assert_eq!(fs::read(daemon.path("pair")).unwrap(), half);
    assert_eq!(daemon.post("/sign", hmac(HK, "m")).await.0, 200, "the rest goes on working");
}

async fn principals_decide_and_may_change(behind: Behind) {
    let daemon = Daemon::start(behind);
    let keys = &daemon.keys;
    let peer = &Peer::new(4_000_000, 1, 1);
    let entry = |keys: &[&str]| Principal { uid: peer.uid, keys: keys.iter().map(|key| Glob::new(*key)).collect() };
    keys.set_principals(Principals::new(&[entry(&["mine-*"])]));
    let handle = keys.create_key(peer, "mine-1".into(), KeyUsage::SIGN, None).await.unwrap();
    let error = keys.create_key(peer, "other".into(), KeyUsage::SIGN, None).await.unwrap_err();
    assert_eq!(error.to_string(), "user 4000000 is not authorized to access the key other");
    for refused in [
        keys.load_key(peer, "other".into()).await,
        keys.create_key_pair(peer, "other".into(), None).await,
        keys.load_key_pair(peer, "other".into()).await,
        keys.create_key(peer, "oth\0er".into(), KeyUsage::SIGN, None).await,
    ] {
        assert!(matches!(refused, Err(crate::error::Error::Unauthorized { .. })));
    }
    for (from, to, named) in [("mine-2", "other", "other"), ("other", "mine-2", "other"), ("x", "y", "x")] {
        let error = keys.move_key_pair(peer, from.into(), to.into()).await.unwrap_err();
        assert!(matches!(error, crate::error::Error::Unauthorized { id, .. } if id == named));
    }
    keys.set_principals(Principals::default());
    assert!(keys.load_key(peer, "mine-1".into()).await.is_err());
    let message = aziot_http::Base64(b"m".to_vec());
    let mechanism = aziot_keyd_api::operation::SignMechanism::HmacSha256 { message };
    assert!(keys.sign(peer, &handle, mechanism).await.is_ok(), "handles stay good");
}

async fn callers_who_race_for_one_id_get_one_key(behind: Behind) {
    let daemon = Daemon::start(behind);
    let create = || daemon.post("/keypair", json!({"keyId": "pair"}));
    let (a, b, c) = tokio::join!(create(), create(), create());
    let mut points = Vec::new();
    for (status, text) in [a, b, c] {
        assert_eq!(status, 200, "{text}");
        let handle = member_of(&text, "keyHandle");
        points.push(daemon.ok("/parameters/ec-point", json!({"keyHandle": handle}), "value").await);
    }
    assert!(points.windows(2).all(|pair| pair[0] == pair[1]), "{points:?}");
}
