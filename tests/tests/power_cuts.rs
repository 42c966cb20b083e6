//! SIGKILL at any moment, as a power cut would: what was acknowledged is there afterwards, and nobody has to help.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, World,
    calls::{self, VERSION},
    device::REGISTRATION_ID,
    eventually, hex,
    module::{self, Identity},
    openssl, raw,
    world::{SELF_SIGNED, SERVER_CERTIFICATE},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

const LIFETIME: Duration = Duration::from_secs(300);
/// How long after its start a service may take to clear away what the cut left.
const TIDYING: Duration = Duration::from_secs(10);

/// What must not change, whatever is killed.
#[derive(Debug, PartialEq)]
struct Facts {
    device: Value,
    device_signature: String,
    generation: String,
    module_signature: String,
    certificate: String,
    certificates: String,
}

fn without_handle(mut identity: Value) -> Value {
    // Handles have a nonce; what they sign is compared instead.
    if let Some(auth) = identity["spec"]["auth"].as_object_mut() {
        let _ = auth.remove("keyHandle");
    }
    identity
}

fn device_identity(device: &Device) -> Result<Value> {
    calls::device_identity(device)?.expect(200)?.json()
}

fn issue(device: &Device) -> Result<()> {
    let request = openssl::make_request(&device.path("sampler.key.pem"), "sampler")?;
    calls::issue(device, SERVER_CERTIFICATE, &request).map(|_| ())
}

fn get_certificate(device: &Device, id: &str) -> Result<Reply> {
    device.call(Daemon::Certificates, "GET", &format!("/certificates/{id}?{VERSION}"), None)
}

fn facts(device: &Device) -> Result<Facts> {
    let identity = device_identity(device)?;
    let handle = identity["spec"]["auth"]["keyHandle"].as_str().context("no key handle")?;
    let sampler = Identity::load(device, "sampler")?;
    Ok(Facts {
        device_signature: module::sign(device, handle, b"message")?,
        generation: sampler.generation.clone(),
        module_signature: module::sign(device, &sampler.key_handle, b"message")?,
        certificate: get_certificate(device, SERVER_CERTIFICATE)?.expect(200)?.body,
        certificates: get_certificate(device, SELF_SIGNED)?.body,
        device: without_handle(identity),
    })
}

fn token_works(device: &Device, name: &str) -> Result<()> {
    let module = Identity::load(device, name)?;
    let sent = module.send_message(device, &module.token(device, LIFETIME)?, "{}")?;
    ensure!(sent.status == 204, "{sent:?}");
    Ok(())
}

/// A device whose every step was taken once.
fn whole_path() -> Result<World> {
    let world = World::started()?;
    let _ = Identity::create(&world, "sampler")?;
    issue(&world)?;
    Ok(world)
}

/// Issue 2: "Killing any daemon with SIGKILL at any moment of the demo and starting it again loses nothing and needs no hand." Here
/// between the steps: each daemon in turn before each step.
#[test]
fn each_step_goes_on_after_each_daemon_was_killed() -> Result<()> {
    type Step = fn(&Device) -> Result<()>;
    let steps: [Step; 5] = [
        |device| device_identity(device).map(|_| ()),
        |device| Identity::create(device, "sampler").map(|_| ()),
        |device| token_works(device, "sampler"),
        issue,
        |device| get_certificate(device, SERVER_CERTIFICATE)?.expect(200).map(|_| ()),
    ];
    for victim in Daemon::ALL {
        let mut world = World::started()?;
        for (number, step) in steps.iter().enumerate() {
            world.kill(victim)?;
            world.start(victim)?;
            step(&world).with_context(|| format!("step {number} after {} was killed", victim.name()))?;
        }
        let before = facts(&world)?;
        world.kill(victim)?;
        world.start(victim)?;
        assert_eq!(facts(&world)?, before, "after {} was killed", victim.name());
    }
    Ok(())
}

/// All at once, the cloud too, and started in the order in which callers come before the called.
#[test]
fn a_power_cut_of_everything_changes_nothing() -> Result<()> {
    let mut world = whole_path()?;
    let before = facts(&world)?;
    for _ in 0..3 {
        for daemon in Daemon::ALL {
            world.kill(daemon)?;
        }
        world.kill_cloud()?;
        world.start_cloud()?;
        world.start_all()?;
        assert_eq!(facts(&world)?, before);
        token_works(&world, "sampler")?;
        no_leftovers(world.folder())?;
    }
    Ok(())
}

/// The same in the middle of the first start: identityd is killed while it registers, after more and more time.
#[test]
fn a_first_provisioning_that_was_cut_off_is_done_again() -> Result<()> {
    let mut world = World::configured()?;
    world.start(Daemon::Keys)?;
    world.start(Daemon::Certificates)?;
    for milliseconds in [0, 20, 60, 120, 400, 900, 1100, 1300] {
        world.start(Daemon::Identity)?;
        thread::sleep(Duration::from_millis(milliseconds));
        world.kill(Daemon::Identity)?;
    }
    world.start(Daemon::Identity)?;
    assert_eq!(device_identity(&world)?["spec"]["deviceId"], REGISTRATION_ID);
    let _ = Identity::create(&world, "sampler")?;
    no_leftovers(world.folder())?;
    token_works(&world, "sampler")
}

/// `identity.md`, W31: a module is created by two calls at the hub; whichever was the last one before the cut, the next attempt finishes it.
#[test]
fn a_module_creation_that_was_cut_off_is_finished_by_the_next_attempt() -> Result<()> {
    let mut world = World::started()?;
    let _ = device_identity(&world)?;
    // So that the cut hits each of the calls: every answer of the hub takes a while.
    let slow = r#"{"kind":"latency","milliseconds":60,"matching":"/modules"}"#;
    let _ = world.control("PUT", "/fault", Some(slow))?.expect(204)?;
    for (round, milliseconds) in [5, 30, 70, 110, 140, 170, 200, 240].into_iter().enumerate() {
        let name = format!("module-{round}");
        let body = json!({ "type": "aziot", "moduleId": name }).to_string();
        let socket = world.socket(Daemon::Identity);
        let caller = thread::spawn(move || {
            // Mostly cut off; whether it was does not matter.
            raw::call(&socket, "POST", &format!("/identities/modules?{VERSION}"), Some(&body)).is_ok()
        });
        thread::sleep(Duration::from_millis(milliseconds));
        world.kill(Daemon::Identity)?;
        let _ = caller.join();
        world.start(Daemon::Identity)?;
        let again = Identity::create(&world, &name).with_context(|| format!("cut after {milliseconds} ms"))?;
        token_works(&world, &name)?;
        assert_eq!(Identity::load(&world, &name)?.generation, again.generation);
        no_leftovers(world.folder())?;
    }
    Ok(())
}

/// The simulator is a product too: what it acknowledged it knows after a kill, and devices never notice.
#[test]
fn the_killed_cloud_knows_its_devices_again() -> Result<()> {
    let mut world = whole_path()?;
    let before = facts(&world)?;
    let devices = world.control("GET", "/devices", None)?.expect(200)?.body;
    for round in 0..4 {
        let name = format!("module-{round}");
        let made = Identity::create(&world, &name)?;
        world.kill_cloud()?;
        world.start_cloud()?;
        assert_eq!(Identity::load(&world, &name)?.generation, made.generation);
        token_works(&world, &name)?;
    }
    assert_eq!(facts(&world)?, before);
    assert_ne!(world.control("GET", "/devices", None)?.expect(200)?.body, devices);
    Ok(())
}

/// Kills a daemon after a time that differs from round to round, while `work` goes on in several threads; `work` gets a number of its own
/// each time and ends with an error when the daemon is gone.
fn kill_under_load(
    world: &mut World,
    daemon: Daemon,
    rounds: u64,
    work: impl Fn(usize) -> Result<()> + Sync,
    check: impl Fn(&World) -> Result<()>,
) -> Result<()> {
    let number = AtomicUsize::new(0);
    for round in 0..rounds {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                let (over, number, work) = (&over, &number, &work);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) && work(number.fetch_add(1, Ordering::SeqCst)).is_ok() {}
                });
            }
            // The moments are spread over a range that a prime step walks through.
            thread::sleep(Duration::from_micros(3_000 + round * 27_919 % 150_000));
            let killed = world.kill(daemon);
            over.store(true, Ordering::SeqCst);
            killed
        })?;
        world.start(daemon).context("the start after the kill")?;
        check(world)?;
    }
    Ok(())
}

/// No unfinished write of any program is left anywhere, once all have tidied up, which the key service does beside its work.
fn no_leftovers(folder: &Path) -> Result<()> {
    let _ = eventually("the end of the tidying", TIDYING, || Ok(no_leftover(folder).ok()));
    no_leftover(folder)
}

fn no_leftover(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(!name.starts_with(".aziot-"), "{} was left behind", path.display());
        if path.is_dir() && !path.is_symlink() {
            no_leftover(&path)?;
        }
    }
    Ok(())
}

/// How many files there are, once nothing else is.
fn no_temporaries(folder: &Path, extension: &str) -> Result<usize> {
    let _ = eventually("the end of the tidying", TIDYING, || Ok(whole_files(folder, extension).ok()));
    whole_files(folder, extension)
}

fn whole_files(folder: &Path, extension: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let known = path.extension().is_some_and(|found| found == extension);
        ensure!(known && path.metadata()?.len() > 0, "{} was left behind", path.display());
        count += 1;
    }
    Ok(count)
}

/// `keys.md`, 11, item 5: a key that was acknowledged survives, whole, and signs as before.
#[test]
fn every_acknowledged_key_survives_the_kill() -> Result<()> {
    let mut world = World::keys("")?;
    let socket = world.socket(Daemon::Keys);
    // Key id, and what the key signed before the kill, if there was time for that.
    let acknowledged: Mutex<BTreeMap<String, Option<String>>> = Mutex::default();
    let sign = |handle: &str| -> Result<String> {
        let parameters = json!({ "message": "bWVzc2FnZQ==" });
        let body = json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": parameters }).to_string();
        raw::call(&socket, "POST", &format!("/sign?{VERSION}"), Some(&body))?.expect(200)?.text("/signature")
    };
    let work = |number: usize| {
        let id = format!("key-{number}");
        let body = json!({ "keyId": id, "usage": "sign" }).to_string();
        let created = raw::call(&socket, "POST", &format!("/key?{VERSION}"), Some(&body))?.expect(200)?;
        let note = |signature| {
            acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), signature);
        };
        note(None);
        let signature = sign(&created.text("/keyHandle")?)?;
        note(Some(signature));
        Ok(())
    };
    work(usize::MAX)?;
    let home = world.path("var/lib/aziot/keyd/keys");
    let check = |_: &World| {
        let known = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, before) in known.iter().rev().take(40) {
            let loaded = raw::call(&socket, "GET", &format!("/key/{id}?{VERSION}"), None)?.expect(200)?;
            let now = sign(&loaded.text("/keyHandle")?)?;
            ensure!(before.as_ref().is_none_or(|before| *before == now), "{id} signs otherwise");
        }
        // One more than acknowledged may be there per thread and round, but only whole.
        let files = no_temporaries(&home, "key")?;
        ensure!(files >= known.len(), "{files} files of {} keys", known.len());
        for entry in fs::read_dir(&home)? {
            ensure!(entry?.metadata()?.len() == 32, "half a key");
        }
        Ok(())
    };
    kill_under_load(&mut world, Daemon::Keys, 15, work, check)?;
    // All of them, at the end once more.
    let known = acknowledged.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(known.len() > 15, "only {} keys: the kills came too early to show anything", known.len());
    for (id, before) in &known {
        let loaded = raw::call(&socket, "GET", &format!("/key/{id}?{VERSION}"), None)?.expect(200)?;
        let now = sign(&loaded.text("/keyHandle")?)?;
        assert!(before.as_ref().is_none_or(|before| *before == now), "{id} signs otherwise");
    }
    Ok(())
}

/// Handles are tokens for ever: `keys.md`, section 2, "Handles survive daemon restarts".
#[test]
fn handles_and_derived_keys_survive_the_kill() -> Result<()> {
    let mut world = World::keys("")?;
    let key = |device: &Device, call: &str, body: &Value| -> Result<String> {
        device
            .call(Daemon::Keys, "POST", &format!("{call}?{VERSION}"), Some(&body.to_string()))?
            .expect(200)?
            .text("/keyHandle")
    };
    let handle = key(&world, "/key", &json!({ "keyId": "k", "usage": "sign" }))?;
    let derived = key(&world, "/derivedkey", &json!({ "baseKeyHandle": handle, "derivationData": "ZGF0YQ==" }))?;
    let pair = key(&world, "/keypair", &json!({ "keyId": "pair" }))?;
    let point = |device: &Device| {
        let body = json!({ "keyHandle": pair }).to_string();
        device
            .call(Daemon::Keys, "POST", &format!("/parameters/ec-point?{VERSION}"), Some(&body))?
            .expect(200)?
            .text("/value")
    };
    let look = |device: &Device| -> Result<[String; 3]> {
        Ok([module::sign(device, &handle, b"m")?, module::sign(device, &derived, b"m")?, point(device)?])
    };
    let before = look(&world)?;
    for _ in 0..3 {
        world.kill(Daemon::Keys)?;
        world.start(Daemon::Keys)?;
        assert_eq!(look(&world)?, before);
    }
    Ok(())
}

/// `certs.md`, 3.4: a certificate that was acknowledged is there, whole; an old one is never damaged by a new one.
#[test]
fn every_acknowledged_certificate_survives_the_kill() -> Result<()> {
    let mut world = World::certificates("")?;
    let socket = world.socket(Daemon::Certificates);
    let acknowledged: Mutex<BTreeMap<String, usize>> = Mutex::default();
    // 40 KiB, so that a file takes more than one write; the number tells which version it is.
    let text = |number: usize| format!("{number:08} ").repeat(4096);
    let work = |number: usize| {
        // Twenty ids, written over and over.
        let id = format!("c{}", number % 20);
        let body = json!({ "pem": text(number) }).to_string();
        let _ = raw::call(&socket, "PUT", &format!("/certificates/{id}?{VERSION}"), Some(&body))?.expect(201)?;
        let mut known = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = known.entry(id).or_default();
        *newest = number.max(*newest);
        Ok(())
    };
    work(0)?;
    let home = world.path("var/lib/aziot/certd/certs");
    let check = |_: &World| {
        for id in acknowledged.lock().unwrap_or_else(PoisonError::into_inner).keys() {
            let reply = raw::call(&socket, "GET", &format!("/certificates/{id}?{VERSION}"), None)?.expect(200)?;
            let pem = reply.text("/pem")?;
            let number: usize = pem.split(' ').next().unwrap_or_default().parse().context("no number")?;
            // Writers of one id overlap, so an unacknowledged or overtaken one may have come last: but whole.
            ensure!(pem == text(number), "{id} is not one of the versions");
            ensure!(format!("c{}", number % 20) == *id, "{id} holds another's certificate");
        }
        no_temporaries(&home, "cer").map(|_| ())
    };
    kill_under_load(&mut world, Daemon::Certificates, 15, work, check)?;
    let count = acknowledged.into_inner().unwrap_or_else(PoisonError::into_inner).len();
    assert!(count > 5, "the kills came too early to show anything");
    Ok(())
}

/// A service manager starts a killed daemon at once: its callers only wait a little.
#[test]
fn callers_of_a_killed_key_service_get_through_once_it_is_back() -> Result<()> {
    let mut world = whole_path()?;
    world.kill(Daemon::Keys)?;
    // Without keyd there is no token for the hub: whatever the answer, it comes within the limits and is an error.
    let target = format!("/identities/modules?{VERSION}");
    let begun = Instant::now();
    let body = r#"{"type":"aziot","moduleId":"later"}"#;
    let refused = raw::call(&world.socket(Daemon::Identity), "POST", &target, Some(body))?;
    assert!([404, 500].contains(&refused.status), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(40), "took {:?}", begun.elapsed());
    world.start(Daemon::Keys)?;
    let made = eventually("a module", Duration::from_secs(10), || Ok(Identity::create(&world, "later").ok()))?;
    assert_eq!(made.module, "later");
    Ok(())
}

/// An import overwrites: `keys.md`, 1.5. Cut off, it leaves the old key or the new one, never a part.
#[test]
fn an_import_that_was_cut_off_leaves_the_old_key_or_the_new_one() -> Result<()> {
    let mut world = World::keys("")?;
    let socket = world.socket(Daemon::Keys);
    // A key of 64 equal bytes; whichever it is, its derived key tells.
    let bytes = |number: usize| [u8::try_from(number % 251).unwrap_or(0); 64];
    let work = |number: usize| {
        let key = STANDARD.encode(bytes(number));
        let body = json!({ "keyId": "imported", "usage": "sign", "keyBytes": key }).to_string();
        raw::call(&socket, "POST", &format!("/key?{VERSION}"), Some(&body))?.expect(200).map(|_| ())
    };
    work(0)?;
    let home = world.path("var/lib/aziot/keyd/keys");
    let check = |device: &World| {
        let loaded = raw::call(&socket, "GET", &format!("/key/imported?{VERSION}"), None)?.expect(200)?;
        let signature = module::sign(device, &loaded.text("/keyHandle")?, b"m")?;
        let expected =
            |number| Ok::<_, anyhow::Error>(STANDARD.encode(hex::decode(&openssl::hmac_sha256(&bytes(number), "m")?)?));
        let _ = no_temporaries(&home, "key")?;
        for entry in fs::read_dir(&home)? {
            let path = entry?.path();
            let content = fs::read(&path)?;
            if content.len() == 64 {
                ensure!(expected(usize::from(content[0]))? == signature, "the file is not the key that signs");
                ensure!(content.iter().all(|byte| *byte == content[0]), "a mixture of two keys");
            }
        }
        Ok(())
    };
    kill_under_load(&mut world, Daemon::Keys, 8, work, check)
}

/// After a power cut nothing says who starts first: identityd waits for the key service as it waits for the cloud.
#[test]
fn the_order_of_starts_does_not_matter() -> Result<()> {
    let mut world = World::configured()?;
    world.be_impatient()?;
    world.stop_cloud()?;
    world.start(Daemon::Identity)?;
    let refused = calls::device_identity(&world)?;
    ensure!([400, 404].contains(&refused.status), "{refused:?}");
    world.start_cloud()?;
    world.start(Daemon::Certificates)?;
    world.start(Daemon::Keys)?;
    eventually("the device identity", Duration::from_secs(90), || {
        Ok((calls::device_identity(&world)?.status == 200).then_some(()))
    })?;
    let _ = Identity::create(&world, "sampler")?;
    token_works(&world, "sampler")
}
