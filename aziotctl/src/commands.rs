//! The commands, and from a command line to an exit code.

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
mod aziotctl;
mod iotedge;
mod manual;
mod reprovision;
mod source;
mod template;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches};

use crate::console;
use crate::failure::Failure;

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

/// Runs the command of `aziotctl` that `arguments` (the program's name first) ask for.
#[must_use]
pub fn aziotctl(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(aziotctl::Arguments::command(), arguments, aziotctl::run)
}

/// Runs the command of `iotedge` that `arguments` (the program's name first) ask for.
#[must_use]
pub fn iotedge(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    run(iotedge::command(), arguments, iotedge::run)
}

fn run<A: FromArgMatches>(
    command: clap::Command,
    arguments: impl IntoIterator<Item = OsString>,
    run: impl FnOnce(&A) -> Result<(), Stop>,
) -> ExitCode {
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| A::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output and are no errors; if nobody can read them, so be it.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(&arguments) {
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
    use super::*;

    #[test]
    fn the_command_trees_are_sound() {
        aziotctl::Arguments::command().debug_assert();
        iotedge::command().debug_assert();
    }
}
