//! Calls on networks, and what the engine says of itself.

use aziot_edged_api::config::{IpamConfig, Network};
use aziot_log::fields;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Docker, Error, transport::Call};

/// The engine as it describes itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Info {
    /// Version of the engine.
    #[serde(default)]
    pub(crate) server_version: Option<String>,
}

/// One subnet of a network in the engine's words; any part may be left to the engine.
#[derive(Serialize)]
struct Addresses<'a> {
    #[serde(rename = "Gateway", skip_serializing_if = "Option::is_none")]
    gateway: Option<&'a str>,
    #[serde(rename = "Subnet", skip_serializing_if = "Option::is_none")]
    subnet: Option<&'a str>,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    ip_range: Option<&'a str>,
}

impl<'a> Addresses<'a> {
    fn new(configured: &'a IpamConfig) -> Self {
        let IpamConfig { gateway, subnet, ip_range } = configured;
        Self { gateway: gateway.as_deref(), subnet: subnet.as_deref(), ip_range: ip_range.as_deref() }
    }
}

impl Docker {
    /// Names of all networks.
    pub(crate) async fn networks(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Listed {
            #[serde(rename = "Name")]
            name: String,
        }
        let listed: Vec<Listed> = self.0.json(&Call::get("/networks")).await?;
        Ok(listed.into_iter().map(|network| network.name).collect())
    }

    /// Makes `network` unless one of exactly that name is there, which is used as it is.
    pub(crate) async fn ensure_network(&self, network: &Network) -> Result<(), Error> {
        // The engine's own filter takes a part of a name for the name.
        if self.networks().await?.contains(&network.name) {
            return Ok(());
        }
        let ipv6 = network.ipv6.unwrap_or(false);
        let mut body = json!({ "Name": network.name, "EnableIPv6": ipv6, "CheckDuplicate": true });
        if let Some(configured) = network.ipam.as_ref().and_then(|ipam| ipam.config.as_ref()) {
            let subnets: Vec<_> = configured.iter().map(Addresses::new).collect();
            body["IPAM"] = json!({ "Config": subnets });
        }
        let made = self.0.nothing(&Call::new(Method::POST, "/networks/create").body(&body)).await;
        match made {
            // Somebody may have been faster; the engines do not agree on how they say so.
            Err(error) if error.status().is_some() && self.networks().await?.contains(&network.name) => {
                tracing::debug!({ fields::ERROR } = %error, "the network was made by somebody else");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// The engine as it describes itself.
    pub(crate) async fn info(&self) -> Result<Info, Error> {
        self.0.json(&Call::get("/info")).await
    }
}
