//! A cloud that is there and misbehaves: wrong certificates, refusals, nonsense, slowness. State is kept, callers get a clear error, and nobody
//! has to help when it is well again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, World,
    calls::{VERSION, create_module, device_identity},
    device::REGISTRATION_ID,
    eventually,
    module::Identity,
    raw,
};
use serde_json::json;

const LIFETIME: Duration = Duration::from_secs(300);
const RECOVERY: Duration = Duration::from_secs(90);

fn fault(device: &Device, fault: &str) -> Result<()> {
    device.control("PUT", "/fault", Some(fault))?.expect(204).map(|_| ())
}

fn all_is_well(device: &Device) -> Result<()> {
    device.control("DELETE", "/fault", None)?.expect(204).map(|_| ())
}

/// A device with the module `sampler`, whose calls to the cloud are tried once.
fn provisioned() -> Result<(World, Identity)> {
    let mut world = World::configured()?;
    world.be_impatient()?;
    world.start_all()?;
    device_identity(&world)?.expect(200).map(|_| ())?;
    let module = Identity::create(&world, "sampler")?;
    Ok((world, module))
}

fn token_works(device: &Device, module: &Identity) -> Result<()> {
    let sent = module.send_message(device, &module.token(device, LIFETIME)?, "{}")?;
    ensure!(sent.status == 204, "{sent:?}");
    Ok(())
}

/// Issue 2, "a hub with the wrong certificate"; `identity.md`, W19: "TLS trust failures as configuration errors logged loudly".
#[test]
fn a_hub_with_a_wrong_certificate_gets_no_token_and_costs_no_state() -> Result<()> {
    let (mut world, module) = provisioned()?;
    for (kind, told) in [("other-ca", "certificate"), ("wrong-name", "certificate"), ("expired", "certificate")] {
        world.stop(Daemon::Identity)?;
        fault(&world, &json!({ "certificate": kind }).to_string())?;
        let seen = world.log(Daemon::Identity)?.len();
        let requests = world.control("GET", "/journal", None)?.expect(200)?.body;
        world.start(Daemon::Identity)?;
        // The device is what it was, from its state.
        let device = device_identity(&world)?.expect(200)?.json()?;
        assert_eq!(device["spec"]["deviceId"], REGISTRATION_ID, "{kind}");
        let refused = create_module(&world, kind)?.expect(404)?;
        assert!(refused.message().starts_with("Hub client error\ncaused by: "), "{kind}: {refused:?}");
        let log = eventually("a line in the log", Duration::from_secs(10), || {
            let log = world.log(Daemon::Identity)?.split_off(seen);
            let line =
                log.lines().find(|line| line.contains(told) && (line.contains("[ERR!]") || line.contains("[WARN]")));
            Ok(line.map(str::to_owned))
        });
        let log = log.with_context(|| format!("{kind}: nothing about a certificate in the log"))?;
        assert!(log.contains("localhost"), "the server is not named: {log}");
        // Nothing was said to the stranger.
        assert_eq!(world.control("GET", "/journal", None)?.expect(200)?.body, requests, "{kind}");

        all_is_well(&world)?;
        eventually("a new module", RECOVERY, || Ok((create_module(&world, kind)?.status == 200).then_some(())))?;
        assert_eq!(Identity::load(&world, "sampler")?.generation, module.generation);
        token_works(&world, &Identity::load(&world, "sampler")?)?;
    }
    Ok(())
}

/// The same before there is any state: no identity, no answer from a stranger, and an identity as soon as the right server is back.
#[test]
fn a_first_provisioning_trusts_no_stranger() -> Result<()> {
    let mut world = World::configured()?;
    world.be_impatient()?;
    fault(&world, r#"{"certificate":"other-ca"}"#)?;
    world.start_all()?;
    let refused = device_identity(&world)?;
    assert!([400, 404].contains(&refused.status), "{refused:?}");
    assert_eq!(world.control("GET", "/journal", None)?.expect(200)?.body, "[]");
    all_is_well(&world)?;
    eventually("the device identity", RECOVERY, || Ok((device_identity(&world)?.status == 200).then_some(())))
}

/// `identity.md`, 1.6: any failure of the hub is a 404 `Hub client error`. W34: what is known is answered from the state, but only if the
/// failure will pass by itself; nonsense is told.
#[test]
fn a_hub_that_fails_is_told_and_forgiven() -> Result<()> {
    let (world, module) = provisioned()?;
    let faults = [
        (true, r#"{"kind":"status","status":500,"matching":"/modules"}"#),
        (true, r#"{"kind":"status","status":503,"retryAfter":1,"matching":"/modules"}"#),
        (true, r#"{"kind":"status","status":429,"retryAfter":1,"matching":"/modules"}"#),
        (false, r#"{"kind":"garbage","matching":"/modules"}"#),
        (false, r#"{"kind":"html","matching":"/modules"}"#),
        (false, r#"{"kind":"empty","matching":"/modules"}"#),
        (true, r#"{"kind":"truncated","matching":"/modules"}"#),
        (true, r#"{"kind":"reset","matching":"/modules"}"#),
        (true, r#"{"kind":"refuse"}"#),
    ];
    for (number, (passes, kind)) in faults.into_iter().enumerate() {
        fault(&world, kind)?;
        let name = format!("new-{number}");
        let refused = create_module(&world, &name).context(kind)?;
        assert_eq!(refused.status, 404, "{kind}: {refused:?}");
        assert!(refused.message().starts_with("Hub client error"), "{kind}: {refused:?}");
        if passes {
            let read = Identity::load(&world, "sampler").context(kind)?;
            assert_eq!(read.generation, module.generation, "{kind}");
        } else {
            let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
            let read = world.call(Daemon::Identity, "GET", &target, None)?.expect(404).context(kind)?;
            assert!(read.message().starts_with("Hub client error"), "{kind}: {read:?}");
        }
        all_is_well(&world)?;
        // Whatever the hub made of the first attempt, the second one finishes it.
        let made = Identity::create(&world, &name).with_context(|| format!("after {kind}"))?;
        token_works(&world, &made).with_context(|| format!("after {kind}"))?;
    }
    token_works(&world, &module)
}

/// `identity.md`, 2.2: `cloud_retries`, "retries after the first attempt", by default 1; W20: "honour Retry-After".
#[test]
fn one_failure_of_the_hub_is_tried_again_unnoticed() -> Result<()> {
    let world = World::started()?;
    device_identity(&world)?.expect(200).map(|_| ())?;
    for (number, kind) in [
        r#"{"kind":"status","status":429,"retryAfter":1,"matching":"/modules","count":1}"#,
        r#"{"kind":"status","status":503,"retryAfter":1,"matching":"/modules","count":1}"#,
    ]
    .into_iter()
    .enumerate()
    {
        fault(&world, kind)?;
        let begun = Instant::now();
        let made = Identity::create(&world, &format!("new-{number}")).context(kind)?;
        assert!(begun.elapsed() >= Duration::from_secs(1), "{kind}: did not wait as it was asked to");
        assert!(begun.elapsed() < Duration::from_secs(10), "{kind}: took {:?}", begun.elapsed());
        token_works(&world, &made)?;
    }
    Ok(())
}

/// `identity.md`, W33: a module that somebody deleted in the cloud is not served from the state.
#[test]
fn a_module_that_is_gone_at_the_hub_is_gone_on_the_device() -> Result<()> {
    let (world, _) = provisioned()?;
    // The registration is kept, the device with its modules is not.
    let _ = world.control("DELETE", &format!("/devices/{REGISTRATION_ID}"), None)?;
    let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
    let read = raw::call(&world.socket(Daemon::Identity), "GET", &target, None)?;
    assert_eq!(read.status, 404, "{read:?}");
    Ok(())
}

/// A device that an operator disabled at the hub: refused, not forgotten, and no flood of attempts; well again when it is enabled.
#[test]
fn a_device_that_is_disabled_at_the_hub_waits_for_its_return() -> Result<()> {
    let (mut world, module) = provisioned()?;
    let target = format!("/devices/{REGISTRATION_ID}");
    let _ = world.control("PUT", &target, Some(r#"{"disabled":true}"#))?.expect(204)?;
    let refused = create_module(&world, "new")?.expect(404)?;
    assert!(refused.message().starts_with("Hub client error"), "{refused:?}");
    world.kill(Daemon::Identity)?;
    world.start(Daemon::Identity)?;
    let answer = device_identity(&world)?;
    // With the backup it is the device, unless DPS too said no: either way it is a specified answer.
    ensure!([200, 400, 404].contains(&answer.status), "{answer:?}");
    let seen = || -> Result<usize> {
        let journal = world.control("GET", "/journal", None)?.expect(200)?.json()?;
        Ok(journal.as_array().map_or(0, Vec::len))
    };
    let (before, begun) = (seen()?, Instant::now());
    eventually("three quiet seconds", Duration::from_secs(5), || {
        Ok((begun.elapsed() > Duration::from_secs(3)).then_some(()))
    })?;
    let attempts = seen()? - before;
    assert!(attempts < 20, "{attempts} requests in three seconds");

    let _ = world.control("PUT", &target, Some(r#"{"disabled":false}"#))?.expect(204)?;
    eventually("a new module", RECOVERY, || Ok((create_module(&world, "new")?.status == 200).then_some(())))?;
    assert_eq!(Identity::load(&world, "sampler")?.generation, module.generation);
    token_works(&world, &module)
}

/// A wrong key in the configuration is told with DPS's own refusal; the right one and a restart mend it.
#[test]
fn a_wrong_device_key_is_told_and_mended() -> Result<()> {
    let mut world = World::configured()?;
    let right = world.dps_provisioning()?;
    let wrong_key = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXkgMTI=";
    let wrong = right.replace(&world.enrollment_key()?, wrong_key);
    world.be_impatient()?;
    world.apply(&wrong)?;
    world.start_all()?;
    let refused = device_identity(&world)?;
    ensure!([400, 404].contains(&refused.status), "{refused:?}");
    let log = world.log(Daemon::Identity)?;
    let told = log.lines().find(|line| line.contains("DPS client error") && line.contains("401"));
    assert!(told.is_some(), "{log}");
    assert!(!log.contains(wrong_key));
    world.apply(&right)?;
    for daemon in [Daemon::Keys, Daemon::Identity] {
        world.stop(daemon)?;
        world.start(daemon)?;
    }
    assert_eq!(device_identity(&world)?.expect(200)?.text("/spec/deviceId")?, REGISTRATION_ID);
    Ok(())
}

/// Callers that race for one module get the same one.
#[test]
fn callers_that_race_for_a_module_get_the_same_one() -> Result<()> {
    let (world, _) = provisioned()?;
    for round in 0..5 {
        let name = format!("raced-{round}");
        let generations = std::thread::scope(|scope| {
            let device: &Device = &world;
            let callers: Vec<_> = (0..6).map(|_| scope.spawn(|| create_module(device, &name))).collect();
            let join = |caller: std::thread::ScopedJoinHandle<'_, Result<Reply>>| -> Result<String> {
                let reply = caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
                reply.expect(200)?.text("/spec/genId")
            };
            callers.into_iter().map(join).collect::<Result<Vec<String>>>()
        })?;
        assert!(generations.iter().all(|generation| *generation == generations[0]), "{generations:?}");
        token_works(&world, &Identity::load(&world, &name)?)?;
    }
    Ok(())
}

/// A hub that does not answer keeps nobody from stopping the device.
#[test]
fn a_slow_hub_does_not_delay_the_end() -> Result<()> {
    let (mut world, module) = provisioned()?;
    fault(&world, r#"{"kind":"latency","milliseconds":60000,"matching":"/modules"}"#)?;
    // The request is on its way to the hub when the key service has signed for it.
    let signs = |world: &World| Ok::<_, anyhow::Error>(world.log(Daemon::Keys)?.matches("path=/sign").count());
    let before = signs(&world)?;
    let socket = world.socket(Daemon::Identity);
    let caller = std::thread::spawn(move || {
        let body = r#"{"type":"aziot","moduleId":"never"}"#;
        raw::call(&socket, "POST", &format!("/identities/modules?{VERSION}"), Some(body)).is_ok()
    });
    eventually("the call to the hub", Duration::from_secs(10), || {
        Ok((signs(&world)? > before || caller.is_finished()).then_some(()))
    })?;
    let begun = Instant::now();
    assert_eq!(world.stop(Daemon::Identity)?.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    let _ = caller.join();
    all_is_well(&world)?;
    world.start(Daemon::Identity)?;
    assert_eq!(Identity::load(&world, "sampler")?.generation, module.generation);
    Ok(())
}
