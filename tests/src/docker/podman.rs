//! Podman with all its state in a folder, behind its socket for Docker's clients.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::device::write_private;

/// Folders of the system where its network plugins keep leases and name spaces, and it the locks of all containers of the machine; each
/// engine has its own there.
pub(super) const OWN_FOLDERS: [&str; 3] = ["/var/lib/cni", "/run/netns", "/dev/shm"];

/// Writes its configuration.
pub(super) fn configure(folder: &Path) -> Result<()> {
    // Registries on the loopback speak plain HTTP; Docker takes that for granted.
    write_private(&folder.join("registries.conf"), "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n")?;
    write_private(&folder.join("policy.json"), r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#)?;
    // Its own default limits are more than those of many a machine, and the network's default is what happens to be installed.
    let containers = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\nlog_driver = \"k8s-file\"\n\n\
                      [network]\nnetwork_backend = \"cni\"\n";
    write_private(&folder.join("containers.conf"), containers)
}

/// Adds program and arguments.
pub(super) fn service(command: &mut Command, folder: &Path) {
    let in_folder = |name: &str| folder.join(name);
    command.env("CONTAINERS_CONF", in_folder("containers.conf"));
    command.env("CONTAINERS_REGISTRIES_CONF", in_folder("registries.conf"));
    command.arg("podman");
    for (option, place) in [
        ("--root", "data"),
        ("--runroot", "run"),
        ("--tmpdir", "tmp"),
        ("--network-config-dir", "networks"),
        ("--volumepath", "volumes"),
    ] {
        command.arg(option).arg(in_folder(place));
    }
    // crun, its default, refuses machines with both generations of control groups.
    command.args([
        "--runtime=runc",
        "--cgroup-manager=cgroupfs",
        "--events-backend=file",
        "--log-level=warn",
        "system",
        "service",
    ]);
    command.arg("--time=0").arg(format!("unix://{}", in_folder("engine.sock").display()));
}
