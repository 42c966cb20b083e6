//! `tcti`: how the TPM is reached (TCG TSS 2.0 TCTI), in the spelling of the TSS library's loader.
//!
//! What starts programs, records traffic or takes library files by name is refused: a setting of the TPM's place should do no more
//! than name it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A way to a TPM. In a file one of the texts that [`Tcti::EXPECTED`] lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tcti {
    /// `device` or nothing: the first of `/dev/tpmrm0` and `/dev/tpm0` that is there.
    #[default]
    AnyDevice,
    /// `device:PATH`
    Device(String),
    /// `swtpm:host=HOST,port=PORT`: a software TPM on TCP.
    Swtpm(Address),
    /// `mssim:host=HOST,port=PORT`: the reference simulator on TCP.
    Mssim(Address),
    /// `tabrmd:bus_name=NAME,bus_type=TYPE`: a resource manager on D-Bus; both may be left out.
    Tabrmd(String),
}

/// Where a TPM on TCP listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name or address. Default `localhost`.
    pub host: String,
    /// Port of its commands; its control port is the next one. Default 2321.
    pub port: u16,
}

impl Default for Address {
    fn default() -> Self {
        Self { host: "localhost".to_owned(), port: 2321 }
    }
}

/// Why a text names no TPM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Known to the loader and refused here.
    #[error("a TPM is not reached by `{name}:` in this service; {expected}", name = .0, expected = Tcti::EXPECTED)]
    Refused(String),
    /// Known to nobody.
    #[error("{text:?} names no way to a TPM; {expected}", text = .0, expected = Tcti::EXPECTED)]
    Unknown(String),
    /// Something behind the colon.
    #[error("`{key}` is not what `{name}:` wants; {}", Tcti::EXPECTED)]
    Parameter {
        /// The text before the colon.
        name: &'static str,
        /// The parameter.
        key: String,
    },
    /// A C string could not hold it.
    #[error("a TCTI has no NUL in it")]
    Nul,
}

impl Tcti {
    /// What may stand in a file.
    pub const EXPECTED: &str = "expected device, device:/dev/PATH, swtpm:host=HOST,port=PORT, mssim:host=HOST,port=PORT or tabrmd:bus_name=NAME,bus_type=TYPE";

    /// Whether it need not be written down.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl FromStr for Tcti {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.contains('\0') {
            return Err(Invalid::Nul);
        }
        let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "" if text.is_empty() => Ok(Self::AnyDevice),
            "device" if parameters.is_empty() => Ok(Self::AnyDevice),
            "device" if parameters.starts_with('/') => Ok(Self::Device(parameters.to_owned())),
            "device" => Err(Invalid::Parameter { name: "device", key: parameters.to_owned() }),
            "swtpm" => address("swtpm", parameters).map(Self::Swtpm),
            "mssim" => address("mssim", parameters).map(Self::Mssim),
            "tabrmd" => bus(parameters).map(Self::Tabrmd),
            "cmd" | "pcap" | "spi" | "i2c" | "fuzzing" => Err(Invalid::Refused(name.to_owned())),
            _ => Err(Invalid::Unknown(text.to_owned())),
        }
    }
}

fn pairs(parameters: &str) -> impl Iterator<Item = (&str, &str)> {
    let parameters = parameters.split(',').filter(move |_| !parameters.is_empty());
    parameters.map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
}

fn address(name: &'static str, parameters: &str) -> Result<Address, Invalid> {
    let mut address = Address::default();
    for (key, value) in pairs(parameters) {
        let wrong = || Invalid::Parameter { name, key: format!("{key}={value}") };
        // The loader would take more characters, and the wrapper around it fewer.
        let is_host =
            !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte));
        match key {
            "host" if is_host => value.clone_into(&mut address.host),
            "port" => address.port = value.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        }
    }
    Ok(address)
}

fn bus(parameters: &str) -> Result<String, Invalid> {
    for (key, value) in pairs(parameters) {
        let is_name =
            !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let fits = match key {
            "bus_name" => is_name,
            "bus_type" => ["session", "system"].contains(&value),
            _ => false,
        };
        if !fits {
            return Err(Invalid::Parameter { name: "tabrmd", key: format!("{key}={value}") });
        }
    }
    Ok(parameters.to_owned())
}

impl TryFrom<String> for Tcti {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Tcti> for String {
    fn from(tcti: Tcti) -> String {
        tcti.to_string()
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = |formatter: &mut fmt::Formatter<'_>, name: &str, Address { host, port }: &Address| {
            write!(formatter, "{name}:host={host},port={port}")
        };
        match self {
            Self::AnyDevice => formatter.write_str("device"),
            Self::Device(path) => write!(formatter, "device:{path}"),
            Self::Swtpm(address) => network(formatter, "swtpm", address),
            Self::Mssim(address) => network(formatter, "mssim", address),
            Self::Tabrmd(bus) if bus.is_empty() => formatter.write_str("tabrmd"),
            Self::Tabrmd(bus) => write!(formatter, "tabrmd:{bus}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ways_are_read_and_written() {
        for (text, written) in [
            ("", "device"),
            ("device", "device"),
            ("device:", "device"),
            ("device:/dev/tpmrm1", "device:/dev/tpmrm1"),
            ("swtpm", "swtpm:host=localhost,port=2321"),
            ("swtpm:host=127.0.0.1,port=23310", "swtpm:host=127.0.0.1,port=23310"),
            ("swtpm:port=1", "swtpm:host=localhost,port=1"),
            ("mssim:host=::1", "mssim:host=::1,port=2321"),
            ("tabrmd", "tabrmd"),
            ("tabrmd:", "tabrmd"),
            ("tabrmd:bus_type=session", "tabrmd:bus_type=session"),
        ] {
            let tcti: Tcti = text.parse().unwrap();
            assert_eq!(tcti.to_string(), written, "{text}");
            assert_eq!(written.parse(), Ok(tcti));
        }
    }

    #[test]
    fn others_are_refused_with_what_was_expected() {
        for text in [
            "cmd:sh -c true",
            "pcap:device",
            "swtpm:path=/run/tpm",
            "swtpm:host=a b",
            "swtpm:port=0",
            "swtpm:port=70000",
            "swtpm:host=",
            "swtpm:,",
            "device:tpm0",
            "tabrmd:bus_type=other",
            "libtss2-tcti-device.so.0",
            ":x",
            "Device",
            "device:/dev/tpm\0",
        ] {
            let error = text.parse::<Tcti>().unwrap_err();
            assert!(error == Invalid::Nul || error.to_string().contains("expected device"), "{text}: {error}");
        }
    }
}
