//! Scenario folders: each in `tests/apply` has a super-config and the files and messages that `config apply` makes of it.
//!
//! `UPDATE_EXPECTED=1 cargo test -p aziotctl scenarios` writes what comes out as what is expected; read the difference before you commit it.
//! Uids and host name are those of the public tool's own test cases, so that its expected files can be compared.

use std::fs;
use std::path::Path;

use crate::running::{Run, aziotctl, compare};

const FILES: [(&str, &str); 5] = [
    ("keyd.toml", "etc/aziot/keyd/config.d/00-super.toml"),
    ("certd.toml", "etc/aziot/certd/config.d/00-super.toml"),
    ("identityd.toml", "etc/aziot/identityd/config.d/00-super.toml"),
    ("tpmd.toml", "etc/aziot/tpmd/config.d/00-super.toml"),
    ("device-id", "var/secrets/aziot/keyd/device-id"),
];

#[test]
fn every_scenario_gives_the_expected_files_and_messages() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apply");
    let mut count = 0;
    for scenario in fs::read_dir(scenarios).unwrap() {
        check(&scenario.unwrap().path());
        count += 1;
    }
    assert!(count >= 50, "only {count} scenarios were found");
}

fn check(scenario: &Path) {
    let output = tempfile::tempdir().unwrap();
    let super_config = fs::read(scenario.join("super-config.toml")).unwrap();
    let folder = output.path().to_str().unwrap();
    let run = aziotctl(
        &[
            "config",
            "apply",
            "-c",
            "-",
            "--output-dir",
            folder,
            "--uid",
            "aziotid=5556",
            "--uid",
            "aziotcs=5555",
            "--hostname",
            "my-device",
        ],
        &super_config,
    );
    let Run { code, stdout, stderr } = run;
    assert_eq!(stdout, "", "{}", scenario.display());
    let is_error = scenario.file_name().unwrap().to_str().unwrap().starts_with("error-");
    assert_eq!(code, i32::from(is_error), "{}: {stderr}", scenario.display());
    assert!(!stderr.contains("hunter"), "a secret shows: {stderr}");
    // How a line is shown under a message is not ours to say, and has its tests in `aziot-config`.
    let own = stderr.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n"));
    let messages = own.collect::<String>().replace(folder, "DIR");
    compare(&scenario.join("messages.txt"), Some(messages.as_bytes()));
    for (expected, path) in FILES {
        let found = fs::read(output.path().join(path)).ok();
        assert!(!(is_error && found.is_some()), "{}: {path} was written in spite of the error", scenario.display());
        compare(&scenario.join(expected), found.as_deref());
    }
}
