//! Where words go: what people read to standard error, what programs read to standard output.

use std::fmt;
use std::io::{self, Write as _};

/// Says one thing to whoever is watching. A standard error that is closed has nobody watching.
pub fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints data. A reader that has seen enough and left is no error.
pub fn print(text: impl fmt::Display) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match write!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
