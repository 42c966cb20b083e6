//! `aziotctl`: the command line for keys, certificates and identities of a device. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    aziotctl::commands::aziotctl(std::env::args_os())
}
