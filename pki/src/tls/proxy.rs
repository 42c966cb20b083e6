//! Which HTTP proxy stands between this device and the cloud, from the environment. Local sockets never use it.

use std::{env, fmt};

use hyper_util::client::proxy::matcher::{Intercept, Matcher};

/// The proxy settings are unusable.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The variable's value is no proxy. It may hold a password and is therefore not shown.
    #[error("invalid proxy uri in {variable}: expected http://[user:password@]host[:port]")]
    Malformed {
        /// Name of the environment variable.
        variable: &'static str,
    },
}

/// A proxy, and the hosts that are reached without it. Prints without its password.
pub struct Proxy {
    matcher: Matcher,
    shown: String,
}

/// The first of them that is set and not empty counts.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const EXCEPTION_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

impl Proxy {
    /// The proxy that `HTTPS_PROXY` or `https_proxy` names; an empty value counts as unset. `NO_PROXY` lists the exceptions.
    pub fn from_environment() -> Result<Option<Self>, ProxyError> {
        let Some((variable, uri)) = first_set(PROXY_VARIABLES) else { return Ok(None) };
        let exceptions = first_set(EXCEPTION_VARIABLES).map(|(_, hosts)| hosts).unwrap_or_default();
        Self::new(&uri, &exceptions).ok_or(ProxyError::Malformed { variable }).map(Some)
    }

    /// A proxy `http://user:password@host:port` for all hosts, also those that are spoken to in clear, but `exceptions`, a comma list of names, suffixes and
    /// addresses. `None` if it is malformed.
    #[must_use]
    pub fn new(uri: &str, exceptions: &str) -> Option<Self> {
        let parsed: http::Uri = uri.parse().ok()?;
        let authority = parsed.authority()?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || authority.host().is_empty() {
            return None;
        }
        let scheme = parsed.scheme_str().unwrap_or("http");
        let address = authority.as_str().rsplit('@').next().unwrap_or_default();
        let shown = match authority.as_str().rsplit_once('@').map(|(user_info, _)| user_info) {
            None => format!("{scheme}://{address}/"),
            Some(user_info) => match user_info.split_once(':') {
                None => format!("{scheme}://{user_info}@{address}/"),
                Some((user, _)) => format!("{scheme}://{user}:******@{address}/"),
            },
        };
        Some(Self { matcher: Matcher::builder().all(uri.to_owned()).no(exceptions.to_owned()).build(), shown })
    }

    /// The proxy for this destination, if it is to use one.
    pub(crate) fn intercept(&self, destination: &http::Uri) -> Option<Intercept> {
        self.matcher.intercept(destination)
    }
}

fn first_set(variables: [&'static str; 2]) -> Option<(&'static str, String)> {
    variables
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value)))
}

impl fmt::Display for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Proxy({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_masked() {
        let proxy = Proxy::new("http://me:hunter2@gate.example:3128", "").unwrap();
        assert_eq!(proxy.to_string(), "http://me:******@gate.example:3128/");
        assert!(!format!("{proxy:?}").contains("hunter2"));
        assert_eq!(Proxy::new("https://gate.example", "").unwrap().to_string(), "https://gate.example/");
    }

    #[test]
    fn user_and_password_are_decoded_for_basic_authentication() {
        let proxy = Proxy::new("http://u%40x:p%3Aq@gate:1", "").unwrap();
        let intercept = proxy.intercept(&"https://hub.example/".parse().unwrap()).unwrap();
        // base64 of "u@x:p:q"
        assert_eq!(intercept.basic_auth().unwrap(), "Basic dUB4OnA6cQ==");
        assert_eq!(intercept.uri().host(), Some("gate"));
    }

    #[test]
    fn exceptions_are_reached_directly() {
        let proxy = Proxy::new("http://gate:1", "localhost,.example").unwrap();
        let uses_proxy = |uri: &str| proxy.intercept(&uri.parse().unwrap()).is_some();
        assert!(uses_proxy("https://hub.azure-devices.net/"));
        assert!(uses_proxy("http://est.corp/"));
        assert!(!uses_proxy("https://localhost:8443/") && !uses_proxy("http://localhost/"));
        assert!(!uses_proxy("https://parent.example/"));
    }

    #[test]
    fn malformed_values_are_refused() {
        for uri in ["gate", "gate:3128", "ftp://gate", "http://", "http://a b", "socks5://gate:1"] {
            assert!(Proxy::new(uri, "").is_none(), "{uri}");
        }
    }
}
