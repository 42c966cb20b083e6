//! Puts a new container in the place of a module's old one, in steps of which each can be the last one before a power cut.
//!
//! The new container is made beside the old one under a reserved name; the old one is stopped and leaves its name for another reserved one;
//! the new one gets the name; the old one is removed. A new container whose module has none gets the name, one beside it gives way, and an
//! old one that has left its name is litter: whatever keeps the engine from removing it, the module goes on without it.

use std::time::Duration;

use aziot_log::fields;
use serde_json::Value;

use super::{Held, held::limit};
use crate::{
    docker::{self, Container},
    error::{Error, Operation},
};

/// How often a call that nobody answered is made again, and the longest pause before the first time, which grows: an engine that is started
/// again takes a few seconds.
const REPETITIONS: u32 = 2;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a removal that the engine is at work on is waited for.
const REMOVAL: Duration = Duration::from_secs(30);

/// Whose options the new container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Those of a request.
    Request,
    /// Those of the old container, with the volumes that the engine had made for it.
    Old,
}

impl Held<'_> {
    /// Puts a new container in the place of the old one, which goes on if that cannot be done.
    pub(super) async fn exchange(&self, old: &Container, options: &Value, origin: Origin) -> Result<(), Error> {
        self.expect_open(Operation::Create)?;
        let new = async {
            self.discard_replacement().await?;
            self.create_container(&self.name.replacement(), options).await
        };
        let new = new.await.map_err(|error| self.error(Operation::Create, error))?;
        if let Err(error) = self.stop_container(old, None).await {
            self.go_on(old, &new, origin, Operation::Stop, error).await?;
        }
        if let Err(error) = self.vacate(&old.id).await {
            self.go_on(old, &new, origin, Operation::Remove, error).await?;
        }
        if let Err(error) = self.rename(&new, self.name.as_str()).await {
            self.put_back(old, &new, origin, &error).await;
            return Err(self.error(Operation::Create, error));
        }
        self.modules.images.used_id(&old.image).await;
        self.discard_old(&old.id).await;
        Ok(())
    }

    /// After a step that failed: `Ok` where the old container is gone or can never start again, so that the new one has to take its place.
    /// Otherwise the new one goes, and the old one runs again if it ran.
    async fn go_on(
        &self,
        old: &Container,
        new: &str,
        origin: Origin,
        operation: Operation,
        error: docker::Error,
    ) -> Result<(), Error> {
        match self.look(&old.id).await {
            Ok(None) => return Ok(()),
            Ok(Some(found)) if is_half_removed(&found) => {
                return self.vacate(&old.id).await.map_err(|error| self.error(operation, error));
            }
            Ok(Some(found)) => {
                self.discard(new, origin).await;
                if !is_active(&found) {
                    self.revive(old).await;
                }
            }
            // The next look at the module finds both.
            Err(error) => self.warn(&error, "it is not known what became of the module's container"),
        }
        Err(self.error(operation, error))
    }

    /// Gives the old container its name back. Where that fails the new one keeps its own, and the next look at the module finds it.
    async fn put_back(&self, old: &Container, new: &str, origin: Origin, error: &docker::Error) {
        if error.status().is_none() || self.rename(&old.id, self.name.as_str()).await.is_err() {
            return;
        }
        self.discard(new, origin).await;
        self.revive(old).await;
    }

    /// Has a container leave the module's name, which is then free. One that is gone has left it.
    pub(super) async fn vacate(&self, id: &str) -> Result<(), docker::Error> {
        match self.rename(id, &self.name.retired(id)).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome,
        }
    }

    /// Removes a container. One that the engine cannot get rid of leaves its name; what is left of it is for the next start.
    pub(super) async fn remove_container(&self, id: &str) -> Result<(), docker::Error> {
        let Err(error) = persistently(|| self.modules.docker.remove(id)).await else { return Ok(()) };
        if error.is_not_found() {
            return Ok(());
        }
        match self.look(id).await {
            Ok(None) => Ok(()),
            Ok(Some(found)) if is_half_removed(&found) => {
                self.warn(&error, "the engine cannot remove a container, which leaves the module's name");
                self.vacate(id).await
            }
            Ok(Some(_)) | Err(_) => Err(error),
        }
    }

    /// Gives a container a name, or finds that it has got it though the answer was lost.
    pub(super) async fn rename(&self, id: &str, name: &str) -> Result<(), docker::Error> {
        let docker = &self.modules.docker;
        let Err(error) = persistently(|| docker.rename(id, name)).await else { return Ok(()) };
        match docker.inspect(id).await {
            Ok(found) if found.name() == name => Ok(()),
            _ => Err(error),
        }
    }

    /// What has become of a container; `None` if it is gone. A removal that is under way is waited for, for some time.
    async fn look(&self, id: &str) -> Result<Option<Container>, docker::Error> {
        let docker = &self.modules.docker;
        let look = || async {
            match persistently(|| docker.inspect(id)).await {
                Err(error) if error.is_not_found() => Ok(None),
                outcome => outcome.map(Some),
            }
        };
        match look().await? {
            Some(found) if found.state.status.as_deref() == Some("removing") => {
                if let Err(error) = docker.wait_removed(id, REMOVAL).await
                    && !error.is_not_found()
                {
                    self.warn(&error, "a container is still being removed");
                }
                look().await
            }
            found => Ok(found),
        }
    }

    /// Removes the new container, which never ran. If that fails, the next look at the module does it.
    async fn discard(&self, id: &str, origin: Origin) {
        let docker = &self.modules.docker;
        let removed = match origin {
            Origin::Request => docker.remove_with_volumes(id).await,
            Origin::Old => docker.remove(id).await,
        };
        if let Err(error) = removed
            && !error.is_not_found()
        {
            self.warn(&error, "the container that was to replace the module's stays for now");
        }
    }

    /// Removes a container that has left the module's name. If that fails, the next start does it.
    pub(super) async fn discard_old(&self, id: &str) {
        if let Err(error) = persistently(|| self.modules.docker.remove(id)).await
            && !error.is_not_found()
            // The engine is at it already.
            && error.status() != Some(http::StatusCode::CONFLICT)
        {
            self.warn(&error, "the module's old container stays, without its name, until the next start");
        }
    }

    /// Starts the old container again if there was something to stop.
    async fn revive(&self, old: &Container) {
        if !is_active(old) || self.modules.is_closing() {
            return;
        }
        tracing::info!({ fields::MODULE_ID } = %self.name, "the module was not replaced: starting it again");
        if let Err(error) = persistently(|| self.modules.docker.start(&old.id)).await {
            self.warn(&error, "the module was not replaced, and does not start again");
        }
    }

    pub(super) async fn stop_container(
        &self,
        container: &Container,
        grace: Option<Duration>,
    ) -> Result<(), docker::Error> {
        let seconds = grace.map(|grace| grace.as_secs());
        match self.modules.docker.stop(&container.id, seconds, limit(container, grace)).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome,
        }
    }
}

/// Makes a call that does no harm when it is made twice, and makes it again where the connection to the engine broke.
async fn persistently<T, C: Future<Output = Result<T, docker::Error>>>(
    call: impl Fn() -> C,
) -> Result<T, docker::Error> {
    for repetition in 1..=REPETITIONS {
        match call().await {
            Err(docker::Error::NotConnected { .. } | docker::Error::Interrupted { .. }) => {}
            outcome => return outcome,
        }
        tokio::time::sleep(PAUSE.mul_f64(f64::from(repetition) * (0.5 + fastrand::f64() * 0.5))).await;
    }
    call().await
}

/// Whether the engine was interrupted when it removed the container, which is of no more use.
pub(super) fn is_half_removed(container: &Container) -> bool {
    matches!(container.state.status.as_deref(), Some("dead" | "removing"))
}

/// Whether the engine has something to stop.
fn is_active(container: &Container) -> bool {
    super::is_active_state(container.state.status.as_deref())
}
