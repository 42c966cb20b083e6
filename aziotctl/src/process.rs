//! Other programs, run to their end with a limit on how long that may take.

use std::io;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A program that did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started or waited for.
    #[error("could not run `{program}`")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("`{program}` had not ended after {} s and was stopped", limit.as_secs())]
    TooSlow {
        /// The program.
        program: String,
        /// How long it was given.
        limit: Duration,
    },
}

/// Runs `program` without input and waits for it, at most for `limit`. Whether it succeeded is for the caller to see.
pub fn run(program: &str, arguments: &[&str], limit: Duration) -> Result<Output, ProcessError> {
    let failed = |source| ProcessError::Run { program: program.to_owned(), source };
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let pid = Pid::from_child(&child);
    let (sender, receiver) = mpsc::sync_channel(1);
    let waiting = thread::spawn(move || {
        // Nobody listens any more once the limit has passed.
        let _ = sender.send(child.wait_with_output());
    });
    if let Ok(output) = receiver.recv_timeout(limit) {
        output.map_err(failed)
    } else {
        // An error means that it has just ended by itself. The thread is left alone: a grandchild may still hold the pipes.
        let _ = kill_process(pid, Signal::KILL);
        drop(waiting);
        Err(ProcessError::TooSlow { program: program.to_owned(), limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_come_back() {
        let output = run("sh", &["-c", "echo out; echo err >&2; exit 3"], Duration::from_secs(60)).unwrap();
        assert_eq!((output.stdout, output.stderr, output.status.code()), (b"out\n".into(), b"err\n".into(), Some(3)));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("no-such-program-here", &[], Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "could not run `no-such-program-here`");
    }

    #[test]
    fn a_slow_program_is_stopped() {
        let error = run("sleep", &["600"], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProcessError::TooSlow { .. }), "{error}");
    }
}
