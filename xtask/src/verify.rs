//! `cargo xtask test`: every check of the repository, in the order in which a mistake is cheapest to find.

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};
use aziot_tests::docker::ONLY;

use crate::{packages, report};

/// Runs all checks and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let begun = Instant::now();
    if !packages::is_root() {
        bail!(
            "the tests need root: those of the module runtime start container engines in name spaces of their own. Run `sudo -E cargo xtask test`"
        );
    }
    if std::env::var_os(ONLY).is_some() {
        bail!("{ONLY} is set, which leaves out an engine: unset it, or run single tests with `cargo test`");
    }
    packages::ensure_for_tests()?;
    packages::ensure_components()?;
    cargo("format", &["fmt", "--all", "--check"])?;
    cargo("lints", &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "--deny", "warnings"])?;
    // System tests start the programs themselves, which `cargo test` alone does not build.
    cargo("programs", &["build", "--workspace", "--bins", "--locked", "--quiet"])?;
    tests()?;
    report::line(format_args!("all checks passed in {}", report::seconds(begun.elapsed())))
}

/// Two tests for each processor at a time: most of them wait for a daemon, a disk or a clock.
fn tests() -> Result<()> {
    const THREADS: &str = "RUST_TEST_THREADS";
    let threads = match std::env::var_os(THREADS) {
        Some(threads) => threads,
        None => (2 * std::thread::available_parallelism().map_or(1, usize::from)).to_string().into(),
    };
    run_cargo("tests", &["test", "--workspace", "--locked"], |command| command.env(THREADS, &threads))
}

fn cargo(title: &str, arguments: &[&str]) -> Result<()> {
    run_cargo(title, arguments, |command| command)
}

fn run_cargo(title: &str, arguments: &[&str], prepare: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let begun = Instant::now();
    report::line(format_args!("{title}: cargo {}", arguments.join(" ")))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(crate::root());
    let status = prepare(&mut command).status().context("could not run cargo")?;
    if !status.success() {
        bail!("{title}: `cargo {}` failed", arguments.join(" "));
    }
    report::line(format_args!("{title}: done in {}", report::seconds(begun.elapsed())))
}
