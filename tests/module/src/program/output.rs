//! Lines on standard output and standard error.

use std::{
    io::{self, Write as _},
    thread,
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};

/// Prints a line of JSON.
pub(crate) fn line(value: &Value) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{value}")?;
    Ok(output.flush()?)
}

/// Prints an error with its causes.
pub(crate) fn failure(error: &anyhow::Error) {
    // Who cannot be told learns it from the exit code.
    let _ = line(&json!({ "error": format!("{error:#}") }));
}

/// Prints numbered lines of this length, the odd ones on standard error.
pub(crate) fn echo(lines: u64, length: usize, pause: Duration) -> Result<()> {
    for number in 0..lines {
        let text = format!("{:.<1$}\n", format!("line {number} "), length.saturating_sub(1));
        if number % 2 == 0 {
            let mut output = io::stdout().lock();
            output.write_all(text.as_bytes())?;
            output.flush()?;
        } else {
            io::stderr().lock().write_all(text.as_bytes())?;
        }
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }
    Ok(())
}
