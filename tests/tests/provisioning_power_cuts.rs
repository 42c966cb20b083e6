//! SIGKILL of identityd at each step of a first provisioning: whatever was done by then, the next start provisions the device without a hand,
//! with a certificate and a key that belong together, and nothing is left over.
//!
//! Gates between identityd and each of the other services stop each call in turn; requests to the cloud are stopped by its faults. Renewals
//! have a file of their own.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, at_once, eventually,
    gate::{Gate, Moment},
    module::Identity,
    provisioned::{Certificate, Kind, Provisioned, Setup},
};
use serde_json::json;

const LIFETIME: Duration = Duration::from_secs(300);
/// Longer than any step takes.
const LIMIT: Duration = Duration::from_secs(60);
/// More calls than anything here makes of one service.
const MOST: usize = 60;
const DONE: &str = "Startup provisioning complete";

/// A device whose identityd reaches one of the services through a gate.
struct Scene {
    device: Provisioned,
    kind: Kind,
    gate: Gate,
}

impl Scene {
    /// All services but identityd run, which has never run.
    fn new(kind: Kind, behind: Daemon) -> Result<Self> {
        let mut device = Setup::of(kind).configure()?;
        device.be_impatient()?;
        let socket = device.path("run/gate.sock");
        let gate = Gate::open(&socket, &device.socket(behind))?;
        let endpoint = format!("[endpoints]\naziot_{} = \"unix://{}\"\n", behind.name(), socket.display());
        device.drop_in(Daemon::Identity, "50-gate.toml", &endpoint)?;
        let services: Vec<Daemon> = device.daemons().filter(|daemon| *daemon != Daemon::Identity).collect();
        services.into_iter().try_for_each(|daemon| device.start(daemon))?;
        Ok(Self { device, kind, gate })
    }

    /// Takes everything from the device that it has been given: it is new again. identityd is down.
    fn forget(&self) -> Result<()> {
        for id in ["device-id", "device-id-temp"] {
            // A key that came with the device stays.
            if matches!(self.kind, Kind::DpsCertificate(_) | Kind::ManualCertificate(_)) {
                self.device.delete_key(id)?;
                self.device.delete_certificate(id)?;
            }
        }
        let home = self.device.path("var/lib/aziot/identityd");
        for entry in fs::read_dir(&home)? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }

    /// Starts identityd anew on a new device and has it killed at this call; tells which one that was. `None`: it was done before that.
    fn cut(&mut self, number: usize, moment: Moment) -> Result<Option<String>> {
        if self.device.process(Daemon::Identity).is_ok() {
            self.device.kill(Daemon::Identity)?;
        }
        self.forget()?;
        let seen = self.log_length();
        self.gate.arm(number, moment);
        self.device.start(Daemon::Identity)?;
        let device = &self.device;
        let is_over = || Ok(device.log(Daemon::Identity)?.get(seen..).is_some_and(|log| log.contains(DONE)));
        let stopped = self.gate.stopped(LIMIT, is_over)?;
        self.device.kill(Daemon::Identity)?;
        self.gate.disarm();
        Ok(stopped)
    }

    fn log_length(&self) -> usize {
        self.device.log(Daemon::Identity).map_or(0, |log| log.len())
    }

    /// Starts identityd as after a power cut, and looks at what there is when it is done.
    fn recover(&mut self, what: &str) -> Result<()> {
        self.device.start(Daemon::Identity)?;
        self.judge().with_context(|| format!("{what}; identityd says:\n{}", self.last_lines()))
    }

    fn judge(&self) -> Result<()> {
        let spec = eventually("the device identity", LIMIT, || Ok(self.device.identity().ok()))?;
        ensure!(spec["deviceId"].as_str() == self.kind.device_id(), "{spec}");
        // The hub accepts the device, and what it makes of its module.
        let module = eventually("a module", LIMIT, || Ok(Identity::create(&self.device, "sampler").ok()))?;
        let sent = module.send_message(&self.device, &module.token(&self.device, LIFETIME)?, "{}")?;
        ensure!(sent.status == 204, "{sent:?}");
        let target = "/identities/modules/sampler?api-version=2020-09-01&type=aziot";
        let _ = self.device.call(Daemon::Identity, "DELETE", target, None)?.expect(204)?;
        if self.kind.authentication() == "x509" {
            self.device.check_pair("device-id")?;
            ensure!(self.device.public_key("device-id-temp")?.is_none(), "a temporary key was left behind");
            ensure!(self.device.certificate("device-id-temp")?.is_none(), "a temporary certificate was left behind");
        }
        for entry in fs::read_dir(self.device.path("var/lib/aziot/identityd"))? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            ensure!(
                ["device_info", "device_origin", "prev_state", "modules"].contains(&&*name),
                "{name} was left behind"
            );
        }
        Ok(())
    }

    fn last_lines(&self) -> String {
        let log = self.device.log(Daemon::Identity).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().filter(|line| !line.contains("request refused")).take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Whether a call of this kind changes anything: only then there is a difference between a cut after it and one before the next.
fn changes_something(call: &str) -> bool {
    let reads = ["/parameters", "/sign", "/decrypt", "/encrypt"].iter().any(|route| call.contains(route));
    !reads && !call.starts_with("GET ")
}

/// Cuts at each call to one service whose number leaves this remainder; returns the calls.
fn cut_at_each_call(kind: Kind, behind: Daemon, remainder: usize, parts: usize) -> Result<Vec<String>> {
    let mut scene = Scene::new(kind, behind)?;
    let mut steps = Vec::new();
    for number in (remainder..MOST).step_by(parts) {
        let Some(call) = scene.cut(number, Moment::Before)? else { break };
        scene.recover(&format!("{kind:?}: before call {number}, {call}"))?;
        if changes_something(&call) {
            let again = scene.cut(number, Moment::After)?;
            ensure!(again.as_ref() == Some(&call), "this time call {number} was {again:?} and not {call}");
            scene.recover(&format!("{kind:?}: after call {number}, {call}"))?;
        }
        steps.push(call);
    }
    Ok(steps)
}

const ENROLMENT: &str = "/simpleenroll";
const ISSUED: Kind = Kind::DpsCertificate(Certificate::LocalCa);

#[test]
fn with_a_certificate_at_each_call_to_the_key_service() -> Result<()> {
    let steps = at_once(0..4, |part| cut_at_each_call(ISSUED, Daemon::Keys, part, 4))?.concat();
    // The key is made, the request for its certificate signed, the handshakes signed.
    let count = |route: &str| steps.iter().filter(|step| step.starts_with(route)).count();
    assert!(count("POST /keypair") >= 1 && count("POST /sign") + count("POST /encrypt") >= 2, "{steps:?}");
    Ok(())
}

#[test]
fn with_a_certificate_at_each_call_to_the_certificate_service() -> Result<()> {
    let steps = at_once(0..2, |part| cut_at_each_call(ISSUED, Daemon::Certificates, part, 2))?.concat();
    assert!(steps.iter().any(|step| step == "POST /certificates"), "{steps:?}");
    Ok(())
}

#[test]
fn by_hand_with_a_certificate_at_each_call_to_the_key_service() -> Result<()> {
    let kind = Kind::ManualCertificate(Certificate::LocalCa);
    let steps = at_once(0..3, |part| cut_at_each_call(kind, Daemon::Keys, part, 3))?.concat();
    assert!(steps.iter().any(|step| step.starts_with("POST /keypair")), "{steps:?}");
    Ok(())
}

/// `tpm.md`, 15: an import never costs the key that is there before the new one is safe.
#[test]
fn with_the_tpm_at_each_call_to_its_service() -> Result<()> {
    let steps = at_once(0..2, |part| cut_at_each_call(Kind::DpsTpm, Daemon::Tpm, part, 2))?.concat();
    let count = |call: &str| steps.iter().filter(|step| *step == call).count();
    // The nonce, and the key for the hub.
    assert_eq!(count("POST /import_auth_key"), 2, "{steps:?}");
    assert!(count("GET /get_tpm_keys") >= 1 && count("POST /sign_with_auth_key") >= 2, "{steps:?}");
    Ok(())
}

/// The cloud has the request, or has done what it asks for, and nobody hears the answer.
#[test]
fn at_each_request_to_the_cloud() -> Result<()> {
    let of_kind = |kind: Kind| -> Result<()> {
        let mut scene = Scene::new(kind, Daemon::Keys)?;
        let mut routes = vec!["/register", "/operations/", "/modules"];
        if kind == Kind::DpsCertificate(Certificate::Est) {
            routes.push(ENROLMENT);
        }
        for route in &routes {
            for fault in ["hang", "withhold"] {
                let what = format!("{kind:?}: {fault} at {route}");
                if scene.device.process(Daemon::Identity).is_ok() {
                    scene.device.kill(Daemon::Identity)?;
                }
                scene.forget()?;
                let set = json!({ "kind": fault, "matching": route, "count": 1 }).to_string();
                scene.device.control("PUT", "/fault", Some(&set))?.expect(204)?;
                scene.device.start(Daemon::Identity)?;
                eventually("the request", LIMIT, || {
                    let fault = scene.device.control("GET", "/fault", None)?.expect(200)?.json()?;
                    Ok((fault["kind"] == "none").then_some(()))
                })
                .with_context(|| format!("{what}; identityd says:\n{}", scene.last_lines()))?;
                scene.device.kill(Daemon::Identity)?;
                if *route == ENROLMENT {
                    // This request is the certificate service's, which would wait for its answer while the next start waits for it.
                    scene.device.kill(Daemon::Certificates)?;
                    scene.device.start(Daemon::Certificates)?;
                }
                scene.device.control("DELETE", "/fault", None)?.expect(204)?;
                scene.recover(&what)?;
            }
        }
        Ok(())
    };
    at_once([Kind::DpsKey, ISSUED, Kind::DpsCertificate(Certificate::Est), Kind::DpsTpm], of_kind).map(drop)
}
