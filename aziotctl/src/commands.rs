//! The command tree of `aziotctl`, and from a command line to an exit code.

/// The part of every long help that tells the exit codes, followed by a command's own examples.
macro_rules! long_help {
    ($examples:literal) => {
        concat!(
            "EXIT CODES:\n",
            "    0  done\n",
            "    1  it failed; standard error says why and what to do next\n",
            "    2  wrong usage of the command line\n\n",
            "EXAMPLES:\n",
            $examples
        )
    };
}

mod apply;
mod manual;
mod reprovision;
mod source;
mod template;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::console;
use crate::failure::Failure;

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
struct Arguments {
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

/// Why a command ends without success.
enum Stop {
    /// It failed.
    Failed(Failure),
    /// It was called in a way that the command line's grammar alone does not rule out.
    Usage(String),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Runs the command that `arguments` (the program's name first) ask for.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output and are no errors; if nobody can read them, so be it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match arguments.command {
        Command::Config { command: ConfigCommand::Apply(arguments) } => apply::run(&arguments),
        Command::Config { command: ConfigCommand::Validate(arguments) } => validate::run(&arguments),
        Command::Config { command: ConfigCommand::Template(arguments) } => {
            template::run(&arguments).map_err(Stop::from)
        }
        Command::Config { command: ConfigCommand::Mp(arguments) } => manual::run(&arguments).map_err(Stop::from),
        Command::System { command: SystemCommand::Reprovision(arguments) } => {
            reprovision::run(&arguments).map_err(Stop::from)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(failure)) => {
            console::say(failure);
            ExitCode::FAILURE
        }
        Err(Stop::Usage(message)) => {
            console::say(format_args!("error: {message}\n\nFor more information, try '--help'."));
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Arguments::command().debug_assert();
    }
}
