//! Removes images that the runtime once used and nobody has used for long. Those that it never used are not touched, nor is the agent's.
//!
//! No removal is forced: an image that a stopped container of somebody else was made of stays. Whatever fails is tried again the next time.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use aziot_edged_api::config::ImageGarbageCollection;
use aziot_log::{chain, fields};
use jiff::Zoned;

use super::{Use, schedule::Schedule, usage};
use crate::docker::{Docker, Error, Reference};

/// Removes unused images from time to time.
pub(crate) struct Collector {
    docker: Docker,
    usage: Arc<Use>,
    settings: ImageGarbageCollection,
    /// The image that a new agent would be made of.
    agent_image: String,
    /// Its id, once it was found; it is kept even when its name has moved on to another image that is not here.
    agent_id: Mutex<Option<String>>,
}

impl Collector {
    /// Nothing is removed yet.
    pub(crate) fn new(docker: Docker, usage: Arc<Use>, settings: ImageGarbageCollection, agent_image: String) -> Self {
        Self { docker, usage, settings, agent_image, agent_id: Mutex::default() }
    }

    /// Removes unused images at the times configured, for ever.
    pub(crate) async fn run(&self) {
        if !self.settings.enabled {
            tracing::info!("unused images are not removed");
            return std::future::pending().await;
        }
        let mut schedule = Schedule::new(&self.settings, &Zoned::now());
        loop {
            tracing::info!("unused images will be removed at {}", schedule.next());
            if !schedule.wait().await {
                continue;
            }
            if let Err(error) = self.collect(usage::now()).await {
                tracing::warn!({ fields::ERROR } = %chain(&error), "unused images are not removed this time");
            }
            schedule.advance(&Zoned::now());
        }
    }

    /// Removes what is unused now.
    async fn collect(&self, now: u64) -> Result<(), Error> {
        if !self.usage.is_readable().await {
            return Ok(());
        }
        let agent = self.agent_id().await?;
        let containers = self.docker.list_all().await?;
        let mut in_use: HashSet<String> = containers.into_iter().map(|container| container.image_id).collect();
        in_use.extend(agent);
        let since = now.saturating_sub(self.settings.image_age_cleanup_threshold.0.as_secs());
        for id in self.usage.refresh(|id| in_use.contains(id), now, since).await {
            // A module may have been made of it a moment ago.
            if self.usage.is_older(&id, since) {
                self.remove(&id).await;
            }
        }
        Ok(())
    }

    async fn agent_id(&self) -> Result<Option<String>, Error> {
        let Ok(reference) = Reference::new(&self.agent_image) else { return Ok(None) };
        let known = || self.agent_id.lock().unwrap_or_else(PoisonError::into_inner);
        match self.docker.image(&reference).await {
            Ok(image) => *known() = Some(image.id),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(known().clone())
    }

    async fn remove(&self, id: &str) {
        let outcome = match Reference::new(id) {
            Ok(reference) => self.remove_reference(&reference).await,
            // No engine has such an id.
            Err(_) => Ok(()),
        };
        match outcome {
            Ok(()) => {
                tracing::info!({ fields::IMAGE } = id, "removed the image, which nobody has used for long");
                self.usage.forget(id).await;
            }
            Err(error) => {
                tracing::warn!({ fields::IMAGE } = id, { fields::ERROR } = %chain(&error), "the image is not removed");
            }
        }
    }

    async fn remove_reference(&self, id: &Reference) -> Result<(), Error> {
        match gone(self.docker.remove_image(id).await) {
            Err(error) if has_several_names(&error) => {
                let image = match self.docker.image(id).await {
                    Ok(image) => image,
                    Err(error) => return gone(Err(error)),
                };
                let names: Vec<String> = image.repo_tags.into_iter().chain(image.repo_digests).flatten().collect();
                for name in names.iter().filter_map(|name| Reference::new(name).ok()) {
                    gone(self.docker.remove_image(&name).await)?;
                }
                gone(self.docker.remove_image(id).await)
            }
            outcome => outcome,
        }
    }
}

/// Whether an image was not removed only because an id stands for all its names (409, or 500 of Podman). Each is removed then; what somebody
/// needs stays all the same.
fn has_several_names(error: &Error) -> bool {
    let text = error.to_string();
    let says = ["multiple repositories", "more than one tag"].iter().any(|words| text.contains(words));
    says && error.status().is_some()
}

/// What is not there need not be removed.
fn gone(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if error.is_not_found() => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use aziot_files::Mode;
    use serde_json::json;

    use super::*;
    use crate::docker::tests::engine::{Engine, Fault};

    const NOW: u64 = 10_000_000;

    struct World {
        engine: Engine,
        collector: Collector,
        folder: tempfile::TempDir,
    }

    /// Two digits, and zeros after them, are the id of each image.
    const NAMES: [(&str, &str); 6] =
        [("agent", "a0"), ("foreign", "b0"), ("gone", "c0"), ("old", "d0"), ("used", "e0"), ("young", "f0")];

    fn id(name: &str) -> String {
        let (_, digits) = NAMES.iter().find(|(known, _)| *known == name).unwrap();
        format!("sha256:{digits:0<64}")
    }

    /// Images `agent:1`, `used:1`, `old:1`, `young:1` and `foreign:1`, of which all but the last are known.
    async fn world() -> World {
        let engine = Engine::start();
        for name in ["agent", "used", "old", "young", "foreign"] {
            engine.add_image(&format!("{name}:1"), &id(name));
        }
        engine.add_container("somebody", "exited", json!({ "Image": "used:1" }));
        let folder = tempfile::tempdir().unwrap();
        let times = [("agent", 1), ("used", 1), ("old", 1), ("gone", 1), ("young", NOW - 5)];
        let lines = times.map(|(name, time)| format!("{} {time}\n", id(name))).concat();
        aziot_files::write(folder.path().join("image_use"), Mode::SHARED, lines).unwrap();
        let usage = Arc::new(Use::open(folder.path()).await);
        let settings = ImageGarbageCollection::default();
        let collector = Collector::new(engine.docker(), usage, settings, "agent:1".to_owned());
        World { engine, collector, folder }
    }

    async fn later(days: u64) {
        tokio::time::pause();
        tokio::time::advance(std::time::Duration::from_secs(days * 86_400)).await;
        tokio::time::resume();
    }

    impl World {
        fn known(&self) -> Vec<&str> {
            let text = aziot_files::read_limited(self.folder.path().join("image_use"), 10_000).unwrap();
            let text = String::from_utf8(text).unwrap();
            let is_known = |name: &str| text.lines().any(|line| line.starts_with(&id(name)));
            NAMES.into_iter().map(|(name, _)| name).filter(|name| is_known(name)).collect()
        }

        fn has(&self, name: &str) -> bool {
            self.engine.images().contains(&format!("{name}:1"))
        }
    }

    #[tokio::test]
    async fn only_what_is_old_and_unused_and_was_ours_goes() {
        let world = world().await;
        world.collector.collect(NOW).await.unwrap();
        assert!(!world.has("old"));
        assert!(["agent", "used", "young", "foreign", "image"].into_iter().all(|name| world.has(name)));
        assert_eq!(world.known(), ["agent", "used", "young"]);
        // An image that is used is young again, and goes a threshold after its last container.
        world.collector.docker.remove("somebody").await.unwrap();
        world.collector.collect(NOW + 5).await.unwrap();
        assert!(world.has("used"));
        later(8).await;
        world.collector.collect(NOW + 8 * 86_400).await.unwrap();
        assert!(!world.has("used") && !world.has("young") && world.has("agent"));
    }

    #[tokio::test]
    async fn a_removal_that_fails_is_tried_again() {
        let world = world().await;
        world.engine.fail(
            &format!("DELETE /images/{}", id("old").replace(':', "%3A")),
            Fault::Refuse(409, "conflict: image has dependent child images"),
        );
        world.collector.collect(NOW).await.unwrap();
        assert!(world.has("old") && world.known().contains(&"old"));
        world.collector.collect(NOW).await.unwrap();
        assert!(!world.has("old") && !world.known().contains(&"old"));
    }

    #[tokio::test]
    async fn an_image_with_several_names_goes_name_by_name() {
        let world = world().await;
        world.engine.add_image("host:5000/old:2", &id("old"));
        world.collector.collect(NOW).await.unwrap();
        assert!(!world.has("old") && !world.engine.images().contains(&"host:5000/old:2".to_owned()));
        assert!(!world.known().contains(&"old"));
    }

    #[tokio::test]
    async fn an_engine_that_fails_loses_nothing() {
        let world = world().await;
        for call in ["GET /containers/json", "GET /images/agent"] {
            world.engine.fail(call, Fault::Refuse(500, "no space left on device"));
            assert!(world.collector.collect(NOW).await.is_err());
        }
        assert!(world.has("old"));
        assert_eq!(world.known().len(), 5);
    }

    #[tokio::test]
    async fn the_agents_image_is_kept_when_its_name_has_gone() {
        let world = world().await;
        world.collector.collect(NOW).await.unwrap();
        world.engine.add_image("backup:1", &id("agent"));
        world.collector.docker.remove_image(&Reference::new("agent:1").unwrap()).await.unwrap();
        later(30).await;
        world.collector.collect(NOW + 30 * 86_400).await.unwrap();
        assert!(world.has("backup"));
    }
}
