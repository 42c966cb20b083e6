//! Requests that are wrong, too large, too slow, too many or no HTTP at all: each gets the specified answer, and the daemon goes on serving.
//!
//! Damaged files and settings are in `bad_files.rs`, a hub that misbehaves in `bad_hub.rs`.

use std::{
    io::{ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, World,
    calls::{VERSION, create_key, create_module, is_serving},
    eventually,
    module::Identity,
    openssl,
    process::wrap,
    raw,
};
use rustix::process::Signal;
use serde_json::json;

/// One wrong request, and the answer to it. A message that ends in `…` is only the beginning of it.
struct Wrong {
    daemon: Daemon,
    method: &'static str,
    target: String,
    body: Option<String>,
    status: u16,
    message: &'static str,
}

fn wrong(daemon: Daemon, request: &str, body: Option<&str>, status: u16, message: &'static str) -> Wrong {
    let (method, target) = match request.split_once(' ') {
        Some(("GET", target)) => ("GET", target),
        Some(("PUT", target)) => ("PUT", target),
        Some(("DELETE", target)) => ("DELETE", target),
        Some(("PATCH", target)) => ("PATCH", target),
        Some((_, target)) => ("POST", target),
        None => ("GET", request),
    };
    // `V` stands for the api-version.
    let target = target.replace("?V", &format!("?{VERSION}"));
    Wrong { daemon, method, target, body: body.map(str::to_owned), status, message }
}

fn refuse_all(device: &Device, requests: Vec<Wrong>) -> Result<()> {
    for Wrong { daemon, method, target, body, status, message } in requests {
        let what = format!("{}: {method} {target} {body:?}", daemon.name());
        let reply =
            raw::call(&device.socket(daemon), method, &target, body.as_deref()).with_context(|| what.clone())?;
        ensure!(reply.status == status, "{what}: expected {status}, got {reply:?}");
        match message.strip_suffix('…') {
            Some(start) => ensure!(reply.message().starts_with(start), "{what}: {reply:?}"),
            None => ensure!(reply.message() == message, "{what}: {reply:?}"),
        }
        ensure!(!reply.message().is_empty() || method == "HEAD", "{what}: no message in {reply:?}");
    }
    Ok(())
}

/// `common.md`, section 7: the order of checks and their answers are the same on every service.
#[test]
fn every_service_answers_malformed_requests_alike() -> Result<()> {
    let world = World::started()?;
    let routes =
        [(Daemon::Keys, "/key"), (Daemon::Certificates, "/certificates"), (Daemon::Identity, "/identities/modules")];
    for (daemon, post) in routes {
        let requests = vec![
            wrong(daemon, "GET /nope", None, 400, "api-version not specified"),
            wrong(daemon, "GET /nope?api-version=2019-01-01", None, 400, "invalid api-version \"2019-01-01\""),
            wrong(daemon, "GET /nope?api-version=foo%22bar", None, 400, "invalid api-version \"foo\\\"bar\""),
            wrong(daemon, "GET /nope?V", None, 404, "not found"),
            wrong(daemon, &format!("GET {post}/?V"), None, 404, "not found"),
            wrong(daemon, &format!("PATCH {post}?V"), None, 400, "method not allowed"),
            wrong(daemon, &format!("POST {post}?V"), None, 400, "missing request body"),
            wrong(daemon, &format!("POST {post}?V"), Some("{"), 422, "…"),
            wrong(daemon, &format!("POST {post}?V"), Some("[]"), 422, "…"),
            wrong(daemon, &format!("POST {post}?V"), Some("{}"), 422, "missing field…"),
        ];
        refuse_all(&world, requests)?;
        is_serving(&world, daemon)?;
    }
    Ok(())
}

/// `keys.md`, 1.3 and 1.4.
#[test]
fn the_key_service_refuses_what_it_cannot_use() -> Result<()> {
    let world = World::keys("")?;
    let create = |call: &str, body: &str| -> Result<String> {
        world.call(Daemon::Keys, "POST", &format!("{call}?{VERSION}"), Some(body))?.expect(200)?.text("/keyHandle")
    };
    let handle = create("/key", r#"{"keyId":"k","usage":"sign"}"#)?;
    let pair = create("/keypair", r#"{"keyId":"pair"}"#)?;
    let flipped = if handle.contains("&sig=A") {
        handle.replace("&sig=A", "&sig=B")
    } else {
        format!("{}A", &handle[..handle.len() - 1])
    };
    let sign = |handle: &str| {
        json!({ "keyHandle": handle, "algorithm": "HMAC-SHA256", "parameters": { "message": "" } }).to_string()
    };
    let handle_error = "parameter \"handle\" has an invalid value\ncaused by: invalid handle";
    let unknown = "a parameter has an invalid value";
    let keys = |request: &str, body: Option<&str>, status, message| wrong(Daemon::Keys, request, body, status, message);
    let requests = vec![
        keys("GET /key/unknown?V", None, 400, unknown),
        keys("GET /keypair/unknown?V", None, 400, unknown),
        keys("POST /key?V", Some(r#"{"keyId":"x"}"#), 422, "missing field `usage`…"),
        keys("POST /key?V", Some(r#"{"usage":"sign"}"#), 422, "missing field `keyId`…"),
        keys("POST /key?V", Some(r#"{"keyId":7,"usage":"sign"}"#), 422, "…"),
        keys("POST /key?V", Some(r#"{"keyId":"x","usage":"Sign"}"#), 422, "…"),
        keys("POST /key?V", Some(r#"{"keyId":"x","usage":"sign","keyBytes":"AAA"}"#), 422, "…"),
        keys("POST /key?V", Some(r#"{"keyId":"x","usage":"sign","keyBytes":""}"#), 400, unknown),
        keys("POST /keypair?V", Some(r#"{"keyId":"x","preferredAlgorithms":"des"}"#), 400, unknown),
        keys("POST /sign?V", Some(&sign(&flipped)), 400, handle_error),
        keys("POST /sign?V", Some(&sign(&handle.replace("&sig=", "&"))), 400, handle_error),
        keys("POST /sign?V", Some(&sign("")), 400, handle_error),
        keys("POST /sign?V", Some(&sign(&pair)), 400, "parameter \"mechanism\" has an invalid value…"),
        keys("DELETE /key?V", Some(&json!({ "keyHandle": flipped }).to_string()), 400, handle_error),
        keys(
            "DELETE /key?V",
            Some(&json!({ "keyHandle": pair }).to_string()),
            400,
            "parameter \"handle\" has an invalid value\ncaused by: handle is not for a key",
        ),
        keys(
            "POST /derivedkey?V",
            Some(&json!({ "baseKeyHandle": flipped, "derivationData": "" }).to_string()),
            400,
            handle_error,
        ),
        keys("POST /parameters/nope?V", Some(&json!({ "keyHandle": pair }).to_string()), 400, "…"),
        keys("PUT /key?V", Some("{"), 422, "…"),
    ];
    refuse_all(&world, requests)?;
    // Nothing of it did any harm.
    let _ = world.call(Daemon::Keys, "POST", &format!("/sign?{VERSION}"), Some(&sign(&handle)))?.expect(200)?;
    let _ = world.call(Daemon::Keys, "GET", &format!("/keypair/pair?{VERSION}"), None)?.expect(200)?;
    is_serving(&world, Daemon::Keys)
}

/// `certs.md`, 1.2 and 1.4.
#[test]
fn the_certificate_service_refuses_what_it_cannot_use() -> Result<()> {
    let world = World::certificates("")?;
    let certificates = |request: &str, body: Option<&str>, status, message| {
        wrong(Daemon::Certificates, request, body, status, message)
    };
    let unissued = json!({ "certId": "x", "csr": openssl::make_request(&world.path("x.pem"), "x")? }).to_string();
    let requests = vec![
        certificates(
            "GET /certificates/unknown?V",
            None,
            400,
            "parameter \"id\" has an invalid value\ncaused by: not found",
        ),
        certificates("POST /certificates?V", Some(r#"{"certId":"x"}"#), 422, "missing field `csr`…"),
        certificates("POST /certificates?V", Some(r#"{"certId":"x","csr":7}"#), 422, "…"),
        certificates(
            "POST /certificates?V",
            Some(r#"{"certId":"x","csr":"no PEM"}"#),
            400,
            "parameter \"csr\" has an invalid value…",
        ),
        // No issuer: a 500 by the public service's ways.
        certificates("POST /certificates?V", Some(&unissued), 500, "internal error"),
        certificates("PUT /certificates/x?V", Some(r"{}"), 422, "missing field `pem`…"),
        certificates("POST /certificates/x?V", Some("{}"), 400, "method not allowed"),
        certificates("DELETE /certificates/x?V", Some("{"), 422, "…"),
    ];
    refuse_all(&world, requests)?;
    is_serving(&world, Daemon::Certificates)
}

/// `identity.md`, 1.2, 1.5 and 1.6.
#[test]
fn the_identity_service_refuses_what_it_cannot_use() -> Result<()> {
    let world = World::started()?;
    let identity =
        |request: &str, body: Option<&str>, status, message| wrong(Daemon::Identity, request, body, status, message);
    let type_error = "parameter \"type\" has an invalid value\ncaused by: invalid type: x";
    let requests = vec![
        identity(
            "GET /identities/modules?V",
            None,
            400,
            "parameter \"type\" has an invalid value\ncaused by: missing parameter",
        ),
        identity("GET /identities/modules?V&type=x", None, 400, type_error),
        identity("GET /identities/modules/m?V&type=x", None, 400, type_error),
        identity("POST /identities/modules?V", Some(r#"{"type":"x","moduleId":"m"}"#), 400, type_error),
        identity("POST /identities/modules?V", Some(r#"{"moduleId":"m"}"#), 422, "missing field `type`…"),
        identity("POST /identities/modules?V", Some(r#"{"type":"aziot"}"#), 422, "missing field `moduleId`…"),
        identity(
            "POST /identities/modules?V",
            Some(r#"{"type":"aziot","moduleId":" "}"#),
            400,
            "parameter \"module_id\" has an invalid value\ncaused by: module name cannot be empty",
        ),
        // Not on the way to another place at the hub: W36.
        identity(
            "POST /identities/modules?V",
            Some(r#"{"type":"aziot","moduleId":"../devices"}"#),
            400,
            "parameter \"module_id\"…",
        ),
        identity("DELETE /identities/modules/..%2Fmodules?V&type=aziot", None, 400, "parameter \"module_id\"…"),
        identity(
            "GET /identities/modules/unknown?V&type=aziot",
            None,
            404,
            "Hub client error\ncaused by: module unknown not found…",
        ),
        identity("GET /identities/provisioning?V", None, 404, "not found"),
        identity("POST /identities/device?V", None, 400, "missing request body"),
        identity("PUT /identities/modules/m?V&type=aziot", Some("{"), 422, "…"),
    ];
    refuse_all(&world, requests)?;
    let _ = Identity::create(&world, "sampler")?;
    is_serving(&world, Daemon::Identity)
}

/// `design.md`: 1 MiB body, answered with 413, also by `Content-Length`.
#[test]
fn two_mebibytes_are_too_much() -> Result<()> {
    let world = World::started()?;
    let body = format!(r#"{{"keyId":"{}","usage":"sign"}}"#, "k".repeat(2 * 1024 * 1024));
    let targets = ["/key", "/certificates", "/identities/modules"];
    for (daemon, target) in Daemon::ALL.into_iter().zip(targets) {
        let target = format!("{target}?{VERSION}");
        let told = raw::call(&world.socket(daemon), "POST", &target, Some(&body))?;
        assert_eq!(told.status, 413, "{}: {told:?}", daemon.name());
        let head =
            format!("POST {target} HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("10000\r\n{}\r\n", "k".repeat(0x10000)).repeat(32);
        let untold = raw::reply(&raw::exchange(&world.socket(daemon), format!("{head}{chunk}0\r\n\r\n").as_bytes())?)?;
        assert_eq!(untold.status, 413, "{}: {untold:?}", daemon.name());
        // Through a client of the real world, too.
        assert_eq!(world.call(daemon, "POST", &target, Some(&body))?.status, 413);
        is_serving(&world, daemon)?;
    }
    Ok(())
}

/// Sends one byte a second until it is done or hung up on.
fn drip(socket: &Path, bytes: &str, most: Duration) -> Result<String> {
    let mut stream = raw::connect(socket)?;
    let begun = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = Vec::new();
    for byte in bytes.bytes().cycle() {
        ensure!(begun.elapsed() < most, "nobody stopped a client that sends one byte a second");
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        // The pause is the time limit of this read.
        let mut buffer = [0; 4096];
        match std::io::Read::read(&mut stream, &mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `common.md`, section 7: "A request body not complete 5 s after the handler starts reading it: 408 `deadline has elapsed`, then close."
#[test]
fn a_client_that_sends_one_byte_a_second_hinders_nobody() -> Result<()> {
    let world = World::started()?;
    thread::scope(|scope| {
        let mut slow = Vec::new();
        for daemon in Daemon::ALL {
            let socket = world.socket(daemon);
            slow.push(scope.spawn(move || -> Result<String> {
                let mut stream = raw::connect(&socket)?;
                let target = if daemon == Daemon::Keys { "/key" } else { "/certificates" };
                let target = if daemon == Daemon::Identity { "/identities/modules" } else { target };
                stream.write_all(
                    format!("POST {target}?{VERSION} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n").as_bytes(),
                )?;
                drip_body(stream)
            }));
            // A head that never ends is waited for up to a minute; it hinders nobody meanwhile. It is cut off when the daemon ends.
            let socket = world.socket(daemon);
            let _ = scope.spawn(move || drip(&socket, "GET /", Duration::from_secs(8)));
        }
        let begun = Instant::now();
        let mut calls = 0;
        while slow.iter().any(|client| !client.is_finished()) {
            for daemon in Daemon::ALL {
                let call = Instant::now();
                is_serving(&world, daemon)?;
                ensure!(call.elapsed() < Duration::from_secs(1), "{} waited {:?}", daemon.name(), call.elapsed());
                calls += 1;
            }
            ensure!(begun.elapsed() < Duration::from_secs(20), "a slow client was not stopped");
        }
        ensure!(calls > 100, "only {calls} calls in {:?}", begun.elapsed());
        for client in slow {
            let answer = client.join().map_err(|_| anyhow::anyhow!("a slow client panicked"))??;
            let reply = raw::reply(&answer)?;
            assert_eq!((reply.status, reply.message().as_str()), (408, "deadline has elapsed"));
        }
        Ok(())
    })
}

fn drip_body(mut stream: UnixStream) -> Result<String> {
    let begun = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = Vec::new();
    loop {
        ensure!(begun.elapsed() < Duration::from_secs(15), "nobody stopped a client that sends one byte a second");
        let _ = stream.write_all(b" ");
        let mut buffer = [0; 4096];
        match std::io::Read::read(&mut stream, &mut buffer) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `common.md`, section 6: `max_requests` counts requests that are worked on; more of them wait a little.
#[test]
fn five_hundred_connections_at_once_are_served() -> Result<()> {
    let mut world = World::configured()?;
    for daemon in Daemon::ALL {
        // What systemd and login shells give by default.
        world.start_with(daemon, |command| limit_descriptors(command, "-S -n", 1024))?;
        let socket = world.socket(daemon);
        // All are open, and none has spoken yet: idle connections hold no slot.
        let mut streams = (0..500).map(|_| raw::connect(&socket)).collect::<Result<Vec<UnixStream>>>()?;
        is_serving(&world, daemon)?;
        let request = raw::request("GET", &format!("/nope?{VERSION}"), None);
        for stream in &mut streams {
            stream.write_all(request.as_bytes()).with_context(|| daemon.name())?;
        }
        for (number, mut stream) in streams.into_iter().enumerate() {
            let reply = raw::reply(&raw::read_to_end(&mut stream)?).with_context(|| format!("connection {number}"))?;
            assert_eq!(reply.status, 404);
        }
        is_serving(&world, daemon)?;
        // And five thousand that come and go without a word.
        for _ in 0..5000 {
            drop(raw::connect(&socket)?);
        }
        is_serving(&world, daemon)?;
        // None of them is kept.
        let pid = world.process(daemon)?.pid()?;
        eventually("the end of all connections", Duration::from_secs(10), || {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
            Ok((open < 60).then_some(()))
        })?;
    }
    Ok(())
}

/// `common.md`, section 7: "Unparsable request: 400, close", "More than 100 header fields: 431, close".
#[test]
fn garbage_is_answered_and_forgotten() -> Result<()> {
    let world = World::started()?;
    let noise: Vec<u8> =
        (0..100_000_u32).map(|number| u8::try_from(number.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0)).collect();
    let fields = format!("GET /x?{VERSION} HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    let long = format!("GET /x?{VERSION} HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(600 * 1024));
    for daemon in Daemon::ALL {
        let socket = world.socket(daemon);
        let status = |bytes: &[u8]| -> Result<u16> { Ok(raw::reply(&raw::exchange(&socket, bytes)?)?.status) };
        assert_eq!(status(b"blah blah\r\n\r\n")?, 400, "{}", daemon.name());
        assert_eq!(status(fields.as_bytes())?, 431, "{}", daemon.name());
        assert_eq!(status(long.as_bytes())?, 431, "{}", daemon.name());
        // An HTTP/2 preface or noise gets an answer or a hang-up, nothing else.
        for bytes in [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &noise,
            b"\x16\x03\x01\x00\xa5\x01",
            b"",
            b"\r\n\r\n\r\n",
            b"\0",
        ] {
            let answer = raw::exchange_and_end(&socket, bytes)?;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 431"),
                "{answer}"
            );
        }
        // A body shorter than promised: its sender has hung up, and nothing was made.
        let half = format!("POST /key?{VERSION} HTTP/1.1\r\ncontent-length: 100\r\n\r\n{{\"keyId\":\"half\"");
        let _ = raw::exchange_and_end(&socket, half.as_bytes())?;
        is_serving(&world, daemon)?;
    }
    let unmade = world.call(Daemon::Keys, "GET", &format!("/key/half?{VERSION}"), None)?;
    assert_eq!(unmade.status, 400);
    Ok(())
}

/// `-S -n` is a limit that the process may raise, `-n` one that it may not.
fn limit_descriptors(command: &mut Command, which: &str, most: u32) {
    let mut wrapper = Command::new("sh");
    wrapper.args(["-c", &format!(r#"ulimit {which} {most}; exec "$0""#)]);
    wrap(command, wrapper);
}

/// `common.md`, appendix: "Running out of descriptors kills the daemon. Log, pause briefly, continue".
#[test]
fn a_daemon_without_descriptors_goes_on_when_it_has_some_again() -> Result<()> {
    let mut world = World::keys("")?;
    world.stop(Daemon::Keys)?;
    world.start_with(Daemon::Keys, |command| limit_descriptors(command, "-n", 40))?;
    let socket = world.socket(Daemon::Keys);
    let crowd = (0..100).map(|_| raw::connect(&socket)).collect::<Result<Vec<UnixStream>>>()?;
    eventually("the shortage in the log", Duration::from_secs(5), || {
        let log = world.log(Daemon::Keys)?;
        let words = ["could not accept a connection", "Max simultaneous connections reached for user"];
        Ok(words.iter().any(|words| log.contains(words)).then_some(()))
    })?;
    drop(crowd);
    eventually("an answer", Duration::from_secs(5), || Ok(is_serving(&world, Daemon::Keys).ok()))?;
    let _ = create_key(&world, "after")?.expect(200)?;
    let lines = world.log(Daemon::Keys)?.matches("could not accept a connection").count();
    assert!(lines < 200, "{lines} lines about one shortage");
    Ok(())
}

/// A key service that hangs hinders only those who need a key.
#[test]
fn a_hanging_key_service_hinders_only_those_who_need_it() -> Result<()> {
    let world = World::started()?;
    let _ = Identity::create(&world, "sampler")?;
    let (identity, certificates) = (world.socket(Daemon::Identity), world.socket(Daemon::Certificates));
    world.process(Daemon::Keys)?.signal(Signal::STOP)?;
    thread::scope(|scope| -> Result<()> {
        let device: &Device = &world;
        // Not the device's identity: its handle is kept for a second.
        let waiting = scope.spawn(move || create_module(device, "other"));
        let begun = Instant::now();
        for _ in 0..20 {
            let how = raw::call(&identity, "GET", "/identities/provisioning?api-version=2021-12-01", None)?;
            ensure!(how.status == 200, "{how:?}");
            let put = raw::call(&certificates, "PUT", &format!("/certificates/c?{VERSION}"), Some(r#"{"pem":"x"}"#))?;
            ensure!(put.status == 201, "{put:?}");
        }
        ensure!(begun.elapsed() < Duration::from_secs(5), "waited {:?} for a hanging key service", begun.elapsed());
        ensure!(!waiting.is_finished(), "a module without its keys");
        world.process(Daemon::Keys)?.signal(Signal::CONT)?;
        let reply = waiting.join().map_err(|_| anyhow::anyhow!("the caller panicked"))??;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
}

/// `common.md`, section 6, ours: "an over-limit request waits a little, then its connection is reset". Not 429 or 503, and no clean end of
/// file: deployed clients handle those badly. Users do not count against one another.
#[test]
fn a_user_over_the_limit_is_reset_and_others_are_served() -> Result<()> {
    let mut world = World::certificates("max_requests = 1\ncert_issuance.own.method = \"self_signed\"\n")?;
    world.configure_keys("")?;
    world.start(Daemon::Keys)?;
    let request = openssl::make_request(&world.path("own.pem"), "own")?;
    let socket = world.socket(Daemon::Certificates);
    // A request that takes long: the key service hangs.
    world.process(Daemon::Keys)?.signal(Signal::STOP)?;
    let mut held = raw::connect(&socket)?;
    let body = json!({ "certId": "own", "csr": request }).to_string();
    held.write_all(raw::request("POST", &format!("/certificates?{VERSION}"), Some(&body)).as_bytes())?;

    let begun = Instant::now();
    let mut over = raw::connect(&socket)?;
    over.write_all(raw::request("GET", &format!("/nope?{VERSION}"), None).as_bytes())?;
    if world.uid()? == 0 {
        let stranger = world.stranger()?;
        let other = world.call_as(stranger, Daemon::Certificates, "GET", &format!("/nope?{VERSION}"), None)?;
        assert_eq!(other.status, 404);
        assert!(begun.elapsed() < Duration::from_secs(3), "another user waited {:?}", begun.elapsed());
    }
    let answer = std::io::Read::read(&mut over, &mut [0; 64]);
    assert_eq!(answer.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert!(begun.elapsed() > Duration::from_secs(1), "did not wait");

    world.process(Daemon::Keys)?.signal(Signal::CONT)?;
    let reply = raw::reply(&raw::read_to_end(&mut held)?)?;
    assert!([201, 500].contains(&reply.status), "{reply:?}");
    is_serving(&world, Daemon::Certificates)
}
