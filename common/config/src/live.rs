//! A service's config over its life: read at the start, and again after each change, with the log lines of the public services.
//!
//! What of a new config can act while the service runs is the service's business.

use std::error::Error as StdError;
use std::marker::PhantomData;

use aziot_log::chain;
use serde::de::DeserializeOwned;

use crate::{Change, Error, Loaded, Sources, Watch, load};

/// The changes of a config that was read once.
pub struct Live<T> {
    sources: Sources,
    /// Without it the config stays what it is; the reason was logged.
    watch: Option<Watch>,
    config: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned + Send + 'static> Live<T> {
    /// Starts watching, then reads the config: in this order no change is missed. What is odd about it is logged.
    ///
    /// Must be called within a tokio runtime. Blocks on the files for a moment.
    pub fn start(sources: Sources) -> Result<(T, Live<T>), Error> {
        let watch = Watch::start(&sources)
            .inspect_err(|error| tracing::warn!("{}; a changed config needs a restart", chain(error)))
            .ok();
        let config = log_findings(load::<T>(&sources)?);
        Ok((config, Live { sources, watch, config: PhantomData }))
    }

    /// Hands every new config that can be read to `apply`, for as long as this is polled. One that cannot be read, or that
    /// `apply` refuses, leaves everything as it was.
    pub async fn follow<E, F>(mut self, mut apply: impl FnMut(T) -> F)
    where
        E: StdError + 'static,
        F: Future<Output = Result<(), E>>,
    {
        loop {
            let config = self.next().await;
            tracing::info!("Detected change in config files. Updating config.");
            match apply(config).await {
                Ok(()) => tracing::info!("Config update finished."),
                Err(error) => tracing::warn!("Config update failed. Error: {}", chain(&error)),
            }
        }
    }

    /// The next config that can be read.
    async fn next(&mut self) -> T {
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        loop {
            let (Change::Files | Change::Requested) = watch.changed().await;
            let sources = self.sources.clone();
            match tokio::task::spawn_blocking(move || load::<T>(&sources)).await {
                Ok(Ok(loaded)) => return log_findings(loaded),
                Ok(Err(error)) => tracing::warn!(
                    "Detected config file update, but new config failed to parse. Error: {}",
                    chain(&error)
                ),
                // The runtime is going down, or the reader panicked, which the panic log tells: the old config stays.
                Err(_) => {}
            }
        }
    }
}

fn log_findings<T>(loaded: Loaded<T>) -> T {
    for finding in &loaded.findings {
        tracing::warn!("{}", finding.one_line());
    }
    loaded.value
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    use aziot_files::{Mode, write};
    use tokio::sync::mpsc;

    use super::*;

    type Config = BTreeMap<String, u32>;

    fn put(path: &Path, text: &str) {
        write(path, Mode::PRIVATE, text).unwrap();
    }

    #[tokio::test]
    async fn good_configs_are_handed_on_and_bad_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { main: folder.path().join("config.toml"), directory: folder.path().join("config.d") };
        put(&sources.main, "a = 1");
        let (config, live) = Live::<Config>::start(sources.clone()).unwrap();
        assert_eq!(config["a"], 1);

        let (sender, mut configs) = mpsc::channel(1);
        let follow = live.follow(move |config: Config| {
            let sender = sender.clone();
            async move { sender.send(config["a"]).await.map_err(io::Error::other) }
        });
        let script = async {
            // Both before one quiet moment or each on its own: the broken one never comes.
            put(&sources.main, "a = ");
            put(&sources.main, "a = 2");
            assert_eq!(configs.recv().await, Some(2));
            put(&sources.main, "a = \"three\"");
            put(&sources.main, "a = 4");
            assert_eq!(configs.recv().await, Some(4));
        };
        let both = async {
            tokio::select! {
                () = follow => {}
                () = script => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    }
}
