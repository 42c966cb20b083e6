//! The hubs of this simulator and the gateways in front of them: which one a client means by the host it calls. Its token must be for that one.

use std::net::Ipv6Addr;

use crate::registries::HubKey;

/// The default port of HTTPS, which nobody writes into a name.
const HTTPS: u16 = 443;

/// Why hubs cannot be set up.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Two hubs or gateways have one name.
    #[error("{0:?} is the name of two hubs or gateways")]
    Twice(String),
    /// A gateway or device belongs to a hub that is not there.
    #[error("{of:?} belongs to the hub {hub:?}, which is none of this simulator")]
    UnknownHub {
        /// The gateway or device.
        of: String,
        /// The name of its hub.
        hub: String,
    },
}

/// One hub.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    pub(crate) key: HubKey,
    /// What devices put into their tokens, with the port.
    pub(crate) name: String,
    /// As the settings have it, perhaps without the port.
    short_name: String,
}

#[derive(Clone, Debug)]
struct Gateway {
    name: String,
    short_name: String,
    /// Its hub's place.
    hub: usize,
}

/// All hubs; there is always a first one.
#[derive(Clone, Debug)]
pub(crate) struct Hubs {
    hubs: Vec<Hub>,
    gateways: Vec<Gateway>,
}

impl Hubs {
    /// `gateways` are written `NAME` or `NAME=HUB`. Names without a port get `port`, but not the first hub's.
    pub(crate) fn new(first: Option<&str>, further: &[String], gateways: &[String], port: u16) -> Result<Self, Error> {
        let (name, short_name) = match first {
            Some(first) => (first.to_owned(), first.to_owned()),
            None => (format!("localhost:{port}"), "localhost".to_owned()),
        };
        let mut hubs = Self { hubs: vec![Hub { key: HubKey::FIRST, name, short_name }], gateways: Vec::new() };
        for short_name in further {
            let name = hubs.new_name(short_name, port)?;
            hubs.hubs.push(Hub { key: HubKey::further(short_name), name, short_name: short_name.clone() });
        }
        for written in gateways {
            let (short_name, hub) =
                written.split_once('=').map_or((written.as_str(), None), |(name, hub)| (name, Some(hub)));
            let name = hubs.new_name(short_name, port)?;
            let unknown = |hub: &str| Error::UnknownHub { of: short_name.to_owned(), hub: hub.to_owned() };
            let hub = hub.map_or(Ok(0), |hub| hubs.position(hub).ok_or_else(|| unknown(hub)))?;
            hubs.gateways.push(Gateway { name, short_name: short_name.to_owned(), hub });
        }
        Ok(hubs)
    }

    pub(crate) fn first(&self) -> &Hub {
        &self.hubs[0]
    }

    pub(crate) fn all(&self) -> &[Hub] {
        &self.hubs
    }

    /// The hub of this name, with or without the port.
    pub(crate) fn named(&self, name: &str) -> Option<&Hub> {
        self.position(name).map(|position| &self.hubs[position])
    }

    /// The hub a client means that calls `host`, or that a gateway of this name stands before; the first one if nobody knows the name.
    pub(crate) fn called(&self, host: Option<&str>) -> &Hub {
        let behind_gateway = |host: &str| {
            let gateway = self.gateways.iter().find(|gateway| is(host, &gateway.name, &gateway.short_name))?;
            Some(&self.hubs[gateway.hub])
        };
        host.and_then(|host| self.named(host).or_else(|| behind_gateway(host))).unwrap_or_else(|| self.first())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.hubs.iter().position(|hub| is(name, &hub.name, &hub.short_name))
    }

    fn new_name(&self, short_name: &str, port: u16) -> Result<String, Error> {
        let name = with_port(short_name, port);
        let taken = |other: &str| other.eq_ignore_ascii_case(&name);
        let mut others = self.hubs.iter().map(|hub| &hub.name).chain(self.gateways.iter().map(|gateway| &gateway.name));
        if others.any(|other| taken(other)) { Err(Error::Twice(name)) } else { Ok(name) }
    }
}

/// Names without ports, for a certificate: of further hubs and of gateways, as they stand in the settings.
pub(crate) fn hosts<'a>(hubs: &'a [String], gateways: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let gateways = gateways.iter().map(|gateway| gateway.split('=').next().unwrap_or_default());
    hubs.iter().map(String::as_str).chain(gateways).map(|name| {
        let host = split_port(name).map_or(name, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').to_owned()
    })
}

fn is(called: &str, name: &str, short_name: &str) -> bool {
    called.eq_ignore_ascii_case(name) || called.eq_ignore_ascii_case(short_name)
}

fn with_port(name: &str, port: u16) -> String {
    if port == HTTPS || split_port(name).is_some() {
        return name.to_owned();
    }
    if name.parse::<Ipv6Addr>().is_ok() { format!("[{name}]:{port}") } else { format!("{name}:{port}") }
}

fn split_port(name: &str) -> Option<(&str, &str)> {
    let (host, port) = name.rsplit_once(':')?;
    let is_address = host.contains(':') && !host.ends_with(']');
    (!is_address && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_get_the_port_they_lack() {
        for (short_name, port, name) in [
            ("127.0.0.1", 8443, "127.0.0.1:8443"),
            ("hub.test:1", 8443, "hub.test:1"),
            ("::1", 8443, "[::1]:8443"),
            ("[::1]", 8443, "[::1]:8443"),
            ("[::1]:7", 8443, "[::1]:7"),
            ("hub.test", 443, "hub.test"),
        ] {
            assert_eq!(with_port(short_name, port), name);
        }
        let hosts: Vec<_> =
            hosts(&owned(&["127.0.0.1", "hub.test:1", "[::1]:7"]), &owned(&["gate=hub.test:1"])).collect();
        assert_eq!(hosts, ["127.0.0.1", "hub.test", "::1", "gate"]);
    }

    #[test]
    fn the_host_tells_the_hub() {
        let hubs = Hubs::new(None, &owned(&["127.0.0.1"]), &owned(&["parent", "edge.test:9=127.0.0.1"]), 8443).unwrap();
        let (first, second) = ("localhost:8443".to_owned(), "127.0.0.1:8443".to_owned());
        for (host, hub) in [
            ("localhost:8443", &first),
            ("LOCALHOST:8443", &first),
            ("127.0.0.1:8443", &second),
            ("127.0.0.1", &second),
            ("parent:8443", &first),
            ("Parent", &first),
            ("edge.test:9", &second),
            ("elsewhere", &first),
        ] {
            assert_eq!(hubs.called(Some(host)).name, *hub, "{host}");
        }
        assert_eq!(hubs.called(None).name, first);
        assert_eq!(hubs.named("127.0.0.1").unwrap().key, HubKey::further("127.0.0.1"));
    }

    #[test]
    fn slips_are_told() {
        let new = |further: &[&str], gateways: &[&str]| {
            Hubs::new(Some("hub"), &owned(further), &owned(gateways), 1).unwrap_err()
        };
        assert_eq!(new(&["a", "A:1"], &[]), Error::Twice("A:1".to_owned()));
        assert_eq!(new(&["a"], &["a"]), Error::Twice("a:1".to_owned()));
        assert_eq!(new(&[], &["gate=b"]), Error::UnknownHub { of: "gate".to_owned(), hub: "b".to_owned() });
    }
}
