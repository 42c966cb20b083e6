//! Logging of a whole process, seen from outside: this test program starts itself again as a small daemon and reads
//! its stderr.

#![expect(
    clippy::unwrap_used,
    reason = "the leave for tests in clippy.toml does not reach helper functions of an integration test"
)]

use std::panic;
use std::process::{Command, Stdio};

const CHILD: &str = "AZIOT_LOG_TEST_CHILD";

/// Not a test of its own: the small daemon.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    aziot_log::init();
    tracing::info!({ aziot_log::fields::UID } = 7, "started");
    tracing::debug!("detail");
    assert!(panic::catch_unwind(|| panic!("a broken\ncall")).is_err());
    tracing::warn!("still here");
}

fn daemon(filter: Option<&str>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, "1").env_remove("RUST_BACKTRACE");
    match filter {
        Some(filter) => command.env(aziot_log::VARIABLE, filter),
        None => command.env_remove(aziot_log::VARIABLE),
    };
    command
}

/// What the daemon wrote to stderr, its times replaced by `T`.
fn logged(filter: Option<&str>) -> Vec<String> {
    let output = daemon(filter).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr)
        .unwrap()
        .lines()
        .map(|line| match (line.find('>'), line.find(" [")) {
            (Some(start), Some(end)) => format!("{}T{}", &line[..=start], &line[end..]),
            _ => line.to_owned(),
        })
        .collect()
}

#[test]
fn a_stream_gets_lines_with_priority_and_the_panic_is_one_of_them() {
    let lines = logged(None);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert_eq!(lines[0], "<6>T [INFO] - started uid=7");
    assert!(lines[1].starts_with(r"<3>T [ERR!] - panicked: a broken\ncall location="), "{}", lines[1]);
    assert!(lines[1].contains("process.rs:"), "{}", lines[1]);
    assert_eq!(lines[2], "<4>T [WARN] - still here");
}

#[test]
fn the_variable_chooses_and_a_mistake_is_told() {
    assert_eq!(logged(Some("OFF")), [""; 0]);
    assert_eq!(logged(Some("process=debug"))[1], "<7>T [DBUG] - [process] detail");
    let lines = logged(Some("process=loud"));
    assert_eq!(lines[0], "warning: invalid logging spec 'process=loud', ignoring it");
    assert_eq!(lines[1], "<6>T [INFO] - started uid=7");
}

#[test]
fn a_journal_that_is_not_stderr_is_not_used() {
    let output = daemon(None).env("JOURNAL_STREAM", "1:1").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("<6>"));
}

#[test]
fn a_broken_stderr_stops_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert!(daemon(Some("bad=bad")).stderr(writer).stdout(Stdio::null()).status().unwrap().success());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(daemon(Some("bad=bad")).stderr(full).stdout(Stdio::null()).status().unwrap().success());
}
