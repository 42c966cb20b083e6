//! Support bundles: what a supporter wants to see of a device, in one zip file.
//!
//! One is made at a time, on disk and not in memory, within a limit of size and one of time: what does not fit is named in the bundle. It
//! holds what `docker inspect` and the logs hold, environments of modules included, so it is as private as those. No lock is held: modules
//! are started and stopped meanwhile.

mod archive;
mod content;
mod programs;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use aziot_edged_api::{
    logs::{InvalidParameter, LogOptions, flag, seconds},
    system::GetSupportBundle,
};
use aziot_http::Streamed;
use jiff::Timestamp;
use tokio::{sync::Semaphore, time::Instant};

use crate::{docker::Docker, modules::Modules};
use archive::Archive;
use content::Sources;

/// How long a request waits for the one before it.
const WAIT: Duration = Duration::from_secs(60);
/// Time for one bundle. The agent's client gives up after five minutes.
const LIMIT: Duration = Duration::from_secs(230);

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another one is being made, and takes its time.
    #[error("another support bundle is being made")]
    Busy,
    /// The file could not be made or filled.
    #[error("could not write the bundle below {}", folder.display())]
    File {
        /// Where it is made.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime is ending.
    #[error("the runtime is ending")]
    Ending,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    logs: LogOptions,
    hub: Option<String>,
    edge_runtime_only: bool,
}

impl Query {
    /// Checks a request; times are reckoned from `now`.
    pub(crate) fn new(call: &GetSupportBundle, now: Timestamp) -> Result<Self, InvalidParameter> {
        let time =
            |name, text: Option<&String>| text.map(|text| seconds(text, now).ok_or(InvalidParameter(name))).transpose();
        Ok(Self {
            logs: LogOptions {
                since: time("since", call.since.as_ref())?,
                until: time("until", call.until.as_ref())?,
                ..LogOptions::default()
            },
            hub: call.iothub_hostname.clone().filter(|hub| !hub.is_empty()),
            edge_runtime_only: flag("edge_runtime_only", call.edge_runtime_only.as_deref())?,
        })
    }
}

/// Makes support bundles.
pub(crate) struct SupportBundles {
    sources: Sources,
    /// The file has no name there, and is gone when nobody reads it any more.
    folder: PathBuf,
    turn: Semaphore,
}

impl SupportBundles {
    /// Of these modules, on the engine at `engine`; files are made in `folder`, which is there.
    pub(crate) fn new(modules: Arc<Modules>, docker: Docker, engine: &str, folder: PathBuf) -> Self {
        Self { sources: Sources::new(modules, docker, engine), folder, turn: Semaphore::new(1) }
    }

    /// The bundle; nothing of it is sent before all of it is there.
    pub(crate) async fn make(&self, query: Query) -> Result<Streamed, Error> {
        let turn = tokio::time::timeout(WAIT, self.turn.acquire()).await;
        // Nobody closes the semaphore.
        let _turn = turn.map_err(|_| Error::Busy)?.map_err(|_| Error::Ending)?;
        let failed = |source| Error::File { folder: self.folder.clone(), source };
        let mut archive = Archive::create(&self.folder, archive::LIMITS).map_err(failed)?;
        self.sources.fill(&mut archive, &query, Instant::now() + LIMIT).await;
        let finished = archive.finish().await.map_err(failed)?;
        Ok(Streamed::zip(finished.length, finished.into_stream()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_checked() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let text = |text: &str| Some(text.to_owned());
        let call = GetSupportBundle {
            since: text("1h"),
            until: text("5"),
            iothub_hostname: text("hub.example"),
            edge_runtime_only: text("true"),
        };
        let query = Query::new(&call, now).unwrap();
        assert_eq!((query.logs.since, query.logs.until), (Some(996_400), Some(5)));
        assert_eq!((query.hub.as_deref(), query.edge_runtime_only), (Some("hub.example"), true));
        let refused = |call: GetSupportBundle| Query::new(&call, now).unwrap_err().to_string();
        let call = GetSupportBundle { edge_runtime_only: text("yes"), ..GetSupportBundle::default() };
        assert_eq!(refused(call), "invalid parameter: edge_runtime_only");
        let call = GetSupportBundle { since: text("x"), ..GetSupportBundle::default() };
        assert_eq!(refused(call), "invalid parameter: since");
    }
}
