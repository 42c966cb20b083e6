//! One look at the agent, and what is done about it. Whoever else is at work on the agent is left alone.

use aziot_edged_api::module::Status;

use crate::error::BoxError;

/// What the watchdog does to containers.
pub(crate) trait Runtime: Send + Sync {
    /// The agent, while nobody else may work on it.
    type Agent<'a>: Agent
    where
        Self: 'a;

    /// The agent, unless somebody is at work on it.
    fn agent(&self) -> Option<Self::Agent<'_>>;

    /// Names of the modules that run.
    fn running(&self) -> impl Future<Output = Result<Vec<String>, BoxError>> + Send;

    /// Stops a module in the time that it has for that.
    fn stop(&self, module: &str) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Starts a module.
    fn start(&self, module: &str) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Looks after the agent once.
    fn tend(&self) -> impl Future<Output = Result<Tended, BoxError>> + Send {
        async {
            match self.agent() {
                Some(agent) => tend(&agent).await,
                None => Ok(Tended::Busy),
            }
        }
    }
}

/// The agent's container.
pub(crate) trait Agent: Send + Sync {
    /// What it is doing; `None` where the engine says that there is none.
    fn status(&self) -> impl Future<Output = Result<Option<Status>, BoxError>> + Send;

    /// Starts it as it is.
    fn start(&self) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Removes it.
    fn remove(&self) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Makes and starts the bootstrap agent.
    fn make(&self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tended {
    /// The agent runs.
    Running,
    /// It did not, and was started or made.
    Started,
    /// Somebody else is at work on it, and will say how that went.
    Busy,
}

async fn tend(agent: &impl Agent) -> Result<Tended, BoxError> {
    match agent.status().await? {
        Some(Status::Running) => return Ok(Tended::Running),
        Some(Status::Stopped | Status::Failed) => {
            tracing::info!("the agent does not run: starting it");
            agent.start().await?;
        }
        Some(Status::Dead | Status::Unknown) => {
            tracing::warn!("the agent cannot be started any more: making it anew");
            agent.remove().await?;
            agent.make().await?;
        }
        None => {
            tracing::info!("there is no agent: making it");
            agent.make().await?;
        }
    }
    Ok(Tended::Started)
}
