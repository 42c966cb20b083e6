//! EST servers that are down, slow, strangers, or talk nonsense: the caller gets 500 `internal error` and the log says why; certd goes on serving
//! everybody else; what was stored stays as it was; and no password is anywhere.
//!
//! Clocks and the rules of renewal are tested beside the code, odd answers of renewals too.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aziot_tests::{
    Daemon, EstServer, Programs,
    calls::VERSION,
    est::{
        PASSWORD, Settings, USER,
        device::{EAGER, EstDevice, LOCAL},
    },
    eventually, openssl, raw,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

/// Id of a certificate that is enrolled with a password.
const BASIC: &str = "basic";
const WRONG_PASSWORD: &str = "wr0ng-and-s3cret";
const INTERNAL: &str = r#"{"message":"internal error"}"#;
/// Longer than a caller is kept waiting.
const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    device: EstDevice,
    request: String,
}

impl Scene {
    /// Everything runs. `more` are further certificates, as lines of `[cert_issuance]` in which `CREDENTIALS` stands for user and password.
    fn new(settings: &Settings, more: &str) -> Result<Self> {
        let device = EstDevice::new(settings, EAGER)?;
        Self::run(device, more)
    }

    fn run(mut device: EstDevice, more: &str) -> Result<Self> {
        let credentials = format!("username = {USER:?}, password = {PASSWORD:?}");
        let url = device.server.url()?;
        let lines = format!("[cert_issuance]\n{BASIC} = {{ method = \"est\", url = {url:?}, CREDENTIALS }}\n{more}");
        device.drop_in(Daemon::Certificates, "60-basic.toml", &lines.replace("CREDENTIALS", &credentials))?;
        let request = openssl::make_request(&device.path("pump.key.pem"), "pump-7")?;
        device.start_keys()?;
        device.start(Daemon::Certificates)?;
        Ok(Self { device, request })
    }

    /// Has it issued, verifies it as another program would, and checks that it is what is stored.
    fn succeed(&self, id: &str) -> Result<String> {
        let pem = self.device.issue(id, &self.request)?.expect(201)?.text("/pem")?;
        self.device.server.verify(&pem)?;
        ensure!(self.device.certificate(id)?.as_deref() == Some(&pem), "something else is stored");
        Ok(pem)
    }

    /// Fails for the caller as every failure does, and for the reader of the log with these words.
    fn fail(&self, id: &str, words: &[&str]) -> Result<()> {
        let (stored, begin) = (self.device.certificate(id)?, self.device.log(Daemon::Certificates)?.len());
        let reply = self.device.issue(id, &self.request)?;
        ensure!((reply.status, reply.body.as_str()) == (500, INTERNAL), "{reply:?}");
        let told = || -> Result<Vec<String>> {
            let log = self.device.log(Daemon::Certificates)?;
            let quoted = format!("\\\"{id}\\\"");
            Ok(log[begin..]
                .lines()
                .filter(|line| line.contains("[ERR!]") && line.contains(&quoted))
                .map(str::to_owned)
                .collect())
        };
        // The answer may be here before the line.
        let found = eventually("the line", Duration::from_secs(2), || {
            Ok(told()?.iter().any(|line| words.iter().all(|word| line.contains(word))).then_some(()))
        });
        found.with_context(|| format!("no error with {words:?} about {id} in {:#?}", told()))?;
        ensure!(self.device.certificate(id)? == stored, "what was stored is another now");
        Ok(())
    }

    /// Only these certificates are there, and nothing unfinished.
    fn check_files(&self, ids: &[&str]) -> Result<()> {
        let mut expected: Vec<_> = ids.iter().map(|id| self.device.certificate_file(id)).collect();
        let entries = fs::read_dir(self.device.certificates())?;
        let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        expected.sort();
        found.sort();
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }

    /// No log and no journal has a password, in any of the forms in which it is written.
    fn check_secrecy(&self) -> Result<()> {
        let server = &self.device.server;
        let mut texts =
            vec![server.log()?, format!("{:?}", server.requests()?), server.control("GET", "/est", None)?.body];
        for daemon in [Daemon::Keys, Daemon::Certificates] {
            texts.push(self.device.log(daemon)?);
        }
        texts.push(format!("{:?}", self.device.renewals()?));
        for password in [PASSWORD, WRONG_PASSWORD] {
            let basic = STANDARD.encode(format!("{USER}:{password}"));
            let encoded = STANDARD.encode(password);
            for secret in [password, &basic, &encoded] {
                ensure!(texts.iter().all(|text| !text.contains(secret)), "{secret} is in a log");
            }
        }
        Ok(())
    }

    /// Reads, stores and issues locally all the time while `work` goes on, and tells what the slowest of these calls took.
    fn beside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let bystander = scope.spawn(|| -> Result<Duration> {
                let (socket, mut slowest) = (self.device.socket(Daemon::Certificates), Duration::ZERO);
                while !is_over.load(Ordering::SeqCst) {
                    for (method, target, status, body) in [
                        ("PUT", "/certificates/imported", 201, Some(r#"{"pem":"text"}"#.to_owned())),
                        ("GET", "/certificates/imported", 200, None),
                        ("GET", "/certificates/absent", 400, None),
                        (
                            "POST",
                            "/certificates",
                            201,
                            Some(json!({ "certId": LOCAL, "csr": self.request }).to_string()),
                        ),
                        ("GET", "/renewals", 200, None),
                    ] {
                        let begin = Instant::now();
                        let reply = raw::call(&socket, method, &format!("{target}?{VERSION}"), body.as_deref())?;
                        slowest = slowest.max(begin.elapsed());
                        ensure!(reply.status == status, "{method} {target}: {reply:?}");
                    }
                }
                Ok(slowest)
            });
            let outcome = work();
            is_over.store(true, Ordering::SeqCst);
            let slowest = bystander.join().map_err(|_| anyhow!("the bystander panicked"))??;
            Ok((outcome?, slowest))
        })
    }
}

/// certs.md, 5.3 and W36: what cannot be understood, or is somebody else's, is not stored as if it were issued.
#[test]
fn answers_that_are_wrong_are_not_stored() -> Result<()> {
    let scene = Scene::new(&Settings::default(), "")?;
    let good = scene.succeed(BASIC)?;
    let ((), slowest) = scene.beside(|| {
        for (form, words) in [
            ("no-certificates", "did not issue what was asked for"),
            ("no-content", "did not issue what was asked for"),
            ("wrong-key", "did not issue what was asked for"),
            ("ca-only", "did not issue what was asked for"),
            ("many", "150 certificates"),
            ("garbage", "not base64"),
            ("garbage-der", "not PKCS#7"),
            ("plain-pem", "not PKCS#7"),
            ("huge", "more than 1048576 bytes"),
            ("empty", "empty"),
            ("wrong-media-type", "text/plain"),
            ("no-media-type", "media type"),
        ] {
            scene.device.server.answer_enrolments(form, Some(1))?;
            scene.fail(BASIC, &[words]).with_context(|| form.to_owned())?;
        }
        Ok(())
    })?;
    assert!(slowest < Duration::from_secs(2), "a bystander waited {slowest:?}");
    assert_eq!(scene.device.certificate(BASIC)?, Some(good));
    scene.check_files(&[BASIC, LOCAL, "imported"])?;
    scene.check_secrecy()
}

/// W37 and the table of 5.3: what is merely unusual is understood; the leaf comes first, and nothing twice.
#[test]
fn answers_that_are_unusual_are_understood() -> Result<()> {
    let scene = Scene::new(&Settings::default(), "")?;
    let normal = scene.succeed(BASIC)?;
    for form in ["crlf", "one-line", "unpadded", "der", "pem", "odd-media-type", "unordered", "extra"] {
        scene.device.server.answer_enrolments(form, Some(1))?;
        let pem = scene.succeed(BASIC).with_context(|| form.to_owned())?;
        assert_eq!(scene.device.server.issued()?.last().and_then(|issued| issued.form.clone()).as_deref(), Some(form));
        assert_ne!(pem, normal, "{form}: the old one");
        // The leaf, its issuer and the root, in this order.
        let blocks =
            |pem: &str| pem.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(blocks(&pem)[1..], blocks(&normal)[1..], "{form}");
    }
    // The CA certificates failing alone: those of the last time do.
    for fault in [
        json!({ "kind": "status", "status": 503, "matching": "/cacerts" }),
        json!({ "kind": "answer", "form": "garbage", "matching": "/cacerts" }),
        json!({ "kind": "html", "matching": "/cacerts" }),
    ] {
        scene.device.server.fault(&fault)?;
        let _ = scene.succeed(BASIC).with_context(|| fault.to_string())?;
    }
    scene.check_secrecy()
}

/// Refusals, and servers that are not who they should be: told at once, since asking again would not help.
#[test]
fn refusals_and_strangers_are_told_at_once() -> Result<()> {
    let settings = Settings { more: "plain_http = true", ..Settings::default() };
    let device = EstDevice::new(&settings, EAGER)?;
    let (url, plain) = (device.server.url()?, device.server.plain_url()?);
    let scene = Scene::run(
        device,
        &format!(
            "wrong-password = {{ method = \"est\", url = {url:?}, username = {USER:?}, password = {WRONG_PASSWORD:?} }}\n\
             lost = {{ method = \"est\", url = \"{url}/no-such-label\", CREDENTIALS }}\n\
             clear = {{ method = \"est\", url = {plain:?}, CREDENTIALS }}\n\
             wrong-scheme = {{ method = \"est\", url = {:?}, CREDENTIALS }}\n",
            plain.replace("http:", "ftp:")
        ),
    )?;
    let server = &scene.device.server;
    let good = scene.succeed(BASIC)?;
    let _ = scene.succeed("clear")?;
    let ((), slowest) = scene.beside(|| {
        scene.fail("wrong-password", &["simpleenroll", "401"])?;
        scene.fail("lost", &["simpleenroll", "404"])?;
        scene.fail("wrong-scheme", &["ftp"])?;
        for status in [400, 401, 403, 404, 500, 201, 302] {
            server.fault(&json!({ "kind": "status", "status": status, "matching": "enroll", "count": 1 }))?;
            scene.fail(BASIC, &["simpleenroll", &status.to_string()])?;
        }
        server.fault(&json!({ "kind": "html", "matching": "enroll", "count": 1 }))?;
        scene.fail(BASIC, &["text/html"])?;
        for (certificate, words) in [("wrong-name", "localhost"), ("expired", "expired"), ("other-ca", "not trusted")] {
            server.fault(&json!({ "certificate": certificate }))?;
            scene.fail(BASIC, &["not trusted", words])?;
            server.be_well()?;
        }
        // No TLS is spoken where it should be.
        server.fault(&json!({ "kind": "plain" }))?;
        scene.fail(BASIC, &["TLS handshake"])?;
        server.be_well()
    })?;
    assert!(slowest < Duration::from_secs(2), "a bystander waited {slowest:?}");
    assert_eq!(scene.device.certificate(BASIC)?, Some(good));
    let _ = scene.succeed(BASIC)?;
    scene.check_files(&[BASIC, "clear", LOCAL, "imported"])?;
    scene.check_secrecy()
}

/// Servers that are away or busy are asked again, within the time that callers wait. Each fault has a server of its own, all at once.
#[test]
fn servers_that_are_away_are_asked_again_and_then_told() -> Result<()> {
    let device = EstDevice::new(&Settings::default(), EAGER)?;
    let faults = BTreeMap::from([
        ("busy", (json!({ "kind": "status", "status": 503, "retryAfter": 1, "matching": "enroll" }), "503")),
        ("refusing", (json!({ "kind": "refuse" }), "could not connect")),
        ("resetting", (json!({ "kind": "reset", "matching": "enroll" }), "no answer")),
        ("cut", (json!({ "kind": "truncated", "matching": "enroll" }), "no answer")),
        ("down", (json!(null), "could not connect")),
    ]);
    let (mut servers, mut lines, mut trusted) = (BTreeMap::new(), String::new(), String::new());
    for (name, (fault, _)) in &faults {
        let mut server =
            EstServer::start(&device.path(&format!("est-{name}")), &Programs::of_this_build()?, &Settings::default())?;
        let _ = writeln!(lines, "{name} = {{ method = \"est\", url = {:?}, CREDENTIALS }}", server.url()?);
        let _ = writeln!(trusted, "ca-{name} = \"file://{}\"", server.tls_root().display());
        if fault.is_null() {
            server.kill()?;
        } else {
            server.fault(fault)?;
        }
        servers.insert(*name, server);
    }
    let names: Vec<_> = faults.keys().map(|name| format!("\"ca-{name}\"")).collect();
    let _ = write!(lines, "est = {{ trusted_certs = [{}] }}\n\n[preloaded_certs]\n{trusted}", names.join(", "));
    let scene = Scene::run(device, &lines)?;
    let (took, slowest) = scene.beside(|| {
        thread::scope(|scope| {
            let scene = &scene;
            let callers: Vec<_> = faults
                .iter()
                .map(|(name, (_, words))| {
                    scope.spawn(move || {
                        let begin = Instant::now();
                        scene.fail(name, &[words])?;
                        Ok::<_, anyhow::Error>((*name, begin.elapsed()))
                    })
                })
                .collect();
            callers
                .into_iter()
                .map(|caller| caller.join().map_err(|_| anyhow!("a caller panicked"))?)
                .collect::<Result<Vec<_>>>()
        })
    })?;
    assert!(slowest < Duration::from_secs(2), "a bystander waited {slowest:?}");
    for (name, took) in took {
        assert!(took < LIMIT, "{name} took {took:?}");
        // The busy one asks to be left alone for a second only, the others are given three.
        assert!(took > Duration::from_secs(if name == "busy" { 2 } else { 6 }), "{name} was not tried again: {took:?}");
    }
    for (name, server) in &servers {
        if *name != "down" {
            let asked = server
                .requests()?
                .iter()
                .filter(|request| request["path"].as_str().is_some_and(|path| path.contains("enroll")))
                .count();
            assert_eq!(asked, if *name == "refusing" { 0 } else { 3 }, "{name}");
        }
    }
    scene.check_files(&[LOCAL, "imported"])?;
    // One that comes back while the caller waits is no failure.
    let busy = servers.get("busy").context("it is there")?;
    busy.fault(&json!({ "kind": "status", "status": 503, "retryAfter": 1, "matching": "enroll", "count": 1 }))?;
    let _ = scene.device.issue("busy", &scene.request)?.expect(201)?;
    scene.check_secrecy()
}

/// W1 and W33: slow ones, those that put off their decision, and those that never answer hold up nobody but their own callers.
#[test]
fn slow_servers_hold_up_nobody_else() -> Result<()> {
    let scene = Scene::new(&Settings::default(), "")?;
    let server = &scene.device.server;
    server.fault(&json!({ "kind": "latency", "milliseconds": 1500 }))?;
    let (took, slowest) = scene.beside(|| {
        let begin = Instant::now();
        let _ = scene.succeed(BASIC)?;
        Ok(begin.elapsed())
    })?;
    assert!(took > Duration::from_secs(3) && slowest < Duration::from_secs(1), "{took:?}, {slowest:?}");
    server.be_well()?;

    server.change(&json!({ "pendingPolls": 2, "retryAfterSeconds": 1 }))?;
    let begun = server.requests()?.len();
    let (_, slowest) = scene.beside(|| scene.succeed(BASIC))?;
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let requests = server.requests()?;
    let statuses =
        requests[begun..].iter().filter(|request| request["path"].as_str().is_some_and(|path| path.contains("enroll")));
    assert_eq!(
        statuses.map(|request| request["status"].clone()).collect::<Vec<_>>(),
        [json!(202), json!(202), json!(200)]
    );
    server.change(&json!({ "pendingPolls": 0 }))?;

    // Connections that are never answered, and requests that are not: callers of the same certificate wait, and nobody else.
    for fault in [json!({ "kind": "stall" }), json!({ "kind": "hang" })] {
        server.fault(&fault)?;
        let socket = scene.device.socket(Daemon::Certificates);
        let mut caller = raw::connect(&socket)?;
        let body = json!({ "certId": BASIC, "csr": scene.request }).to_string();
        std::io::Write::write_all(
            &mut caller,
            raw::request("POST", &format!("/certificates?{VERSION}"), Some(&body)).as_bytes(),
        )?;
        let before = scene.device.certificate(BASIC)?;
        let ((), slowest) = scene.beside(|| {
            let end = Instant::now() + Duration::from_secs(2);
            eventually("the end of the wait", Duration::from_secs(5), || Ok((Instant::now() > end).then_some(())))
        })?;
        assert!(slowest < Duration::from_secs(1), "{fault}: a bystander waited {slowest:?}");
        assert_eq!(scene.device.certificate(BASIC)?, before);
        caller.set_read_timeout(Some(Duration::from_millis(50)))?;
        let answer = std::io::Read::read(&mut caller, &mut [0; 16]);
        if let Ok(length) = answer {
            bail!("{fault}: {length} bytes of an answer within two seconds");
        }
        server.be_well()?;
    }
    scene.check_files(&[BASIC, LOCAL, "imported"])?;
    scene.check_secrecy()
}
