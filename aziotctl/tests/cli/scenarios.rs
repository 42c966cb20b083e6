//! Scenario folders: each in `tests/apply` has a super-config and the files and messages that `aziotctl config apply` makes of it, each in
//! `tests/apply-edge` those of `iotedge config apply`.
//!
//! `UPDATE_EXPECTED=1 cargo test -p aziotctl scenario` writes what comes out as what is expected; read the difference before you commit it.
//! Uids and host name are those of the public tool's own test cases, so that its expected files can be compared.

use std::fs;
use std::path::Path;

use crate::running::{Program, Run, compare, run_program};

const FILES: [(&str, &str); 7] = [
    ("keyd.toml", "etc/aziot/keyd/config.d/00-super.toml"),
    ("certd.toml", "etc/aziot/certd/config.d/00-super.toml"),
    ("identityd.toml", "etc/aziot/identityd/config.d/00-super.toml"),
    ("tpmd.toml", "etc/aziot/tpmd/config.d/00-super.toml"),
    ("edged.toml", "etc/aziot/edged/config.d/00-super.toml"),
    ("device-id", "var/secrets/aziot/keyd/device-id"),
    ("imported-master-encryption-key", "var/secrets/aziot/keyd/imported-master-encryption-key"),
];
const UIDS: [&str; 4] = ["--uid", "aziotid=5556", "--uid", "aziotcs=5555"];

#[test]
fn every_scenario_gives_the_expected_files_and_messages() {
    check_all("tests/apply", Program::Aziotctl, &[], 50);
}

#[test]
fn every_scenario_with_modules_gives_the_expected_files_and_messages() {
    check_all("tests/apply-edge", Program::Iotedge, &["--uid", "iotedge=5558"], 50);
}

fn check_all(folder: &str, program: Program, more: &[&str], at_least: usize) {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut count = 0;
    for scenario in fs::read_dir(scenarios).unwrap() {
        check(&scenario.unwrap().path(), program, more);
        count += 1;
    }
    assert!(count >= at_least, "only {count} scenarios were found");
}

/// `SCENARIO` in a super-config stands for the scenario's folder.
fn check(scenario: &Path, program: Program, more: &[&str]) {
    let output = tempfile::tempdir().unwrap();
    let (own, folder) = (scenario.to_str().unwrap(), output.path().to_str().unwrap());
    let super_config = fs::read_to_string(scenario.join("super-config.toml")).unwrap().replace("SCENARIO", own);
    let arguments = ["config", "apply", "-c", "-", "--output-dir", folder, "--hostname", "my-device"];
    let run = run_program(program, &[&arguments, &UIDS[..], more].concat(), super_config.as_bytes());
    let Run { code, stdout, stderr } = run;
    assert_eq!(stdout, "", "{}", scenario.display());
    let is_error = scenario.file_name().unwrap().to_str().unwrap().starts_with("error-");
    assert_eq!(code, i32::from(is_error), "{}: {stderr}", scenario.display());
    assert!(!stderr.contains("hunter"), "a secret shows: {stderr}");
    // How a line is shown under a message is not ours to say, and has its tests in `aziot-config`.
    let lines = stderr.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n"));
    let messages = lines.collect::<String>().replace(folder, "DIR").replace(own, "SCENARIO");
    compare(&scenario.join("messages.txt"), Some(messages.as_bytes()));
    for (expected, path) in FILES {
        let found = fs::read(output.path().join(path)).ok();
        assert!(!(is_error && found.is_some()), "{}: {path} was written in spite of the error", scenario.display());
        compare(&scenario.join(expected), found.as_deref());
    }
}
