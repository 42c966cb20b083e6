//! `[agent]`: the container that the runtime starts by itself, and that starts all others.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use super::Hidden;

/// Name of the agent's container. Its identity at the hub has a `$` before it.
pub const AGENT: &str = "edgeAgent";

/// The agent as the runtime makes it where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Name of its container.
    pub name: AgentName,
    /// Kind of module.
    pub r#type: ModuleType,
    /// When its image is pulled. Default `on-create`.
    #[serde(default, rename = "imagePullPolicy")]
    pub image_pull_policy: PullPolicy,
    /// What its container is made of.
    pub config: AgentConfig,
    /// Environment beside what the runtime puts there.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub env: Hidden<BTreeMap<String, String>>,
}

/// What the agent's container is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// The image; a leading `$upstream` stands for the gateway's host name.
    pub image: Image,
    /// Ignored, as by the public daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_hash: Option<String>,
    /// Ignored, as by the public daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Docker's create options; members that nobody knows are passed on.
    #[serde(default, skip_serializing_if = "is_empty_map")]
    pub create_options: Hidden<Map<String, Value>>,
    /// Credentials at the registry: `username`, `password`, `email`, `serveraddress` and others. An empty table is not the same as none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Hidden<BTreeMap<String, String>>>,
}

fn is_empty(table: &Hidden<BTreeMap<String, String>>) -> bool {
    table.0.is_empty()
}

fn is_empty_map(table: &Hidden<Map<String, Value>>) -> bool {
    table.0.is_empty()
}

/// The name of the agent, which can be one only: callers with all rights are told by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub struct AgentName;

/// Another name for the agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent must be called {AGENT:?}: under the name {0:?} it would have no rights in this runtime")]
pub struct InvalidName(String);

impl TryFrom<String> for AgentName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        if name == AGENT { Ok(Self) } else { Err(InvalidName(name)) }
    }
}

impl From<AgentName> for &'static str {
    fn from(_: AgentName) -> Self {
        AGENT
    }
}

/// Kinds of modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleType {
    /// A container.
    #[default]
    Docker,
}

/// When the image of a module is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// Each time that the container is made.
    #[default]
    OnCreate,
    /// Never: the image must be there.
    Never,
}

impl PullPolicy {
    /// The policy of this name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("on-create") { Some(Self::OnCreate) } else { is("never").then_some(Self::Never) }
    }
}

impl<'de> Deserialize<'de> for PullPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| de::Error::unknown_variant(&name, &["on-create", "never"]))
    }
}

/// A reference to an image, which is not blank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Image(String);

/// An image without a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an image must be named, such as mcr.microsoft.com/azureiotedge-agent:1.6")]
pub struct BlankImage;

impl Image {
    /// As it was written, without blanks around it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Image {
    type Error = BlankImage;

    fn try_from(text: String) -> Result<Self, BlankImage> {
        let image = text.trim();
        if image.is_empty() { Err(BlankImage) } else { Ok(Self(image.to_owned())) }
    }
}

impl From<Image> for String {
    fn from(image: Image) -> Self {
        image.0
    }
}

impl fmt::Display for Image {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
