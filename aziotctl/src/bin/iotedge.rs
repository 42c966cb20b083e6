//! `iotedge`: the command line for the modules of a device. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    aziotctl::commands::iotedge(std::env::args_os())
}
