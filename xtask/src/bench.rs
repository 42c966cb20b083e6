//! `cargo xtask bench`: what the services cost their callers, beside what OpenSSL alone costs them.
//!
//! Builds the daemons as they are shipped, what a whole device needs beside them, and the load generator (`benches/`), which does the measuring;
//! this stays free of native dependencies.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{packages, report};

/// The daemons, the load generator, what sets up and simulates what is around a device, and what runs in its containers.
const PROGRAMS: [&str; 7] =
    ["aziotd", "aziot-edged", "aziot-load", "aziotctl", "iotedge", "aziot-simulator", "aziot-test-module"];

/// What `--only` calls the scenarios that take a container engine.
const MODULES: &str = "edge";

/// Measures for so many seconds a line, and writes the figures to `json` too.
pub(crate) fn run(seconds: u64, json: Option<&Path>, only: Option<&str>) -> Result<()> {
    let with_modules = only.is_none_or(|only| only.split(',').any(|only| MODULES.contains(only)));
    packages::ensure_for_bench(with_modules)?;
    if with_modules && !packages::is_root() {
        report::line("signatures of modules need root, for an engine of their own: they will be missing at the end")?;
    }
    report::line("building (release profile; the first time takes some minutes)")?;
    let cargo = || Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let built = cargo()
        .args(["build", "--release", "--locked"])
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .current_dir(crate::root())
        .status();
    if !built.context("could not run cargo")?.success() {
        bail!("the build failed");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    let programs = crate::root().join(target).join("release");
    let mut load = Command::new(programs.join("aziot-load"));
    load.arg("--aziotd").arg(programs.join("aziotd")).args(["--seconds", &seconds.to_string()]);
    if let Some(json) = json {
        load.arg("--json").arg(json);
    }
    if let Some(only) = only {
        load.args(["--only", only]);
    }
    let status = load.status().context("could not run the load generator")?;
    if !status.success() {
        bail!("the measurement failed or missed a target");
    }
    Ok(())
}
