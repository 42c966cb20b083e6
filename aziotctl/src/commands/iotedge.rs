//! The command tree of `iotedge`, as far as there is one: its commands for the super-config.
//!
//! The commands are those of `aziotctl`, with the module runtime among the services that they configure.

use clap::{CommandFactory as _, Parser, Subcommand};

use super::{Stop, apply, manual};
use crate::product::Product;

/// Configures the module runtime of an IoT device, and the security services that it stands on
///
/// One file, the super-config /etc/aziot/config.toml, says everything; `iotedge config apply`
/// turns it into the configuration of edged (modules), keyd (keys), certd (certificates),
/// identityd (identities) and tpmd (the TPM). On a device with modules use this program in the
/// place of `aziotctl config apply`, which would take edged's rights away.
#[derive(Parser)]
#[command(
    name = "iotedge",
    version,
    verbatim_doc_comment,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = long_help!("    sudo iotedge config apply\n    iotedge config apply --help")
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write and apply the super-config
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    Apply(apply::ApplyArguments),
    Mp(manual::ManualArguments),
}

const PRODUCT: Product = Product::Edge;

const APPLY: &str = "\
Turn the super-config into the services' configuration and restart them

Needs root, unless the result goes into a folder. Only files that change are written, and
only services whose files change are restarted, edged also with keyd, certd and identityd.
Its modules stop and start with it. Services that are down are started, and a restart that
an earlier run did not get to is made good. A host name does not change while there are
modules.";

/// The tree with this program's own words where those of the shared commands speak of `aziotctl`.
pub(super) fn command() -> clap::Command {
    Arguments::command().mut_subcommand("config", |config| {
        config
            .mut_subcommand("apply", |apply| {
                let uids = format!(
                    "Number of a service's user, where that is not looked up; may be repeated\n\nUSER is {}.",
                    PRODUCT.users().replace(" and ", " or ")
                );
                let apply = apply.mut_arg("uids", |argument| argument.long_help(uids));
                // There is nothing to be forced.
                apply.long_about(APPLY).mut_arg("force", |argument| argument.hide(true)).after_long_help(long_help!(
                    "    sudo iotedge config apply
    sudo iotedge config apply -c new.toml --strict
    iotedge config apply --dry-run --uid aziotcs=990 --uid aziotid=991 --uid iotedge=992
    iotedge config apply -c device.toml --root /tmp/device"
                ))
            })
            .mut_subcommand("mp", |mp| {
                mp.after_long_help(long_help!(
                    "    sudo iotedge config mp -c - <connection-string.txt
    sudo iotedge config mp -c 'HostName=...;DeviceId=...;SharedAccessKey=...' --force"
                ))
            })
    })
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Stop> {
    let Command::Config { command } = &arguments.command;
    match command {
        ConfigCommand::Apply(arguments) => apply::run(PRODUCT, arguments),
        ConfigCommand::Mp(arguments) => Ok(manual::run(PRODUCT, arguments)?),
    }
}
