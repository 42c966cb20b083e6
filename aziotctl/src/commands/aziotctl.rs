//! The command tree of `aziotctl`.

use clap::{Parser, Subcommand};

use super::{Stop, apply, manual, reprovision, template, validate};
use crate::product::Product;

/// Configures the security services of an IoT device
///
/// The services are keyd (keys), certd (certificates), identityd (identities) and tpmd (the
/// TPM). One file, the super-config /etc/aziot/config.toml, says everything; `aziotctl config
/// apply` turns it into the configuration of each service.
#[derive(Parser)]
#[command(
    name = "aziotctl",
    version,
    verbatim_doc_comment,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = long_help!(
        "    aziotctl config validate\n    sudo aziotctl config apply\n    aziotctl config apply --help"
    )
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write, check and apply the super-config
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Act on the running services
    #[command(subcommand_required = true, arg_required_else_help = true)]
    System {
        #[command(subcommand)]
        command: SystemCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    Apply(apply::ApplyArguments),
    Validate(validate::ValidateArguments),
    Template(template::TemplateArguments),
    Mp(manual::ManualArguments),
}

#[derive(Subcommand)]
enum SystemCommand {
    Reprovision(reprovision::ReprovisionArguments),
}

const PRODUCT: Product = Product::IdentityService;

pub(super) fn run(arguments: &Arguments) -> Result<(), Stop> {
    match &arguments.command {
        Command::Config { command: ConfigCommand::Apply(arguments) } => apply::run(PRODUCT, arguments),
        Command::Config { command: ConfigCommand::Validate(arguments) } => validate::run(arguments),
        Command::Config { command: ConfigCommand::Template(arguments) } => Ok(template::run(arguments)?),
        Command::Config { command: ConfigCommand::Mp(arguments) } => Ok(manual::run(PRODUCT, arguments)?),
        Command::System { command: SystemCommand::Reprovision(arguments) } => Ok(reprovision::run(arguments)?),
    }
}
