//! The hub is out of reach: what a device knew it goes on knowing, the rest gets the specified error, and nobody has to help when the hub is back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, World,
    calls::{VERSION, create_module, device_identity, module_ids},
    device::{MANUAL_DEVICE_ID, REGISTRATION_ID},
    eventually,
    module::{self, Identity},
    raw,
};
use serde_json::Value;

const LIFETIME: Duration = Duration::from_secs(300);
/// How long a device may take to notice that the cloud is back: a backoff with a cap.
const RECOVERY: Duration = Duration::from_secs(90);

fn generation(device: &Device, name: &str) -> Result<String> {
    Ok(Identity::load(device, name)?.generation)
}

/// `identity.md`, 3.6: "With a valid `device_info`: starts and serves device identity; module get/list fall back to backups;
/// create/update/delete fail 404."
#[test]
fn a_device_that_was_provisioned_once_answers_from_its_state() -> Result<()> {
    let mut world = World::configured()?;
    world.be_impatient()?;
    world.start_all()?;
    let made = Identity::create(&world, "sampler")?;
    let _ = Identity::create(&world, "other")?;
    let token = made.token(&world, LIFETIME)?;
    let signature = module::sign(&world, &made.key_handle, b"message")?;
    let before: Value = device_identity(&world)?.expect(200)?.json()?;

    world.stop_cloud()?;
    // Once while it runs, and twice as after a power cut.
    for round in 0..3 {
        let device = device_identity(&world)?.expect(200)?.json()?;
        assert_eq!(device["spec"]["deviceId"], before["spec"]["deviceId"]);
        assert_eq!(device["spec"]["hubName"], before["spec"]["hubName"]);
        let read = Identity::load(&world, "sampler")?;
        assert_eq!(read.generation, made.generation);
        assert_eq!(module::sign(&world, &read.key_handle, b"message")?, signature, "round {round}");
        let ids = module_ids(&world)?;
        assert!(["sampler", "other"].iter().all(|name| ids.iter().any(|id| id == name)), "{ids:?}");
        if round == 1 {
            world.stop(Daemon::Identity)?;
        } else {
            world.kill(Daemon::Identity)?;
        }
        world.start(Daemon::Identity)?;
    }

    let refused = create_module(&world, "new")?.expect(404)?;
    assert!(refused.message().starts_with("Hub client error\ncaused by: "), "{refused:?}");
    let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
    let refused = world.call(Daemon::Identity, "DELETE", &target, None)?.expect(404)?;
    assert!(refused.message().starts_with("Hub client error"), "{refused:?}");
    let unknown =
        world.call(Daemon::Identity, "GET", &format!("/identities/modules/nobody?{VERSION}&type=aziot"), None)?;
    assert!(unknown.expect(404)?.message().starts_with("Hub client error"));

    // The token that was signed offline is good when the hub is back, and new modules need no restart.
    let offline_token = Identity::load(&world, "sampler")?.token(&world, LIFETIME)?;
    world.start_cloud()?;
    let new = eventually("a new module", RECOVERY, || {
        let reply = create_module(&world, "new")?;
        Ok((reply.status == 200).then_some(reply))
    })?;
    assert_eq!(new.json()?["spec"]["moduleId"], "new");
    for token in [token, offline_token] {
        assert_eq!(made.send_message(&world, &token, "{}")?.status, 204);
    }
    assert_eq!(generation(&world, "sampler")?, made.generation);
    let _ = world.call(Daemon::Identity, "DELETE", &target, None)?.expect(204)?;
    Ok(())
}

/// `design.md`, before the first provisioning: "without identity and without backup it answers the specified error while it goes on trying
/// with backoff".
#[test]
fn a_first_start_without_a_hub_provisions_by_itself_once_there_is_one() -> Result<()> {
    let mut world = World::configured()?;
    world.be_impatient()?;
    world.stop_cloud()?;
    world.start_all()?;
    let refused = device_identity(&world)?;
    // `identity.md`, 1.6: either that there is no device, or why DPS did not give one.
    let specified = match refused.status {
        400 => refused.message() == "device identity not found",
        404 => refused.message().starts_with("DPS client error\ncaused by: "),
        _ => false,
    };
    assert!(specified, "{refused:?}");
    assert!([400, 404].contains(&create_module(&world, "sampler")?.status));
    // What needs no device works all the while.
    let key = r#"{"keyId":"k","usage":"sign"}"#;
    let _ = world.call(Daemon::Keys, "POST", &format!("/key?{VERSION}"), Some(key))?.expect(200)?;
    let how = "/identities/provisioning?api-version=2021-12-01";
    assert_eq!(world.call(Daemon::Identity, "GET", how, None)?.expect(200)?.json()?["source"], "dps");

    world.start_cloud()?;
    let identity = eventually("the device identity", RECOVERY, || {
        let reply = device_identity(&world)?;
        ensure!([200, 400, 404].contains(&reply.status), "{reply:?}");
        Ok((reply.status == 200).then_some(reply))
    })?;
    assert_eq!(identity.json()?["spec"]["deviceId"], REGISTRATION_ID);
    let module = Identity::create(&world, "sampler")?;
    assert_eq!(module.send_message(&world, &module.token(&world, LIFETIME)?, "{}")?.status, 204);
    world.stop_all()
}

/// `identity.md`, 3.6: "Manual without network: starts; module gets need backups."
#[test]
fn a_manual_device_starts_without_any_network() -> Result<()> {
    let mut world = World::empty()?;
    world.start_cloud()?;
    let provisioning = world.manual_provisioning()?;
    world.apply(&provisioning)?;
    world.stop_cloud()?;
    world.start_all()?;
    let device = device_identity(&world)?.expect(200)?.json()?;
    assert_eq!(device["spec"]["deviceId"], MANUAL_DEVICE_ID);
    let handle = device["spec"]["auth"]["keyHandle"].as_str().context("no key handle")?;
    module::sign(&world, handle, b"message")?;
    let _ = create_module(&world, "sampler")?.expect(404)?;
    world.start_cloud()?;
    eventually("a module", RECOVERY, || Ok((create_module(&world, "sampler")?.status == 200).then_some(())))
}

/// Issue 2 and `identity.md`, W1: a call that waits for the hub keeps nobody else waiting.
#[test]
fn nobody_waits_for_another_callers_slow_hub_call() -> Result<()> {
    let world = World::started()?;
    let _ = Identity::create(&world, "sampler")?;
    let slow = r#"{"kind":"latency","milliseconds":4000,"matching":"/modules/slow"}"#;
    let _ = world.control("PUT", "/fault", Some(slow))?.expect(204)?;
    let socket = world.socket(Daemon::Identity);
    let caller = std::thread::spawn(move || {
        let body = r#"{"type":"aziot","moduleId":"slow"}"#;
        raw::call(&socket, "POST", &format!("/identities/modules?{VERSION}"), Some(body))
    });
    eventually("the slow call at the hub", Duration::from_secs(10), || {
        // Only requests that were answered are in the journal, so the log of identityd cannot tell either: the hub holds the request.
        let fast = Instant::now();
        let _ = device_identity(&world)?.expect(200)?;
        let _ = Identity::load(&world, "sampler")?;
        ensure!(fast.elapsed() < Duration::from_secs(2), "waited {:?}", fast.elapsed());
        Ok(caller.is_finished().then_some(()))
    })
    .context("the slow call did not end, or ended at once")?;
    let reply = caller.join().map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    assert_eq!(reply.status, 200, "{reply:?}");
    Ok(())
}

/// `identity.md`, W5: a failed reprovisioning costs nothing; W4: a good one keeps the device and its modules when hub and device are the same.
#[test]
fn reprovisioning_keeps_what_is_the_same_and_loses_nothing_offline() -> Result<()> {
    let mut world = World::configured()?;
    world.be_impatient()?;
    world.start_all()?;
    let made = Identity::create(&world, "sampler")?;
    let reprovision = |device: &Device| {
        let target = format!("/identities/device/reprovision?{VERSION}");
        raw::call(&device.socket(Daemon::Identity), "POST", &target, Some(r#"{"type":"aziot"}"#))
    };
    let _ = reprovision(&world)?.expect(204)?;
    assert_eq!(generation(&world, "sampler")?, made.generation);

    world.stop_cloud()?;
    let refused = reprovision(&world)?.expect(404)?;
    assert!(refused.message().starts_with("DPS client error"), "{refused:?}");
    for _ in 0..2 {
        let device = device_identity(&world)?.expect(200)?;
        assert_eq!(device.text("/spec/deviceId")?, REGISTRATION_ID);
        assert_eq!(generation(&world, "sampler")?, made.generation);
        world.kill(Daemon::Identity)?;
        world.start(Daemon::Identity)?;
    }
    world.start_cloud()?;
    eventually("a reprovisioning", RECOVERY, || Ok((reprovision(&world)?.status == 204).then_some(())))?;
    assert_eq!(generation(&world, "sampler")?, made.generation);
    Ok(())
}
