//! An engine with containers and images in memory, which can be told to fail at any call: what it shall do wrong, it does once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinSet};

use crate::docker::Docker;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call is refused and has no effect.
    Refuse(u16, &'static str),
    /// The call has no effect, and the connection breaks.
    Cut,
    /// The call has its effect, and the connection breaks before the answer.
    CutAfter,
    /// No answer ever, and no effect.
    Hang,
    /// The call is refused, and the container has another state from then on.
    Leave(&'static str, u16, &'static str),
    /// The engine goes down before the call has its effect, and stays so until it recovers.
    Down,
    /// The engine goes down as soon as the call has its effect.
    DownAfter,
}

#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) image: String,
    pub(crate) status: &'static str,
    pub(crate) options: Value,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, Made>,
    /// Names of images to their ids.
    images: BTreeMap<String, String>,
    /// Names that the registry has.
    registry: BTreeSet<String>,
    faults: Vec<(String, Fault)>,
    is_down: bool,
    calls: Vec<String>,
    made: usize,
}

pub(crate) struct Engine {
    folder: TempDir,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Engine {
    /// An engine with nothing but the image `image:1`.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                let answer = service_fn(move |request| answer(Arc::clone(&state), request));
                connections.spawn(async move {
                    // Cut connections are errors here.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        let engine = Self { folder, state, _tasks: tasks };
        engine.add_image("image:1", "sha256:01");
        engine
    }

    pub(crate) fn docker(&self) -> Docker {
        Docker::new(&format!("unix://{}/s", self.folder.path().display())).unwrap()
    }

    pub(crate) fn add_image(&self, name: &str, id: &str) {
        self.state().images.insert(name.to_owned(), id.to_owned());
    }

    /// The registry has an image of this name; pulling it gives `sha256:` and the name.
    pub(crate) fn publish(&self, name: &str) {
        self.state().registry.insert(name.to_owned());
    }

    /// A container that somebody has made.
    pub(crate) fn add_container(&self, name: &str, status: &'static str, options: Value) {
        let mut state = self.state();
        state.add(name, status, options);
    }

    /// The next call whose method and target begin so goes wrong.
    pub(crate) fn fail(&self, call: &str, fault: Fault) {
        self.state().faults.push((call.to_owned(), fault));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn recover(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.is_down = false;
    }

    pub(crate) fn container(&self, name: &str) -> Option<Made> {
        self.state().containers.get(name).cloned()
    }

    /// Names and states of all containers.
    pub(crate) fn containers(&self) -> Vec<(String, &'static str)> {
        self.state().containers.iter().map(|(name, made)| (name.clone(), made.status)).collect()
    }

    pub(crate) fn images(&self) -> Vec<String> {
        self.state().images.keys().cloned().collect()
    }

    /// All calls since the last time that somebody asked, without those that only look.
    pub(crate) fn changes(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state().calls);
        calls.into_iter().filter(|call| !call.starts_with("GET")).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn add(&mut self, name: &str, status: &'static str, options: Value) -> String {
        self.made += 1;
        let id = format!("{:064x}", self.made);
        let image = options["Image"].as_str().and_then(|image| self.image(image)).unwrap_or_default();
        self.containers.insert(name.to_owned(), Made { id: id.clone(), image, status, options });
        id
    }

    /// The id of an image that was named by it or by a name.
    fn image(&self, reference: &str) -> Option<String> {
        let by_id = || self.images.values().find(|id| *id == reference);
        self.images.get(reference).or_else(by_id).cloned()
    }

    /// The name of a container that was named by it, or by its id, or by the beginning of that.
    fn name(&self, name: &str) -> Option<String> {
        let by_id = || self.containers.iter().find(|(_, made)| made.id.starts_with(name)).map(|(name, _)| name.clone());
        if self.containers.contains_key(name) { Some(name.to_owned()) } else { by_id() }
    }
}

type Answer = Response<Full<Bytes>>;

/// Whose error is that the connection is cut.
async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Answer, io::Error> {
    let (head, body) = request.into_parts();
    let call = format!("{} {}", head.method, head.uri);
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    let fault = {
        let mut state = state.lock().unwrap();
        if state.is_down {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.calls.push(call.clone());
        let found = state.faults.iter().position(|(wanted, _)| call.starts_with(wanted));
        found.map(|position| state.faults.remove(position).1)
    };
    match fault {
        Some(Fault::Refuse(status, message)) => return Ok(refusal(status, message)),
        Some(Fault::Hang) => return std::future::pending().await,
        Some(Fault::Cut) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Fault::Down) => {
            state.lock().unwrap().is_down = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Some(Fault::Leave(status, code, message)) => {
            let mut state = state.lock().unwrap();
            let name = head.uri.path().split('/').nth(2).and_then(|name| state.name(name));
            if let Some(made) = name.and_then(|name| state.containers.get_mut(&name)) {
                made.status = status;
            }
            return Ok(refusal(code, message));
        }
        Some(Fault::CutAfter | Fault::DownAfter) | None => {}
    }
    let options = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let answer =
        state.lock().unwrap().answer(&head.method, &decoded(head.uri.path()), head.uri.query().unwrap_or(""), options);
    match fault {
        Some(Fault::DownAfter) => state.lock().unwrap().is_down = true,
        Some(Fault::CutAfter) => {}
        _ => return Ok(answer),
    }
    Err(io::ErrorKind::ConnectionAborted.into())
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

fn refusal(status: u16, message: &str) -> Answer {
    reply(status, &json!({ "message": message }))
}

fn reply(status: u16, body: &Value) -> Answer {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, query: &str, options: Value) -> Answer {
        let parameter = |name: &str| {
            let found = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
            decoded(found.unwrap_or_default())
        };
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["containers", "json"]) => {
                let owned = |made: &Made| made.options["Labels"][crate::docker::OWNER_LABEL] == crate::docker::OWNER;
                let all = parameter("filters").is_empty();
                let listed = self.containers.iter().filter(|(_, made)| all || owned(made));
                let listed = listed.map(|(name, made)| {
                    json!({ "Id": made.id, "Names": [format!("/{name}")], "ImageID": made.image, "State": made.status,
                        "Labels": made.options["Labels"], "Status": "Exited (3) a while ago" })
                });
                reply(200, &listed.collect())
            }
            ("POST", ["containers", "create"]) => {
                let name = parameter("name");
                if self.containers.contains_key(&name) {
                    return refusal(409, "the name is taken");
                }
                if self.image(options["Image"].as_str().unwrap_or_default()).is_none() {
                    return refusal(404, "No such image");
                }
                let id = self.add(&name, "created", options);
                reply(201, &json!({ "Id": id, "Warnings": [] }))
            }
            (_, ["containers", name, rest @ ..]) => match self.name(name) {
                Some(name) => self.answer_container(method, &name, rest, &parameter("name")),
                None => refusal(404, "No such container"),
            },
            ("POST", ["images", "create"]) => {
                let name = parameter("fromImage");
                if !self.registry.contains(&name) {
                    return refusal(404, "pull access denied");
                }
                self.images.insert(name.clone(), format!("sha256:{name}"));
                reply(200, &json!({ "status": "Done" }))
            }
            (_, ["images", rest @ ..]) => self.answer_image(method, rest),
            _ => refusal(404, "page not found"),
        }
    }

    fn answer_container(&mut self, method: &Method, name: &str, rest: &[&str], new_name: &str) -> Answer {
        let made = self.containers.get_mut(name).expect("it was found by this name");
        match (method.as_str(), rest) {
            ("GET", ["json"]) => reply(
                200,
                &json!({ "Id": made.id, "Name": format!("/{name}"), "Image": made.image, "HostConfig": made.options["HostConfig"],
                    "State": { "Status": made.status, "ExitCode": 0, "StartedAt": "2024-05-01T10:00:00Z" },
                    "Config": { "Labels": made.options["Labels"], "Tty": false, "Mark": made.options["Mark"] } }),
            ),
            ("GET", ["stats"]) => reply(200, &json!({ "name": format!("/{name}") })),
            ("POST", ["start" | "restart"]) if matches!(made.status, "dead" | "removing") => {
                refusal(409, "container is marked for removal and cannot be started")
            }
            ("POST", ["start" | "restart"]) => {
                made.status = "running";
                reply(204, &Value::Null)
            }
            ("POST", ["stop"]) => {
                if matches!(made.status, "running" | "paused" | "restarting") {
                    let removes_itself = made.options["HostConfig"]["AutoRemove"] == true;
                    made.status = if removes_itself { "removing" } else { "exited" };
                }
                reply(204, &Value::Null)
            }
            ("POST", ["rename"]) => {
                if self.containers.contains_key(new_name) {
                    return refusal(409, "the name is taken");
                }
                let made = self.containers.remove(name).expect("it was found by this name");
                self.containers.insert(new_name.to_owned(), made);
                reply(204, &Value::Null)
            }
            ("POST", ["wait"]) => {
                if made.status == "removing" {
                    self.containers.remove(name);
                }
                reply(200, &json!({ "StatusCode": 0 }))
            }
            ("DELETE", []) if made.status == "removing" => {
                refusal(409, "removal of the container is already in progress")
            }
            ("DELETE", []) => {
                self.containers.remove(name);
                reply(204, &Value::Null)
            }
            _ => refusal(404, "page not found"),
        }
    }

    fn answer_image(&mut self, method: &Method, rest: &[&str]) -> Answer {
        let (reference, looks) = match rest.split_last() {
            Some((&"json", reference)) => (reference.join("/"), true),
            _ => (rest.join("/"), false),
        };
        let id = self.images.get(&reference).cloned().unwrap_or(reference.clone());
        let names: Vec<String> =
            self.images.iter().filter(|(_, known)| **known == id).map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return refusal(404, "No such image");
        }
        if looks {
            return reply(200, &json!({ "Id": id, "RepoTags": names, "RepoDigests": [] }));
        }
        assert_eq!(method, Method::DELETE);
        if id == reference && names.len() > 1 {
            return refusal(409, "image is referenced in multiple repositories");
        }
        if names.len() == 1 && self.containers.values().any(|made| made.image == id) {
            return refusal(409, "a container uses it");
        }
        self.images.remove(if id == reference { &names[0] } else { &reference });
        reply(200, &json!([]))
    }
}
