//! A URL of an EST server as it is configured.
//!
//! People write user names and passwords into URLs, and tokens into their queries, so neither is ever printed. What the URL is
//! good for is not asked here.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

/// A URL that prints without user name, password and query.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EstUrl(Url);

impl EstUrl {
    /// The whole URL; the name marks the places that handle it.
    #[must_use]
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl From<Url> for EstUrl {
    fn from(url: Url) -> Self {
        Self(url)
    }
}

impl fmt::Display for EstUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        // Fails for URLs without a host, which have no user either.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.fmt(formatter)
    }
}

impl fmt::Debug for EstUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
