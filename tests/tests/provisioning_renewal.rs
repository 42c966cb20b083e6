//! Renewal of the device's certificate: unnoticed by those who ask for identities, and cut off by SIGKILL at each of its steps without harm.
//!
//! Certificates last seconds here, which only an EST server can grant; the cloud knows them by their CA.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, at_once,
    calls::VERSION,
    eventually,
    gate::{Gate, Moment},
    module::Identity,
    provisioned::{Certificate, Kind, Provisioned, Setup, thumbprint},
    raw,
};
use serde_json::{Value, json};

const LIFETIME: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(60);
/// More calls than a renewal makes of one service.
const MOST: usize = 80;
const NEXT: &str = "device-id-temp";

fn fingerprint(device: &Device) -> Result<String> {
    thumbprint(device.certificate("device-id")?.context("no certificate")?.as_bytes())
}

fn token_works(device: &Device, module: &Identity) -> Result<()> {
    let sent = module.send_message(device, &module.token(device, LIFETIME)?, "{}")?;
    ensure!(sent.status == 204, "{sent:?}");
    Ok(())
}

/// Certificates for the device's name that the EST server has issued, by it.
fn issued(device: &Device) -> Result<Vec<Value>> {
    let issued = device.control("GET", "/est/issued", None)?.expect(200)?.json()?;
    issued.as_array().cloned().context("no list of certificates")
}

/// Reads the module without a pause; its first failure ends it.
fn read_in_a_loop(device: &Device, generation: &str, is_over: &AtomicBool) -> Result<usize> {
    let mut reads = 0;
    while !is_over.load(Ordering::SeqCst) {
        let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
        let reply = raw::call(&device.socket(Daemon::Identity), "GET", &target, None)?;
        let reply = reply.expect(200).with_context(|| format!("read {reads}"))?;
        ensure!(reply.text("/spec/genId")? == generation, "read {reads}: {reply:?}");
        reads += 1;
    }
    Ok(reads)
}

/// Three renewals while a program reads its identity, and none of its reads fails.
fn is_renewed_unnoticed(kind: Kind, rotate_key: bool) -> Result<()> {
    let policy = if rotate_key {
        "{ rotate_key = true, threshold = \"30%\", retry = \"10%\" }"
    } else {
        "{ rotate_key = false, threshold = \"30%\", retry = \"10%\" }"
    };
    // Long enough for a new key of RSA on a busy machine, of which a token takes its time too.
    let mut device = Setup::of(kind).renewed(policy, 20, 0).start()?;
    let module = Identity::create(&device, "sampler").with_context(|| format!("{kind:?}"))?;
    let before = (fingerprint(&device)?, device.public_key("device-id")?);
    let earlier = issued(&device)?.len();
    let is_over = AtomicBool::new(false);
    let reads = thread::scope(|scope| -> Result<usize> {
        let device: &Device = &device;
        let reader = scope.spawn(|| read_in_a_loop(device, &module.generation, &is_over));
        let renewed = eventually("three renewals", LIMIT, || {
            let is_enough = issued(device)?.len() >= earlier + 3;
            Ok((is_enough || reader.is_finished()).then_some(()))
        });
        is_over.store(true, Ordering::SeqCst);
        let reads = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        let log = device.log(Daemon::Identity)?;
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("path=/identities")).collect();
        renewed.and(reads).with_context(|| format!("{kind:?}; identityd says:\n{}", lines.join("\n")))
    })?;
    ensure!(reads > 50, "{kind:?}: only {reads} reads");
    ensure!(fingerprint(&device)? != before.0, "{kind:?}: not renewed");
    eventually("the end of the renewal", LIMIT, || Ok(is_at_rest(&device).then_some(())))?;
    ensure!((device.public_key("device-id")? != before.1) == rotate_key, "{kind:?}: rotate_key = {rotate_key}");
    // `identity.md`, W4: "keep the device and the modules if hub and device id are unchanged".
    token_works(&device, &Identity::load(&device, "sampler")?)?;
    // The certificate of the last registration is the one that the hub knows, also for a new process.
    device.restart_all()?;
    let read = Identity::load(&device, "sampler")?;
    assert_eq!(read.generation, module.generation, "{kind:?}");
    token_works(&device, &Identity::create(&device, "after")?)
}

#[test]
fn a_certificate_for_dps_is_renewed_unnoticed() -> Result<()> {
    is_renewed_unnoticed(Kind::DpsCertificate(Certificate::Est), true)
}

#[test]
fn a_certificate_for_dps_is_renewed_with_its_old_key() -> Result<()> {
    is_renewed_unnoticed(Kind::DpsCertificate(Certificate::Est), false)
}

#[test]
fn a_certificate_with_its_key_on_a_token_is_renewed_unnoticed() -> Result<()> {
    is_renewed_unnoticed(Kind::DpsCertificate(Certificate::EstOnToken), true)
}

/// `identity.md`, W23: "manual x509 lacks it".
#[test]
fn a_certificate_for_a_device_by_hand_is_renewed_unnoticed() -> Result<()> {
    is_renewed_unnoticed(Kind::ManualCertificate(Certificate::Est), true)
}

/// `identity.md`, W3 and W4: what fails is tried again, and until then everything is as it was.
#[test]
fn a_renewal_that_dps_or_the_est_server_refuses_is_tried_again() -> Result<()> {
    let policy = "{ rotate_key = true, threshold = \"10%\", retry = \"1%\" }";
    let mut device = Setup::of(Kind::DpsCertificate(Certificate::Est)).renewed(policy, 100, 0).configure()?;
    device.be_impatient()?;
    device.start_all()?;
    let module = Identity::create(&device, "sampler")?;
    for (number, matching) in ["/register", "/operations/", "/simpleenroll", "/register"].into_iter().enumerate() {
        let before = fingerprint(&device)?;
        let status = if number == 0 { 401 } else { 503 };
        let fault = json!({ "kind": "status", "status": status, "matching": matching, "count": 2 }).to_string();
        device.control("PUT", "/fault", Some(&fault))?.expect(204)?;
        eventually("the refusal", LIMIT, || {
            let fault = device.control("GET", "/fault", None)?.expect(200)?.json()?;
            // Until then the hub goes on with the certificate that it knows.
            let read = Identity::load(&device, "sampler").with_context(|| matching.to_owned())?;
            ensure!(read.generation == module.generation, "{matching}");
            Ok((fault["kind"] == "none").then_some(()))
        })?;
        eventually("the next renewal", LIMIT, || Ok((fingerprint(&device)? != before).then_some(())))
            .with_context(|| matching.to_owned())?;
        eventually("a pair", LIMIT, || Ok(device.check_pair("device-id").ok()))?;
        token_works(&device, &Identity::create(&device, &format!("after-{number}"))?)?;
    }
    Ok(())
}

/// A certificate of 900 s that is past its deadline when it comes: due at each start, and then left alone for 9 s, which a look needs.
fn due_at_each_start() -> Setup {
    let policy = "{ rotate_key = true, threshold = \"80%\", retry = \"1%\" }";
    Setup::of(Kind::DpsCertificate(Certificate::Est)).renewed(policy, 100, 800)
}

struct Scene {
    device: Provisioned,
    gate: Gate,
    generation: String,
}

impl Scene {
    /// A device with the module `sampler`. identityd reaches one of the services through a gate.
    fn new(behind: Daemon) -> Result<Self> {
        let mut device = due_at_each_start().configure()?;
        device.be_impatient()?;
        let socket = device.path("run/gate.sock");
        let gate = Gate::open(&socket, &device.socket(behind))?;
        let endpoint = format!("[endpoints]\naziot_{} = \"unix://{}\"\n", behind.name(), socket.display());
        device.drop_in(Daemon::Identity, "50-gate.toml", &endpoint)?;
        device.start_all()?;
        let generation = Identity::create(&device, "sampler")?.generation;
        let scene = Self { device, gate, generation };
        scene.judge("the beginning")?;
        Ok(scene)
    }

    /// Starts identityd and has it killed at this call; tells which one that was. `None`: it renewed the certificate without making it.
    fn cut(&mut self, number: usize, moment: Moment) -> Result<Option<String>> {
        self.device.kill(Daemon::Identity)?;
        let before = fingerprint(&self.device)?;
        self.gate.arm(number, moment);
        self.device.start(Daemon::Identity)?;
        let device = &self.device;
        let is_over = || Ok(fingerprint(device)? != before && is_at_rest(device));
        let stopped = self.gate.stopped(LIMIT, is_over)?;
        self.device.kill(Daemon::Identity)?;
        self.gate.disarm();
        Ok(stopped)
    }

    /// Starts identityd as after a power cut and looks at what there is.
    fn recover(&mut self, what: &str) -> Result<()> {
        self.device.start(Daemon::Identity)?;
        self.judge(what)
    }

    fn judge(&self, what: &str) -> Result<()> {
        let device: &Device = &self.device;
        let looked = eventually("a device at rest", LIMIT, || Ok(is_at_rest(device).then_some(()))).and_then(|()| {
            // The hub accepts the certificate that is shown.
            let made = eventually("a new module", LIMIT, || Ok(Identity::create(device, "new").ok()))?;
            token_works(device, &made)?;
            let target = format!("/identities/modules/new?{VERSION}&type=aziot");
            let _ = device.call(Daemon::Identity, "DELETE", &target, None)?.expect(204)?;
            let read = Identity::load(device, "sampler")?;
            ensure!(read.generation == self.generation, "the module is another");
            token_works(device, &read)
        });
        looked.with_context(|| format!("{what}; identityd says:\n{}", self.last_lines()))
    }

    fn last_lines(&self) -> String {
        let log = self.device.log(Daemon::Identity).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().filter(|line| !line.contains("request refused")).take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Certificate and key belong together, and no next ones are there. One that goes while it is looked at is an error that means "not yet".
fn is_at_rest(device: &Device) -> bool {
    matches!(device.public_key(NEXT), Ok(None))
        && matches!(device.certificate(NEXT), Ok(None))
        && device.check_pair("device-id").is_ok()
}

fn changes_something(call: &str) -> bool {
    let reads = ["/parameters", "/sign", "/decrypt", "/encrypt"].iter().any(|route| call.contains(route));
    !reads && !call.starts_with("GET ")
}

fn cut_at_each_call(behind: Daemon, remainder: usize, parts: usize) -> Result<Vec<String>> {
    let mut scene = Scene::new(behind)?;
    let mut steps = Vec::new();
    for number in (remainder..MOST).step_by(parts) {
        let Some(call) = scene.cut(number, Moment::Before)? else { break };
        scene.recover(&format!("before call {number}, {call}"))?;
        // Requests of others come in between, so it may be another call than before.
        if changes_something(&call)
            && let Some(again) = scene.cut(number, Moment::After)?
        {
            scene.recover(&format!("after call {number}, {again}"))?;
        }
        steps.push(call);
    }
    Ok(steps)
}

#[test]
fn a_renewal_that_is_cut_off_at_any_call_to_the_key_service() -> Result<()> {
    let steps = at_once(0..4, |part| cut_at_each_call(Daemon::Keys, part, 4))?.concat();
    for call in ["POST /keypair", "POST /keypair/device-id"] {
        assert!(steps.iter().any(|step| step == call), "no {call} in {steps:?}");
    }
    Ok(())
}

#[test]
fn a_renewal_that_is_cut_off_at_any_call_to_the_certificate_service() -> Result<()> {
    let steps = at_once(0..2, |part| cut_at_each_call(Daemon::Certificates, part, 2))?.concat();
    for call in ["POST /certificates", "PUT /certificates/device-id"] {
        assert!(steps.iter().any(|step| step == call), "no {call} in {steps:?}");
    }
    Ok(())
}

/// DPS may know the new certificate, and the hub with it, while the device still has the old one.
#[test]
fn a_renewal_that_is_cut_off_at_any_request_to_the_cloud() -> Result<()> {
    let mut scene = Scene::new(Daemon::Keys)?;
    for route in ["/simpleenroll", "/register", "/operations/"] {
        for fault in ["hang", "withhold"] {
            let what = format!("{fault} at {route}");
            scene.device.kill(Daemon::Identity)?;
            let before = fingerprint(&scene.device)?;
            let set = json!({ "kind": fault, "matching": route, "count": 1 }).to_string();
            scene.device.control("PUT", "/fault", Some(&set))?.expect(204)?;
            scene.device.start(Daemon::Identity)?;
            eventually("the request", LIMIT, || {
                let fault = scene.device.control("GET", "/fault", None)?.expect(200)?.json()?;
                Ok((fault["kind"] == "none").then_some(()))
            })
            .with_context(|| format!("{what}; identityd says:\n{}", scene.last_lines()))?;
            scene.device.kill(Daemon::Identity)?;
            assert_eq!(fingerprint(&scene.device)?, before, "{what}");
            if route == "/simpleenroll" {
                // This request is the certificate service's, which would wait for its answer while the next start waits for it.
                scene.device.kill(Daemon::Certificates)?;
                scene.device.start(Daemon::Certificates)?;
            }
            scene.device.control("DELETE", "/fault", None)?.expect(204)?;
            scene.recover(&what)?;
            eventually("a renewal", LIMIT, || Ok((fingerprint(&scene.device)? != before).then_some(())))
                .with_context(|| what.clone())?;
        }
    }
    Ok(())
}
