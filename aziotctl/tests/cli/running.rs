//! Running the built programs as a user would.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a run ended and what it said.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A program of this crate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    Aziotctl,
    Iotedge,
}

impl Program {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Aziotctl => env!("CARGO_BIN_EXE_aziotctl"),
            Self::Iotedge => env!("CARGO_BIN_EXE_iotedge"),
        }
    }
}

/// Runs `aziotctl` with `input` on its standard input.
pub(crate) fn aziotctl(arguments: &[&str], input: &[u8]) -> Run {
    run_program(Program::Aziotctl, arguments, input)
}

/// Runs `iotedge` with `input` on its standard input.
pub(crate) fn iotedge(arguments: &[&str], input: &[u8]) -> Run {
    run_program(Program::Iotedge, arguments, input)
}

/// Runs `program` with `input` on its standard input.
pub(crate) fn run_program(program: Program, arguments: &[&str], input: &[u8]) -> Run {
    run(Command::new(program.path()).args(arguments), input)
}

/// Runs a command with `input` on its standard input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Run {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Compares `found` with the file `expected`, where `None` stands for no file; or makes that so, if `UPDATE_EXPECTED` is set.
pub(crate) fn compare(expected: &Path, found: Option<&[u8]>) {
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        match found {
            Some(found) => aziot_files::write(expected, aziot_files::Mode::SHARED, found).unwrap(),
            None => drop(aziot_files::remove(expected).unwrap()),
        }
        return;
    }
    let wanted = std::fs::read(expected).ok();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\n", "\n").replace("\\\"", "\"");
    assert_eq!(wanted.as_deref().map(text), found.map(text), "{}", expected.display());
}
