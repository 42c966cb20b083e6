//! Why the service refuses or fails a call. `http` chooses the status.

use std::time::Duration;

use crate::chip;

/// A call that was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There are principals, and the caller is none.
    #[error("authorization error")]
    Unauthorized,
    /// Nothing that DPS or a hub is sent comes near it.
    #[error("{what} has at most {most} bytes, not {length}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// What came.
        length: usize,
        /// What may come.
        most: usize,
    },
    /// The TPM, or the way to it, failed.
    #[error("could not {work}")]
    Chip {
        /// What was to be done.
        work: &'static str,
        /// Why it was not.
        source: chip::Error,
    },
    /// The TPM took its time. What it had begun it goes on with; what it had not will not be done.
    #[error("could not {work} within {} s: the TPM is busy, or does not answer (it was asked to {busy_with})", limit.as_secs())]
    TimedOut {
        /// What was to be done.
        work: &'static str,
        /// What the TPM was doing then.
        busy_with: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// Too many calls are waiting for the TPM.
    #[error("could not {work}: {waiting} calls are waiting for the TPM already")]
    Overloaded {
        /// What was to be done.
        work: &'static str,
        /// Length of the queue.
        waiting: usize,
    },
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
}
