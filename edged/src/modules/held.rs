//! Work on one module by who has its turn. How its container is exchanged for another one is in [`exchange`](super::exchange).

use std::time::Duration;

use aziot_edged_api::module::Status;
use aziot_log::{chain, fields};
use aziot_turns::Turn;
use serde_json::Value;

use super::{
    Modules, details,
    exchange::{Origin, is_half_removed},
    remake,
};
use crate::{
    docker::{self, Container},
    error::{Error, Operation},
    specification::{Name, Specification},
};

/// The grace that engines give where nobody says another.
const GRACE: Duration = Duration::from_secs(10);
/// What the engine may need beyond the grace.
const MARGIN: Duration = Duration::from_secs(30);
/// A container may say that it is never to be killed; nobody waits longer than this for it.
const LONGEST_GRACE: Duration = Duration::from_secs(3600);
/// What a start may take after the stop of a restart.
const START: Duration = Duration::from_secs(90);

/// The modules are being stopped for good.
#[derive(Debug, thiserror::Error)]
#[error("the runtime is stopping")]
pub(super) struct Closing;

/// The turn to work on one module. Nobody else starts, stops, makes or removes it meanwhile.
pub(crate) struct Held<'a> {
    pub(super) modules: &'a Modules,
    pub(super) name: Name,
    _turn: Turn,
}

impl<'a> Held<'a> {
    pub(super) fn new(modules: &'a Modules, name: Name, turn: Turn) -> Self {
        Self { modules, name, _turn: turn }
    }

    /// What the module is doing; `None` if there is none.
    pub(crate) async fn status(&self) -> Result<Option<Status>, Error> {
        let found = self.find().await.map_err(|error| self.error(Operation::Get, error))?;
        Ok(found.map(|found| details::runtime_status(found.state.status.as_deref(), found.state.exit_code).status))
    }

    /// Makes the module's container and starts it, after pulling its image where the policy says so.
    pub(crate) async fn make(&self, specification: &Specification) -> Result<(), Error> {
        self.modules.obtain(specification).await?;
        self.create(specification).await?;
        self.start().await
    }

    /// Makes the module's container of an image that is there. What an interrupted update has left is the module, and there already.
    pub(crate) async fn create(&self, specification: &Specification) -> Result<(), Error> {
        self.expect_open(Operation::Create)?;
        let create = async {
            match self.find().await? {
                Some(found) if is_half_removed(&found) => self.remove_container(&found.id).await?,
                Some(found) => return Err(docker::Error::name_taken(self.name.as_str(), &found.id)),
                None => {}
            }
            self.create_container(self.name.as_str(), &self.options(specification).await).await
        };
        create.await.map(drop).map_err(|error| self.error(Operation::Create, error))
    }

    /// Starts the module; one that runs goes on, on the socket that it has.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        self.expect_open(Operation::Start)?;
        let container = self.container(Operation::Start).await?;
        self.open_socket(Operation::Start).await?;
        let started = self.modules.docker.start(&container.id).await;
        self.unstick(Operation::Start, &container, started).await
    }

    /// Stops the module, in `grace` or the time that its container has for that. It can use its socket until it has ended.
    pub(crate) async fn stop(&self, grace: Option<Duration>) -> Result<(), Error> {
        let container = self.container(Operation::Stop).await?;
        self.stop_container(&container, grace).await.map_err(|error| self.error(Operation::Stop, error))?;
        self.modules.sockets.close(&self.name).await;
        Ok(())
    }

    /// Stops the module, if it runs, and starts it.
    pub(crate) async fn restart(&self) -> Result<(), Error> {
        self.expect_open(Operation::Restart)?;
        let container = self.container(Operation::Restart).await?;
        self.open_socket(Operation::Restart).await?;
        let limit = limit(&container, None) + START;
        let restarted = self.modules.docker.restart(&container.id, None, limit).await;
        self.unstick(Operation::Restart, &container, restarted).await
    }

    /// Removes the module's container and socket.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        let container = self.container(Operation::Get).await;
        let outcome = match container {
            Ok(container) => {
                let remove = async {
                    // First: it would be the module as soon as the other one is gone.
                    self.discard_replacement().await?;
                    self.remove_container(&container.id).await
                };
                remove.await.map_err(|error| self.error(Operation::Remove, error))?;
                self.modules.images.used_id(&container.image).await;
                Ok(())
            }
            Err(unknown @ Error::UnknownModule { .. }) => Err(unknown),
            Err(error) => return Err(error),
        };
        if let Err(error) = self.modules.sockets.remove(&self.name).await {
            self.warn(&error, "the socket of a removed module stays");
        }
        outcome
    }

    /// Replaces the module's container, and does not start the new one. Until that can be made the old one is not touched.
    pub(super) async fn replace(&self, specification: &Specification) -> Result<(), Error> {
        let old = self.container(Operation::Stop).await?;
        self.exchange(&old, &self.options(specification).await, Origin::Request).await?;
        self.modules.sockets.close(&self.name).await;
        Ok(())
    }

    /// Passes on how a start went; a container that can never be started again is made anew, and that one is started.
    async fn unstick(
        &self,
        operation: Operation,
        container: &Container,
        started: Result<(), docker::Error>,
    ) -> Result<(), Error> {
        let failed = |error| self.error(operation, error);
        let Err(error) = started else { return Ok(()) };
        if !remake::is_stuck(container, &error) {
            return Err(failed(error));
        }
        let inspected = self.modules.docker.inspect_whole(&container.id).await.map_err(failed)?;
        let Some(options) = remake::options(&inspected) else { return Err(failed(error)) };
        self.warn(&error, "the engine has lost track of the module's container: making it anew");
        self.exchange(container, &options, Origin::Old).await?;
        self.expect_open(operation)?;
        let container = self.container(operation).await?;
        self.modules.docker.start(&container.id).await.map_err(failed)
    }

    /// Ends an update that was interrupted. A failure is logged.
    pub(super) async fn mend(&self) {
        let mend = async {
            match self.find().await? {
                Some(_) => self.discard_replacement().await,
                None => Ok(()),
            }
        };
        if let Err(error) = mend.await {
            self.warn(&error, "an interrupted update is still not ended");
        }
    }

    /// The module's container.
    pub(super) async fn container(&self, operation: Operation) -> Result<Container, Error> {
        let found = self.find().await.map_err(|error| self.error(operation, error))?;
        found.ok_or_else(|| Error::UnknownModule { operation, module: self.name.to_string() })
    }

    /// The module's container, if there is one. A new one that an interrupted update has left without its name gets it.
    async fn find(&self) -> Result<Option<Container>, docker::Error> {
        let found = self.modules.find(self.name.as_str()).await?;
        if found.as_ref().is_some_and(|found| !is_half_removed(found)) {
            return Ok(found);
        }
        let Some(new) = self.modules.find(&self.name.replacement()).await? else { return Ok(found) };
        if let Some(old) = &found {
            self.vacate(&old.id).await?;
        }
        tracing::info!({ fields::MODULE_ID } = %self.name, "ending an interrupted update: the old container is gone, the new one takes its place");
        self.rename(&new.id, self.name.as_str()).await?;
        if let Some(old) = found {
            self.discard_old(&old.id).await;
        }
        self.modules.find(self.name.as_str()).await
    }

    /// What the engine is to make.
    async fn options(&self, specification: &Specification) -> Value {
        let (options, taken) = specification.body_in_background(&self.modules.privileges).await;
        if !taken.is_empty() {
            let taken = taken.join(", ");
            tracing::warn!({ fields::MODULE_ID } = %self.name, "elevated rights are not allowed: {taken} not as asked for");
        }
        options
    }

    /// Makes a container and returns its id.
    pub(super) async fn create_container(&self, name: &str, options: &Value) -> Result<String, docker::Error> {
        let created = self.modules.docker.create(name, options).await?;
        for warning in created.warnings.into_iter().flatten() {
            tracing::warn!({ fields::MODULE_ID } = %self.name, "the engine warns: {warning}");
        }
        match self.modules.docker.inspect(&created.id).await {
            Ok(container) => self.modules.images.used_id(&container.image).await,
            Err(error) => self.warn(&error, "the use of the module's image is not noted"),
        }
        Ok(created.id)
    }

    async fn open_socket(&self, operation: Operation) -> Result<(), Error> {
        let opened = self.modules.sockets.ensure(&self.name).await;
        opened.map_err(|error| Error::module(operation, self.name.as_str(), error))
    }

    pub(super) async fn discard_replacement(&self) -> Result<(), docker::Error> {
        match self.modules.find(&self.name.replacement()).await? {
            Some(stale) => self.remove_container(&stale.id).await,
            None => Ok(()),
        }
    }

    /// Refuses to make or start anything while the runtime stops the modules.
    pub(super) fn expect_open(&self, operation: Operation) -> Result<(), Error> {
        if self.modules.is_closing() { Err(Error::module(operation, self.name.as_str(), Closing)) } else { Ok(()) }
    }

    pub(super) fn error(&self, operation: Operation, source: docker::Error) -> Error {
        Error::module(operation, self.name.as_str(), source)
    }

    pub(super) fn warn(&self, error: &(dyn std::error::Error + 'static), what: &str) {
        tracing::warn!({ fields::MODULE_ID } = %self.name, { fields::ERROR } = %chain(error), "{what}");
    }
}

/// How long the engine may take to stop a container.
pub(super) fn limit(container: &Container, grace: Option<Duration>) -> Duration {
    let own = container
        .stop_timeout_seconds()
        .map_or(GRACE, |seconds| u64::try_from(seconds).map_or(LONGEST_GRACE, Duration::from_secs));
    grace.unwrap_or(own).min(LONGEST_GRACE) + MARGIN
}
