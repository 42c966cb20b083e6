//! Panics go to the log instead of raw to stderr, so that they have a level and a time, and one broken call can be
//! found later.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};
use std::thread;

use crate::fields;

pub(crate) fn log_panics() {
    panic::set_hook(Box::new(log_panic));
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let location = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!({ fields::LOCATION } = location, { fields::THREAD } = thread, "panicked: {message}");
    // Captured only if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        for line in backtrace.to_string().lines() {
            tracing::error!("!!! {line}");
        }
    }
}
