//! `[moby_runtime]`: the container engine and the network of the modules.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use url::Url;

/// Name of the network unless configured otherwise.
const NETWORK: &str = "azure-iot-edge";

/// The container engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MobyRuntime {
    /// Where it listens.
    pub uri: EngineUri,
    /// The network that modules are in.
    pub network: Network,
    /// Read and ignored: content trust is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_trust: Option<ContentTrust>,
}

/// Registries that should be trusted, as an old configuration names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentTrust {
    /// Host of the registry to the id of its root certificate.
    #[serde(default)]
    pub ca_certs: BTreeMap<String, String>,
}

/// `unix:///path` or `http://host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EngineUri(String);

/// An address at which no engine can be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of a container engine: expected unix:///path or http://host:port, TLS is not understood")]
pub struct InvalidEngineUri(String);

impl EngineUri {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EngineUri {
    type Error = InvalidEngineUri;

    fn try_from(text: String) -> Result<Self, InvalidEngineUri> {
        let is_engine = Url::parse(&text).is_ok_and(|uri| match uri.scheme() {
            "unix" => !uri.has_host() && uri.path().len() > 1 && uri.path().starts_with('/'),
            "http" => uri.has_host() && uri.path() == "/" && uri.query().is_none(),
            _ => false,
        });
        if is_engine { Ok(Self(text)) } else { Err(InvalidEngineUri(text)) }
    }
}

impl From<EngineUri> for String {
    fn from(uri: EngineUri) -> Self {
        uri.0
    }
}

impl fmt::Display for EngineUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The network that modules are in: a name, or a table that says how it is made where it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether it has IPv6.
    pub ipv6: Option<bool>,
    /// Its addresses.
    pub ipam: Option<Ipam>,
}

/// Addresses of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// One entry for each subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Vec<IpamConfig>>,
}

/// A subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamConfig {
    /// Address of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The subnet in CIDR form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The part of it that containers get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct RawNetwork {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipv6: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ipam: Option<Ipam>,
}

impl Network {
    /// A network of this name; an empty one stands for the usual.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let name = if name.is_empty() { NETWORK } else { name };
        Self { name: name.to_owned(), ipv6: None, ipam: None }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::named(NETWORK)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, ipv6, ipam } = self.clone();
        if ipv6.is_none() && ipam.is_none() {
            return serializer.serialize_str(&name);
        }
        RawNetwork { name, ipv6, ipam }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NetworkVisitor)
    }
}

/// By hand, because serde's untagged enums forget which line was wrong and why.
struct NetworkVisitor;

impl<'de> Visitor<'de> for NetworkVisitor {
    type Value = Network;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a network, or a table with name, ipv6 and ipam")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Network, E> {
        Ok(Network::named(name))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Network, A::Error> {
        let RawNetwork { name, ipv6, ipam } = RawNetwork::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Network { ipv6, ipam, ..Network::named(&name) })
    }
}
