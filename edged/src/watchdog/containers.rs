//! The modules of this device, as the watchdog works on them.

use std::sync::Arc;

use aziot_edged_api::{config::AGENT, module::Status};

use super::round;
use crate::{
    agent::Agent,
    error::{BoxError, Error},
    identities::Identities,
    modules::{Held, Modules},
    provisioning::Device,
    specification::{Invalid, Name},
};

/// The modules, and what the agent is made of.
pub(crate) struct Containers {
    modules: Arc<Modules>,
    identities: Arc<Identities>,
    agent: Agent,
    device: Device,
    name: Name,
}

impl Containers {
    /// Nothing is done yet.
    pub(crate) fn new(
        modules: Arc<Modules>,
        identities: Arc<Identities>,
        agent: Agent,
        device: Device,
    ) -> Result<Self, Invalid> {
        Ok(Self { modules, identities, agent, device, name: Name::new(AGENT)? })
    }
}

impl round::Runtime for Containers {
    type Agent<'a> = HeldAgent<'a>;

    fn agent(&self) -> Option<HeldAgent<'_>> {
        self.modules.try_hold(&self.name).map(|held| HeldAgent { held, containers: self })
    }

    async fn running(&self) -> Result<Vec<String>, BoxError> {
        let running = self.modules.running().await?;
        Ok(running.iter().map(Name::to_string).collect())
    }

    async fn stop(&self, module: &str) -> Result<(), BoxError> {
        Ok(self.modules.stop(&Name::new(module)?).await?)
    }

    async fn start(&self, module: &str) -> Result<(), BoxError> {
        Ok(self.modules.start(&Name::new(module)?).await?)
    }
}

/// The agent, while nobody else works on it.
pub(crate) struct HeldAgent<'a> {
    held: Held<'a>,
    containers: &'a Containers,
}

impl round::Agent for HeldAgent<'_> {
    async fn status(&self) -> Result<Option<Status>, BoxError> {
        Ok(self.held.status().await?)
    }

    async fn start(&self) -> Result<(), BoxError> {
        Ok(self.held.start().await?)
    }

    async fn remove(&self) -> Result<(), BoxError> {
        match self.held.remove().await {
            // It is gone, which is what was wanted.
            Err(Error::UnknownModule { .. }) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    async fn make(&self) -> Result<(), BoxError> {
        let generation = self.containers.identities.agent_generation().await?;
        let specification = self.containers.agent.specification(&self.containers.device, &generation)?;
        Ok(self.held.make(&specification).await?)
    }
}
