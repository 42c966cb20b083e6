//! From one configuration file to a module's accepted token and a certificate that openssl accepts: the whole path, and its refusals.
//!
//! Only what callers see; kills, faults and rights have files of their own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aziot_tests::{
    Daemon, Device, World,
    calls::{self, VERSION, module_ids},
    device::{MANUAL_DEVICE_ID, REGISTRATION_ID, write_private},
    module::Identity,
    openssl,
    world::{SELF_SIGNED, SERVER_CERTIFICATE},
};

const LIFETIME: Duration = Duration::from_secs(300);

/// The path of a file with the certificate that was issued.
fn issue(device: &Device, id: &str, request: &str, file: &str) -> Result<PathBuf> {
    let path = device.path(file);
    write_private(&path, calls::issue(device, id, request)?)?;
    Ok(path)
}

fn tokens_are_accepted_only_if_right(device: &Device) -> Result<()> {
    let module = Identity::create(device, "sampler")?;
    let send = |token: &str| module.send_message(device, token, "{}").map(|reply| reply.status);
    let token = module.token(device, LIFETIME)?;
    assert_eq!(send(&token)?, 204);

    // One changed character of the signature.
    let at = token.find("&sig=").context("no signature")? + 5;
    let other = if token[at..].starts_with('A') { "B" } else { "A" };
    let tampered = format!("{}{other}{}", &token[..at], &token[at + 1..]);
    assert_eq!(send(&tampered)?, 401, "tampered");

    // A longer life than was signed.
    let stretched = format!("{}9", &token);
    assert_eq!(send(&stretched)?, 401, "stretched");

    // Far more than the clock skew of 300 s ago.
    let expired = module.token_until(device, &module.module, 1_600_000_000)?;
    assert_eq!(send(&expired)?, 401, "expired");

    // Signed well, but for the place of another module, and with the key of another.
    let other = Identity::create(device, "other")?;
    assert_eq!(send(&other.token(device, LIFETIME)?)?, 401, "another module's token");
    let pretended = other.token_until(device, "sampler", 4_000_000_000)?;
    assert_eq!(send(&pretended)?, 401, "this module's name under another's key");
    assert_eq!(send(&token)?, 204, "the right token goes on working");
    Ok(())
}

/// `identity.md`, 3.3 and 4.2: registered through DPS, modules created at the hub, keys derived in the key service.
#[test]
fn a_device_comes_to_life_from_one_configuration_file() -> Result<()> {
    let mut world = World::started()?;
    let identity = calls::device_identity(&world)?.expect(200)?.json()?;
    assert_eq!(identity["type"], "aziot");
    assert_eq!(identity["spec"]["deviceId"], REGISTRATION_ID);
    assert_eq!(identity["spec"]["hubName"], world.cloud()?);
    assert_eq!(identity["spec"]["auth"]["type"], "sas");
    tokens_are_accepted_only_if_right(&world)?;

    // What the hub got is what the module sent.
    let messages = world.control("GET", "/messages", None)?.expect(200)?.json()?;
    assert_eq!(messages.as_array().map(Vec::len), Some(2), "{messages}");
    world.stop_all()
}

/// `identity.md`, 1.4: R4 to R8. A deleted module is gone from the list, and a new one of its name is another.
#[test]
fn modules_are_listed_read_and_deleted() -> Result<()> {
    let world = World::started()?;
    let made = Identity::create(&world, "sampler")?;
    let read = Identity::load(&world, "sampler")?;
    assert_eq!((&made.module, &made.generation), (&read.module, &read.generation));
    // Handles differ and mean the same key.
    let token = read.token(&world, LIFETIME)?;
    assert_eq!(read.send_message(&world, &token, "{}")?.status, 204);
    assert!(module_ids(&world)?.contains(&"sampler".to_owned()));

    // The hub made these itself, without keys: PUT gives them some.
    let target = format!("/identities/modules/$edgeAgent?{VERSION}&type=aziot");
    let _ = world
        .call(Daemon::Identity, "PUT", &target, Some(r#"{"type":"aziot","moduleId":"$edgeAgent"}"#))?
        .expect(200)?;
    let agent = Identity::load(&world, "$edgeAgent")?;
    assert_eq!(agent.send_message(&world, &agent.token(&world, LIFETIME)?, "{}")?.status, 204);

    let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
    let deleted = world.call(Daemon::Identity, "DELETE", &target, None)?.expect(204)?;
    assert_eq!(deleted.body, "");
    assert!(!module_ids(&world)?.contains(&"sampler".to_owned()));
    let gone = world.call(Daemon::Identity, "GET", &target, None)?.expect(404)?;
    assert!(gone.message().starts_with("Hub client error"), "{gone:?}");
    // The token of a module that is gone is worth nothing.
    let refused = made.send_message(&world, &token, "{}")?.status;
    assert!([401, 404].contains(&refused), "{refused}");

    let again = Identity::create(&world, "sampler")?;
    assert_ne!(again.generation, made.generation);
    assert_eq!(again.send_message(&world, &again.token(&world, LIFETIME)?, "{}")?.status, 204);
    Ok(())
}

/// `certs.md`, 4.2: a local CA signs what the request asks for; what certd returns is also what it keeps.
#[test]
fn a_certificate_of_the_local_ca_is_verified_by_openssl() -> Result<()> {
    let world = World::started()?;
    let request = openssl::make_request(&world.path("sampler.key.pem"), "sampler")?;
    let certificate = issue(&world, SERVER_CERTIFICATE, &request, "sampler.pem")?;
    assert!(openssl::verify(&world.local_ca(), &certificate)?.trim().ends_with("OK"));
    let target = format!("/certificates/{SERVER_CERTIFICATE}?{VERSION}");
    let kept = world.call(Daemon::Certificates, "GET", &target, None)?.expect(200)?.text("/pem")?;
    assert_eq!(kept, std::fs::read_to_string(&certificate)?);
    let _ = world.call(Daemon::Certificates, "DELETE", &target, None)?.expect(204)?;
    // "not found" is what clients look for: `certs.md`, 1.4.
    let gone = world.call(Daemon::Certificates, "GET", &target, None)?.expect(400)?;
    assert_eq!(gone.message(), "parameter \"id\" has an invalid value\ncaused by: not found");
    Ok(())
}

/// `certs.md`, 4.1: `self_signed` takes the key pair whose id is the certificate's.
#[test]
fn a_self_signed_certificate_is_verified_by_openssl() -> Result<()> {
    let world = World::started()?;
    let request = openssl::request_for(&world.path("var/secrets/self.key.pem"), "self")?;
    let certificate = issue(&world, SELF_SIGNED, &request, "self.pem")?;
    assert!(openssl::verify(&certificate, &certificate)?.trim().ends_with("OK"));
    Ok(())
}

/// `identity.md`, 3.3: manual provisioning needs no DPS; the connection string's key goes into the key service.
#[test]
fn a_connection_string_does_the_same_without_dps() -> Result<()> {
    let mut world = World::empty()?;
    world.start_cloud()?;
    let provisioning = world.manual_provisioning()?;
    world.apply(&provisioning)?;
    world.start_all()?;
    assert_eq!(calls::device_identity(&world)?.expect(200)?.json()?["spec"]["deviceId"], MANUAL_DEVICE_ID);
    tokens_are_accepted_only_if_right(&world)?;
    let target = "/identities/provisioning?api-version=2021-12-01";
    let how = world.call(Daemon::Identity, "GET", target, None)?.expect(200)?;
    assert_eq!(how.body, r#"{"source":"manual","auth":"sas"}"#);
    let journal = world.control("GET", "/journal", None)?.expect(200)?;
    assert!(!journal.body.contains("registrations"), "DPS was asked: {}", journal.body);
    Ok(())
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() { files_below(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

/// `design.md`: secrets never reach a log, not even the most talkative one.
#[test]
fn no_secret_of_the_whole_path_is_in_any_log() -> Result<()> {
    let mut world = World::configured()?;
    // A PIN that no token ever sees, but every error message could.
    let pin = "31415926";
    let token_key = format!("[preloaded_keys]\non-token = \"pkcs11:token=t;object=o?pin-value={pin}\"\n");
    world.drop_in(Daemon::Keys, "30-token.toml", &token_key)?;
    for daemon in Daemon::ALL {
        world.start_with(daemon, |command| {
            let _ = command.env("AZIOT_LOG", "trace");
        })?;
    }
    let device = calls::device_identity(&world)?.expect(200)?.json()?;
    let module = Identity::create(&world, "sampler")?;
    let token = module.token(&world, LIFETIME)?;
    assert_eq!(module.send_message(&world, &token, "{}")?.status, 204);
    let on_token = world.call(Daemon::Keys, "GET", &format!("/key/on-token?{VERSION}"), None)?;
    assert!(on_token.status >= 400 && !on_token.body.contains(pin), "{on_token:?}");
    let request = openssl::make_request(&world.path("sampler.key.pem"), "sampler")?;
    issue(&world, SERVER_CERTIFICATE, &request, "sampler.pem")?;
    // A body that cannot be parsed holds a secret too.
    let secret = "c2VjcmV0IGJ5dGVzIG9mIGEga2V5IHRoYXQgaXMgbm90";
    let body = format!(r#"{{"keyId":"k","usage":"sgin","keyBytes":"{secret}"}}"#);
    let _ = world.call(Daemon::Keys, "POST", &format!("/key?{VERSION}"), Some(&body))?.expect(422)?;

    let signature = token.split("&sig=").nth(1).and_then(|rest| rest.split('&').next()).context("no signature")?;
    let handles = [&module.key_handle, device["spec"]["auth"]["keyHandle"].as_str().context("no handle")?];
    let key = world.enrollment_key()?;
    let mut secrets = vec![pin.to_owned(), secret.to_owned(), signature.to_owned(), key];
    for handle in handles {
        secrets.push(handle.split("&sig=").nth(1).context("no signature in the handle")?.to_owned());
    }
    let percent_decoded = signature.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    secrets.push(percent_decoded);
    let mut logs = Vec::new();
    files_below(&world.path("log"), &mut logs)?;
    assert_eq!(logs.len(), 4, "{logs:?}");
    for path in logs {
        let log = std::fs::read_to_string(&path)?;
        assert!(!log.is_empty(), "{} is empty", path.display());
        for secret in &secrets {
            assert!(!log.contains(secret.as_str()), "{} has {secret:?}", path.display());
        }
        let token_line = log.lines().find(|line| line.contains("SharedAccessSignature"));
        assert_eq!(token_line, None, "{}", path.display());
    }
    Ok(())
}
