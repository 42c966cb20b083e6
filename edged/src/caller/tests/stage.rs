//! An engine that knows the containers that a test makes up, and a folder that stands for `/proc`.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::watch, task::JoinSet};

use crate::{
    caller::Callers,
    docker::{Docker, OWNER, OWNER_LABEL},
};

pub(crate) struct Stage {
    folder: TempDir,
    engine: Arc<Engine>,
    firsts: Mutex<BTreeMap<char, Killed>>,
    _tasks: JoinSet<()>,
}

/// A process that lasts as long as this.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    pub(crate) fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Engine {
    containers: Mutex<BTreeMap<String, Value>>,
    status: Mutex<u16>,
    log: Mutex<Vec<u8>>,
    /// Questions so far.
    questions: watch::Sender<usize>,
    /// How many of them are answered.
    answered: watch::Sender<usize>,
}

pub(crate) fn own_pid() -> u32 {
    std::process::id()
}

/// The id of a container.
pub(crate) fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

impl Stage {
    #[expect(clippy::unused_async, reason = "the engine needs a runtime")]
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("engine.sock")).unwrap();
        let engine = Arc::new(Engine {
            containers: Mutex::default(),
            status: Mutex::new(200),
            log: Mutex::default(),
            questions: watch::Sender::new(0),
            answered: watch::Sender::new(usize::MAX),
        });
        let shared = Arc::clone(&engine);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let engine = Arc::clone(&shared);
                let answer = service_fn(move |request| answer(Arc::clone(&engine), request));
                connections.spawn(async move {
                    // A client that has had enough is no fault.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        write(&folder.path().join("proc/self/status"), "NSpid:\t1\n");
        Self { folder, engine, firsts: Mutex::default(), _tasks: tasks }
    }

    /// Callers as this engine and this `/proc` tell of them; nothing is remembered yet.
    pub(crate) fn callers(&self) -> Callers {
        Callers::looking_at(self.docker(), self.folder.path().join("proc"))
    }

    pub(crate) fn docker(&self) -> Docker {
        Docker::new(&format!("unix://{}/engine.sock", self.folder.path().display())).unwrap()
    }

    /// This is the log of every container.
    pub(crate) fn log(&self, log: Vec<u8>) {
        *self.engine.log.lock().unwrap() = log;
    }

    /// There is a module of this name, whose first process is in the cgroup of its container.
    pub(crate) fn module(&self, digit: char, name: &str) {
        let container = json!({
            "Id": id(digit),
            "Name": format!("/{name}"),
            "Image": "sha256:01",
            "State": { "Status": "running", "Pid": self.first(digit), "StartedAt": "2024-05-01T10:00:00Z" },
            "Config": { "Labels": { OWNER_LABEL: OWNER } },
            "HostConfig": { "PidMode": "" },
        });
        self.engine.containers().insert(id(digit), container);
        self.place_first(digit, &format!("0::/docker/{}\n", id(digit)));
    }

    pub(crate) fn change(&self, digit: char, change: impl FnOnce(&mut Value)) {
        change(self.engine.containers().get_mut(&id(digit)).expect("a container of the test"));
    }

    /// A process is in these cgroups and so deep in pid namespaces.
    pub(crate) fn place(&self, pid: u32, cgroups: &str, depth: usize) {
        self.write(pid, "cgroup", cgroups);
        self.write(pid, "status", &format!("Name:\tx\nNSpid:{}\n", "\t7".repeat(depth)));
        self.start(pid, 7);
    }

    /// The first process of a container is in these cgroups.
    pub(crate) fn place_first(&self, digit: char, cgroups: &str) {
        self.place_first_at(digit, cgroups, 2);
    }

    /// As [`place_first`](Self::place_first), so deep in pid namespaces.
    pub(crate) fn place_first_at(&self, digit: char, cgroups: &str, depth: usize) {
        self.place(self.first(digit), cgroups, depth);
    }

    /// The first process of a container ends, and the engine does not know yet.
    pub(crate) fn end_first(&self, digit: char) {
        self.firsts.lock().unwrap().remove(&digit);
    }

    fn first(&self, digit: char) -> u32 {
        self.firsts.lock().unwrap().entry(digit).or_insert_with(Killed::start).0.id()
    }

    /// A process started at this time.
    pub(crate) fn start(&self, pid: u32, ticks: u64) {
        self.write(pid, "stat", &format!("{pid} (x) S {}{ticks} 0\n", "0 ".repeat(18)));
    }

    /// From now on the engine answers with this status; 200 for what it knows.
    pub(crate) fn refuse(&self, status: u16) {
        *self.engine.status.lock().unwrap() = status;
    }

    /// The engine answers no more until it is let go.
    pub(crate) fn hold(&self) {
        self.hold_after(0);
    }

    /// As [`hold`](Self::hold), once it has been asked so often.
    pub(crate) fn hold_after(&self, questions: usize) {
        self.engine.answered.send_replace(questions);
    }

    pub(crate) fn let_go(&self) {
        self.engine.answered.send_replace(usize::MAX);
    }

    /// Waits until the engine has been asked so often.
    pub(crate) async fn asked(&self, times: usize) {
        self.engine.questions.subscribe().wait_for(|questions| *questions >= times).await.unwrap();
    }

    /// How often the engine has been asked.
    pub(crate) fn questions(&self) -> usize {
        *self.engine.questions.borrow()
    }

    fn write(&self, pid: u32, file: &str, text: &str) {
        write(&self.folder.path().join(format!("proc/{pid}/{file}")), text);
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).unwrap();
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

impl Engine {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Value>> {
        self.containers.lock().unwrap()
    }
}

async fn answer(engine: Arc<Engine>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut number = 0;
    engine.questions.send_modify(|questions| {
        *questions += 1;
        number = *questions;
    });
    engine.answered.subscribe().wait_for(|answered| number <= *answered).await.unwrap();
    let name = request.uri().path().split('/').nth(2).unwrap_or_default().to_owned();
    let status = *engine.status.lock().unwrap();
    let is_called = |container: &Value| container["Name"] == format!("/{name}");
    let container = {
        let containers = engine.containers();
        containers.get(&name).or_else(|| containers.values().find(|container| is_called(container))).cloned()
    };
    let container = container.filter(|_| status == 200);
    if container.is_some() && request.uri().path().ends_with("/logs") {
        return Ok(Response::new(Full::new(Bytes::from(engine.log.lock().unwrap().clone()))));
    }
    let status = if container.is_none() && status == 200 { 404 } else { status };
    let body = container.unwrap_or_else(|| json!({ "message": "as the test wants" })).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}
