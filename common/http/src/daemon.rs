//! What every daemon says to its service manager, and how it ends.

use sd_notify::NotifyState;

/// Any error with its causes.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a daemon ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its settings are unusable, as the error itself says; starting again will not help.
    #[error(transparent)]
    Settings(BoxError),
    /// Anything else.
    #[error("service encountered an error")]
    Service(#[source] BoxError),
    /// Nothing went wrong: what the daemon did takes effect in a new process, which the service manager is to start.
    #[error("{reason}")]
    Restart {
        /// What it did.
        reason: &'static str,
        /// Other than 0, so that the service manager acts.
        exit_code: u8,
    },
}

impl DaemonError {
    /// Wraps an error about settings.
    pub fn settings(error: impl Into<BoxError>) -> Self {
        Self::Settings(error.into())
    }

    /// Wraps an error of the service itself.
    pub fn service(error: impl Into<BoxError>) -> Self {
        Self::Service(error.into())
    }

    /// Wraps an error of reading the config: one that a person must mend, or one of the system that may pass.
    pub fn config(is_mistake: bool, error: impl Into<BoxError>) -> Self {
        if is_mistake { Self::settings(error) } else { Self::service(error) }
    }

    /// The exit code: 153 keeps the service manager from starting the daemon again (`RestartPreventExitStatus`).
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => 153,
            Self::Service(_) => 1,
            Self::Restart { exit_code, .. } => *exit_code,
        }
    }

    /// Whether somebody should know, as opposed to an end that was wanted.
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        !matches!(self, Self::Restart { .. })
    }
}

/// Tells the service manager that calls are answered from now on.
pub fn ready() {
    tracing::info!("Starting server...");
    notify(&[NotifyState::Ready]);
}

/// Tells the service manager that the daemon is on its way out.
pub fn stopping() {
    tracing::info!("Stopping server...");
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "could not notify the service manager");
    }
}
