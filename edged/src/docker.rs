//! The Docker Engine, called over its socket: about twenty calls of its API, versions 1.41 and later, Podman's compatible one too.
//!
//! What goes out is JSON as the caller has it, and what must reach a client untouched (statistics, log frames) is handed on as bytes: a typed
//! model would lose the members that it does not know. No version stands in the path, so the engine's newest applies; a fixed one would be
//! too new for old engines or too old for new ones. Every wait has a limit. Nothing is decided here about modules.

mod containers;
mod error;
mod frames;
mod images;
mod networks;
mod reference;
#[cfg(test)]
pub(crate) mod tests;
mod transport;

pub(crate) use containers::{Container, Listed, OWNER, OWNER_LABEL, State};
pub(crate) use error::Error;
pub(crate) use frames::Frames;
pub(crate) use reference::{BadReference, Reference};
pub(crate) use transport::BadUri;

use std::{sync::Arc, time::Duration};

use transport::Transport;

/// Time that the engine has to begin an answer, and between two pieces of one.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A client of one engine. Clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct Docker(Arc<Transport>);

impl Docker {
    /// A client of the engine at `unix:///path` or `http://host[:port]`. Nothing is connected yet.
    pub(crate) fn new(uri: &str) -> Result<Self, BadUri> {
        Ok(Self(Arc::new(Transport::new(uri)?)))
    }
}
