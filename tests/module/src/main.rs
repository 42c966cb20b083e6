//! What runs inside the containers of the system tests and the demo: an agent, modules that use their identity, load, logs, and doors by which
//! a test speaks as the container.
//!
//! It prints what it sees as lines of JSON on standard output, and ends in order on SIGTERM though it is the container's first process.

mod program;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aziot_test_module::Environment;
use clap::{Parser, Subcommand};

use program::{doors, output};

/// A module of the system tests
#[derive(Parser)]
struct Arguments {
    /// Folder for doors: sockets by which whoever is outside speaks as this container
    #[arg(long, global = true)]
    doors: Option<PathBuf>,
    /// A further door, and the socket that it leads to
    #[arg(long = "door", global = true, value_name = "NAME=PATH")]
    further: Vec<String>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Keeps the modules that a file wants, once a second
    Agent {
        /// Array of modules; without it nothing is reconciled
        #[arg(long)]
        desired: Option<PathBuf>,
    },
    /// Gets its identity, a token and certificates, and sends a message to the hub
    Module {
        /// Go on running afterwards
        #[arg(long)]
        stay: bool,
    },
    /// Signs on kept connections as fast as it goes, and prints rate and times
    Sign {
        #[arg(long, default_value_t = 8)]
        connections: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Prints numbered lines, the odd ones on standard error
    Echo {
        /// How many
        #[arg(long, default_value_t = 10)]
        lines: u64,
        /// Bytes of each line
        #[arg(long, default_value_t = 20)]
        length: usize,
        /// Pause between two lines
        #[arg(long, default_value_t = 0)]
        pause_ms: u64,
        /// End with this exit code instead of running on
        #[arg(long)]
        exit: Option<u8>,
    },
    /// Runs until it is told to end
    Wait,
    /// A gateway for downstream clients: MQTT over TLS with a server certificate of the runtime
    Gateway {
        #[arg(long, default_value_t = 8883)]
        port: u16,
    },
    /// Connects to its workload socket, hands the connection to a socket outside, and ends
    Leave {
        /// Socket that takes it
        #[arg(long)]
        to: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            output::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let environment = Environment::of_this_process();
    let end = until_told()?;
    if let Some(folder) = &arguments.doors {
        doors::open(folder, &arguments.further, &environment)?;
    }
    match arguments.task {
        Task::Agent { desired } => program::agent::run(&environment, desired.as_deref(), &end)?,
        Task::Module { stay } => {
            program::module::run(&environment)?;
            if stay {
                end.recv().context("nobody can tell when to end")?;
            }
        }
        Task::Sign { connections, seconds } => {
            program::load::run(&environment, connections, Duration::from_secs_f64(seconds))?;
        }
        Task::Echo { lines, length, pause_ms, exit } => {
            output::echo(lines, length, Duration::from_millis(pause_ms))?;
            match exit {
                Some(code) => return Ok(ExitCode::from(code)),
                None => end.recv().context("nobody can tell when to end")?,
            }
        }
        Task::Wait => end.recv().context("nobody can tell when to end")?,
        Task::Gateway { port } => {
            program::gateway::open(&environment, port)?;
            end.recv().context("nobody can tell when to end")?;
        }
        Task::Leave { to } => program::leave::run(&environment, &to)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Something comes out when the container is to stop.
fn until_told() -> Result<Receiver<()>> {
    let (sender, end) = channel();
    ctrlc::set_handler(move || {
        // Whoever does not listen any more is ending anyway.
        let _ = sender.send(());
    })
    .context("could not listen for SIGTERM")?;
    Ok(end)
}
