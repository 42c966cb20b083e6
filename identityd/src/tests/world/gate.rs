//! A gate before a local service: it stops one call on its way there, or its answer on the way back.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use super::{Held, World};

/// On which way a call is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    There,
    Back,
}

#[derive(Default)]
struct Orders {
    awaited: Mutex<Option<(String, Way, Arc<Held>)>>,
    is_closed: AtomicBool,
}

/// A socket in front of a service. It ends with this.
pub(crate) struct Gate {
    orders: Arc<Orders>,
    _tasks: JoinSet<()>,
}

impl World {
    /// Opens a gate at the socket `name` before that of the service `service`.
    pub(crate) fn gate(&self, name: &str, service: &str) -> Gate {
        let listener = UnixListener::bind(self.folder.path().join(name)).unwrap();
        let service = self.folder.path().join(service);
        let (orders, mut tasks) = (Arc::<Orders>::default(), JoinSet::new());
        let carried = Arc::clone(&orders);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&service).await else { continue };
                connections.spawn(carry(client, server, Arc::clone(&carried)));
            }
        });
        Gate { orders, _tasks: tasks }
    }
}

impl Gate {
    /// Stops the next call whose first line begins so, for as long as the result is not released.
    pub(crate) fn hold(&self, line: &str, way: Way) -> Arc<Held> {
        let held = Arc::new(Held::default());
        *self.orders.awaited.lock().unwrap() = Some((line.to_owned(), way, Arc::clone(&held)));
        held
    }

    /// Lets nothing through any more.
    pub(crate) fn close(&self) {
        self.orders.is_closed.store(true, Ordering::SeqCst);
    }
}

/// Carries bytes both ways until either side ends.
async fn carry(mut client: UnixStream, mut server: UnixStream, orders: Arc<Orders>) {
    let (mut question, mut answer) = (vec![0; 65536], vec![0; 65536]);
    let mut stopped: Option<Arc<Held>> = None;
    loop {
        tokio::select! {
            read = client.read(&mut question) => {
                let Some(bytes) = read.ok().filter(|read| *read > 0).map(|read| &question[..read]) else { return };
                if orders.is_closed.load(Ordering::SeqCst) {
                    return;
                }
                let found = orders.awaited.lock().unwrap().take_if(|(line, ..)| bytes.starts_with(line.as_bytes()));
                match found {
                    Some((_, Way::There, held)) => tokio::select! {
                        () = held.pass() => {}
                        // Nobody waits for the answer any more: the call is never made.
                        _ = client.read(&mut answer) => return,
                    },
                    Some((_, Way::Back, held)) => stopped = Some(held),
                    None => {}
                }
                if server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answer) => {
                let Some(bytes) = read.ok().filter(|read| *read > 0).map(|read| &answer[..read]) else { return };
                if let Some(held) = stopped.take() {
                    held.pass().await;
                }
                if client.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}
