//! The life of modules: containers with the owner's label, each with a workload socket.
//!
//! Work on one module is done by one task at a time; work on others, lists, logs and pulls wait for nobody. A container that is no module does not
//! exist here, whatever its name. A module that is replaced stays until its image is there and its successor is made; if that is
//! interrupted at any point, the next look at the module, or the next start, ends it one way or the other.

mod details;
mod exchange;
mod held;
mod remake;
mod statistics;
#[cfg(test)]
mod tests;

pub(crate) use held::Held;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use aziot_edged_api::{
    config::AGENT,
    logs::LogOptions,
    module::{ModuleDetails, ModuleSpecification, Status},
};
use aziot_http::Shutdown;
use aziot_log::{chain, fields};
use aziot_turns::Turns;
use futures_util::{
    StreamExt as _,
    future::{join_all, ready},
    stream,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::{
    docker::{self, Container, Docker, Frames, Listed},
    error::{Error, Operation},
    images::Images,
    sockets::Sockets,
    specification::{Name, Privileges, REPLACEMENT, Specification, is_retired},
};
use exchange::is_half_removed;
use held::Closing;

/// Containers that are looked at, or removed, at once: the engine has other work too.
const AT_ONCE: usize = 8;
/// How long the look at one container of a list may take. Its engine may hang on it for ever.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// What stopping all may take beyond the grace of each.
const STOP_ALL_MARGIN: Duration = Duration::from_secs(5);

/// All modules.
pub(crate) struct Modules {
    docker: Docker,
    images: Images,
    sockets: Arc<Sockets>,
    privileges: Privileges,
    turns: Turns,
    /// Cancelled when all modules are stopped for good.
    closing: Shutdown,
    /// Updates of the agent that go on after their answer.
    updates: TaskTracker,
}

impl Modules {
    /// The modules of an engine.
    pub(crate) fn new(docker: Docker, images: Images, sockets: Arc<Sockets>, privileges: Privileges) -> Self {
        Self {
            docker,
            images,
            sockets,
            privileges,
            turns: Turns::default(),
            closing: Shutdown::new(),
            updates: TaskTracker::new(),
        }
    }

    /// Waits for the turn to work on a module, whether there is one or not.
    pub(crate) async fn hold(&self, name: &Name) -> Held<'_> {
        Held::new(self, name.clone(), self.turns.take(name.as_str()).await)
    }

    /// The turn to work on a module, unless somebody has it.
    pub(crate) fn try_hold(&self, name: &Name) -> Option<Held<'_>> {
        self.turns.try_take(name.as_str()).map(|turn| Held::new(self, name.clone(), turn))
    }

    /// All modules, running or not.
    pub(crate) async fn list(&self) -> Result<Vec<ModuleDetails>, Error> {
        let looks = self.listed().await?.into_iter().map(|module| self.look(module));
        let modules = stream::iter(looks).buffered(AT_ONCE).filter_map(ready);
        Ok(modules.collect().await)
    }

    /// Names of all modules, running or not.
    pub(crate) async fn names(&self) -> Result<BTreeSet<String>, Error> {
        let listed = self.listed().await?;
        Ok(listed.iter().filter_map(Listed::name).map(str::to_owned).collect())
    }

    /// Names of the modules that run.
    pub(crate) async fn running(&self) -> Result<Vec<Name>, Error> {
        Ok(self.listed().await?.iter().filter(|module| is_active(module)).filter_map(name_of).collect())
    }

    /// One module.
    pub(crate) async fn get(&self, name: &Name) -> Result<ModuleDetails, Error> {
        Ok(details::of_container(&self.container(Operation::Get, name).await?))
    }

    /// Makes a module, and does not start it.
    pub(crate) async fn create(&self, request: ModuleSpecification) -> Result<ModuleDetails, Error> {
        let specification = checked(request)?;
        self.expect_free(specification.name()).await?;
        self.obtain(&specification).await?;
        self.hold(specification.name()).await.create(&specification).await?;
        Ok(specification.details(Status::Stopped))
    }

    /// Replaces a module, and starts it if wanted. The agent is replaced after the answer: stopping it ends its call.
    pub(crate) async fn update(
        self: &Arc<Self>,
        name: &Name,
        request: ModuleSpecification,
        start: bool,
    ) -> Result<ModuleDetails, Error> {
        let specification = checked_for(name, request)?;
        let details = specification.details(if start { Status::Running } else { Status::Stopped });
        if name.as_str() != AGENT {
            self.replace(&specification, start).await?;
            return Ok(details);
        }
        let modules = Arc::clone(self);
        self.updates.spawn(async move {
            if let Err(error) = modules.replace(&specification, start).await {
                tracing::warn!({ fields::ERROR } = %chain(&error), "the agent is not updated");
            }
        });
        Ok(details)
    }

    async fn replace(&self, specification: &Specification, start: bool) -> Result<(), Error> {
        // Before the pull, which may take long and then be for nothing.
        self.hold(specification.name()).await.container(Operation::Stop).await?;
        self.obtain(specification).await?;
        let held = self.hold(specification.name()).await;
        held.replace(specification).await?;
        if start { held.start().await } else { Ok(()) }
    }

    /// Pulls the image that a module is about to get.
    pub(crate) async fn prepare_update(&self, name: &Name, request: ModuleSpecification) -> Result<(), Error> {
        let specification = checked_for(name, request)?;
        self.obtain(&specification).await
    }

    /// Removes a module, running or not.
    pub(crate) async fn remove(&self, name: &Name) -> Result<(), Error> {
        self.hold(name).await.remove().await
    }

    /// Starts a module; one that runs goes on.
    pub(crate) async fn start(&self, name: &Name) -> Result<(), Error> {
        self.hold(name).await.start().await
    }

    /// Stops a module in the time that it has for that.
    pub(crate) async fn stop(&self, name: &Name) -> Result<(), Error> {
        self.hold(name).await.stop(None).await
    }

    /// Stops a module, if it runs, and starts it.
    pub(crate) async fn restart(&self, name: &Name) -> Result<(), Error> {
        self.hold(name).await.restart().await
    }

    /// What a module wrote to its outputs.
    pub(crate) async fn logs(&self, name: &Name, options: &LogOptions) -> Result<Frames, Error> {
        let container = self.container(Operation::Get, name).await?;
        self.docker.logs(&container, options).await.map_err(|error| Error::ContainerRuntime(error.into()))
    }

    /// A JSON array of the engine's statistics, one object for each module of which they could be had.
    pub(crate) async fn statistics(&self) -> Result<String, Error> {
        statistics::of(&self.docker, &self.listed().await?).await
    }

    /// From now on nothing is made or started, and pulls end: what is stopped stays so.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Stops all modules, all at once; `grace` is what each has for that. Returns those that may still run, whose failures are logged.
    pub(crate) async fn stop_all(&self, grace: Duration) -> Result<Vec<Name>, Error> {
        let limit = grace + STOP_ALL_MARGIN;
        let deadline = Instant::now() + limit;
        let late = || docker::Error::TimedOut { call: "GET /containers/json".to_owned(), limit };
        let listed = timeout_at(deadline, self.all_names()).await.map_err(|_| Error::List(late().into()))??;
        let stops = listed.into_iter().map(|name| async move {
            let stop = async { self.hold(&name).await.stop(Some(grace)).await };
            let error = match timeout_at(deadline, stop).await {
                Ok(Ok(()) | Err(Error::UnknownModule { .. })) => return None,
                Ok(Err(error)) => chain(&error).to_string(),
                Err(_) => format!("it did not stop within {} s", limit.as_secs()),
            };
            tracing::warn!({ fields::MODULE_ID } = %name, { fields::ERROR } = error, "could not stop the module");
            Some(name)
        });
        Ok(join_all(stops).await.into_iter().flatten().collect())
    }

    /// Removes all modules. Returns those that are left, whose failures are logged.
    pub(crate) async fn remove_all(&self) -> Result<Vec<Name>, Error> {
        let removals = self.all_names().await?.into_iter().map(|name| async move {
            match self.remove(&name).await {
                Ok(()) | Err(Error::UnknownModule { .. }) => None,
                Err(error) => {
                    tracing::warn!({ fields::MODULE_ID } = %name, { fields::ERROR } = %chain(&error), "could not remove the module");
                    Some(name)
                }
            }
        });
        let left = stream::iter(removals).buffer_unordered(AT_ONCE).filter_map(ready);
        Ok(left.collect().await)
    }

    /// Ends what interrupted work has left: call it at the start, when nobody else works on modules. Failures are logged; whoever looks at the
    /// module next, or the next start, tries again.
    pub(crate) async fn mend(&self) -> Result<(), Error> {
        let listed = self.docker.list().await.map_err(|error| Error::List(error.into()))?;
        let interrupted = listed.iter().filter_map(|module| Name::new(module.name()?.strip_suffix(REPLACEMENT)?).ok());
        for name in interrupted.collect::<BTreeSet<_>>() {
            self.hold(&name).await.mend().await;
        }
        for container in listed.iter().filter(|container| container.name().is_some_and(is_retired)) {
            if let Err(error) = self.docker.remove(&container.id).await {
                let name = container.name().unwrap_or_default();
                tracing::warn!({ fields::ERROR } = %chain(&error), "the container {name}, which was replaced or removed, is still there");
            }
        }
        Ok(())
    }

    /// Waits until no update goes on any more.
    pub(crate) async fn settled(&self) {
        self.updates.close();
        self.updates.wait().await;
    }

    async fn obtain(&self, specification: &Specification) -> Result<(), Error> {
        let image = || specification.image().to_string();
        tokio::select! {
            obtained = self.images.obtain(specification) => {
                obtained.map_err(|error| Error::Pull { image: image(), source: error.into() })
            }
            () = self.closing.cancelled() => Err(Error::Pull { image: image(), source: Closing.into() }),
        }
    }

    /// Refuses a name that is taken, or tells that the engine does not answer, before a pull that may take long.
    async fn expect_free(&self, name: &Name) -> Result<(), Error> {
        let error = match self.docker.inspect(name.as_str()).await {
            // It gives way.
            Ok(container) if container.is_module() && is_half_removed(&container) => return Ok(()),
            Ok(container) if container.name() == name.as_str() => {
                docker::Error::name_taken(name.as_str(), &container.id)
            }
            Err(error) if !(error.is_not_found() || error.is_ambiguous()) => error,
            Ok(_) | Err(_) => return Ok(()),
        };
        Err(Error::module(Operation::Create, name.as_str(), error))
    }

    /// Names of all modules, also of those that are just being replaced.
    async fn all_names(&self) -> Result<BTreeSet<Name>, Error> {
        let listed = self.docker.list().await.map_err(|error| Error::List(error.into()))?;
        let names = listed.iter().filter_map(Listed::name);
        Ok(names.filter_map(|name| Name::new(name.strip_suffix(REPLACEMENT).unwrap_or(name)).ok()).collect())
    }

    /// All modules but the containers that are about to take another's place, or have left it.
    async fn listed(&self) -> Result<Vec<Listed>, Error> {
        let mut listed = self.docker.list().await.map_err(|error| Error::List(error.into()))?;
        listed.retain(|module| module.name().is_some_and(|name| !(name.ends_with(REPLACEMENT) || is_retired(name))));
        Ok(listed)
    }

    /// Looks at one container of a list. One that is gone is left out; of one that cannot be seen the list's own words have to do.
    async fn look(&self, module: Listed) -> Option<ModuleDetails> {
        let error = match tokio::time::timeout(LOOK_LIMIT, self.docker.inspect(&module.id)).await {
            Ok(Ok(container)) => return Some(details::of_container(&container)),
            Ok(Err(error)) if error.is_not_found() => return None,
            Ok(Err(error)) => chain(&error).to_string(),
            Err(_) => format!("no answer within {} s", LOOK_LIMIT.as_secs()),
        };
        let name = module.name()?;
        tracing::warn!({ fields::MODULE_ID } = name, { fields::ERROR } = error, "could not look at the module");
        Some(details::of_listed(name, &module))
    }

    /// The container that is the module of this name.
    async fn container(&self, operation: Operation, name: &Name) -> Result<Container, Error> {
        let found = self.find(name.as_str()).await.map_err(|error| Error::module(operation, name.as_str(), error))?;
        found.ok_or_else(|| Error::UnknownModule { operation, module: name.to_string() })
    }

    /// The module's container of exactly this name.
    async fn find(&self, name: &str) -> Result<Option<Container>, crate::docker::Error> {
        match self.docker.inspect(name).await {
            Ok(container) => Ok(Some(container).filter(|found| found.name() == name && found.is_module())),
            Err(error) if error.is_not_found() || error.is_ambiguous() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn name_of(module: &Listed) -> Option<Name> {
    module.name().and_then(|name| Name::new(name).ok())
}

/// Whether the engine has something to stop.
fn is_active(module: &Listed) -> bool {
    is_active_state(module.state.as_deref())
}

fn is_active_state(state: Option<&str>) -> bool {
    matches!(state, Some("running" | "paused" | "restarting"))
}

fn checked(request: ModuleSpecification) -> Result<Specification, Error> {
    Specification::new(request).map_err(|invalid| Error::Invalid(invalid.to_string()))
}

/// As [`checked`], for the module of this name and no other.
fn checked_for(name: &Name, request: ModuleSpecification) -> Result<Specification, Error> {
    checked(request)?.named(name).map_err(|invalid| Error::Invalid(invalid.to_string()))
}
