//! `aziotctl config template`: a super-config in which everything is explained and commented out.

use clap::Args;

use crate::console;
use crate::failure::Failure;

/// The text of the template; packages install the same as `/etc/aziot/config.toml.template`.
const TEMPLATE: &str = include_str!("../../config.toml.template");

/// Print a super-config with every key explained and commented out
#[derive(Args)]
#[command(after_long_help = long_help!("    aziotctl config template >config.toml"))]
pub(super) struct TemplateArguments {}

pub(super) fn run(TemplateArguments {}: &TemplateArguments) -> Result<(), Failure> {
    console::print(TEMPLATE)
        .map_err(|error| Failure::new(error, "check where standard output goes to and run the command again"))
}
