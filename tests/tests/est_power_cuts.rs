//! SIGKILL at each step of obtaining and of renewing an EST identity, of certd or of keyd: the next start has a certificate and a key that
//! belong together, which others accept, without another use of the bootstrap identity, and without anybody's help.
//!
//! A gate between the two stops each call in turn; the two requests to the EST server are stopped by faults of that server.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, at_once,
    est::{
        Settings,
        device::{DEVICE, EstDevice, IDENTITY},
        echo::{EchoServer, Pair},
    },
    eventually,
    gate::{Gate, Moment},
    openssl,
};
use jiff::Timestamp;
use serde_json::json;

/// Longer than any step takes, also where a client pauses before it asks keyd again.
const LIMIT: Duration = Duration::from_secs(20);
/// More calls than anything here makes.
const MOST: usize = 80;
const TEMPORARY: &str = "est-id-temp";

/// A device with a gate in front of keyd, and everything that is needed to judge its certificates.
struct Scene {
    device: EstDevice,
    gate: Gate,
    echo: EchoServer,
    /// For the device's certificate, whose key is not in keyd here.
    request: String,
    key: std::path::PathBuf,
}

impl Scene {
    /// keyd and certd run.
    fn new(settings: &Settings, policy: &str) -> Result<Self> {
        let mut device = EstDevice::new(settings, policy)?;
        let socket = device.path("run/gate.sock");
        let gate = Gate::open(&socket, &device.socket(Daemon::Keys))?;
        device.move_keys_to(&socket)?;
        let echo = EchoServer::start(device.folder(), &device.server.root())?;
        let key = device.path("device.key.pem");
        let request = openssl::make_request(&key, "pump-7")?;
        device.start_keys()?;
        device.start(Daemon::Certificates)?;
        Ok(Self { device, gate, echo, request, key })
    }

    fn renewed(identity_lifetime_seconds: u32, more: &'static str) -> Result<Self> {
        let scene = Self::new(&Settings { identity_lifetime_seconds, more, ..Settings::default() }, POLICY)?;
        scene.obtain()?;
        Ok(scene)
    }

    /// Has the device's certificate issued, and before that the EST identity if there is none.
    fn obtain(&self) -> Result<()> {
        let pem = self.device.issue(DEVICE, &self.request)?.expect(201)?.text("/pem")?;
        self.echo.connect(&Pair::from_pem(pem.as_bytes(), &fs::read(&self.key)?)?)
    }

    fn fingerprint(&self) -> Result<String> {
        self.device.pair(IDENTITY)?.fingerprint()
    }

    /// So often the bootstrap identity was used.
    fn bootstraps(&self) -> Result<usize> {
        let issued = self.device.server.issued()?;
        Ok(issued.iter().filter(|issued| issued.client.as_ref().is_some_and(|client| client.is_bootstrap)).count())
    }

    /// Starts certd, has it killed at this call of its to keyd, and tells which one that was; `None`: a renewal ended before that.
    fn cut(&mut self, number: usize, moment: Moment) -> Result<Option<String>> {
        if self.device.process(Daemon::Certificates).is_ok() {
            self.device.kill(Daemon::Certificates)?;
        }
        self.gate.arm(number, moment);
        self.device.start(Daemon::Certificates)?;
        let device = &self.device;
        let stopped = self.gate.stopped(LIMIT, || is_at_rest(device))?;
        self.device.kill(Daemon::Certificates)?;
        self.gate.disarm();
        Ok(stopped)
    }

    /// Starts certd, lets it come to rest, and looks at what there is.
    fn recover(&mut self, what: &str) -> Result<()> {
        self.device.start(Daemon::Certificates)?;
        self.come_to_rest().with_context(|| what.to_owned())?;
        self.judge().with_context(|| format!("{what}; certd says:\n{}", self.last_lines()))
    }

    fn come_to_rest(&self) -> Result<()> {
        eventually("the rest after the cut", LIMIT, || Ok(is_at_rest(&self.device)?.then_some(())))
            .with_context(|| format!("renewals {:?}; certd says:\n{}", self.device.renewals(), self.last_lines()))
    }

    fn judge(&self) -> Result<()> {
        self.device.check_pair(IDENTITY)?;
        self.echo.connect(&self.device.pair(IDENTITY)?)?;
        ensure!(self.device.public_key(TEMPORARY)?.is_none(), "a temporary key was left behind");
        let files = fs::read_dir(self.device.certificates())?.count();
        ensure!(files == 2, "{files} files instead of the identity and the device's certificate");
        Ok(())
    }

    fn last_lines(&self) -> String {
        let log = self.device.log(Daemon::Certificates).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// The identity is known, nothing has failed, and nothing is due.
fn is_at_rest(device: &EstDevice) -> Result<bool> {
    let Some(renewal) = device.identity_renewal()? else { return Ok(false) };
    let Some(next) = renewal["nextAttempt"].as_str() else { return Ok(false) };
    let next: Timestamp = next.parse().context("nextAttempt is no date")?;
    Ok(renewal["failedAttempts"] == 0 && renewal["notAfter"].is_string() && next > Timestamp::now())
}

/// Whether a call of this kind changes anything: only then there is a difference between a cut after it and one before the next.
fn changes_something(call: &str) -> bool {
    (call.starts_with("POST /keypair") || call.starts_with("DELETE ")) && !call.starts_with("POST /parameters")
}

/// A certificate of 900 s that is past its deadline when it comes: due at each start, and then left alone for 9 s, which a look needs.
const BACKDATED: &str = "backdate_seconds = 800";
const POLICY: &str = "{ rotate_key = true, threshold = \"80%\", retry = \"1%\" }";

#[test]
fn a_renewal_that_is_cut_off_at_any_call_leaves_a_pair() -> Result<()> {
    let mut scene = Scene::renewed(100, BACKDATED)?;
    let (mut steps, mut before) = (Vec::new(), scene.fingerprint()?);
    for number in 0..MOST {
        let Some(call) = scene.cut(number, Moment::Before)? else { break };
        scene.recover(&format!("before call {number}, {call}"))?;
        if changes_something(&call) {
            let again = scene.cut(number, Moment::After)?;
            ensure!(again.as_ref() == Some(&call), "this time call {number} was {again:?} and not {call}");
            scene.recover(&format!("after call {number}, {call}"))?;
        }
        let now = scene.fingerprint()?;
        ensure!(now != before, "nothing was renewed, so nothing was cut");
        before = now;
        steps.push(call);
    }
    let count = |call: &str| steps.iter().filter(|step| *step == call).count();
    // A new key, its certificate's request and the handshake signed, the move.
    ensure!(count("POST /keypair") == 1 && count("POST /sign") == 2, "{steps:?}");
    ensure!(count("POST /keypair/est-id") == 1 && steps.len() >= 12, "{steps:?}");
    assert_eq!(scene.bootstraps()?, 1, "the bootstrap identity was used again");
    Ok(())
}

/// The cut between the two stores, and then another one at each call of the repair.
#[test]
fn a_repair_that_is_cut_off_is_done_by_the_next_start() -> Result<()> {
    let mut scene = Scene::renewed(100, BACKDATED)?;
    scene.device.kill(Daemon::Certificates)?;
    scene.gate.arm(MOST, Moment::Before);
    scene.recover("a renewal without a cut")?;
    let calls = scene.gate.calls();
    let number = calls.iter().position(|call| call == "POST /keypair/est-id").context("no move")?;
    let mut repairs = 0;
    for moment in [Moment::Before, Moment::After] {
        for second in 0..10 {
            let first = scene.cut(number, moment)?;
            ensure!(first.as_deref() == Some("POST /keypair/est-id"), "{first:?}");
            let call = scene.cut(second, Moment::Before)?.context("a repair of few calls")?;
            if changes_something(&call) {
                let _ = scene.cut(second, Moment::After)?;
            }
            scene.recover(&format!("{moment:?} the move, and then at call {second}, {call}"))?;
            repairs += 1;
        }
    }
    assert_eq!((repairs, scene.bootstraps()?), (20, 1));
    let log = scene.device.log(Daemon::Certificates)?;
    ensure!(log.contains("finishing the replacement of an EST identity"), "nothing was repaired");
    Ok(())
}

/// The server has the request, or has issued the certificate, and nobody hears the answer.
#[test]
fn a_renewal_that_is_cut_off_at_the_server_leaves_a_pair() -> Result<()> {
    let mut scene = Scene::renewed(100, BACKDATED)?;
    for (kind, matching) in [("hang", "cacerts"), ("hang", "enroll"), ("withhold", "enroll"), ("withhold", "cacerts")] {
        scene.device.kill(Daemon::Certificates)?;
        let (before, issued) = (scene.fingerprint()?, scene.device.server.issued()?.len());
        scene.device.server.fault(&json!({ "kind": kind, "matching": matching, "count": 1 }))?;
        scene.device.start(Daemon::Certificates)?;
        let is_issued = kind == "withhold" && matching == "enroll";
        eventually("the request", LIMIT, || {
            let server = &scene.device.server;
            Ok((!server.is_faulty()? && (!is_issued || server.issued()?.len() > issued)).then_some(()))
        })?;
        scene.device.kill(Daemon::Certificates)?;
        assert_eq!(scene.fingerprint()?, before, "{kind} {matching}: the old pair is as it was");
        scene.device.server.be_well()?;
        scene.recover(&format!("{kind} {matching}"))?;
        ensure!(scene.fingerprint()? != before, "{kind} {matching}: not renewed");
    }
    assert_eq!(scene.bootstraps()?, 1);
    Ok(())
}

/// Takes the identity away from a device whose certd is down.
fn forget_identity(device: &EstDevice) -> Result<()> {
    for id in [IDENTITY, TEMPORARY] {
        device.delete_key(id)?;
    }
    for entry in fs::read_dir(device.certificates())? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// The first enrolment, by a caller that the cut leaves without an answer; then by the next caller.
fn cut_first_enrolment(scene: &mut Scene, number: usize, moment: Moment, victim: Daemon) -> Result<Option<String>> {
    scene.device.kill(Daemon::Certificates)?;
    forget_identity(&scene.device)?;
    scene.device.start(Daemon::Certificates)?;
    let earlier = scene.bootstraps()?;
    scene.gate.arm(number, moment);
    let (device, gate, request) = (&scene.device, &scene.gate, &scene.request);
    let is_answered = AtomicBool::new(false);
    let (stopped, calls) = thread::scope(|scope| -> Result<_> {
        let _caller = scope.spawn(|| {
            let answer = device.issue(DEVICE, request);
            is_answered.store(true, Ordering::SeqCst);
            answer
        });
        let stopped = gate.stopped(LIMIT, || Ok(is_answered.load(Ordering::SeqCst)));
        let calls = gate.calls();
        // The caller's connection ends with certd, or keyd's end is certd's to deal with.
        if let Ok(Some(_)) = stopped {
            device.process(victim)?.signal(rustix::process::Signal::KILL)?;
        }
        gate.disarm();
        Ok((stopped?, calls))
    })?;
    let Some(call) = stopped else { return Ok(None) };
    // Reaps it; it has ended already.
    let _ended = scene.device.kill(victim);
    match victim {
        Daemon::Keys => scene.device.start_keys()?,
        _ => scene.device.start(victim)?,
    }
    let what = format!("{moment:?} call {number}, {call}");
    scene.obtain().with_context(|| format!("{what}; certd says:\n{}", scene.last_lines()))?;
    scene.come_to_rest().with_context(|| what.clone())?;
    scene.judge().with_context(|| what.clone())?;
    // Once the key has its name, its certificate is noted, and the bootstrap identity has done its part.
    let moved = calls.iter().position(|call| call == "POST /keypair/est-id");
    let is_moved = moved.is_some_and(|moved| moved < number || (moved == number && moment == Moment::After));
    let used = scene.bootstraps()? - earlier;
    ensure!(used == 1 || (used == 2 && !is_moved), "{what}: the bootstrap identity was used {used} times");
    Ok(Some(call))
}

/// All calls of a first enrolment whose numbers leave this remainder: what is cut, in how many rounds.
fn cut_first_enrolments(victim: Daemon, remainder: usize, parts: usize) -> Result<Vec<String>> {
    let mut scene = Scene::new(&Settings::default(), POLICY)?;
    scene.obtain()?;
    let mut steps = Vec::new();
    for number in (remainder..MOST).step_by(parts) {
        let Some(call) = cut_first_enrolment(&mut scene, number, Moment::Before, victim)? else { break };
        if changes_something(&call) {
            let again = cut_first_enrolment(&mut scene, number, Moment::After, victim)?;
            ensure!(again.as_ref() == Some(&call), "this time call {number} was {again:?} and not {call}");
        }
        steps.push(call);
    }
    Ok(steps)
}

fn check_steps_of_first_enrolment(steps: &[String]) {
    let count = |call: &str| steps.iter().filter(|step| *step == call).count();
    assert!(steps.len() >= 20, "{steps:?}");
    // One request is signed, and two handshakes; the identity's key is made and moved.
    assert_eq!((count("POST /sign"), count("POST /keypair"), count("POST /keypair/est-id")), (3, 1, 1), "{steps:?}");
}

#[test]
fn a_first_enrolment_in_which_certd_dies_is_done_again() -> Result<()> {
    let steps = at_once(0..2, |part| cut_first_enrolments(Daemon::Certificates, part, 2))?.concat();
    check_steps_of_first_enrolment(&steps);
    Ok(())
}

#[test]
fn a_first_enrolment_in_which_keyd_dies_is_done_again() -> Result<()> {
    const PARTS: usize = 10;
    let steps = at_once(0..PARTS, |part| cut_first_enrolments(Daemon::Keys, part, PARTS))?.concat();
    check_steps_of_first_enrolment(&steps);
    Ok(())
}

const MOVE: &str = "POST /keypair/est-id";

/// Calls of a renewal, from a rest to the move.
fn calls_of_a_renewal(scene: &Scene) -> Result<Vec<String>> {
    scene.come_to_rest()?;
    scene.gate.arm(MOST, Moment::Before);
    let calls = || Ok(Some(scene.gate.calls()).filter(|calls| calls.iter().any(|call| call == MOVE)));
    let mut calls = eventually("a renewal", LIMIT, calls)?;
    calls.truncate(calls.iter().position(|call| call == MOVE).context("it is there")? + 1);
    Ok(calls)
}

/// Those calls whose numbers leave this remainder: keyd dies and is started again, certd goes on.
fn cut_keyd(remainder: usize, parts: usize) -> Result<Vec<String>> {
    // 190 s and past the deadline at once: renewed every second.
    let mut scene = Scene::renewed(40, "backdate_seconds = 150")?;
    let calls = calls_of_a_renewal(&scene)?;
    ensure!(calls.len() > 5, "{calls:?}");
    let mut steps = Vec::new();
    for number in (remainder..calls.len()).step_by(parts) {
        let call = cut_keyd_once(&mut scene, number, Moment::Before)?;
        if changes_something(&call) {
            let _ = cut_keyd_once(&mut scene, number, Moment::After)?;
        }
        steps.push(call);
    }
    Ok(steps)
}

fn cut_keyd_once(scene: &mut Scene, number: usize, moment: Moment) -> Result<String> {
    scene.come_to_rest()?;
    scene.gate.arm(number, moment);
    let call = scene.gate.stopped(LIMIT, || Ok(false))?.context("renewals go on")?;
    let what = format!("{moment:?} call {number}, {call}");
    scene.device.kill(Daemon::Keys)?;
    scene.gate.disarm();
    scene.device.start_keys()?;
    // Renewals go on each second, so two looks may fall on both sides of one.
    let judged =
        eventually("a pair", LIMIT, || Ok((is_at_rest(&scene.device)? && scene.judge().is_ok()).then_some(())));
    judged.with_context(|| format!("{what}: {:?}; certd says:\n{}", scene.judge(), scene.last_lines()))?;
    assert_eq!(scene.bootstraps()?, 1, "{what}: the bootstrap identity was used again");
    Ok(call)
}

#[test]
fn a_renewal_in_which_keyd_dies_is_done_again() -> Result<()> {
    const PARTS: usize = 12;
    let steps = at_once(0..PARTS, |part| cut_keyd(part, PARTS))?.concat();
    for call in [MOVE, "POST /sign", "POST /keypair"] {
        assert!(steps.iter().any(|step| step == call), "no {call} in {steps:?}");
    }
    Ok(())
}
