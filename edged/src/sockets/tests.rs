//! The sockets of modules as files and as listeners, with a service that tells by which one it was asked.

use std::{convert::Infallible, fs, os::unix::fs::PermissionsExt as _, os::unix::net::UnixStream, time::Duration};

use aziot_http::{ApiVersion, Body, Call, Endpoint, Method, Peer, Retry, Service, client::Client};
use serde::{Deserialize, Serialize};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// Asks by which socket one came.
#[derive(Debug, Serialize, Deserialize)]
struct Where {}

impl Call for Where {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/where";
    const BODY: Body = Body::Ignored;
    type Reply = Option<String>;
}

async fn place(_: Arc<()>, peer: Peer, _: Where) -> Result<Option<String>, Infallible> {
    assert_eq!(peer.process.map(|process| process.pid()), i32::try_from(std::process::id()).ok());
    Ok(peer.listener.map(|name| name.to_string()))
}

fn routes() -> Routes {
    Service::new(Arc::new(()), &[ApiVersion::V2020_09_01]).call(place).into_routes()
}

async fn ask(path: &Path) -> Option<String> {
    let endpoint = Endpoint::Unix(path.to_owned());
    let client = Client::new(&endpoint, ApiVersion::V2020_09_01, Retry { retries: 0, ..Retry::local(0) }).unwrap();
    tokio::time::timeout(PATIENCE, client.send(&Where {})).await.unwrap().unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn sockets() -> (tempfile::TempDir, Arc<Sockets>) {
    let folder = tempfile::tempdir().unwrap();
    let sockets = Sockets::new(folder.path().to_owned(), MaxRequests::default());
    (folder, Arc::new(sockets))
}

#[tokio::test]
async fn callers_queue_until_the_runtime_is_ready_and_are_told_apart_by_socket() {
    let (folder, sockets) = sockets();
    sockets.ensure(&name("one")).await.unwrap();
    sockets.ensure(&name("two")).await.unwrap();
    let shared = folder.path().join("shared.sock");
    sockets.serve_shared(Listener::bind_with(&shared, SocketMode::Everybody).unwrap());
    let (one, two) = (sockets.path(&name("one")), sockets.path(&name("two")));
    assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o777, 0o666);
    let ready = async {
        tokio::task::yield_now().await;
        sockets.serve(routes());
    };
    let (first, ()) = tokio::join!(ask(&one), ready);
    assert_eq!(first.as_deref(), Some("one"));
    assert_eq!(ask(&two).await.as_deref(), Some("two"));
    assert_eq!(ask(&shared).await, None);
    sockets.close_all().await;
}

#[tokio::test]
async fn a_live_listener_keeps_its_file() {
    let (_folder, sockets) = sockets();
    sockets.serve(routes());
    let module = name("sensor");
    let path = sockets.path(&module);
    sockets.ensure(&module).await.unwrap();
    let file = FileId::of(&path).unwrap();
    let (one, two) = tokio::join!(sockets.ensure(&module), sockets.ensure(&module));
    one.and(two).unwrap();
    assert_eq!(FileId::of(&path).unwrap(), file, "its container would be cut off");
    assert_eq!(ask(&path).await.as_deref(), Some("sensor"));

    // Somebody else's file is at the path.
    fs::remove_file(&path).unwrap();
    sockets.ensure(&module).await.unwrap();
    assert_ne!(FileId::of(&path).unwrap(), file);
    assert_eq!(ask(&path).await.as_deref(), Some("sensor"));
}

#[tokio::test]
async fn a_closed_socket_refuses_and_keeps_its_file_and_a_removed_one_does_not() {
    let (folder, sockets) = sockets();
    sockets.serve(routes());
    let module = name("sensor");
    let path = sockets.path(&module);
    sockets.ensure(&module).await.unwrap();
    let file = FileId::of(&path).unwrap();
    sockets.close(&module).await;
    let refused = async {
        while UnixStream::connect(&path).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("nobody listens any more");
    assert_eq!(FileId::of(&path).unwrap(), file);

    sockets.ensure(&module).await.unwrap();
    assert_eq!(ask(&path).await.as_deref(), Some("sensor"));
    sockets.remove(&module).await.unwrap();
    assert!(!path.exists());
    sockets.remove(&module).await.unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_the_engine_put_in_place_of_a_missing_socket_gives_way() {
    let (_folder, sockets) = sockets();
    let module = name("sensor");
    let stray = sockets.path(&module);
    fs::create_dir_all(stray.join("inner")).unwrap();
    fs::File::create(stray.join("inner/file")).unwrap();
    sockets.ensure(&module).await.unwrap();
    assert!(UnixStream::connect(&stray).is_ok());
    // So it does when the module goes.
    fs::remove_file(&stray).unwrap();
    fs::create_dir_all(stray.join("inner")).unwrap();
    sockets.remove(&module).await.unwrap();
    assert!(!stray.exists());
}

#[test]
fn what_cannot_be_removed_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sensor.sock");
    let somebody_elses = |_: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    clear_with(&path, somebody_elses).unwrap();
    for round in 1..=2 {
        fs::create_dir_all(path.join("inner")).unwrap();
        clear_with(&path, somebody_elses).unwrap();
        assert!(!path.exists());
        let aside = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(aside.filter(|aside| aside.join("inner").is_dir()).count(), round, "all is still there");
    }
    fs::File::create(&path).unwrap();
    clear_with(&path, somebody_elses).unwrap();
    assert!(path.exists(), "a socket is replaced without a moment in which there is none");
}

#[tokio::test]
async fn work_goes_on_to_its_end_when_nobody_waits_for_it() {
    let (_folder, sockets) = sockets();
    sockets.serve(routes());
    let module = name("sensor");
    let turn = sockets.turns.take(module.as_str()).await;
    let mut given_up = Box::pin(sockets.ensure(&module));
    assert!(futures_util::poll!(&mut given_up).is_pending());
    // The work stands in line for the turn now.
    tokio::task::yield_now().await;
    drop(given_up);
    drop(turn);
    drop(sockets.turns.take(module.as_str()).await);
    assert_eq!(ask(&sockets.path(&module)).await.as_deref(), Some("sensor"));
}

#[tokio::test]
async fn a_user_has_connections_for_twice_the_requests_that_he_may_make() {
    for (requests, connections) in [(10, 64), (32, 64), (100, 200)] {
        let requests = MaxRequests::try_from(requests).unwrap();
        let limits = Sockets::new(PathBuf::new(), requests).limits(MODULE_CONNECTIONS);
        assert_eq!((limits.connections_per_user, limits.connections), (connections, 2 * connections));
    }
}

#[tokio::test]
async fn a_module_that_fills_its_socket_does_not_silence_the_others() {
    let folder = tempfile::tempdir().unwrap();
    // Room for what both have for themselves and some more.
    let room = Room::of(2 * (1 + 2 * RESERVED) + 10);
    let sockets = Sockets::new(folder.path().to_owned(), MaxRequests::default()).sharing(room);
    let sockets = Arc::new(sockets);
    sockets.serve(routes());
    let (greedy, modest) = (name("greedy"), name("modest"));
    sockets.ensure(&greedy).await.unwrap();
    sockets.ensure(&modest).await.unwrap();
    let path = sockets.path(&greedy);
    let idle: Vec<_> = (0..3 * MODULE_CONNECTIONS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for _ in 0..RESERVED {
        assert_eq!(ask(&sockets.path(&modest)).await.as_deref(), Some("modest"));
    }
    drop(idle);
    assert_eq!(ask(&path).await.as_deref(), Some("greedy"));
}

#[tokio::test]
async fn the_longest_names_have_a_socket() {
    let (_folder, sockets) = sockets();
    let longest = name(&"n".repeat(250));
    sockets.ensure(&longest).await.unwrap();
    assert!(sockets.path(&longest).exists());
}

#[tokio::test]
async fn nothing_is_opened_after_the_end() {
    let (_folder, sockets) = sockets();
    let module = name("sensor");
    sockets.ensure(&module).await.unwrap();
    tokio::time::timeout(PATIENCE, sockets.close_all()).await.unwrap();
    assert!(UnixStream::connect(sockets.path(&module)).is_err());
    assert!(matches!(sockets.ensure(&module).await, Err(SocketError::Stopping)));
}
