//! An error with its causes: on one line for a field, or one record per cause as the public packages log it.

use std::error::Error;
use std::fmt;

use tracing::Level;

/// The error and its causes on one line, joined by `: `. Made by [`chain`].
#[derive(Clone, Copy)]
pub struct Chain<'e>(&'e (dyn Error + 'static));

/// Prints `error` and its causes on one line: `could not make the key: could not write /x: No space left on device`.
#[must_use]
pub fn chain<'e>(error: &'e (dyn Error + 'static)) -> Chain<'e> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        causes(self.0).try_for_each(|cause| write!(formatter, ": {cause}"))
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Logs `error` at `level`, one record per line: `!!! top`, then `!!! caused by: ...` for each cause.
pub fn log_chain(level: Level, error: &(dyn Error + 'static)) {
    log_lines(level, &error.to_string(), "");
    for cause in causes(error) {
        log_lines(level, &cause.to_string(), "caused by: ");
    }
}

fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// Some errors draw: a position in a file has the line and a caret below it. Those keep their shape.
fn log_lines(level: Level, text: &str, first: &str) {
    let mut start = first;
    for line in text.lines() {
        match level {
            Level::ERROR => tracing::error!("!!! {start}{line}"),
            Level::WARN => tracing::warn!("!!! {start}{line}"),
            Level::INFO => tracing::info!("!!! {start}{line}"),
            Level::DEBUG => tracing::debug!("!!! {start}{line}"),
            Level::TRACE => tracing::trace!("!!! {start}{line}"),
        }
        start = "";
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::line::{Lines, Prefix};

    #[derive(Debug)]
    struct Layered(&'static str, Option<Box<dyn Error>>);

    impl fmt::Display for Layered {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.0)
        }
    }

    impl Error for Layered {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref()
        }
    }

    fn error() -> Layered {
        let bottom = io::Error::other("disk\n  | here");
        Layered("top", Some(Box::new(Layered("middle", Some(Box::new(bottom))))))
    }

    #[test]
    fn a_chain_is_joined_by_colons() {
        assert_eq!(chain(&error()).to_string(), "top: middle: disk\n  | here");
        assert_eq!(chain(&Layered("alone", None)).to_string(), "alone");
    }

    #[test]
    fn each_cause_is_a_record() {
        let written = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&written);
        let layer = Lines::new(Prefix::None, move |line: &str| sink.lock().unwrap().push_str(line));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            log_chain(Level::ERROR, &error());
        });
        let written = written.lock().unwrap();
        let texts: Vec<&str> = written.lines().map(|line| line.split_once("] - ").unwrap().1).collect();
        assert_eq!(texts, ["!!! top", "!!! caused by: middle", "!!! caused by: disk", "!!!   | here"]);
    }
}
