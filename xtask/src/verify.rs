//! `cargo xtask test`: every check of the repository, in the order in which a mistake is cheapest to find.

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::{packages, report};

/// Runs all checks and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let begun = Instant::now();
    packages::ensure_for_tests()?;
    packages::ensure_components()?;
    cargo("format", &["fmt", "--all", "--check"])?;
    cargo("lints", &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "--deny", "warnings"])?;
    // System tests start the programs themselves, which `cargo test` alone does not build.
    cargo("programs", &["build", "--workspace", "--bins", "--locked", "--quiet"])?;
    cargo("tests", &["test", "--workspace", "--locked"])?;
    report::line(format_args!("all checks passed in {}", report::seconds(begun.elapsed())))
}

fn cargo(title: &str, arguments: &[&str]) -> Result<()> {
    let begun = Instant::now();
    report::line(format_args!("{title}: cargo {}", arguments.join(" ")))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let status = command.args(arguments).current_dir(crate::root()).status().context("could not run cargo")?;
    if !status.success() {
        bail!("{title}: `cargo {}` failed", arguments.join(" "));
    }
    report::line(format_args!("{title}: done in {}", report::seconds(begun.elapsed())))
}
