//! What a task tells the person who started it. A closed pipe is no reason to panic.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::Result;

/// Prints a line on standard output.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    Ok(output.flush()?)
}

/// Prints an error and its causes on standard error.
pub(crate) fn failure(error: &anyhow::Error) {
    let mut output = io::stderr().lock();
    let _ = writeln!(output, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(output, "    caused by: {cause}");
    }
}

/// Runs one step and prints what came of it, with the time that it took.
pub(crate) fn step<T>(title: &str, work: impl FnOnce() -> Result<T>, outcome: impl FnOnce(&T) -> String) -> Result<T> {
    let begun = Instant::now();
    let result = work();
    let elapsed = seconds(begun.elapsed());
    match &result {
        Ok(value) => line(format_args!("  ✓ {title:<22} {:<58} {elapsed:>8}", outcome(value)))?,
        Err(_) => line(format_args!("  ✗ {title:<22} {:<58} {elapsed:>8}", "failed"))?,
    }
    result
}

/// A duration for people.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
