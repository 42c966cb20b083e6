//! What the command line says about itself. `UPDATE_EXPECTED=1` writes what comes out as what is expected.

use std::path::Path;

use crate::running::{aziotctl, compare};

#[test]
fn long_help_is_a_manual_page() {
    for command in [
        "",
        "config",
        "config apply",
        "config validate",
        "config template",
        "config mp",
        "system",
        "system reprovision",
    ] {
        let mut arguments: Vec<&str> = command.split_whitespace().collect();
        arguments.push("--help");
        let run = aziotctl(&arguments, b"");
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{command}");
        let name = if command.is_empty() { "aziotctl".to_owned() } else { command.replace(' ', "-") };
        let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/help/{name}.txt"));
        compare(&expected, Some(run.stdout.as_bytes()));
    }
}

#[test]
fn a_level_alone_prints_its_help_as_an_error() {
    for arguments in [&[][..], &["config"], &["system"]] {
        let run = aziotctl(arguments, b"");
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(run.stderr.contains("Usage: aziotctl"), "{}", run.stderr);
    }
}

#[test]
fn version_and_help_are_data() {
    let version = aziotctl(&["--version"], b"");
    assert_eq!(version.stdout, format!("aziotctl {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!((version.code, version.stderr.as_str()), (0, ""));
    assert_eq!(aziotctl(&["-V"], b"").stdout, version.stdout);
    assert!(aziotctl(&["help", "config", "apply"], b"").stdout.contains("EXIT CODES"));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &["confg"][..],
        &["config", "apply", "--dryrun"],
        &["config", "apply", "--root", "/a", "--output-dir", "/b"],
        &["config", "apply", "--restart", "--no-restart"],
        &["config", "apply", "--uid", "aziotks"],
        &["config", "apply", "--uid", "nobody=5"],
        &["config", "apply", "--uid", "aziotks=-1"],
        &["config", "apply", "--uid", "aziotks=5"],
        &["config", "mp"],
        &["system", "reprovision", "--uri", "http://localhost"],
    ] {
        let run = aziotctl(arguments, b"");
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(run.stderr.starts_with("error: "), "{arguments:?}: {}", run.stderr);
    }
}
