//! The bootstrap flow end to end over real sockets: bootstrap identity, EST identity, device certificate, with lifetimes of seconds. certd renews
//! the identity by itself; the device certificate is renewed as identityd does it, by the engine of `aziot-pki`. Each renewal has a new key,
//! and clients that connect with mutual TLS all the time never fail.
//!
//! Once with keys in files, which a client reads as a module would, and once with keys on a token, where keyd signs each handshake.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aziot_certd_api::{
    certificate::CreateCertificate,
    renewal::{AutoRenew, Period},
};
use aziot_http::{Client, Endpoint, Retry};
use aziot_keyd_api::key_pair::{CreateKeyPair, LoadKeyPair};
use aziot_pki::{
    certificate::Chain,
    key::RemoteKey,
    name,
    renewal::{
        Engine, SystemClock,
        issued::{Issued, Settings as IssuedSettings},
    },
    request,
    tls::{self, ClientIdentity, Connector, Trust},
};
use aziot_tests::{
    Daemon,
    est::{
        self, Settings,
        device::{BOOTSTRAP, DEVICE, EAGER, EstDevice, IDENTITY},
        echo::{EchoServer, Loop, Pair, or_last},
    },
    eventually, openssl,
};
use jiff::Timestamp;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};
use tower::ServiceExt as _;

/// So often each certificate is issued: once, and three renewals.
const TIMES: usize = 4;
/// Longer than all of them take.
const LIMIT: Duration = Duration::from_secs(40);
/// For one handshake; a renewal that is waited for takes less.
const PATIENCE: Duration = Duration::from_secs(10);
const NAME: &str = "pump-7";
const ALGORITHMS: &str = "ec-p256:rsa-4096:*";

fn settings() -> Settings {
    Settings {
        lifetime_seconds: 10,
        identity_lifetime_seconds: 10,
        authentication: "certificate",
        ..Settings::default()
    }
}

/// Clients of the device's two services.
#[derive(Clone)]
struct Services {
    certd: Client,
    keyd: Client,
}

impl Services {
    fn of(device: &EstDevice) -> Result<Self> {
        let endpoint = |daemon| Endpoint::Unix(device.socket(daemon));
        Ok(Self {
            certd: aziot_certd_api::client(&endpoint(Daemon::Certificates), Retry::local(1))?,
            keyd: aziot_keyd_api::client(&endpoint(Daemon::Keys), Retry::local(1))?,
        })
    }

    async fn create_key(&self, id: &str) -> Result<RemoteKey> {
        let call = CreateKeyPair { key_id: id.to_owned(), preferred_algorithms: Some(ALGORITHMS.to_owned()) };
        Ok(RemoteKey::load(&self.keyd, self.keyd.send(&call).await?.key_handle).await?)
    }

    async fn key(&self, id: &str) -> Result<RemoteKey> {
        let handle = self.keyd.send(&LoadKeyPair { key_id: id.to_owned() }).await?.key_handle;
        Ok(RemoteKey::load(&self.keyd, handle).await?)
    }

    async fn request(&self, key_id: &str, common_name: &str) -> Result<String> {
        let key = self.create_key(key_id).await?;
        Ok(request::create(name::from_entries([("CN", common_name)])?, &[], &key).await?)
    }
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("could not make a runtime")
}

/// The part of identityd: it keeps the device certificate renewed, and connects with it again and again.
struct IdentityService {
    is_ending: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl IdentityService {
    fn start(services: Services, echo: &EchoServer) -> Result<Self> {
        let (address, root) = (echo.address(), Chain::from_pem(&echo.root()?)?);
        let is_ending = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_ending);
        let thread = thread::spawn(move || runtime()?.block_on(serve(&services, address, &Trust::only(&root), &ends)));
        Ok(Self { is_ending, thread })
    }

    /// So many handshakes, all of them good.
    fn stop(self) -> Result<u32> {
        self.is_ending.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("the identity service panicked"))?
    }
}

async fn serve(services: &Services, address: SocketAddr, trust: &Trust, is_ending: &AtomicBool) -> Result<u32> {
    let engine = Engine::new(SystemClock::new());
    let settings = IssuedSettings {
        certificate_id: DEVICE.to_owned(),
        key_id: DEVICE.to_owned(),
        policy: AutoRenew { rotate_key: true, threshold: Period::Percent(40), retry: Period::Percent(10) },
        subject: None,
        extensions: Vec::new(),
        preferred_algorithms: ALGORITHMS.to_owned(),
    };
    engine.replace(vec![Arc::new(Issued::new(services.certd.clone(), services.keyd.clone(), settings))]);
    let connecting = async {
        let mut connections = 0;
        while !is_ending.load(Ordering::SeqCst) {
            // While it is held nobody moves its key.
            let held = engine.hold(DEVICE, DEVICE).await?;
            let identity = ClientIdentity::new(held.chain(), services.key(DEVICE).await?)?;
            let hello = timeout(PATIENCE, say_hello(address, trust, identity)).await;
            hello.context("no answer in time").flatten().with_context(|| format!("connection {}", connections + 1))?;
            drop(held);
            connections += 1;
            sleep(Duration::from_millis(20)).await;
        }
        Ok(connections)
    };
    tokio::select! {
        connections = connecting => connections,
        () = engine.run() => bail!("the engine ended"),
    }
}

async fn say_hello(address: SocketAddr, trust: &Trust, identity: Arc<ClientIdentity>) -> Result<()> {
    let connector = Connector::new(tls::client_config(trust, Some(identity))?, None);
    let uri: http::Uri = format!("https://localhost:{}", address.port()).parse()?;
    let mut stream = BufReader::new(connector.oneshot(uri).await?.into_inner());
    stream.write_all(b"hello\n").await?;
    stream.flush().await?;
    let mut back = String::new();
    stream.read_line(&mut back).await.context("the server refused the certificate")?;
    ensure!(back == "hello\n", "the echo is {back:?}");
    Ok(())
}

/// What was issued, each verified by openssl while it was valid.
struct Ledger {
    issued: Vec<est::Issued>,
    /// Ends of the identity, as `GET /renewals` told them.
    ends: BTreeSet<Timestamp>,
}

impl Ledger {
    /// Looks until everything was issued so often, and calls `look` each time.
    fn keep(device: &EstDevice, look: impl Fn() -> Result<()>) -> Result<Self> {
        let mut ledger = Self { issued: Vec::new(), ends: BTreeSet::new() };
        let deadline = Instant::now() + LIMIT;
        while ledger.identities().count() < TIMES || ledger.device_certificates().count() < TIMES {
            ensure!(Instant::now() < deadline, "so much was issued within {LIMIT:?}: {:#?}", ledger.issued);
            look()?;
            for issued in device.server.issued()?.into_iter().skip(ledger.issued.len()) {
                device.server.verify(&issued.pem).with_context(|| format!("{issued:?}"))?;
                ledger.issued.push(issued);
            }
            ledger.look_at_renewals(device)?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(ledger)
    }

    fn look_at_renewals(&mut self, device: &EstDevice) -> Result<()> {
        let renewal = device.identity_renewal()?.context("the identity is not renewed")?;
        ensure!(renewal["keyId"] == IDENTITY && renewal["failedAttempts"] == 0, "{renewal}");
        let date = |name: &str| -> Result<Timestamp> {
            let text = renewal[name].as_str().with_context(|| format!("no {name} in {renewal}"))?;
            text.parse().with_context(|| format!("{name} in {renewal} is no date"))
        };
        let (end, next) = (date("notAfter")?, date("nextAttempt")?);
        ensure!(next < end && end > Timestamp::now(), "too late: {renewal}");
        self.ends.insert(end);
        Ok(())
    }

    fn identities(&self) -> impl Iterator<Item = &est::Issued> {
        self.issued.iter().filter(|issued| issued.is_identity)
    }

    fn device_certificates(&self) -> impl Iterator<Item = &est::Issued> {
        self.issued.iter().filter(|issued| !issued.is_identity)
    }

    /// Who asked for what with which certificate, and for which keys.
    fn check(&self) -> Result<()> {
        for (number, issued) in self.issued.iter().enumerate() {
            ensure!(issued.operation == "simpleenroll" && issued.subject == format!("CN={NAME}"), "{issued:?}");
            let client = issued.client.as_ref().context("nobody proved to be anybody")?;
            let is_right = if number == 0 {
                client.is_bootstrap && client.subject == "CN=serial-0815" && issued.is_identity
            } else {
                // Not always the last one: a renewal may be under way.
                !client.is_bootstrap && self.identities().any(|identity| identity.serial == client.serial)
            };
            ensure!(is_right, "{issued:?}");
        }
        let keys: BTreeSet<_> = self.issued.iter().map(|issued| &issued.key_fingerprint).collect();
        ensure!(keys.len() == self.issued.len(), "a key was used twice");
        let ends: BTreeSet<_> =
            self.identities().map(|identity| identity.not_after.parse::<Timestamp>()).collect::<Result<_, _>>()?;
        ensure!(self.ends.is_subset(&ends) && self.ends.len() >= TIMES - 1, "{:?} are not among {ends:?}", self.ends);
        Ok(())
    }

    /// The stored certificate as openssl sees it and as the server remembers it.
    fn check_stored(&self, device: &EstDevice, id: &str) -> Result<()> {
        let file = device.certificate_file(id);
        let see = |arguments: &[&str]| x509(&file, arguments);
        let serial = see(&["-serial"])?.replace("serial=", "").to_lowercase();
        let serial = serial.trim_start_matches('0');
        let issued = self.issued.iter().find(|issued| issued.serial.trim_start_matches('0') == serial);
        let issued = issued.with_context(|| format!("{id} has the serial {serial}, which was not issued"))?;
        assert_eq!(see(&["-subject"])?, format!("subject=CN = {NAME}"));
        for (option, name, date) in
            [("-startdate", "notBefore", &issued.not_before), ("-enddate", "notAfter", &issued.not_after)]
        {
            assert_eq!(see(&[option, "-dateopt", "iso_8601"])?, format!("{name}={}", date.replace('T', " ")));
        }
        let text = see(&["-text"])?;
        for line in [
            "Version: 3 (0x2)",
            "NIST CURVE: P-256",
            "TLS Web Client Authentication",
            "X509v3 Authority Key Identifier",
        ] {
            ensure!(text.contains(line), "no {line:?} in {text}");
        }
        // The whole chain is stored, leaf first: it verifies with nothing but itself and the root.
        let root = device.server.root();
        let arguments: [&std::ffi::OsStr; 6] = [
            "verify".as_ref(),
            "-CAfile".as_ref(),
            root.as_os_str(),
            "-untrusted".as_ref(),
            file.as_os_str(),
            file.as_os_str(),
        ];
        let said = openssl::run(arguments, "")?;
        ensure!(said.trim().ends_with(": OK"), "{said}");
        Ok(())
    }
}

fn x509(file: &Path, arguments: &[&str]) -> Result<String> {
    let fixed: [&std::ffi::OsStr; 4] = ["x509".as_ref(), "-noout".as_ref(), "-in".as_ref(), file.as_os_str()];
    Ok(openssl::run(fixed.into_iter().chain(arguments.iter().map(AsRef::as_ref)), "")?.trim().to_owned())
}

/// The first issuance of the device certificate, which brings the identity along.
fn enrol(device: &EstDevice, services: &Services) -> Result<()> {
    runtime()?.block_on(async {
        let csr = services.request(DEVICE, NAME).await?;
        let call = CreateCertificate { cert_id: DEVICE.to_owned(), csr, issuer: None };
        let pem = services.certd.send(&call).await?.pem;
        ensure!(fs::read_to_string(device.certificate_file(DEVICE))? == pem, "something else was stored");
        Ok(())
    })
}

fn finish(device: &mut EstDevice, ledger: &Ledger) -> Result<()> {
    ledger.check()?;
    for id in [IDENTITY, DEVICE] {
        ledger.check_stored(device, id)?;
        // One of the looks may fall in the middle of a renewal.
        eventually("a pair", PATIENCE, || Ok(device.check_pair(id).ok()))?;
    }
    let requests = device.server.requests()?;
    ensure!(requests.iter().all(|request| request["status"] == 200), "{requests:#?}");
    device.stop_all()
}

#[test]
fn every_certificate_is_renewed_without_a_gap() -> Result<()> {
    let mut device = EstDevice::new(&settings(), EAGER)?;
    device.start_keys()?;
    device.start(Daemon::Certificates)?;
    let services = Services::of(&device)?;
    enrol(&device, &services)?;
    let echo = EchoServer::start(device.folder(), &device.server.root())?;
    // Those read the files, as modules do.
    let files = [IDENTITY, DEVICE].map(|id| (device.certificate_file(id), device.key_file(id)));
    let loops = files.map(|(certificate, key)| echo.connect_in_a_loop(or_last(move || Pair::read(&certificate, &key))));
    let identity_service = IdentityService::start(services, &echo)?;
    let ledger = Ledger::keep(&device, || {
        let all = loops.iter().all(Loop::is_running);
        // Which one, and why, shows at the end.
        ensure!(all && !identity_service.thread.is_finished(), "a client has failed");
        Ok(())
    });
    let fingerprints: BTreeSet<_> = device.server.issued()?.into_iter().map(|issued| issued.fingerprint).collect();
    for one in loops {
        let seen = one.stop()?;
        assert!(seen.connections > 50, "only {} connections", seen.connections);
        assert!(seen.certificates.is_subset(&fingerprints) && seen.certificates.len() >= TIMES - 1, "{seen:?}");
    }
    let handshakes = identity_service.stop()?;
    assert!(handshakes > 20, "only {handshakes} handshakes");
    finish(&mut device, &ledger?)
}

#[test]
fn the_same_with_all_keys_on_a_token() -> Result<()> {
    let mut device = EstDevice::with_token(&settings(), EAGER)?;
    let services = Services::of(&device)?;
    let request = runtime()?.block_on(services.request(BOOTSTRAP, "serial-0815"))?;
    device.server.certify_bootstrap(&request, &device.path("var/secrets/bootstrap.pem"), 3600)?;
    device.start(Daemon::Certificates)?;
    enrol(&device, &services)?;
    let echo = EchoServer::start(device.folder(), &device.server.root())?;
    let identity_service = IdentityService::start(services, &echo)?;
    let ledger = Ledger::keep(&device, || {
        ensure!(!identity_service.thread.is_finished(), "the client has failed");
        Ok(())
    });
    let handshakes = identity_service.stop()?;
    assert!(handshakes > 20, "only {handshakes} handshakes");
    for id in [BOOTSTRAP, IDENTITY, DEVICE] {
        assert!(!device.key_file(id).exists(), "the key {id} is in a file");
    }
    finish(&mut device, &ledger?)
}
