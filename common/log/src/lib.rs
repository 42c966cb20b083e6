//! Where the daemons' log goes and how a line of it looks.
//!
//! A daemon's `main` calls [`init`] first and from then on uses the macros of `tracing`. The log goes to stderr: as
//! structured entries when stderr is the journal, as plain lines on a terminal, and otherwise as lines with the
//! syslog priority in front that systemd and the public packages' log collectors understand. `AZIOT_LOG` chooses what
//! is logged.
//!
//! Nothing is redacted here: a secret keeps itself out of the log by its type. No rotation either, stderr's reader
//! does that.

mod chain;
mod destination;
pub mod fields;
mod filter;
mod journal;
mod line;
mod panics;
mod request_id;
mod text;

pub use chain::{Chain, chain, log_chain};
pub use request_id::RequestId;

use std::io::Write;

use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

use destination::Destination;
use line::{Lines, Prefix};

/// Environment variable that chooses what is logged; read once, by [`init`].
pub const VARIABLE: &str = "AZIOT_LOG";

/// Starts logging for this process, panics included. A second call changes nothing.
///
/// A stderr that is closed or broken loses the log and has no other effect.
pub fn init() {
    let (targets, warnings) = filter::from_environment(std::env::var_os(VARIABLE).as_deref());
    for warning in warnings {
        // Lost like the rest of the log if stderr is broken.
        let _ = writeln!(std::io::stderr().lock(), "{warning}");
    }
    let destination = match Destination::of_stderr() {
        Destination::Journal(layer) => journal::Journal::new(layer).boxed(),
        Destination::Terminal => Lines::new(Prefix::None, write_stderr).boxed(),
        Destination::Stream => Lines::new(Prefix::Priority, write_stderr).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(destination.with_filter(targets));
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        panics::log_panics();
    }
}

fn write_stderr(line: &str) {
    // There is nowhere left to report a failure to.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}
