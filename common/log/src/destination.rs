//! What stderr is: the journal, a terminal or a plain stream.

use std::io::{IsTerminal, Stderr, stderr};

use rustix::fs::fstat;
use tracing_journald::{Priority, PriorityMappings};

pub(crate) enum Destination {
    Journal(tracing_journald::Layer),
    Terminal,
    Stream,
}

impl Destination {
    pub(crate) fn of_stderr() -> Destination {
        let stderr = stderr();
        let stream = std::env::var("JOURNAL_STREAM").ok();
        if stream.is_some_and(|stream| is_stream(&stderr, &stream)) {
            // A container may pass the variable on but not the journal's socket.
            if let Ok(layer) = tracing_journald::layer() {
                return Destination::Journal(layer.with_priority_mappings(priorities()));
            }
        }
        if stderr.is_terminal() { Destination::Terminal } else { Destination::Stream }
    }
}

/// Whether `stream`, `DEVICE:INODE` as systemd sets it, still names what stderr is; a redirection leaves the variable
/// behind.
fn is_stream(stderr: &Stderr, stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    fstat(stderr).is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// The priorities of the `<P>` lines; the crate's own have notice for info, which public log filters do not expect.
fn priorities() -> PriorityMappings {
    PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_must_be_the_one_that_stderr_is() {
        let stderr = stderr();
        let stat = fstat(&stderr).unwrap();
        let (device, inode) = (stat.st_dev, stat.st_ino);
        assert!(is_stream(&stderr, &format!("{device}:{inode}")));
        for other in [format!("{device}:{}", inode + 1), format!("{}:{inode}", device + 1), String::new(), ":".into()] {
            assert!(!is_stream(&stderr, &other), "{other}");
        }
    }

    #[test]
    fn priorities_are_those_of_the_lines() {
        let priorities = priorities();
        let in_order = [priorities.error, priorities.warn, priorities.info, priorities.debug, priorities.trace];
        assert_eq!(in_order.map(|priority| char::from(priority as u8)), ['3', '4', '6', '7', '7']);
    }
}
