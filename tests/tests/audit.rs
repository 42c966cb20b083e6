//! What the key service logs of the use of keys: each one when it is asked for, refusals and overwritten keys always, and never a secret.

use std::{collections::BTreeMap, process};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{Daemon, Device, World, calls::create_key, raw};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const VERSION: &str = "api-version=2021-05-01";
/// How the documentation says that the audit is turned on.
const AUDIT: &str = "AZIOT_LOG=info,aziot_keyd::audit=debug";
const HARDENING: &str = include_str!("../../docs/hardening.md");

/// A key service at which this user may have the keys whose ids begin with `k`.
fn configured() -> Result<World> {
    let world = World::empty()?;
    world.configure_keys(&format!("[[principal]]\nuid = {}\nkeys = [\"k*\"]\n", world.uid()?))?;
    Ok(world)
}

fn call(device: &Device, method: &str, path: &str, body: &Value) -> Result<String> {
    let body = if body.is_null() { None } else { Some(body.to_string()) };
    let reply = raw::call(&device.socket(Daemon::Keys), method, &format!("{path}?{VERSION}"), body.as_deref())?;
    ensure!([200, 204].contains(&reply.status), "{method} {path}: {reply:?}");
    Ok(reply.text("/keyHandle").unwrap_or_default())
}

/// Uses keys in every way; the operations by key id, in their order.
fn use_keys(device: &Device) -> Result<BTreeMap<&'static str, Vec<&'static str>>> {
    let post = |path: &str, body: Value| call(device, "POST", path, &body);
    let key = post("/key", json!({ "keyId": "k", "usage": "sign" }))?;
    call(device, "GET", "/key/k", &Value::Null)?;
    let message = json!({ "message": "" });
    post("/sign", json!({ "keyHandle": key, "algorithm": "HMAC-SHA256", "parameters": message }))?;
    let derived = post("/derivedkey", json!({ "baseKeyHandle": key, "derivationData": "" }))?;
    post("/derivedkey/export", json!({ "keyHandle": derived }))?;
    let aead = json!({ "iv": "AAAA", "aad": "" });
    post("/encrypt", json!({ "keyHandle": key, "algorithm": "AEAD", "parameters": aead, "plaintext": "" }))?;
    call(device, "DELETE", "/key", &json!({ "keyHandle": key }))?;

    let bytes = STANDARD.encode([7; 32]);
    post("/key", json!({ "keyId": "k imported", "usage": "encrypt", "keyBytes": bytes }))?;

    let pair = post("/keypair", json!({ "keyId": "k pair" }))?;
    post("/parameters/algorithm", json!({ "keyHandle": pair }))?;
    let digest = json!({ "digest": bytes });
    post("/sign", json!({ "keyHandle": pair, "algorithm": "ECDSA", "parameters": digest }))?;
    post("/keypair/k%20moved", json!({ "from": "k pair" }))?;
    let moved = call(device, "GET", "/keypair/k%20moved", &Value::Null)?;
    call(device, "DELETE", "/keypair", &json!({ "keyHandle": moved }))?;
    Ok(BTreeMap::from([
        ("k", vec!["create", "load", "sign", "derive", "export", "encrypt", "delete"]),
        ("k imported", vec!["import"]),
        ("k pair", vec!["create", "read parameter", "sign", "move from"]),
        ("k moved", vec!["move to", "load", "delete"]),
    ]))
}

/// A field as a log line shows it: quoted if need be.
fn field(name: &str, value: &str) -> String {
    if value.contains(' ') { format!(" {name}={value:?}") } else { format!(" {name}={value}") }
}

/// Issue 3, "Hygiene": "an audit line per use of a key (id, operation, uid, pid) at a configurable level".
#[test]
fn each_use_of_a_key_is_logged_once_it_is_asked_for() -> Result<()> {
    ensure!(HARDENING.contains(&format!("Environment={AUDIT}\n")), "the documentation says otherwise");
    let (variable, filter) = AUDIT.split_once('=').context("a variable")?;
    let mut world = configured()?;
    world.start_with(Daemon::Keys, move |command| _ = command.env(variable, filter))?;
    let uses = use_keys(&world)?;
    let log = world.log(Daemon::Keys)?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("[aziot_keyd::audit] key used")).collect();
    assert_eq!(lines.len(), uses.values().map(Vec::len).sum::<usize>(), "{lines:#?}");
    let caller = format!("{}{} ", field("uid", &world.uid()?.to_string()), field("pid", &process::id().to_string()));
    for (id, operations) in uses {
        let of_key = format!("{} operation=", field("key_id", id));
        let lines: Vec<&&str> = lines.iter().filter(|line| line.contains(&of_key)).collect();
        assert_eq!(lines.len(), operations.len(), "{id}: {lines:#?}");
        for (line, operation) in lines.into_iter().zip(operations) {
            assert!(line.starts_with("<7>") && line.contains("[DBUG]"), "{line}");
            assert!(line.contains(&format!("{}{caller}", field("operation", operation))), "{operation}: {line}");
            assert!(line.contains(" request_id="), "{line}");
        }
    }
    Ok(())
}

#[test]
fn uses_are_not_logged_by_default_and_refusals_are() -> Result<()> {
    let mut world = configured()?;
    world.start(Daemon::Keys)?;
    let _ = use_keys(&world)?;
    let log = world.log(Daemon::Keys)?;
    assert!(!log.contains("key used") && !log.contains("aziot_keyd::audit"), "{log}");

    let uid = world.stranger()?;
    let target = format!("/key/other?{VERSION}");
    let _ = world.call_as(uid, Daemon::Keys, "GET", &target, None)?.expect(401)?;
    let log = world.log(Daemon::Keys)?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("refused a key to a user")).collect();
    let [line] = lines[..] else { panic!("{lines:#?}") };
    assert!(line.starts_with("<4>") && line.contains("[WARN]"), "{line}");
    let (_, pid) = line.split_once(&format!(" key_id=other uid={uid} pid=")).context(line.to_owned())?;
    assert!(pid.starts_with(|first: char| first.is_ascii_digit()), "{line}");
    Ok(())
}

/// An import takes no notice of what was there, so the log has to.
#[test]
fn an_import_over_a_key_is_logged() -> Result<()> {
    let mut world = configured()?;
    world.start(Daemon::Keys)?;
    let replaced = |world: &World| -> Result<Vec<String>> {
        Ok(world.log(Daemon::Keys)?.lines().filter(|line| line.contains("replaced a key")).map(str::to_owned).collect())
    };
    let import = |world: &World, id: &str| {
        let body = json!({ "keyId": id, "usage": "sign", "keyBytes": STANDARD.encode("ultra secret") });
        call(world, "POST", "/key", &body)
    };
    import(&world, "k new")?;
    let _ = create_key(&world, "k")?.expect(200)?;
    let _ = create_key(&world, "k")?.expect(200)?;
    assert_eq!(replaced(&world)?, [""; 0]);
    import(&world, "k")?;
    let lines = replaced(&world)?;
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    let uid = world.uid()?;
    assert!(line.contains("[INFO]") && line.contains(&format!(" key_id=k uid={uid} ")), "{line}");
    let log = world.log(Daemon::Keys)?;
    assert!(!log.contains("ultra") && !log.contains(STANDARD.encode("ultra secret").trim_end_matches('=')), "{log}");
    Ok(())
}
