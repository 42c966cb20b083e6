//! Base URLs of EST servers: where each operation is, and what of a URL may be shown.

use std::{fmt, sync::Arc};

use aziot_certd_api::config::EstUrl;
use http::{Uri, uri::InvalidUri};
use url::Url;

/// The base URL of a server. It holds no user name and no password, whatever was configured.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl(Arc<Url>);

impl ServerUrl {
    /// `None` if it is neither `http` nor `https`.
    pub(crate) fn new(url: &EstUrl) -> Option<Self> {
        let url = url.expose();
        if !matches!(url.scheme(), "http" | "https") {
            return None;
        }
        let mut url = url.clone();
        url.set_fragment(None);
        // Neither fails for a URL with a host, which those of both schemes have.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Some(Self(Arc::new(url)))
    }

    /// Whether everything goes over the network as it is, a password too.
    pub(crate) fn is_clear(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Where `operation` is: at the end of the path, before a query.
    pub(crate) fn operation(&self, operation: &str) -> Result<Uri, InvalidUri> {
        let mut url = Url::clone(&self.0);
        let path = url.path().strip_suffix('/').unwrap_or(url.path()).to_owned();
        url.set_path(&format!("{path}/{operation}"));
        url.as_str().parse()
    }
}

/// Without the query, which may hold a token.
impl fmt::Display for ServerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Url::clone(&self.0);
        shown.set_query(None);
        shown.fmt(formatter)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> EstUrl {
        url.parse::<Url>().unwrap().into()
    }

    fn server(url: &str) -> ServerUrl {
        ServerUrl::new(&parsed(url)).unwrap()
    }

    #[test]
    fn operations_stand_at_the_end_of_the_path() {
        for (base, whole) in [
            ("https://h/.well-known/est", "https://h/.well-known/est/cacerts"),
            ("https://h/.well-known/est/", "https://h/.well-known/est/cacerts"),
            ("https://h", "https://h/cacerts"),
            ("https://h:8443/three?x=1", "https://h:8443/three/cacerts?x=1"),
            ("http://[::1]:80/a%20b#part", "http://[::1]/a%20b/cacerts"),
            ("https://user:secret@h/x", "https://h/x/cacerts"),
        ] {
            assert_eq!(server(base).operation("cacerts").unwrap().to_string(), whole);
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let url = server("https://user:hunter2@h/x?token=hunter2");
        assert_eq!(format!("{url} {url:?}"), "https://h/x https://h/x");
    }

    #[test]
    fn other_schemes_are_refused() {
        for url in ["ftp://h/", "file:///x", "mailto:a@b"] {
            assert!(ServerUrl::new(&parsed(url)).is_none(), "{url}");
        }
        assert!(server("http://h").is_clear() && !server("https://h").is_clear());
    }
}
