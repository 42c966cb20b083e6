//! Renewal of certificates before they end, with a new key where wanted.
//!
//! One engine serves three users: the EST identities of certd, the identity of the device, and the CA of edged. What a
//! certificate is renewed with, and how it and its key are replaced, is a [`Credential`]'s affair; [`issued`] is the one for
//! certificates that certd issues. When it is done, and what is done after a failure, is decided by the [`Engine`]. It keeps
//! nothing on disk: all that it knows can be read again from the certificate and its key.

mod attempt;
pub mod clock;
mod credential;
mod engine;
mod entry;
mod hold;
pub mod issued;
pub mod timetable;

pub use clock::{Clock, SystemClock};
pub use credential::{BoxError, Credential, Doing, Failure, Renewed};
pub use engine::{Engine, Generation, Status};
pub use hold::{Held, NotAvailable};
