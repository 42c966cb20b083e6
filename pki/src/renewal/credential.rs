//! What the engine asks of those who own a certificate and its key.

use std::{error::Error, fmt, future::Future, pin::Pin, time::Duration};

use aziot_certd_api::renewal::AutoRenew;

use crate::certificate::Chain;

/// An error of a layer that the engine does not know.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Work of a credential. It may be dropped at any of its waits, as at a shutdown, and must bear that as it bears a crash.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// A certificate with its key, which is renewed by itself.
pub trait Credential: Send + Sync {
    /// Name of the certificate on this device.
    fn certificate_id(&self) -> &str;

    /// Name of its key pair on this device.
    fn key_id(&self) -> &str;

    /// When it is renewed.
    fn policy(&self) -> AutoRenew;

    /// Finishes or takes back what a crash has left half done. Called before the first use, and again whenever a
    /// [`commit`](Self::commit) failed or was cut off; nobody holds the credential meanwhile.
    ///
    /// [`Failure::Fatal`] says that certificate and key do not belong together and that nothing here mends it: the
    /// credential is then renewed at once, and nobody gets it before that has succeeded.
    fn repair(&self) -> Doing<'_, ()>;

    /// The certificate as it is stored, the leaf first. None, or one that cannot be read, is [`Failure::Fatal`].
    fn current(&self) -> Doing<'_, Chain>;

    /// Obtains a new chain, and a new key if so configured, without touching the old ones: they are in use meanwhile, and
    /// the engine may yet refuse the result. `old` may be over, or belong to another key.
    fn renew(&self, old: Chain) -> Doing<'_, Renewed>;

    /// Replaces `old` and its key; nobody holds the credential meanwhile. On failure it takes back what it changed, as far
    /// as it knows what that is; the rest is left to [`repair`](Self::repair).
    fn commit(&self, old: Chain, new: Renewed) -> Doing<'_, ()>;
}

/// What a renewal has brought, until it is committed.
#[derive(Clone, Debug)]
pub struct Renewed {
    /// The new certificate, the leaf first.
    pub chain: Chain,
    /// Where its key is until the commit moves it; the credential's own key if that is kept.
    pub key_id: String,
}

/// Why something was not done. Shows and has for its cause what the error within does.
#[derive(Debug)]
pub enum Failure {
    /// It may work next time: tried again after the policy's retry period.
    Retryable(BoxError),
    /// It needs somebody to act: tried again at a slow rate.
    Fatal(BoxError),
    /// The server has taken the request and wants to be asked again after this time. No failed attempt: nothing is wrong.
    NotYet(Duration, BoxError),
    /// The server is busy and wants to be left alone for this time: tried again after it or the policy's retry period,
    /// whichever is longer.
    Busy(Duration, BoxError),
    /// It works in another way, which the credential takes from now on: tried again at once, and if that ends so too, as
    /// with [`Retryable`](Self::Retryable).
    AtOnce(BoxError),
}

impl Failure {
    /// A failure that may pass.
    pub fn retryable(error: impl Into<BoxError>) -> Self {
        Self::Retryable(error.into())
    }

    /// A failure that does not pass by itself.
    pub fn fatal(error: impl Into<BoxError>) -> Self {
        Self::Fatal(error.into())
    }

    /// Whether it does not pass by itself.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Fatal(_))
    }

    /// The time for which the server wants to be left alone.
    #[must_use]
    pub fn asked_pause(&self) -> Option<Duration> {
        match self {
            Self::NotYet(pause, _) | Self::Busy(pause, _) => Some(*pause),
            Self::Retryable(_) | Self::Fatal(_) | Self::AtOnce(_) => None,
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Self::Retryable(error)
            | Self::Fatal(error)
            | Self::NotYet(_, error)
            | Self::Busy(_, error)
            | Self::AtOnce(error) => &**error,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.error(), formatter)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error().source()
    }
}
