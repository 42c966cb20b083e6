//! Calls on containers. What an answer holds beyond the members named here is not looked at.

use std::{collections::BTreeMap, time::Duration};

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use aziot_edged_api::logs::{LogOptions, Tail};
pub(crate) use aziot_edged_api::module::{OWNER, OWNER_LABEL};

use super::{Docker, Error, Frames, LIMIT, transport::Call};

/// A volume that is filled from the image is copied before the engine answers, on the disk of a small gateway.
const CREATE_LIMIT: Duration = Duration::from_secs(240);
/// Fifty modules that start at once after a power cut share one disk; removal of a large layer takes its time as well.
const START_LIMIT: Duration = Duration::from_secs(120);

/// What the engine says of one container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Container {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    name: String,
    /// Id of the image, `sha256:…`.
    pub(crate) image: String,
    /// What it is doing.
    pub(crate) state: State,
    config: Config,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct State {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub(crate) status: Option<String>,
    /// 0 while it has never ended.
    pub(crate) exit_code: Option<i64>,
    /// RFC 3339; `0001-01-01T00:00:00Z` for never.
    pub(crate) started_at: Option<String>,
    /// As `started_at`.
    pub(crate) finished_at: Option<String>,
    /// First process, as the engine numbers it; 0 while there is none.
    pub(crate) pid: i32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    tty: bool,
    #[serde(default)]
    stop_timeout: Option<i64>,
}

impl Container {
    /// Its name, without the `/` that the engine puts in front.
    pub(crate) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    /// Its labels.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.config.labels.as_ref().unwrap_or(&NONE)
    }

    /// Whether it is a module.
    pub(crate) fn is_module(&self) -> bool {
        self.labels().get(OWNER_LABEL).is_some_and(|owner| owner == OWNER)
    }

    /// Whether its output is a terminal's: plain bytes, not frames.
    pub(crate) fn has_terminal(&self) -> bool {
        self.config.tty
    }

    /// Seconds that it has for stopping, if it says so; negative for ever.
    pub(crate) fn stop_timeout_seconds(&self) -> Option<i64> {
        self.config.stop_timeout
    }
}

/// One container of a list.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    /// Id of the image, `sha256:…`.
    #[serde(rename = "ImageID", default)]
    pub(crate) image_id: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    /// As [`State::status`].
    #[serde(default)]
    pub(crate) state: Option<String>,
    /// For people: `Exited (137) 2 hours ago`.
    #[serde(default)]
    pub(crate) status: Option<String>,
}

impl Listed {
    /// Its name: not one that another container has for it, which has a `/` inside.
    pub(crate) fn name(&self) -> Option<&str> {
        let names = self.names.iter().flatten().map(|name| name.trim_start_matches('/'));
        names.into_iter().find(|name| !name.is_empty() && !name.contains('/'))
    }

    /// Its labels.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.labels.as_ref().unwrap_or(&NONE)
    }
}

/// What making a container gave.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Created {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    /// What the engine thinks of the options.
    #[serde(default)]
    pub(crate) warnings: Option<Vec<String>>,
}

impl Docker {
    /// All modules, running or not.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, Error> {
        let filters = json!({ "label": [format!("{OWNER_LABEL}={OWNER}")] }).to_string();
        self.0.json(&Call::get("/containers/json").query("all", "true").query("filters", &filters)).await
    }

    /// All containers of the engine, whoever made them.
    pub(crate) async fn list_all(&self) -> Result<Vec<Listed>, Error> {
        self.0.json(&Call::get("/containers/json").query("all", "true")).await
    }

    /// One container. The engine takes an id and unique beginnings of ids for a name: compare [`Container::name`].
    pub(crate) async fn inspect(&self, name: &str) -> Result<Container, Error> {
        self.0.json(&Call::get("/containers/").segment(name).then("/json")).await
    }

    /// All that the engine says of a container.
    pub(crate) async fn inspect_whole(&self, id: &str) -> Result<Value, Error> {
        self.0.json(&Call::get("/containers/").segment(id).then("/json")).await
    }

    /// Makes a container with the create options as they are.
    pub(crate) async fn create(&self, name: &str, options: &Value) -> Result<Created, Error> {
        let call = Call::new(Method::POST, "/containers/create").query("name", name).body(options).limit(CREATE_LIMIT);
        self.0.json(&call).await.map_err(taken)
    }

    /// Starts a container; one that runs goes on.
    pub(crate) async fn start(&self, id: &str) -> Result<(), Error> {
        let call = Call::new(Method::POST, "/containers/").segment(id).then("/start").limit(START_LIMIT);
        self.0.nothing(&call).await
    }

    /// Stops a container; one that does not run stays so. Without `seconds` the engine takes the container's own grace, or 10 s. `limit` is
    /// longer than what it takes.
    pub(crate) async fn stop(&self, id: &str, seconds: Option<u64>, limit: Duration) -> Result<(), Error> {
        self.0.nothing(&ending(id, "/stop", seconds, limit)).await
    }

    /// Stops a container, if it runs, and starts it. Times as for [`stop`](Self::stop).
    pub(crate) async fn restart(&self, id: &str, seconds: Option<u64>, limit: Duration) -> Result<(), Error> {
        self.0.nothing(&ending(id, "/restart", seconds, limit)).await
    }

    /// Removes a container, running or not; its volumes stay.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        self.0.nothing(&removal(id, "false")).await
    }

    /// Removes a container with the volumes that the engine has made for it, those with names excepted.
    pub(crate) async fn remove_with_volumes(&self, id: &str) -> Result<(), Error> {
        self.0.nothing(&removal(id, "true")).await
    }

    /// Waits until a container that is being removed is gone, or its removal has failed.
    pub(crate) async fn wait_removed(&self, id: &str, limit: Duration) -> Result<(), Error> {
        let call = Call::new(Method::POST, "/containers/").segment(id).then("/wait").query("condition", "removed");
        // The head of the answer comes at once, and its body in the end.
        let late = || Error::TimedOut { call: call.name(), limit };
        tokio::time::timeout(limit, self.0.nothing(&call)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Gives a container another name.
    pub(crate) async fn rename(&self, id: &str, name: &str) -> Result<(), Error> {
        let call = Call::new(Method::POST, "/containers/").segment(id).then("/rename").query("name", name);
        self.0.nothing(&call).await
    }

    /// The engine's statistics of a container, as it wrote them. It takes two samples, a second or two apart.
    pub(crate) async fn stats(&self, id: &str) -> Result<Box<RawValue>, Error> {
        let call = Call::get("/containers/").segment(id).then("/stats");
        self.0.json(&call.query("stream", "false").query("one-shot", "false")).await
    }

    /// What a container wrote to its outputs, as frames.
    pub(crate) async fn logs(&self, container: &Container, options: &LogOptions) -> Result<Frames, Error> {
        let flag = |set| if set { "true" } else { "false" };
        let mut call = Call::get("/containers/").segment(&container.id).then("/logs");
        call = call.query("stdout", "true").query("stderr", "true");
        call = call.query("follow", flag(options.follow)).query("timestamps", flag(options.timestamps));
        if let Some(since) = options.since {
            call = call.query("since", &since.max(0).to_string());
        }
        if let Some(until) = options.until {
            // For the engine 0 is no limit, and what it wrote before 1970 is nothing.
            call = call.query("until", &until.max(1).to_string());
        }
        call = match options.tail {
            Tail::All => call.query("tail", "all"),
            Tail::Lines(lines) => call.query("tail", &lines.to_string()),
        };
        let head = self.0.head(&call).await?;
        let idle = (!options.follow).then_some(LIMIT);
        Ok(Frames::new(call.name(), head.into_body(), container.has_terminal(), idle))
    }
}

/// Podman says 500 where the name is taken, and Docker 409.
fn taken(error: Error) -> Error {
    match error {
        Error::Refused { status: StatusCode::INTERNAL_SERVER_ERROR, message }
            if message.contains("name is already in use") =>
        {
            Error::Refused { status: StatusCode::CONFLICT, message }
        }
        other => other,
    }
}

fn removal(id: &str, volumes: &str) -> Call {
    let call = Call::new(Method::DELETE, "/containers/").segment(id).query("force", "true").query("v", volumes);
    call.limit(START_LIMIT)
}

fn ending(id: &str, action: &'static str, seconds: Option<u64>, limit: Duration) -> Call {
    let call = Call::new(Method::POST, "/containers/").segment(id).then(action).limit(limit);
    match seconds {
        Some(seconds) => call.query("t", &seconds.to_string()),
        None => call,
    }
}
