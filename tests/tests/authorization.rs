//! Who may do what: other users of the device, by uid and by `[[principal]]`, and how a change of that takes effect.
//!
//! Run by root, the callers are other users; run by anybody else, the caller is that user, whose rights are taken away.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aziot_tests::{Daemon, Reply, World, calls::VERSION, eventually, module};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A changed file is taken over after a moment of quiet: `common.md`, section 10 has 10 s.
const RELOAD: Duration = Duration::from_secs(20);

fn call(world: &World, daemon: Daemon, request: &str, body: Option<&Value>) -> Result<Reply> {
    let (method, target) = request.split_once(' ').context("no method")?;
    let joint = if target.contains('?') { '&' } else { '?' };
    let body = body.map(Value::to_string);
    world.call_as(world.stranger()?, daemon, method, &format!("{target}{joint}{VERSION}"), body.as_deref())
}

fn refused(reply: &Reply, message: &str) -> Result<()> {
    ensure!((reply.status, reply.message().as_str()) == (401, message), "expected 401 {message:?}, got {reply:?}");
    Ok(())
}

/// `keys.md`, section 3 and 1.4: 401 `user <uid> is not authorized to access the key <id>`, before anything is looked up.
#[test]
fn a_user_without_principal_gets_no_key() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_keys("")?;
    world.start(Daemon::Keys)?;
    let uid = world.stranger()?;
    let text = |id: &str| format!("user {uid} is not authorized to access the key {id}");
    let id = json!({ "keyId": "k", "usage": "sign" });
    refused(&call(&world, Daemon::Keys, "POST /key", Some(&id))?, &text("k"))?;
    refused(&call(&world, Daemon::Keys, "GET /key/k", None)?, &text("k"))?;
    refused(&call(&world, Daemon::Keys, "GET /key/unknown", None)?, &text("unknown"))?;
    refused(&call(&world, Daemon::Keys, "POST /keypair", Some(&json!({ "keyId": "p" })))?, &text("p"))?;
    refused(&call(&world, Daemon::Keys, "GET /keypair/p", None)?, &text("p"))?;
    refused(&call(&world, Daemon::Keys, "POST /keypair/to", Some(&json!({ "from": "from" })))?, &text("from"))?;
    // Nothing was made.
    assert!(!world.path("var/lib/aziot/keyd/keys").read_dir().is_ok_and(|mut files| files.next().is_some()));
    Ok(())
}

/// `keys.md`, section 3: a pattern per id; a handle is worth the same to whoever holds it.
#[test]
fn a_principal_reaches_the_keys_of_its_patterns_and_no_others() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_keys("")?;
    let uid = world.stranger()?;
    let principal = format!("[[principal]]\nuid = {uid}\nkeys = [\"pat-*\", \"q?\"]\n");
    world.drop_in(Daemon::Keys, "50-stranger.toml", &principal)?;
    world.start(Daemon::Keys)?;
    let text = |id: &str| format!("user {uid} is not authorized to access the key {id}");
    let create = |id: &str| call(&world, Daemon::Keys, "POST /key", Some(&json!({ "keyId": id, "usage": "sign" })));
    let handle = create("pat-1")?.expect(200)?.text("/keyHandle")?;
    for id in ["pat-", "qq"] {
        let _ = create(id)?.expect(200)?;
    }
    for id in ["pat", "q", "qqq", "PAT-1", "x-pat-1"] {
        refused(&create(id)?, &text(id))?;
    }
    let signed = json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": { "message": "" } });
    let _ = call(&world, Daemon::Keys, "POST /sign", Some(&signed))?.expect(200)?;
    Ok(())
}

/// `keys.md`, 11, item 2 and `design.md`: nobody reaches the handle validation key, neither `*` nor uid 0.
#[test]
fn the_handle_validation_key_is_reserved() -> Result<()> {
    let world = World::keys("")?;
    let _ = world
        .call(Daemon::Keys, "POST", &format!("/key?{VERSION}"), Some(r#"{"keyId":"k","usage":"sign"}"#))?
        .expect(200)?;
    let text = format!("user {} is not authorized to access the key handle-validation-key", world.uid()?);
    let id = "handle-validation-key";
    let create = json!({ "keyId": id, "usage": "sign" }).to_string();
    let import = json!({ "keyId": id, "usage": "sign", "keyBytes": "AAAA" }).to_string();
    let move_onto = json!({ "from": "k" }).to_string();
    for (method, target, body) in [
        ("GET", format!("/key/{id}"), None),
        ("GET", "/key/handle%2Dvalidation-key".to_owned(), None),
        ("GET", format!("/keypair/{id}"), None),
        ("POST", "/key".to_owned(), Some(create)),
        ("POST", "/key".to_owned(), Some(import)),
        ("POST", "/keypair".to_owned(), Some(json!({ "keyId": id }).to_string())),
        ("POST", format!("/keypair/{id}"), Some(move_onto)),
        ("POST", "/keypair/k".to_owned(), Some(json!({ "from": id }).to_string())),
    ] {
        let reply = world.call(Daemon::Keys, method, &format!("{target}?{VERSION}"), body.as_deref())?;
        refused(&reply, &text).with_context(|| format!("{method} {target}"))?;
    }
    Ok(())
}

/// `certs.md`, 1.6: changes need a principal, reading does not.
#[test]
fn certificates_are_changed_by_their_principals_and_read_by_everybody() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_certificates("")?;
    let uid = world.stranger()?;
    let principal = format!("[[principal]]\nuid = {uid}\ncerts = [\"leaf-*\", \"a?c\"]\n");
    world.drop_in(Daemon::Certificates, "50-stranger.toml", &principal)?;
    world.start(Daemon::Certificates)?;
    let text = |id: &str| format!("user {uid} is not authorized to modify the cert {id}");
    let pem = json!({ "pem": "hello" });
    let put = |id: &str| call(&world, Daemon::Certificates, &format!("PUT /certificates/{id}"), Some(&pem));
    for id in ["leaf-lca", "leaf-", "abc", "a%2Fc"] {
        let _ = put(id)?.expect(201)?;
    }
    for (id, decoded) in [("LEAF-x", "LEAF-x"), ("xleaf-", "xleaf-"), ("ac", "ac"), ("b%2Fc", "b/c")] {
        refused(&put(id)?, &text(decoded))?;
        refused(&call(&world, Daemon::Certificates, &format!("DELETE /certificates/{id}"), None)?, &text(decoded))?;
    }
    // Authorization comes before the request is looked at: `certs.md`, 1.4.
    let create = json!({ "certId": "other", "csr": "no PEM" });
    refused(&call(&world, Daemon::Certificates, "POST /certificates", Some(&create))?, &text("other"))?;
    // What root put there, everybody reads.
    if world.uid()? == 0 {
        let target = format!("/certificates/of-root?{VERSION}");
        let _ = world.call(Daemon::Certificates, "PUT", &target, Some(&pem.to_string()))?.expect(201)?;
        let read = call(&world, Daemon::Certificates, "GET /certificates/of-root", None)?.expect(200)?;
        assert_eq!(read.body, r#"{"pem":"hello"}"#);
    }
    assert_eq!(
        call(&world, Daemon::Certificates, "GET /certificates/abc", None)?.expect(200)?.body,
        r#"{"pem":"hello"}"#
    );
    Ok(())
}

/// The whole device without the principals that [`World::apply`] adds.
fn identity_world(principal: &str) -> Result<World> {
    let mut world = World::configured()?;
    world.drop_in(Daemon::Identity, "20-test.toml", principal)?;
    world.start_all()?;
    Ok(world)
}

/// `identity.md`, 1.7: Unknown may ask how the device is provisioned, and for the trust bundle; nothing else.
#[test]
fn an_unknown_user_gets_no_identity() -> Result<()> {
    let world = identity_world("")?;
    let device = json!({ "type": "aziot" });
    let module = json!({ "type": "aziot", "moduleId": "m" });
    for (request, body) in [
        ("GET /identities/identity", None),
        ("POST /identities/device", Some(&device)),
        ("GET /identities/modules?type=aziot", None),
        // Authorization comes before the type is looked at: 1.5.
        ("GET /identities/modules?type=x", None),
        ("POST /identities/modules", Some(&module)),
        ("GET /identities/modules/m?type=aziot", None),
        ("PUT /identities/modules/m?type=aziot", Some(&module)),
        ("DELETE /identities/modules/m?type=aziot", None),
        ("POST /identities/device/reprovision", Some(&device)),
    ] {
        refused(&call(&world, Daemon::Identity, request, body)?, "authorization error").context(request)?;
    }
    let bundle = call(&world, Daemon::Identity, "GET /trust-bundle", None)?.expect(200)?;
    assert_eq!(bundle.body, r#"{"certificate":""}"#);
    let uid = world.stranger()?;
    let how = world.call_as(uid, Daemon::Identity, "GET", "/identities/provisioning?api-version=2021-12-01", None)?;
    assert_eq!(how.expect(200)?.json()?["source"], "dps");
    Ok(())
}

/// `identity.md`, 1.7 and 3.5: a principal with `idtype` has its module made at the hub, gets its identity, and nothing else.
#[test]
fn a_host_process_gets_its_own_module_identity_and_nothing_else() -> Result<()> {
    let probe = World::empty()?;
    let uid = probe.stranger()?;
    let world = identity_world(&format!("[[principal]]\nuid = {uid}\nname = \"sampler\"\nidtype = [\"module\"]\n"))?;
    // The module is made while the service reconciles with the hub.
    let own = eventually("the module of the principal", Duration::from_secs(20), || {
        let reply = call(&world, Daemon::Identity, "GET /identities/identity", None)?;
        ensure!([200, 404].contains(&reply.status), "{reply:?}");
        Ok((reply.status == 200).then_some(reply))
    })?;
    let spec = &own.json()?["spec"];
    assert_eq!((&spec["moduleId"], &spec["auth"]["type"]), (&json!("sampler"), &json!("sas")));
    let by_name = call(&world, Daemon::Identity, "GET /identities/modules/sampler?type=aziot", None)?.expect(200)?;
    assert_eq!(by_name.json()?["spec"]["genId"], spec["genId"]);
    // The handle is usable: it is a capability in the key service.
    module::sign(&world, spec["auth"]["keyHandle"].as_str().context("no handle")?, b"m")?;
    let device = json!({ "type": "aziot" });
    for (request, body) in [
        ("POST /identities/device", Some(&device)),
        ("GET /identities/modules?type=aziot", None),
        ("GET /identities/modules/other?type=aziot", None),
        ("POST /identities/modules", Some(&json!({ "type": "aziot", "moduleId": "other" }))),
        ("PUT /identities/modules/sampler?type=aziot", Some(&device)),
        ("DELETE /identities/modules/sampler?type=aziot", None),
        ("POST /identities/device/reprovision", Some(&device)),
    ] {
        refused(&call(&world, Daemon::Identity, request, body)?, "authorization error").context(request)?;
    }
    Ok(())
}

/// `identity.md`, 1.7: "idtype contains `device`" is enough for the device's identity, whatever else it contains.
#[test]
fn a_host_process_of_type_device_gets_the_device_identity() -> Result<()> {
    let probe = World::empty()?;
    let uid = probe.stranger()?;
    let world =
        identity_world(&format!("[[principal]]\nuid = {uid}\nname = \"both\"\nidtype = [\"device\", \"module\"]\n"))?;
    let device = call(&world, Daemon::Identity, "GET /identities/identity", None)?.expect(200)?;
    assert_eq!(device.json()?["spec"].get("moduleId"), None);
    refused(&call(&world, Daemon::Identity, "GET /identities/modules?type=aziot", None)?, "authorization error")
}

/// `common.md`, section 10: principals are reloaded when a drop-in comes, changes or goes; a broken one changes nothing.
#[test]
fn principals_in_a_drop_in_take_effect_without_restart() -> Result<()> {
    let mut world = World::configured()?;
    for daemon in Daemon::ALL {
        world.drop_in(daemon, "20-test.toml", "")?;
    }
    world.start_all()?;
    let uid = world.stranger()?;
    let status = |daemon: Daemon| -> Result<u16> {
        let reply = match daemon {
            Daemon::Tpm | Daemon::Edge => bail!("this device has no TPM and no modules"),
            Daemon::Keys => call(&world, daemon, "POST /key", Some(&json!({ "keyId": "hot", "usage": "sign" })))?,
            Daemon::Certificates => call(&world, daemon, "PUT /certificates/hot", Some(&json!({ "pem": "" })))?,
            Daemon::Identity => call(&world, daemon, "GET /identities/identity", None)?,
        };
        Ok(reply.status)
    };
    let principals = [
        (Daemon::Keys, format!("[[principal]]\nuid = {uid}\nkeys = [\"hot\"]\n")),
        (Daemon::Certificates, format!("[[principal]]\nuid = {uid}\ncerts = [\"hot\"]\n")),
        (Daemon::Identity, format!("[[principal]]\nuid = {uid}\nname = \"hot\"\n")),
    ];
    let becomes = |daemon: Daemon, allowed: bool| {
        let what = format!("{} allows: {allowed}", daemon.name());
        eventually(&what, RELOAD, || Ok(((status(daemon)? != 401) == allowed).then_some(())))
    };
    for (daemon, _) in &principals {
        assert_eq!(status(*daemon)?, 401, "{}", daemon.name());
    }
    for (daemon, text) in &principals {
        world.drop_in(*daemon, "50-hot.toml", text)?;
    }
    for (daemon, _) in &principals {
        becomes(*daemon, true)?;
    }
    // A file that cannot be read changes nothing, and is told.
    for (daemon, _) in &principals {
        world.drop_in(*daemon, "60-broken.toml", "[[principal]]\nuid = \n")?;
        let file = format!("etc/aziot/{}/config.d/50-hot.toml", daemon.name());
        std::fs::remove_file(world.path(&file))?;
    }
    for (daemon, _) in &principals {
        eventually("the warning", RELOAD, || {
            let log = world.log(*daemon)?;
            let text = "Detected config file update, but new config failed to parse. Error: ";
            Ok(log.lines().any(|line| line.contains(text) && line.contains("60-broken.toml")).then_some(()))
        })
        .with_context(|| daemon.name())?;
        assert_ne!(status(*daemon)?, 401, "{} forgot its principals over a broken file", daemon.name());
        std::fs::remove_file(world.path(&format!("etc/aziot/{}/config.d/60-broken.toml", daemon.name())))?;
    }
    for (daemon, _) in &principals {
        becomes(*daemon, false)?;
    }
    Ok(())
}

/// `common.md`, appendix: "Make SIGHUP a reload request"; with it there is nothing to wait for.
#[test]
fn a_hangup_signal_reloads_at_once() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_keys("")?;
    world.start(Daemon::Keys)?;
    let uid = world.stranger()?;
    let pid = world.process(Daemon::Keys)?.pid()?;
    // Changes that nobody announces are waited for to be complete: a second of quiet. On a busy machine even a signal may take that long,
    // but not each time.
    let mut fastest = Duration::MAX;
    for round in 0..3 {
        let id = format!("hot-{round}");
        let body = json!({ "keyId": id, "usage": "sign" });
        let status = || Ok::<_, anyhow::Error>(call(&world, Daemon::Keys, "POST /key", Some(&body))?.status);
        assert_eq!(status()?, 401);
        let principal = format!("[[principal]]\nuid = {uid}\nkeys = [\"{id}\"]\n");
        world.drop_in(Daemon::Keys, "50-hot.toml", &principal)?;
        let begun = Instant::now();
        world.process(Daemon::Keys)?.signal(Signal::HUP)?;
        eventually("the new principal", RELOAD, || Ok((status()? == 200).then_some(())))?;
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest < Duration::from_millis(900), "took {fastest:?}");
    assert_eq!(world.process(Daemon::Keys)?.pid()?, pid, "it was restarted");
    Ok(())
}
