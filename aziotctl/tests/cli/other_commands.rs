//! `config validate`, `config mp` and `system reprovision` as an operator meets them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::thread;

use crate::running::aziotctl;

const CONNECTION_STRING: &str = "HostName=hub1.example;DeviceId=pump7;SharedAccessKey=AAEC";

#[test]
fn validate_tells_all_findings_and_needs_no_device() {
    let text = b"hostnam = 'a'\nprovisioning.source = 'none'\naziot_max_requests.keyd = 0\n";
    let lenient = aziotctl(&["config", "validate", "-c", "-"], text);
    assert_eq!((lenient.code, lenient.stdout.as_str()), (0, ""), "{}", lenient.stderr);
    assert!(lenient.stderr.contains(":1:1: unknown key `hostnam`"), "{}", lenient.stderr);
    assert!(lenient.stderr.contains(":3:20: `aziot_max_requests.keyd`"), "{}", lenient.stderr);
    assert!(lenient.stderr.ends_with("standard input is valid\n"), "{}", lenient.stderr);
    let strict = aziotctl(&["config", "validate", "-c", "-", "--strict"], text);
    assert_eq!(strict.code, 1);
    assert!(strict.stderr.contains("has 2 warnings"), "{}", strict.stderr);
}

#[test]
fn validate_speaks_to_programs() {
    let run =
        aziotctl(&["config", "validate", "-c", "-", "-o", "json"], b"hostnam = 'a'\nprovisioning.source = 'manul'\n");
    assert_eq!(run.code, 1);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&json["version"], &json["valid"]), (&1.into(), &false.into()));
    let finding = &json["findings"][0];
    assert_eq!((&finding["severity"], &finding["line"]), (&"warning".into(), &1.into()));
    assert_eq!((&finding["key"], &finding["suggestion"]), (&"hostnam".into(), &"hostname".into()));
    let finding = &json["findings"][1];
    assert_eq!((&finding["severity"], &finding["key"]), (&"error".into(), &"provisioning.source".into()));
    assert_eq!((&finding["line"], &finding["column"]), (&2.into(), &14.into()));
}

#[test]
fn every_block_of_the_template_can_be_uncommented() {
    let template = aziotctl(&["config", "template"], b"");
    assert_eq!((template.code, template.stderr.as_str()), (0, ""));
    let mut count = 0;
    for block in template.stdout.split("\n\n").map(str::trim).filter(|block| block.starts_with("# ")) {
        let lines: Vec<_> = block.lines().map(|line| line.strip_prefix('#').unwrap().trim_start()).collect();
        let mut text = lines.join("\n");
        if !text.contains("[provisioning]") {
            // A gateway takes a hub.
            let hub = "HostName=h;DeviceId=d;SharedAccessKey=AAEC";
            text = format!("provisioning = {{ source = 'manual', connection_string = '{hub}' }}\n{text}");
        }
        let run = aziotctl(&["config", "validate", "-c", "-", "--strict"], text.as_bytes());
        assert_eq!((run.code, run.stderr.as_str()), (0, "standard input is valid\n"), "{text}");
        count += 1;
    }
    assert_eq!(count, 28, "blocks of the template");
}

#[test]
fn mp_writes_a_super_config_that_is_valid_and_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let file = path.to_str().unwrap();
    let first = aziotctl(&["config", "mp", "-c", CONNECTION_STRING, "-o", file], b"");
    assert_eq!((first.code, first.stdout.as_str()), (0, ""), "{}", first.stderr);
    assert!(first.stderr.contains(&format!("sudo aziotctl config apply -c '{file}'")), "{}", first.stderr);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(aziotctl(&["config", "validate", "-c", file, "--strict"], b"").code, 0);

    let second = aziotctl(&["config", "mp", "-c", CONNECTION_STRING, "-o", file], b"");
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("config apply") && second.stderr.contains("--force"), "{}", second.stderr);

    let before = fs::read(&path).unwrap();
    let other = CONNECTION_STRING.replace("pump7", "pump8");
    let third = aziotctl(&["config", "mp", "-c", "-", "-o", file, "--force"], format!("{other}\n").as_bytes());
    assert_eq!(third.code, 0, "{}", third.stderr);
    assert!(fs::read_to_string(&path).unwrap().contains(&format!("\"{other}\"")));
    let backup = folder.path().join("config.toml.backup");
    assert_eq!(fs::read(&backup).unwrap(), before);
    assert_eq!(backup.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn mp_refuses_what_is_no_connection_string_and_does_not_repeat_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let run =
        aziotctl(&["config", "mp", "-c", "HostName=h;SharedAccessKey=hunter2", "-o", path.to_str().unwrap()], b"");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("no `DeviceId=` part") && !run.stderr.contains("hunter2"), "{}", run.stderr);
    assert!(!path.exists());
}

#[test]
fn reprovision_asks_the_service_and_waits() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("identityd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let service = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let length = connection.read(&mut request).unwrap();
        connection.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let run = aziotctl(&["system", "reprovision", "--uri", &format!("unix://{}", socket.display())], b"");
    assert_eq!((run.code, run.stderr.as_str()), (0, "the device is registered anew\n"));
    let request = service.join().unwrap();
    assert!(
        request.starts_with("POST /identities/device/reprovision?api-version=2021-12-01 HTTP/1.1\r\n"),
        "{request}"
    );
}

#[test]
fn reprovision_without_a_service_says_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let uri = format!("unix://{}/identityd.sock", folder.path().display());
    let run = aziotctl(&["system", "reprovision", "--uri", &uri], b"");
    assert_eq!(run.code, 1);
    assert!(run.stderr.starts_with("error: could not connect to "), "{}", run.stderr);
    assert!(run.stderr.contains("\nnext: start the service"), "{}", run.stderr);
}
