//! The one door to this repository: `cargo xtask demo`, `cargo xtask test` and `cargo xtask bench`.
//!
//! Plain Rust without native dependencies, so that it runs where there is nothing but cargo; what the rest needs it installs.

mod arrows;
mod bench;
mod demo;
mod packages;
mod report;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Works on this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Brings a device in a folder to life, with a simulated cloud, and shows what it can do.
    ///
    /// Installs missing build packages when run as root on a Debian-like system, builds, starts the simulated DPS and IoT
    /// Hub, configures the device with `aziotctl config apply`, starts its daemons, and lets a module get an identity, a
    /// token that the hub accepts and a certificate. Needs neither an account nor root.
    ///
    /// Where Docker answers at /var/run/docker.sock, and runs no modules yet, the module runtime comes up too and runs a module in a container;
    /// what it made there is removed at the end.
    Demo {
        /// Folder of the device; kept afterwards, and gone on with if it holds a device already. Default: a temporary one.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Leave the device running until Ctrl-C, and print how to talk to it.
        #[arg(long)]
        keep: bool,
    },
    /// Checks everything: format, lints, unit tests, and system tests with real daemons.
    ///
    /// Needs root, because tests of the module runtime start container engines of their own. First installs what the tests need on a
    /// Debian-like system: docker.io, podman, swtpm and others, and the SDK for modules from its index. This is what continuous integration runs.
    Test,
    /// Measures the key service over its socket, beside raw OpenSSL, and says whether it meets its targets.
    ///
    /// Wants a machine that does nothing else. docs/benchmarks.md explains the table. Signatures of modules in containers need root and
    /// docker.io, which it installs on a Debian-like system; what was measured before they fail is told all the same.
    Bench {
        /// How long each line of the table is measured, in twenty rounds of which the best counts.
        #[arg(long, default_value_t = 5, value_name = "N")]
        seconds: u64,
        /// File to write the figures to, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Measures only what has one of these in its name: operations of the table, `generation`, `memory`, `many keys`, `certificates`,
        /// `identities`, `edge`. Separated by commas.
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo { dir, keep } => demo::run(dir, keep),
        Task::Test => verify::run(),
        Task::Bench { seconds, json, only } => bench::run(seconds, json.as_deref(), only.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::failure(&error);
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or_else(|| manifest.clone(), PathBuf::from)
}
