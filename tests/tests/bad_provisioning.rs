//! Provisioning against the odds: DPS and hub that say no or nonsense, a clock that is wrong by a year, services that are down meanwhile, a state
//! of another device, another TPM. Callers learn why, what the device has it keeps, and when all is well again nobody has to help.
//!
//! Answers of a hub in general are in `bad_hub.rs`, damaged files in `bad_files.rs`.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, at_once,
    calls::{VERSION, create_module, device_identity, is_serving},
    device::{REGISTRATION_ID, write_private},
    eventually,
    module::Identity,
    provisioned::{Certificate, Kind, Provisioned, Setup},
    raw,
};
use serde_json::{Value, json};

const LIFETIME: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(60);
/// How long a device may take to notice that all is well again: a backoff with a cap.
const RECOVERY: Duration = Duration::from_secs(90);
const YEAR_SECONDS: i64 = 31_536_000;

fn reprovision(device: &Device) -> Result<Reply> {
    let target = "/identities/device/reprovision?api-version=2021-12-01";
    raw::call(&device.socket(Daemon::Identity), "POST", target, Some(r#"{"type":"aziot"}"#))
}

fn fault(device: &Device, fault: &Value) -> Result<()> {
    device.control("PUT", "/fault", Some(&fault.to_string()))?.expect(204).map(|_| ())
}

fn all_is_well(device: &Device) -> Result<()> {
    device.control("DELETE", "/fault", None)?.expect(204).map(|_| ())
}

fn set(device: &Device, settings: &Value) -> Result<()> {
    let reply = device.control("PUT", "/settings", Some(&settings.to_string()))?;
    ensure!(reply.status < 300, "{settings}: {reply:?}");
    Ok(())
}

/// Starts the daemons of a new device, whose registration DPS begins and does not decide.
fn start_undecided(device: &mut Provisioned) -> Result<()> {
    // Polls come once a second: time enough.
    set(device, &json!({ "assigningPolls": 10 }))?;
    device.start_all()?;
    eventually("the registration", LIMIT, || {
        let known = device.control("GET", "/registrations", None)?.expect(200)?.json()?;
        Ok(known.as_array().is_some_and(|known| !known.is_empty()).then_some(()))
    })?;
    decide(device, "assigning")?;
    set(device, &json!({ "assigningPolls": 0 }))
}

/// What DPS decides about the device from now on.
fn decide(device: &Device, answer: &str) -> Result<()> {
    let body = json!({ "answer": answer }).to_string();
    device.control("PUT", &format!("/registrations/{REGISTRATION_ID}"), Some(&body))?.expect(204).map(|_| ())
}

fn device_comes(device: &Device) -> Result<()> {
    let comes =
        eventually("the device identity", RECOVERY, || Ok((device_identity(device)?.status == 200).then_some(())));
    comes.with_context(|| format!("identityd says:\n{}", last_lines(device)))
}

fn last_lines(device: &Device) -> String {
    let log = device.log(Daemon::Identity).unwrap_or_default();
    let lines: Vec<_> = log.lines().rev().filter(|line| !line.contains("path=/identities")).take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// A device of its own with the module `sampler`, whose calls to the cloud are tried once.
fn provisioned(kind: Kind) -> Result<(Provisioned, Identity)> {
    let mut device = Setup::of(kind).configure()?;
    device.be_impatient()?;
    device.start_all()?;
    let sampler = Identity::create(&device, "sampler").with_context(|| format!("{kind:?}"))?;
    Ok((device, sampler))
}

/// The device, its module and new modules work as they should.
fn all_works(device: &Device, sampler: &Identity, new: &str) -> Result<()> {
    device_comes(device)?;
    let made = eventually("a new module", RECOVERY, || Ok(Identity::create(device, new).ok()))
        .with_context(|| format!("{new}; identityd says:\n{}", last_lines(device)))?;
    let read = Identity::load(device, "sampler")?;
    ensure!(read.generation == sampler.generation, "the module is another");
    for module in [&made, &read] {
        let sent = module.send_message(device, &module.token(device, LIFETIME)?, "{}")?;
        ensure!(sent.status == 204, "{new}: {sent:?}");
    }
    Ok(())
}

/// `identity.md`, W17: "loops forever on `assigning`"; others are answered meanwhile, and the decision is heard when it comes.
#[test]
fn dps_that_goes_on_thinking_keeps_nobody_from_anything() -> Result<()> {
    let mut device = Setup::of(Kind::DpsKey).configure()?;
    start_undecided(&mut device)?;
    let polls = || -> Result<usize> {
        let journal = device.control("GET", "/journal", None)?.expect(200)?.json()?;
        let entries = journal.as_array().context("the journal is no list")?;
        Ok(entries
            .iter()
            .filter(|entry| entry["path"].as_str().is_some_and(|path| path.contains("/operations/")))
            .count())
    };
    eventually("polls without end", LIMIT, || Ok((polls()? >= 12).then_some(())))?;
    is_serving(&device, Daemon::Identity)?;
    let info = device.call(Daemon::Identity, "GET", "/identities/provisioning?api-version=2021-12-01", None)?;
    assert_eq!(info.expect(200)?.json()?["registration_id"], REGISTRATION_ID);
    // It can be stopped in between, and begins anew.
    assert_eq!(device.stop(Daemon::Identity)?.code(), Some(0));
    device.start(Daemon::Identity)?;
    decide(&device, "assign")?;
    device_comes(&device)
}

/// `identity.md`, W18: the statuses of DPS have clear messages. First for a device that has nothing, then for one that has an identity.
#[test]
fn what_dps_decides_against_a_device_is_told_and_can_be_undone() -> Result<()> {
    let cases = [
        // DPS's own words.
        (Kind::DpsKey, "failed", "The registration fails on demand"),
        (Kind::DpsCertificate(Certificate::Preloaded), "disabled", "disabled"),
        (Kind::DpsTpm, "unassigned", "has not assigned this device"),
    ];
    at_once(cases, |(kind, answer, told)| {
        let mut device = Setup::of(kind).configure()?;
        device.be_impatient()?;
        start_undecided(&mut device)?;
        decide(&device, answer)?;
        let refused = device_identity(&device)?;
        // Either that there is no device, or why DPS did not give one.
        ensure!([400, 404].contains(&refused.status), "{kind:?}, {answer}: {refused:?}");
        eventually("a line about it", LIMIT, || {
            let log = device.log(Daemon::Identity)?;
            Ok(log.lines().any(|line| line.contains("DPS client error") && line.contains(told)).then_some(()))
        })
        .with_context(|| format!("{kind:?}, {answer}; identityd says:\n{}", last_lines(&device)))?;
        decide(&device, "assign")?;
        device_comes(&device).with_context(|| format!("{kind:?}, {answer}"))?;

        let sampler = Identity::create(&device, "sampler")?;
        decide(&device, answer)?;
        let refused = reprovision(&device)?.expect(404)?;
        let message = refused.message();
        ensure!(message.starts_with("DPS client error") && message.contains(told), "{kind:?}: {message}");
        // `identity.md`, W5: the device in force stays.
        assert_eq!(device.identity()?["deviceId"], REGISTRATION_ID, "{kind:?}, {answer}");
        decide(&device, "assign")?;
        all_works(&device, &sampler, "after").with_context(|| format!("{kind:?}, {answer}"))?;
        reprovision(&device)?.expect(204)?;
        all_works(&device, &sampler, "again").with_context(|| format!("{kind:?}, {answer}"))?;
        Ok(())
    })
    .map(drop)
}

/// Issue 5, bad input: "DPS answers that are ... malformed, 10 MB".
#[test]
fn nonsense_of_dps_costs_neither_the_device_nor_memory() -> Result<()> {
    at_once([Kind::DpsKey, Kind::DpsCertificate(Certificate::LocalCa), Kind::DpsTpm], |kind| {
        let (device, sampler) = provisioned(kind)?;
        let before = device.process(Daemon::Identity)?.memory()?.0;
        let body = |status: u16, body: &str, matching: &str| json!({ "kind": "status", "status": status, "body": body, "matching": matching });
        for (number, wrong) in [
            json!({ "kind": "huge", "matching": "/operations/" }),
            json!({ "kind": "huge", "matching": "/register" }),
            json!({ "kind": "garbage", "matching": "/register" }),
            json!({ "kind": "html", "matching": "/operations/" }),
            json!({ "kind": "empty", "matching": "/register" }),
            body(200, r#"{"status":"sideways"}"#, "/operations/"),
            body(200, r#"{"status":"assigned"}"#, "/operations/"),
            body(200, r#"{"status":"assigned","registrationState":{"assignedHub":"","deviceId":""}}"#, "/operations/"),
            body(
                200,
                r#"{"status":"assigned","registrationState":{"assignedHub":"a/../b","deviceId":"x/y"}}"#,
                "/operations/",
            ),
            body(202, r#"{"operationId":"../../register"}"#, "/register"),
            body(401, r#"{"errorCode":401002,"authenticationKey":"!"}"#, "/register"),
            body(401, "[]", "/register"),
        ]
        .into_iter()
        .enumerate()
        {
            fault(&device, &wrong)?;
            let refused = reprovision(&device).with_context(|| format!("{kind:?}, {wrong}"))?;
            ensure!(refused.status == 404, "{kind:?}, {wrong}: {refused:?}");
            let message = refused.message();
            ensure!(message.contains("client error\ncaused by: "), "{kind:?}, {wrong}: {message}");
            ensure!(refused.body.len() < 2000, "{kind:?}, {wrong}: {} bytes", refused.body.len());
            assert_eq!(device.identity()?["deviceId"], REGISTRATION_ID, "{kind:?}, {wrong}");
            all_is_well(&device)?;
            all_works(&device, &sampler, &format!("after-{number}")).with_context(|| format!("{kind:?}, {wrong}"))?;
        }
        // `identity.md`, W17: what may pass by itself is asked again.
        fault(&device, &json!({ "kind": "truncated", "matching": "/operations/", "count": 2 }))?;
        reprovision(&device)?.expect(204).with_context(|| format!("{kind:?}, half an answer"))?;
        all_works(&device, &sampler, "half-an-answer").with_context(|| format!("{kind:?}, half an answer"))?;
        let after = device.process(Daemon::Identity)?.memory()?.0;
        ensure!(after < before + 6 * 1024, "{kind:?}: {before} KiB before, {after} KiB after");
        Ok(())
    })
    .map(drop)
}

/// Statuses that a hub has for devices and modules, at a start and for callers; those of an ailing hub are in `bad_hub.rs`.
#[test]
fn a_hub_that_says_no_is_told_and_forgiven() -> Result<()> {
    let kinds =
        [Kind::DpsKey, Kind::DpsCertificate(Certificate::LocalCa), Kind::ManualCertificate(Certificate::Preloaded)];
    at_once(kinds, |kind| {
        let (mut device, sampler) = provisioned(kind)?;
        for status in [401, 403, 404, 409, 412, 429] {
            let wrong = json!({ "kind": "status", "status": status, "matching": "/modules" });
            device.kill(Daemon::Identity)?;
            fault(&device, &wrong)?;
            device.start(Daemon::Identity)?;
            // Who the device is, it knows.
            device_comes(&device).with_context(|| format!("{kind:?}, {status}"))?;
            let refused = create_module(&device, "new")?;
            ensure!(refused.status == 404, "{kind:?}, {status}: {refused:?}");
            ensure!(refused.message().starts_with("Hub client error"), "{kind:?}, {status}: {refused:?}");
            all_is_well(&device)?;
            all_works(&device, &sampler, &format!("after-{status}")).with_context(|| format!("{kind:?}, {status}"))?;
        }
        Ok(())
    })
    .map(drop)
}

/// A hub that takes a request and says nothing holds up its caller alone. 10 MB are told, not read.
#[test]
fn a_hub_that_is_silent_or_endless_holds_up_nobody_else() -> Result<()> {
    let (mut device, sampler) = provisioned(Kind::DpsCertificate(Certificate::LocalCa))?;
    fault(&device, &json!({ "kind": "hang", "matching": "/modules/silent", "count": 1 }))?;
    let socket = device.socket(Daemon::Identity);
    let waiting = thread::spawn(move || {
        let body = json!({ "type": "aziot", "moduleId": "silent" }).to_string();
        raw::call(&socket, "POST", &format!("/identities/modules?{VERSION}"), Some(&body))
    });
    eventually("the request", LIMIT, || {
        let fault = device.control("GET", "/fault", None)?.expect(200)?.json()?;
        Ok((fault["kind"] == "none").then_some(()))
    })?;
    for number in 0..20 {
        let read = Identity::load(&device, "sampler")?;
        ensure!(read.generation == sampler.generation, "read {number}");
        let _ = device.identity()?;
    }
    let made = Identity::create(&device, "talkative")?;
    ensure!(made.hub == device.cloud()?, "{made:?}");
    ensure!(!waiting.is_finished(), "the silent hub has answered");
    // The end of the hub is an answer too.
    device.kill_cloud()?;
    let refused = waiting.join().map_err(|_| anyhow::anyhow!("the caller panicked"))??;
    ensure!(refused.expect(404)?.message().starts_with("Hub client error"));
    device.start_cloud()?;
    device_comes(&device)?;
    let before = device.process(Daemon::Identity)?.memory()?.0;
    fault(&device, &json!({ "kind": "huge", "matching": "/modules" }))?;
    let target = format!("/identities/modules?{VERSION}&type=aziot");
    let list = device.call(Daemon::Identity, "GET", &target, None)?;
    ensure!(list.status == 404 && list.message().starts_with("Hub client error"), "{}", list.status);
    let after = device.process(Daemon::Identity)?.memory()?.0;
    ensure!(after < before + 6 * 1024, "{before} KiB before, {after} KiB after");
    all_is_well(&device)?;
    all_works(&device, &sampler, "after")
}

/// `identity.md`, W12: a state is of use only to the device that it is about.
#[test]
fn a_state_of_another_device_is_not_used_for_long() -> Result<()> {
    at_once([Kind::DpsKey, Kind::DpsCertificate(Certificate::LocalCa), Kind::DpsTpm], |kind| {
        let (mut device, sampler) = provisioned(kind)?;
        let home = device.path("var/lib/aziot/identityd");
        let cloud = device.cloud()?;
        let of =
            |hub: &str, id: &str| format!("hub_name = {hub:?}\nlocal_gateway_hostname = {hub:?}\ndevice_id = {id:?}\n");
        for (info, has_origin) in [
            // As an image of another device would bring it along, from the public service and from ours.
            (of(&cloud, "somebody-else"), false),
            (of(&cloud, "somebody-else"), true),
            ("unprovisioned".to_owned(), true),
            (of(&cloud, REGISTRATION_ID).split_at(40).0.to_owned(), true),
        ] {
            device.stop(Daemon::Identity)?;
            write_private(&home.join("device_info"), &info)?;
            if !has_origin {
                fs::remove_file(home.join("device_origin"))?;
            }
            device.start(Daemon::Identity)?;
            eventually("the right device", RECOVERY, || {
                Ok(device.identity().is_ok_and(|spec| spec["deviceId"] == REGISTRATION_ID).then_some(()))
            })
            .with_context(|| format!("{kind:?}, {info:?}; identityd says:\n{}", last_lines(&device)))?;
            let new = format!("after-{}", info.len());
            all_works(&device, &sampler, &new).with_context(|| format!("{kind:?}, {info:?}"))?;
            let target = format!("/identities/modules/{new}?{VERSION}&type=aziot");
            let _ = device.call(Daemon::Identity, "DELETE", &target, None)?.expect(204)?;
        }
        Ok(())
    })
    .map(drop)
}

/// `identity.md`, W16: "detect skew from the `Date` header". A device without a battery for its clock starts in another year.
#[test]
fn a_clock_that_is_wrong_by_a_year_is_named_and_mended() -> Result<()> {
    let cases = [
        (Kind::DpsKey, YEAR_SECONDS, "clock"),
        (Kind::DpsKey, -YEAR_SECONDS, ""),
        (Kind::DpsTpm, YEAR_SECONDS, "clock"),
        (Kind::DpsCertificate(Certificate::Preloaded), YEAR_SECONDS, "clock"),
        (Kind::DpsCertificate(Certificate::Preloaded), -YEAR_SECONDS, "clock"),
    ];
    at_once(cases, |(kind, ahead, told)| {
        let what = format!("{kind:?}, cloud ahead by {ahead} s");
        let mut device = Setup::of(kind).configure()?;
        device.be_impatient()?;
        set(&device, &json!({ "clockOffsetSeconds": ahead }))?;
        device.start_all()?;
        let first = device_identity(&device)?;
        if told.is_empty() {
            // Tokens of the future are good to this cloud.
            ensure!(first.status == 200, "{what}: {first:?}");
        } else {
            ensure!([400, 404].contains(&first.status), "{what}: {first:?}");
            eventually("a line about it", LIMIT, || {
                let log = device.log(Daemon::Identity)?;
                let is_told = log.lines().any(|line| line.contains("DPS client error") && line.contains(told));
                Ok(is_told.then_some(()))
            })
            .with_context(|| format!("{what}; identityd says:\n{}", last_lines(&device)))?;
        }
        set(&device, &json!({ "clockOffsetSeconds": 0 }))?;
        device_comes(&device).with_context(|| what.clone())?;

        // The same while it runs.
        let sampler = Identity::create(&device, "sampler").with_context(|| what.clone())?;
        set(&device, &json!({ "clockOffsetSeconds": ahead }))?;
        if !told.is_empty() {
            let refused = create_module(&device, "new")?.expect(404)?;
            ensure!(refused.message().contains(told), "{what}: {refused:?}");
        }
        assert_eq!(device.identity()?["deviceId"], REGISTRATION_ID, "{what}");
        set(&device, &json!({ "clockOffsetSeconds": 0 }))?;
        all_works(&device, &sampler, "after").with_context(|| what.clone())?;
        Ok(())
    })
    .map(drop)
}

/// Issue 5, bad input: "certd or keyd down for a minute during provisioning".
#[test]
fn a_service_that_comes_later_is_waited_for() -> Result<()> {
    let issued = Kind::DpsCertificate(Certificate::LocalCa);
    let cases = [
        (Kind::DpsKey, Daemon::Keys),
        (issued, Daemon::Keys),
        (issued, Daemon::Certificates),
        (Kind::ManualCertificate(Certificate::LocalCa), Daemon::Certificates),
        (Kind::DpsTpm, Daemon::Tpm),
    ];
    at_once(cases, |(kind, missing)| {
        let what = format!("{kind:?} without {}", missing.name());
        let mut device = Setup::of(kind).configure()?;
        device.be_impatient()?;
        let others: Vec<Daemon> = device.daemons().filter(|daemon| *daemon != missing).collect();
        others.into_iter().try_for_each(|daemon| device.start(daemon))?;
        let first = device_identity(&device)?;
        ensure!(first.status != 200 && first.status < 600, "{what}: {first:?}");
        is_serving(&device, Daemon::Identity)?;
        device.start(missing)?;
        device_comes(&device).with_context(|| what.clone())?;
        let sampler = Identity::create(&device, "sampler").with_context(|| what.clone())?;

        // `identity.md`, W21: a service that does not answer is no reason to make a new key.
        let before = if kind.authentication() == "x509" { device.public_key("device-id")? } else { None };
        let _ = device.stop_daemons()?;
        let others: Vec<Daemon> = device.daemons().filter(|daemon| *daemon != missing).collect();
        others.into_iter().try_for_each(|daemon| device.start(daemon))?;
        let _ = device_identity(&device)?;
        device.start(missing)?;
        all_works(&device, &sampler, "after").with_context(|| what.clone())?;
        if kind.authentication() == "x509" {
            ensure!(device.public_key("device-id")? == before, "{what}: the key is another");
            device.check_pair("device-id")?;
        }
        Ok(())
    })
    .map(drop)
}

/// Issue 5, bad input: "the TPM replaced". DPS does not know the new one until an operator says so.
#[test]
fn another_tpm_is_another_device_until_an_operator_says_otherwise() -> Result<()> {
    let (mut device, sampler) = provisioned(Kind::DpsTpm)?;
    let _ = device.stop_daemons()?;
    device.tpm.as_mut().context("a device with a TPM")?.replace()?;
    device.start_all()?;
    // Who it was it still says; the hub is told nothing in its name.
    assert_eq!(device.identity()?["deviceId"], REGISTRATION_ID);
    let refused = create_module(&device, "new")?.expect(404)?;
    ensure!(refused.message().contains("client error\ncaused by: "), "{refused:?}");
    let refused = reprovision(&device)?.expect(404)?;
    ensure!(refused.message().starts_with("DPS client error"), "{refused:?}");
    let told = eventually("a line about it", LIMIT, || {
        let log = device.log(Daemon::Identity)?;
        let line = log.lines().find(|line| line.contains("DPS client error") && line.contains("401"));
        Ok(line.map(str::to_owned))
    })?;
    ensure!(told.contains("TPM") || told.contains("endorsement"), "{told}");

    device.control("DELETE", &format!("/registrations/{REGISTRATION_ID}"), None)?.expect(204)?;
    reprovision(&device)?.expect(204).with_context(|| last_lines(&device))?;
    all_works(&device, &sampler, "after")
}
