//! Where a service listens: the URIs of `[endpoints]` tables.

use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt as _, path::PathBuf, str::FromStr};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// A socket, as configuration names it. There is no TCP: on TCP nobody knows who is calling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// `unix:///run/aziot/keyd.sock`: a socket file; the path is percent-decoded.
    Unix(PathBuf),
    /// `fd://keyd` or `fd://3`: a descriptor handed over by the service manager, by `LISTEN_FDNAMES` name or number.
    Descriptor(String),
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither `unix://` nor `fd://`.
    #[error("malformed URI {0:?}: expected unix:///path or fd://name")]
    Scheme(String),
    /// TCP was asked for.
    #[error("{0:?}: services listen on unix:// sockets only")]
    Tcp(String),
    /// `unix://host/path`, or a path that is not absolute.
    #[error("{0:?}: a unix:// URI has no host, and an absolute path follows it (unix:///path)")]
    Path(String),
    /// `fd://` without anything.
    #[error("{0:?}: a fd:// URI names a descriptor")]
    Descriptor(String),
}

impl Endpoint {
    /// The built-in socket of a service, such as `keyd`.
    #[must_use]
    pub fn of_service(name: &str) -> Self {
        Self::Unix(PathBuf::from(format!("/run/aziot/{name}.sock")))
    }
}

/// The built-in socket of each service, and whether an endpoint is that one: what the serde attributes of `[endpoints]` tables name.
pub mod built_in {
    use super::Endpoint;

    macro_rules! built_in {
        ($($service:ident, $is_service:ident;)*) => {$(
            #[doc = concat!("`unix:///run/aziot/", stringify!($service), ".sock`")]
            #[must_use]
            pub fn $service() -> Endpoint {
                Endpoint::of_service(stringify!($service))
            }

            #[doc = concat!("Whether `endpoint` is [`", stringify!($service), "`].")]
            #[must_use]
            pub fn $is_service(endpoint: &Endpoint) -> bool {
                *endpoint == $service()
            }
        )*};
    }

    built_in! {
        certd, is_certd;
        identityd, is_identityd;
        keyd, is_keyd;
        tpmd, is_tpmd;
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let Some((scheme, rest)) = uri.split_once("://") else { return Err(EndpointError::Scheme(uri.to_owned())) };
        match scheme.to_ascii_lowercase().as_str() {
            "unix" if rest.len() > 1 && rest.starts_with('/') => {
                let bytes: Vec<u8> = percent_decode_str(rest).collect();
                Ok(Self::Unix(PathBuf::from(OsStr::from_bytes(&bytes))))
            }
            "unix" => Err(EndpointError::Path(uri.to_owned())),
            "fd" => match rest.trim_end_matches('/') {
                "" => Err(EndpointError::Descriptor(uri.to_owned())),
                name => Ok(Self::Descriptor(name.to_owned())),
            },
            "http" | "https" | "tcp" => Err(EndpointError::Tcp(uri.to_owned())),
            _ => Err(EndpointError::Scheme(uri.to_owned())),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(uri: String) -> Result<Self, Self::Error> {
        uri.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PATH: &AsciiSet =
            &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`');
        match self {
            Self::Unix(path) => {
                let encoded = match path.to_str() {
                    Some(text) => utf8_percent_encode(text, PATH).to_string(),
                    None => percent_encoding::percent_encode(path.as_os_str().as_bytes(), PATH).to_string(),
                };
                write!(formatter, "unix://{encoded}")
            }
            Self::Descriptor(name) => write!(formatter, "fd://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_documented_forms() {
        for (uri, endpoint) in [
            ("unix:///run/aziot/keyd.sock", Endpoint::Unix("/run/aziot/keyd.sock".into())),
            ("unix:///a%20b/c", Endpoint::Unix("/a b/c".into())),
            ("fd://3", Endpoint::Descriptor("3".into())),
            ("fd://keyd", Endpoint::Descriptor("keyd".into())),
        ] {
            assert_eq!(uri.parse(), Ok(endpoint.clone()), "{uri}");
            assert_eq!(endpoint.to_string(), uri);
        }
        for uri in ["unix://host/path", "unix://", "unix:///", "/run/x", "fd://", "ftp://x", "http://localhost:8080"] {
            assert!(uri.parse::<Endpoint>().is_err(), "{uri}");
        }
    }
}
