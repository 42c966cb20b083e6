//! A registry for pulls: the HTTP API V2 with one image, which it serves under every name, late or not at all where a test says so.
//!
//! Engines pull from the loopback without TLS. It takes nothing, and knows neither tokens nor lists.

use std::{
    convert::Infallible,
    fs,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use openssl::sha::sha256;
use serde_json::json;
use tokio::{
    runtime,
    sync::{Notify, watch},
};

use super::{Engine, image};
use crate::hex;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What the registry does when it is asked for the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It serves it.
    Serve,
    /// It answers with this status.
    Refuse(u16),
    /// It takes so long before each layer.
    Late(Duration),
    /// It wants this user with this password.
    Password(&'static str, &'static str),
    /// It sends half of each layer and closes the connection.
    Break,
}

/// The registry. Dropping it ends it.
pub struct Registry {
    port: u16,
    shared: Arc<Shared>,
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    manifest: Bytes,
    configuration: Bytes,
    layer: Bytes,
    state: Mutex<State>,
    /// Told when it is to behave in another way.
    changed: Notify,
}

struct State {
    manner: Manner,
    /// `METHOD PATH` of each request.
    requests: Vec<String>,
}

impl Registry {
    /// Starts it where the engine's containers are, with the image that this archive of a file system makes.
    pub fn start(engine: &Engine, archive: &Path) -> Result<Self> {
        let layer = Bytes::from(fs::read(archive).with_context(|| format!("could not read {}", archive.display()))?);
        let configuration = json!({
            "architecture": architecture(), "os": "linux",
            "config": { "Cmd": [image::PROGRAM], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "test" }],
            "created": "2026-01-01T00:00:00Z",
        });
        let configuration = Bytes::from(configuration.to_string());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": configuration.len(), "digest": digest(&configuration),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                "size": layer.len(), "digest": digest(&layer),
            }],
        });
        let state = Mutex::new(State { manner: Manner::Serve, requests: Vec::new() });
        let (manifest, changed) = (Bytes::from(manifest.to_string()), Notify::new());
        let shared = Arc::new(Shared { manifest, configuration, layer, state, changed });
        let listener = engine.namespaces.listen(0)?;
        let port = listener.local_addr()?.port();
        let (end, ending) = watch::channel(false);
        let own = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            // Without a registry the pull fails, and the test with it.
            let _ = serve(listener, &own, ending);
        });
        Ok(Self { port, shared, end, thread: Some(thread) })
    }

    /// The full name of an image here.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes what it does from the next request on. Nobody goes on waiting for what is late.
    pub fn behave(&self, manner: Manner) {
        self.shared.state().manner = manner;
        self.shared.changed.notify_waiters();
    }

    /// `METHOD PATH` of each request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.end.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        // Before the manner is read, so that no change is missed.
        let changed = self.changed.notified();
        let manner = {
            let mut state = self.state();
            state.requests.push(format!("{} {path}", request.method()));
            state.manner.clone()
        };
        let is_layer = path.ends_with(&digest(&self.layer));
        match manner {
            Manner::Refuse(status) if path != "/v2/" => return refusal(status),
            Manner::Password(user, password) => {
                let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
                if header != Some(expected.as_str()) {
                    let mut refusal = refusal(401);
                    let challenge = http::HeaderValue::from_static("Basic realm=\"test\"");
                    refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                    return refusal;
                }
            }
            Manner::Late(time) if is_layer => {
                // Whichever comes first.
                let _ = tokio::time::timeout(time, changed).await;
            }
            Manner::Serve | Manner::Refuse(_) | Manner::Late(_) | Manner::Break => {}
        }
        let (body, media_type) = if path == "/v2/" {
            (Bytes::from_static(b"{}"), "application/json")
        } else if path.contains("/manifests/") {
            (self.manifest.clone(), MANIFEST)
        } else if path.ends_with(&digest(&self.configuration)) {
            (self.configuration.clone(), "application/octet-stream")
        } else if is_layer {
            (self.layer.clone(), "application/octet-stream")
        } else {
            return refusal(404);
        };
        let length = body.len();
        let digest = digest(&body);
        let body = match request.method() {
            &Method::HEAD => Bytes::new(),
            // The length stays what it says, so the connection ends early.
            _ if is_layer && manner == Manner::Break => body.slice(..length / 2),
            _ => body,
        };
        let mut response = Response::new(Full::new(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(media_type));
        headers.insert(CONTENT_LENGTH, length.into());
        if let Ok(digest) = digest.parse() {
            headers.insert("docker-content-digest", digest);
        }
        response
    }
}

fn refusal(status: u16) -> Response<Full<Bytes>> {
    let error = json!({ "errors": [{ "code": "DENIED", "message": "the registry of the test refuses" }] });
    let mut response = Response::new(Full::new(Bytes::from(error.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn serve(listener: TcpListener, shared: &Arc<Shared>, mut ending: watch::Receiver<bool>) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted?,
                // Connections end with the set.
                _ = ending.changed() => return Ok(()),
            };
            let shared = Arc::clone(shared);
            connections.spawn(async move {
                let shared = &shared;
                let service = service_fn(|request| async move { Ok::<_, Infallible>(shared.answer(&request).await) });
                // A client that leaves is none of the registry's business.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(&sha256(bytes)))
}

/// This machine's, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
