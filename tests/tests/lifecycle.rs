//! How the daemons start, listen, log and stop, as a service manager and an operator see it.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _, symlink},
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Programs, World,
    calls::{VERSION, is_serving},
    eventually,
    module::Identity,
    process::wrap,
    raw,
};
use rustix::process::Signal;
use serde_json::json;

/// `common.md`, section 2: "could not read argv[0]: unrecognized process name foo"; exit code 1, no service.
#[test]
fn the_name_of_the_program_picks_the_service() -> Result<()> {
    let world = World::empty()?;
    let program = Programs::of_this_build()?.path("aziotd");
    for name in ["foo", "aziotd", "aziot-keyd2", "keyd"] {
        let link = world.path(&format!("bin/{name}"));
        symlink(&program, &link)?;
        let output = Command::new(&link).stdin(Stdio::null()).output()?;
        assert_eq!(output.status.code(), Some(1), "{name}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("could not read argv[0]"), "{said}");
        assert!(said.contains(&format!("unrecognized process name {name}")), "{said}");
        assert!(output.stdout.is_empty(), "logs go to standard error");
    }
    Ok(())
}

/// `common.md`, sections 1, 2 and 4: mode 0660, `Starting service...`, `Version - `, `Starting server...`; READY=1 is only said when calls are
/// answered (every start here waits for it).
#[test]
fn a_started_daemon_has_its_socket_and_says_so() -> Result<()> {
    let world = World::started()?;
    for daemon in Daemon::ALL {
        is_serving(&world, daemon)?;
        let metadata = fs::metadata(world.socket(daemon))?;
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o660, "{}", daemon.name());
        let log = world.log(daemon)?;
        let position = |text: &str| log.find(text).with_context(|| format!("no {text:?} in {log}"));
        let places = [position("Starting service...")?, position("Version - ")?, position("Starting server...")?];
        assert!(places.is_sorted(), "{log}");
        // Priority, time, level: section 11.
        for line in log.lines() {
            let rest = line.strip_prefix('<').and_then(|line| line.split_once('>'));
            let (priority, rest) = rest.with_context(|| format!("no priority: {line:?}"))?;
            assert!(["3", "4", "6", "7"].contains(&priority), "{line}");
            assert!(rest.get(10..11) == Some("T") && rest.get(19..22) == Some("Z ["), "{line}");
        }
    }
    Ok(())
}

/// `common.md`, appendix: "Handle SIGTERM: stop accepting, finish in-flight requests within a few seconds, remove a self-bound socket, exit 0."
#[test]
fn sigterm_ends_in_order_and_idle_callers_do_not_delay_it() -> Result<()> {
    let mut world = World::started()?;
    for daemon in [Daemon::Identity, Daemon::Certificates, Daemon::Keys] {
        // One has never spoken, the other one keeps its connection alive.
        let socket = world.socket(daemon);
        let _silent = raw::connect(&socket)?;
        let mut idle = raw::connect(&socket)?;
        idle.write_all(format!("GET /nope?{VERSION} HTTP/1.1\r\n\r\n").as_bytes())?;
        ensure!(idle.read(&mut [0; 4096])? > 0);
        let begun = Instant::now();
        let status = world.stop(daemon)?;
        assert_eq!(status.code(), Some(0), "{}", daemon.name());
        assert!(begun.elapsed() < Duration::from_secs(3), "{} took {:?}", daemon.name(), begun.elapsed());
        assert!(!socket.exists(), "{} left its socket", daemon.name());
        assert!(raw::connect(&socket).is_err());
    }
    // And again, by the other signal of an orderly stop.
    world.start(Daemon::Keys)?;
    let process = world.process(Daemon::Keys)?;
    process.signal(Signal::INT)?;
    assert_eq!(process.wait()?.code(), Some(0));
    Ok(())
}

/// Sends the head, waits until the daemon asks for the body, and so is known to be at work on the request.
fn begin(socket: &Path, target: &str, body: &str) -> Result<UnixStream> {
    let mut stream = raw::connect(socket)?;
    let length = body.len();
    let head = format!(
        "POST {target} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer)?;
    ensure!(answer[..length].starts_with(b"HTTP/1.1 100"), "{:?}", String::from_utf8_lossy(&answer[..length]));
    Ok(stream)
}

/// The same: what was begun is finished.
#[test]
fn a_request_under_way_is_finished_before_the_end() -> Result<()> {
    let mut world = World::keys("")?;
    let body = json!({ "keyId": "last", "usage": "sign" }).to_string();
    let mut stream = begin(&world.socket(Daemon::Keys), &format!("/key?{VERSION}"), &body)?;
    stream.write_all(&body.as_bytes()[..10])?;
    world.process(Daemon::Keys)?.signal(Signal::TERM)?;
    let socket = world.socket(Daemon::Keys);
    eventually("the end of the socket", Duration::from_secs(5), || Ok((!socket.exists()).then_some(())))?;
    stream.write_all(&body.as_bytes()[10..])?;
    let reply = raw::reply(&raw::read_to_end(&mut stream)?)?.expect(200)?;
    assert!(reply.text("/keyHandle")?.starts_with("sr="));
    assert_eq!(world.process(Daemon::Keys)?.wait()?.code(), Some(0));
    // It was kept as well.
    let _ = world.stop(Daemon::Keys);
    world.start(Daemon::Keys)?;
    let _ = world.call(Daemon::Keys, "GET", &format!("/key/last?{VERSION}"), None)?.expect(200)?;
    Ok(())
}

/// One whose body never comes does not hold the daemon up for ever.
#[test]
fn a_caller_that_never_finishes_does_not_prevent_the_end() -> Result<()> {
    let mut world = World::keys("")?;
    let mut stream = begin(&world.socket(Daemon::Keys), &format!("/key?{VERSION}"), &" ".repeat(100))?;
    let begun = Instant::now();
    assert_eq!(world.stop(Daemon::Keys)?.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    let _ = raw::read_to_end(&mut stream)?;
    Ok(())
}

/// `common.md`, section 4 and `design.md`, sockets: "bound before initialization, so that callers queue instead of being refused".
#[test]
fn a_handed_over_socket_is_used_and_left_alone() -> Result<()> {
    let mut world = World::configured()?;
    for daemon in Daemon::ALL {
        // The service manager's: its path is not the one in the configuration.
        let socket = world.path(&format!("run/{}-activated.sock", daemon.name()));
        let listener = UnixListener::bind(&socket)?;
        // An early caller, before there is a daemon at all.
        let early = {
            let socket = socket.clone();
            thread::spawn(move || raw::call(&socket, "GET", &format!("/nope?{VERSION}"), None))
        };
        let handed = OwnedFd::from(listener.try_clone()?);
        world.start_with(daemon, move |command| {
            let Ok(handed) = handed.try_clone() else { return };
            activate(command, handed, "$$");
        })?;
        let reply = early.join().map_err(|_| anyhow::anyhow!("the early caller panicked"))??;
        assert_eq!(reply.status, 404);
        assert!(!world.socket(daemon).exists(), "{} bound its own socket, too", daemon.name());
        if daemon == Daemon::Identity {
            // The daemons find one another where the configuration says, which is nowhere here: only what needs no other works.
            let how = raw::call(&socket, "GET", "/identities/provisioning?api-version=2021-12-01", None)?;
            assert_eq!(how.expect(200)?.json()?["source"], "dps");
        }
        assert_eq!(world.stop(daemon)?.code(), Some(0));
        assert!(socket.exists(), "{} removed a socket that is not its own", daemon.name());
        // Between two lives callers queue.
        let _waiting = raw::connect(&socket)?;
    }
    Ok(())
}

/// Starts `command` with the descriptor as number 3, as `sd_listen_fds`(3) wants it.
fn activate(command: &mut Command, handed: OwnedFd, pid: &str) {
    let mut wrapper = Command::new("sh");
    wrapper.args(["-c", &format!(r#"exec 3<&0 </dev/null; export LISTEN_PID={pid} LISTEN_FDS=1; exec "$0""#)]);
    wrap(command, wrapper);
    command.stdin(handed);
}

/// `common.md`, section 4: "`LISTEN_PID` of another process, or absent, counts as not activated. Non-numeric is fatal."
#[test]
fn descriptors_for_somebody_else_are_not_taken() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_keys("")?;
    let listener = UnixListener::bind(world.path("run/other.sock"))?;
    let handed = OwnedFd::from(listener.try_clone()?);
    world.start_with(Daemon::Keys, move |command| {
        let Ok(handed) = handed.try_clone() else { return };
        activate(command, handed, "1");
    })?;
    is_serving(&world, Daemon::Keys)?;
    world.stop(Daemon::Keys)?;

    for (name, value) in [("LISTEN_PID", "none"), ("LISTEN_FDS", "many")] {
        let status = world.run_to_end(Daemon::Keys, |command| {
            let _ = command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1").env(name, value);
        })?;
        assert_eq!(status.code(), Some(1), "{name}");
        let log = world.log(Daemon::Keys)?;
        assert!(log.contains(name) && log.contains(value), "{log}");
    }

    // A descriptor that nobody can connect to: `common.md`, appendix, "Descriptor 3 is trusted".
    let (one, _other) = UnixStream::pair()?;
    let status = world.run_to_end(Daemon::Keys, move |command| {
        let Ok(one) = one.try_clone() else { return };
        activate(command, one.into(), "$$");
    })?;
    assert_eq!(status.code(), Some(1));
    assert!(world.log(Daemon::Keys)?.contains("descriptor 3 is not a listening Unix stream socket"));
    Ok(())
}

/// `common.md`, appendix: "a directory at the path is deleted recursively … refuse to delete anything but a socket or an *empty* directory".
#[test]
fn only_a_dead_socket_gives_way_to_a_new_one() -> Result<()> {
    let mut world = World::keys("")?;
    world.kill(Daemon::Keys)?;
    let socket = world.socket(Daemon::Keys);
    assert!(socket.exists(), "a killed daemon cannot clean up");
    world.start(Daemon::Keys)?;
    world.stop(Daemon::Keys)?;
    fs::create_dir(&socket)?;
    fs::create_dir(socket.join("precious"))?;
    assert_eq!(world.run_to_end(Daemon::Keys, |_| {})?.code(), Some(1));
    assert!(socket.join("precious").exists());
    assert!(world.log(Daemon::Keys)?.contains("is in the way"));
    fs::remove_dir(socket.join("precious"))?;
    world.start(Daemon::Keys)?;
    is_serving(&world, Daemon::Keys)
}

/// `design.md`, logs: "grep by request id across daemons".
#[test]
fn one_request_has_one_id_in_the_logs_of_all_daemons() -> Result<()> {
    let world = World::started()?;
    let _ = Identity::create(&world, "sampler")?;
    let find = |daemon: Daemon, words: &[&str]| -> Result<String> {
        let log = world.log(daemon)?;
        let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned).with_context(|| format!("no line with {words:?} in\n{log}"))
    };
    let line = find(Daemon::Identity, &["method=POST", "path=/identities/modules", "status=200"])?;
    let id = line.split("request_id=").nth(1).context("no request id")?.split(' ').next().unwrap_or_default();
    assert!(id.len() >= 8, "{line}");
    find(Daemon::Keys, &["path=/derivedkey", &format!("request_id={id}")])?;

    // A caller may bring its own.
    let socket = world.socket(Daemon::Identity);
    let target = format!("/identities/modules/sampler?{VERSION}&type=aziot");
    let request = format!("GET {target} HTTP/1.1\r\nx-request-id: from-the-caller\r\nconnection: close\r\n\r\n");
    assert_eq!(raw::reply(&raw::exchange(&socket, request.as_bytes())?)?.status, 200);
    find(Daemon::Identity, &["path=/identities/modules/sampler", "request_id=from-the-caller"])?;
    find(Daemon::Keys, &["path=/derivedkey", "request_id=from-the-caller"])?;
    // But not one that forges lines or fills the disk.
    for bad in ["a b", &"x".repeat(65), "a\u{e9}"] {
        let request = format!("GET /nope?{VERSION} HTTP/1.1\r\nx-request-id: {bad}\r\nconnection: close\r\n\r\n");
        assert_eq!(raw::reply(&raw::exchange(&socket, request.as_bytes())?)?.status, 404);
        assert!(!world.log(Daemon::Identity)?.contains(&format!("request_id={bad}")));
    }
    Ok(())
}

/// One line per request, whatever a caller puts into ids: nobody can forge a line.
#[test]
fn a_caller_cannot_forge_log_lines() -> Result<()> {
    let world = World::keys("")?;
    for id in
        ["a\n<3>2026-11-21T00:00:00Z [ERR!] - forged", "b\r\nforged", "c\u{1b}[2Jforged", "d\u{85}forged\u{2028}forged"]
    {
        let body = json!({ "keyId": id, "usage": "sign" }).to_string();
        let target = format!("/key?{VERSION}");
        let _ = world.call(Daemon::Keys, "POST", &target, Some(&body))?.expect(200)?;
        let refused = json!({ "keyId": id, "preferredAlgorithms": "none" }).to_string();
        let _ = world.call(Daemon::Keys, "POST", &format!("/keypair?{VERSION}"), Some(&refused))?;
    }
    for line in world.log(Daemon::Keys)?.split('\n').filter(|line| !line.is_empty()) {
        assert!(line.starts_with('<') && !line.starts_with("<3>2026-11-21T00:00:00Z"), "{line:?}");
        assert!(!line.contains(['\r', '\u{1b}']), "{line:?}");
    }
    Ok(())
}
