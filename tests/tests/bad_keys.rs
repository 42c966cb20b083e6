//! Ids, handles and key files that should not be: the right status, nothing lost, and the service goes on.
//!
//! Other wrong requests are in `bad_input.rs`, damaged files and full disks in `bad_files.rs`, tokens in `token.rs`. What a vendor's library
//! answers is in the key library's own tests; here is what it is.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, World,
    calls::{VERSION, create_key, is_serving},
    eventually, module, raw,
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
const KEYS: &str = "var/lib/aziot/keyd/keys";
const INVALID_HANDLE: &str = "parameter \"handle\" has an invalid value\ncaused by: invalid handle";

fn get(device: &Device, path: &str) -> Result<Reply> {
    raw::call(&device.socket(Daemon::Keys), "GET", &format!("{path}?{VERSION}"), None)
}

fn send(device: &Device, method: &str, path: &str, body: &Value) -> Result<Reply> {
    raw::call(&device.socket(Daemon::Keys), method, &format!("{path}?{VERSION}"), Some(&body.to_string()))
}

fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut names: Vec<String> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

/// `keys.md`, 1.5: ids are free-form text; 5.1: none leads out of the folder.
#[test]
fn any_text_is_an_id_and_none_leaves_the_folder() -> Result<()> {
    let world = World::keys("")?;
    for (id, path) in [("", None), ("../../x", Some("/key/..%2F..%2Fx")), ("/etc/passwd", Some("/key/%2Fetc%2Fpasswd"))]
    {
        let handle = create_key(&world, id)?.expect(200)?.text("/keyHandle")?;
        let signature = module::sign(&world, &handle, b"m")?;
        if let Some(path) = path {
            let again = get(&world, path)?.expect(200)?.text("/keyHandle")?;
            assert_eq!(module::sign(&world, &again, b"m")?, signature, "{id}");
        }
    }
    for path in ["/key/", "/key/../../x", "/keypair/"] {
        assert_eq!(get(&world, path)?.status, 404, "{path}");
    }
    let names = names_in(&world.path(KEYS))?;
    assert_eq!(names.len(), 4, "the handle key and three others: {names:?}");
    assert!(names.iter().all(|name| !name.contains("..")), "{names:?}");
    for (folder, only) in [("var/lib/aziot", "keyd"), ("var/lib/aziot/keyd", "keys")] {
        assert_eq!(names_in(&world.path(folder))?, [only]);
    }
    is_serving(&world, Daemon::Keys)
}

#[test]
fn ids_without_measure_or_of_no_text_are_refused() -> Result<()> {
    let world = World::keys("")?;
    let long = "x".repeat(10_000);
    for reply in [create_key(&world, &long)?, send(&world, "POST", "/keypair", &json!({ "keyId": long }))?] {
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.message().starts_with("parameter \"id\" has an invalid value"), "{reply:?}");
        assert!(reply.body.len() < 200, "the id does not come back: {reply:?}");
    }
    let reply = get(&world, &format!("/key/{long}"))?;
    assert!([400, 414, 431].contains(&reply.status), "{reply:?}");

    // 1.3: "An id segment that percent-decodes to invalid UTF-8 is 404."
    assert_eq!(get(&world, "/key/%ff%fe")?.status, 404);
    let socket = world.socket(Daemon::Keys);
    for id in [b"\xff\xfe".as_slice(), b"\xed\xa0\x80", br"\ud800"] {
        let body = [br#"{"usage":"sign","keyId":""#, id, br#""}"#].concat();
        let head = raw::request("POST", &format!("/key?{VERSION}"), None).trim_end().to_owned();
        let head = format!("{head}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        let reply = raw::reply(&raw::exchange(&socket, &[head.as_bytes(), &body].concat())?)?;
        assert_eq!(reply.status, 422, "{reply:?}");
        assert!(!reply.message().is_empty(), "{reply:?}");
    }
    assert!(!world.path(KEYS).exists());
    is_serving(&world, Daemon::Keys)
}

/// `keys.md`, section 2: a handle is worth something at the device whose key signed it, and nowhere else.
#[test]
fn a_handle_of_another_device_opens_nothing() -> Result<()> {
    let (here, elsewhere) = (World::keys("")?, World::keys("")?);
    let own = create_key(&here, "k")?.expect(200)?.text("/keyHandle")?;
    let foreign = create_key(&elsewhere, "k")?.expect(200)?.text("/keyHandle")?;
    let signature = module::sign(&here, &own, b"m")?;
    let derive = json!({ "baseKeyHandle": foreign, "derivationData": "" });
    let derived = send(&elsewhere, "POST", "/derivedkey", &derive)?.expect(200)?.text("/keyHandle")?;
    let pair = send(&elsewhere, "POST", "/keypair", &json!({ "keyId": "pair" }))?.expect(200)?.text("/keyHandle")?;
    let message = json!({ "message": "" });
    for handle in [&foreign, &derived, &pair] {
        for (method, path, body) in [
            ("POST", "/sign", json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": message })),
            ("POST", "/derivedkey", json!({ "baseKeyHandle": handle, "derivationData": "" })),
            ("POST", "/derivedkey/export", json!({ "keyHandle": handle })),
            ("POST", "/parameters/algorithm", json!({ "keyHandle": handle })),
            ("DELETE", "/key", json!({ "keyHandle": handle })),
            ("DELETE", "/keypair", json!({ "keyHandle": handle })),
        ] {
            let reply = send(&here, method, path, &body)?;
            assert_eq!((reply.status, reply.message().as_str()), (400, INVALID_HANDLE), "{method} {path}");
        }
    }
    assert_eq!(module::sign(&here, &own, b"m")?, signature);
    Ok(())
}

/// Somebody who restores files by hand may mix them up: nothing is made anew over them, and put right they are as they were.
#[test]
fn swapped_key_files_are_told_and_left_alone() -> Result<()> {
    let world = World::keys("")?;
    let key = create_key(&world, "k")?.expect(200)?.text("/keyHandle")?;
    let pair = send(&world, "POST", "/keypair", &json!({ "keyId": "pair" }))?.expect(200)?.text("/keyHandle")?;
    let signature = module::sign(&world, &key, b"m")?;
    let point = json!({ "keyHandle": pair });
    let public_key = send(&world, "POST", "/parameters/ec-point", &point)?.expect(200)?;
    let folder = world.path(KEYS);
    let names = names_in(&folder)?;
    let path = |start: &str| names.iter().find(|name| name.starts_with(start)).map(|name| folder.join(name));
    let (k, p) = (path("k-").context("a file")?, path("pair-").context("a file")?);
    let swap = || -> Result<()> {
        fs::rename(&k, folder.join("aside"))?;
        fs::rename(&p, &k)?;
        Ok(fs::rename(folder.join("aside"), &p)?)
    };
    let before = (fs::read(&k)?, fs::read(&p)?);
    swap()?;
    // A look at a key's file holds for some milliseconds.
    let public_key_now = || send(&world, "POST", "/parameters/ec-point", &point);
    eventually("a look at the swapped files", PATIENCE, || {
        let are_seen = module::sign(&world, &key, b"m").is_err() && public_key_now()?.status != 200;
        Ok(are_seen.then_some(()))
    })?;
    let message = json!({ "message": "" });
    let digest = json!({ "digest": "AAAA" });
    for (method, path, body, status) in [
        ("POST", "/sign", json!({ "keyHandle": key, "algorithm": "HMAC-SHA256", "parameters": message }), 400),
        ("POST", "/key", json!({ "keyId": "k", "usage": "sign" }), 400),
        ("POST", "/key", json!({ "keyId": "k", "usage": "sign", "keyBytes": "AAAA" }), 400),
        ("DELETE", "/key", json!({ "keyHandle": key }), 400),
        ("POST", "/sign", json!({ "keyHandle": pair, "algorithm": "ECDSA", "parameters": digest }), 500),
        ("POST", "/keypair", json!({ "keyId": "pair" }), 500),
        ("POST", "/keypair/k", json!({ "from": "pair" }), 500),
        ("DELETE", "/keypair", json!({ "keyHandle": pair }), 400),
    ] {
        let reply = send(&world, method, path, &body)?;
        assert_eq!(reply.status, status, "{method} {path} {body}: {reply:?}");
    }
    assert_eq!((fs::read(&p)?, fs::read(&k)?), before);
    swap()?;
    let signed = eventually("a look at the key put right", PATIENCE, || Ok(module::sign(&world, &key, b"m").ok()))?;
    assert_eq!(signed, signature);
    eventually("a look at the pair put right", PATIENCE, || Ok((public_key_now()? == public_key).then_some(())))?;
    Ok(())
}

/// A library that cannot be used ends the start for good, in words that name it and the line that asks for it.
#[test]
fn a_vendors_library_that_is_none_ends_the_start() -> Result<()> {
    let world = World::empty()?;
    world.configure_keys("")?;
    let library = world.path("vendor.so");
    world.drop_in(Daemon::Keys, "50-vendor.toml", &format!("keys_library = \"{}\"\n", library.display()))?;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keyd/keys");
    for (definition, words) in [
        ("-DNO_SYMBOL", "it does not have the function aziot_keys_get_function_list"),
        ("-DANSWERS=0x02020000", "has neither version 2.1.0.0 nor version 2.0.0.0 of its functions"),
        ("-DVERSION=0x03000000", "has its functions in the unknown version 0x03000000"),
        ("-DLACKS=sign", "does not have the function sign"),
    ] {
        let mut compile = Command::new("cc");
        compile.args(["-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", definition, "-I"]).arg(own.join("include"));
        let output = compile.arg("-o").arg(&library).arg(own.join("tests/abi/vendor.c")).output().context("cc")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(world.run_to_end(Daemon::Keys, |_| {})?.code(), Some(153), "{definition}");
        let log = world.log(Daemon::Keys)?;
        let path = library.display().to_string();
        let is_it =
            |line: &str| ["[ERR!]", "50-vendor.toml:1:1: ", &path, words].iter().all(|word| line.contains(word));
        assert!(log.lines().any(is_it), "{definition}: {log}");
    }
    assert!(!world.socket(Daemon::Keys).exists());
    Ok(())
}
