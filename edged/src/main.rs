//! `aziot-edged`: an executable of its own, as its package is.

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use aziot_config::Sources;

const HELP: &str = "\
Runs the modules of an edge device as containers.

Usage: aziot-edged [--version | --help]

Environment:
  AZIOT_EDGED_CONFIG      configuration file, in place of /etc/aziot/edged/config.toml
  AZIOT_EDGED_CONFIG_DIR  folder of its drop-ins, in place of /etc/aziot/edged/config.d
  AZIOT_LOG               what is logged: error, warn, info, debug or trace

Exit codes:
  0    stopped by a signal
  1    failed
  153  the configuration cannot be used
  154  the device was provisioned anew; start again
  2    wrong usage
";

/// Wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => aziot_process::main(|activation| {
            aziot_process::no_debuggers().context("could not shut debuggers out")?;
            aziot_process::serve(|shutdown| aziot_edged::run(Sources::for_service("edged"), activation, shutdown))
        }),
        [argument] if argument == "--version" || argument == "-V" => {
            told(&format!("aziot-edged {}\n", aziot_edged::version()))
        }
        [argument] if argument == "--help" || argument == "-h" => told(HELP),
        _ => {
            // Without a place for the message the exit code tells.
            let _ = io::stderr().write_all(HELP.as_bytes());
            ExitCode::from(USAGE)
        }
    }
}

fn told(text: &str) -> ExitCode {
    let written = io::stdout().write_all(text.as_bytes());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
