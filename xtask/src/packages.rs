//! What building and testing need of the system, and how to get it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use aziot_tests::process::find_system_programs;

use crate::report;

/// A thing that must be there, how to see that it is, and the Debian package that brings it.
struct Need {
    probe: &'static [&'static str],
    package: &'static str,
}

/// For building and for the demo.
const BUILD: &[Need] = &[
    Need { probe: &["cc", "--version"], package: "gcc" },
    Need { probe: &["pkg-config", "--version"], package: "pkg-config" },
    Need { probe: &["pkg-config", "--exists", "openssl"], package: "libssl-dev" },
    Need { probe: &["openssl", "version"], package: "openssl" },
    Need { probe: &["curl", "--version"], package: "curl" },
];

/// For an engine of one's own: Docker, in a network and with a mount table of its own.
const ENGINE: &[Need] = &[
    Need { probe: &["dockerd", "--version"], package: "docker.io" },
    Need { probe: &["runc", "--version"], package: "runc" },
    Need { probe: &["ip", "-Version"], package: "iproute2" },
    Need { probe: &["unshare", "--version"], package: "util-linux" },
    Need { probe: &["mount", "--version"], package: "mount" },
];

/// For the tests besides, and for the TPM service, which no other program needs.
const TEST: &[Need] = &[
    Need { probe: &["pkg-config", "--exists", "tss2-esys", "tss2-tctildr", "tss2-mu"], package: "libtss2-dev" },
    // A TPM in software, and tools to look into it. They and the service load the way to it by name.
    Need { probe: &["swtpm", "--version"], package: "swtpm" },
    Need { probe: &["tpm2_getcap", "--version"], package: "tpm2-tools" },
    Need { probe: &["sh", "-c", "/sbin/ldconfig -p | grep -q libtss2-tcti-swtpm"], package: "libtss2-tcti-swtpm0" },
    // The other engine that the module runtime is tested on, and its networks.
    Need { probe: &["podman", "--version"], package: "podman" },
    Need { probe: &["test", "-e", "/usr/lib/cni/bridge"], package: "containernetworking-plugins" },
    Need { probe: &["iptables", "--version"], package: "iptables" },
    // The public SDK for modules goes into a virtual environment.
    Need { probe: &["python3", "-c", "import ensurepip, venv"], package: "python3-venv" },
    // A PKCS#11 token in software, for the tests of the key service.
    Need { probe: &["test", "-e", "/usr/lib/softhsm/libsofthsm2.so"], package: "softhsm2" },
];

/// Makes sure that building and the demo have what they need: installs it as root, otherwise says how.
pub(crate) fn ensure_for_build() -> Result<()> {
    ensure(&BUILD.iter().collect::<Vec<_>>())
}

/// The same for the tests.
pub(crate) fn ensure_for_tests() -> Result<()> {
    ensure(&BUILD.iter().chain(ENGINE).chain(TEST).collect::<Vec<_>>())
}

/// The same for measuring; `with_modules` takes an engine, and root.
pub(crate) fn ensure_for_bench(with_modules: bool) -> Result<()> {
    let engine = if with_modules { ENGINE } else { &[] };
    ensure(&BUILD.iter().chain(engine).collect::<Vec<_>>())
}

fn ensure(needs: &[&Need]) -> Result<()> {
    let missing: Vec<&str> = needs.iter().filter(|need| !works(need.probe)).map(|need| need.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --yes {}", missing.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing: {}. Install what your distribution calls them, then run this again", missing.join(", "));
    }
    if !is_root() {
        bail!("missing: {}. Run `sudo {line}`, then run this again", missing.join(", "));
    }
    report::line(format_args!("installing {}", missing.join(", ")))?;
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&arguments)?;
    match needs.iter().find(|need| !works(need.probe)) {
        Some(need) => bail!("`{}` does not work although {} is installed", need.probe.join(" "), need.package),
        None => Ok(()),
    }
}

/// Makes sure that cargo can format and lint.
pub(crate) fn ensure_components() -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let subcommand = if component == "rustfmt" { "fmt" } else { "clippy" };
        if !works(&["cargo", subcommand, "--version"]) {
            let status = Command::new("rustup").args(["component", "add", component]).status();
            if !status.is_ok_and(|status| status.success()) {
                bail!("cargo {subcommand} is missing: run `rustup component add {component}`");
            }
        }
    }
    Ok(())
}

fn works(probe: &[&str]) -> bool {
    let Some((program, arguments)) = probe.split_first() else { return false };
    let mut command = Command::new(program);
    find_system_programs(command.args(arguments)).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status();
    status.is_ok_and(|status| status.success())
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().context("could not run apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed", arguments.join(" "));
    }
    Ok(())
}

/// Whether this may do everything.
pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
