//! The program: flags, files, signals, exit codes. `curl` is the client, as for its users.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::world::KEY;

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aziot-simulator"));
    command.env_remove("AZIOT_LOG").stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A running program; killed if a test fails before it has ended.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn curl(arguments: &[&str]) -> Output {
    let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output();
    output.expect("curl is installed")
}

fn status(arguments: &[&str]) -> String {
    let output = curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn terminate(mut running: Running) -> i32 {
    assert!(Command::new("kill").args(["-TERM", &running.0.id().to_string()]).status().unwrap().success());
    wait_for(|| running.0.try_wait().unwrap()).code().unwrap()
}

#[test]
fn it_serves_until_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("sim");
    let enrollment = format!("device-7:{KEY}");
    let mut running = Running(program().arg("--dir").arg(&dir).args(["--enrollment", &enrollment]).spawn().unwrap());
    let address = wait_for(|| std::fs::read_to_string(dir.join("address")).ok());
    let port = address.trim().rsplit(':').next().unwrap().to_owned();
    let authority = dir.join("ca.pem");
    let url = format!("https://localhost:{port}/devices/d/modules?api-version=2018-06-30");
    let token = "authorization: SharedAccessSignature sr=a&sig=c2VjcmV0&se=1";
    assert_eq!(status(&["--cacert", authority.to_str().unwrap(), &url, "-H", token]), "404");
    let socket = dir.join("control.sock");
    let journal = curl(&["--unix-socket", socket.to_str().unwrap(), "http://simulator/journal"]);
    let journal = String::from_utf8(journal.stdout).unwrap();
    assert!(journal.contains(r#""reason":"the device \"d\" is not registered""#), "{journal}");

    let second = program().arg("--dir").arg(&dir).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let log = String::from_utf8(second.stderr).unwrap();
    assert!(log.contains("another simulator runs in"), "{log}");

    let mut stderr = running.0.stderr.take().unwrap();
    assert_eq!(terminate(running), 0);
    assert!(!dir.join("address").exists() && !socket.exists());
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    let line = log.lines().find(|line| line.contains("/devices/d/modules")).unwrap();
    assert!(line.contains("404") && line.contains("is not registered"), "{line}");
    for secret in [KEY, "c2VjcmV0", "SharedAccessSignature"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn with_the_three_flags_alone_nothing_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    make_certificate(folder.path());
    let port = free_port();
    let mut command = program();
    command.args(["--port", &port, "--server-cert-chain"]).arg(folder.path().join("chain.pem"));
    let running = Running(command.arg("--server-key").arg(folder.path().join("key.pem")).spawn().unwrap());
    let authority = folder.path().join("chain.pem");
    let authority = authority.to_str().unwrap();
    let base = format!("https://localhost:{port}");
    let register = format!("{base}/scope/registrations/r/register?api-version=whatever");
    let body = r#"{"registrationId":"r","payload":{"a":1}}"#;
    let json = |arguments: &[&str]| {
        serde_json::from_slice::<serde_json::Value>(&curl(&[&["--cacert", authority], arguments].concat()).stdout).ok()
    };
    let provision = || {
        let registered =
            wait_for(|| json(&["-X", "PUT", &register, "-d", body, "-H", "content-type: application/json"]));
        let operation = registered["operationId"].as_str().unwrap().to_owned();
        wait_for(|| {
            let poll = format!("{base}/scope/registrations/r/operations/{operation}?api-version=x");
            json(&[&poll]).filter(|answer| answer["status"] == "assigned")
        })["registrationState"]
            .clone()
    };
    let (first, second) = (provision(), provision());
    assert_eq!(first["assignedHub"], format!("localhost:{port}"));
    assert_eq!(first["payload"]["msg"], "custom allocation payload received");
    assert_ne!(first["deviceId"], second["deviceId"]);
    let list = format!("{base}/devices/{}/modules?api-version=x", first["deviceId"].as_str().unwrap());
    assert_eq!(json(&[&list]).unwrap(), serde_json::json!([]));
    assert_eq!(status(&["--cacert", authority, &format!("{base}/devices/nobody/modules?api-version=x")]), "404");
    assert_eq!(terminate(running), 0);
}

#[test]
fn wrong_usage_is_2_and_help_says_it_all() {
    assert_eq!(program().output().unwrap().status.code(), Some(2));
    assert_eq!(program().args(["--port", "1", "--server-key", "k"]).output().unwrap().status.code(), Some(2));
    let help = program().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    for part in ["EXAMPLES", "EXIT CODES", "--enrollments <FILE>", "--server-cert-chain"] {
        assert!(help.contains(part), "{part}");
    }
}

#[test]
fn flags_reach_the_hubs_and_their_limits() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("sim");
    let mut command = program();
    command.arg("--dir").arg(&dir).args(["--hub", "second.test", "--gateway-name", "parent.test=second.test"]);
    command.args(["--max-modules", "3", "--clock-offset", "-86400", "--requests-per-second", "100"]);
    let mut running = Running(command.args(["--requests-per-second-per-device", "50"]).spawn().unwrap());
    wait_for(|| dir.join("address").exists().then_some(()));
    let socket = dir.join("control.sock");
    let settings = curl(&["--unix-socket", socket.to_str().unwrap(), "http://simulator/settings"]);
    let settings: serde_json::Value = serde_json::from_slice(&settings.stdout).unwrap();
    assert_eq!((&settings["maxModules"], &settings["clockOffsetSeconds"]), (&3.into(), &(-86400).into()));
    assert_eq!((&settings["requestsPerSecond"], &settings["requestsPerSecondPerDevice"]), (&100.into(), &50.into()));
    let mut stderr = running.0.stderr.take().unwrap();
    assert_eq!(terminate(running), 0);
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(log.contains("second.test:"), "{log}");

    let output = program().arg("--dir").arg(&dir).args(["--gateway-name", "parent.test=nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains(r#""parent.test" belongs to the hub "nowhere""#), "{log}");
}

#[test]
fn a_damaged_state_stops_the_start_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    aziot_files::write(&state, aziot_files::Mode::PRIVATE, "{\"version\":1,\"reg").unwrap();
    let output = program().arg("--dir").arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("state.json is damaged at line 1"), "{log}");
    assert_eq!(std::fs::read_to_string(state).unwrap(), "{\"version\":1,\"reg");
}

/// A certificate that is its own authority, as scripts for the public mock server make one.
fn make_certificate(folder: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "chain.pem"])
        .current_dir(folder)
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Free a moment ago. The three flags have no port 0, since scripts must know the port beforehand.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port().to_string()
}
