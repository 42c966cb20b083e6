//! `aziot-tpmd`: an executable of its own, so that no other daemon pays for the TPM libraries.

use std::process::ExitCode;

use anyhow::Context as _;
use aziot_config::Sources;

fn main() -> ExitCode {
    aziot_process::main(|activation| {
        aziot_process::no_debuggers().context("could not shut debuggers out")?;
        aziot_process::serve(|shutdown| aziot_tpmd::run(Sources::for_service("tpmd"), activation, shutdown))
    })
}
