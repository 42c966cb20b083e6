//! The workload sockets: one for each module, bound where its container has it mounted, and the one that all modules shared in old releases.
//!
//! A container sees the file that was at the path when it started. A module's socket is therefore made before its container is, and never
//! again while a live listener has the file: another file would cut the container off. Every listener serves the same routes with the same
//! clients behind them. Who is calling is not decided here.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aziot_files::{Mode, create_directory};
use aziot_http::{
    Limits, Listener, Room, Server, Shutdown, SocketMode,
    listener::{FileId, ListenerError},
    server::MaxRequests,
    service::Routes,
};
use aziot_log::fields;
use aziot_turns::Turns;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::task::TaskTracker;

use crate::specification::Name;

/// Connections of one user to one module's socket, idle ones included. Most modules have one or two.
const MODULE_CONNECTIONS: usize = 64;
/// The same for the socket of old releases: the root users of all containers are one user there.
const SHARED_CONNECTIONS: usize = 256;
/// Connections of all users to one socket, in terms of those of one: whoever is root in a container is as many users as he likes.
const USERS: usize = 2;
/// Connections that each socket has room for, whatever the others do.
const RESERVED: usize = 4;

/// Why a module has no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The folder of the sockets could not be made.
    #[error("could not make the folder of the workload sockets")]
    Folder(#[source] aziot_files::Error),
    /// Something stands at the path and cannot be removed.
    #[error("could not clear the way for the workload socket of {module}: {}", path.display())]
    InTheWay {
        /// Name of the module.
        module: Name,
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket could not be bound.
    #[error("could not open the workload socket of {module}")]
    Open {
        /// Name of the module.
        module: Name,
        /// Why not.
        source: ListenerError,
    },
    /// The file of a removed module's socket stayed.
    #[error("could not remove the workload socket {}", path.display())]
    Remove {
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime is on its way out.
    #[error("the runtime is stopping")]
    Stopping,
}

/// The listeners of all modules.
pub(crate) struct Sockets {
    folder: PathBuf,
    limits: Limits,
    room: Room,
    /// What they serve, once the runtime is ready. Until then callers queue.
    routes: watch::Sender<Option<Routes>>,
    listeners: Mutex<HashMap<Name, Open>>,
    turns: Turns,
    servers: TaskTracker,
    stop: Shutdown,
}

/// A listener of one module.
struct Open {
    file: FileId,
    server: JoinHandle<()>,
    stop: Shutdown,
}

impl Sockets {
    /// No sockets yet. Those to come lie in `folder`, which is made when the first one does.
    pub(crate) fn new(folder: PathBuf, max_requests: MaxRequests) -> Self {
        Self {
            folder,
            limits: Limits::new(max_requests),
            room: Room::default(),
            routes: watch::Sender::new(None),
            listeners: Mutex::default(),
            turns: Turns::default(),
            servers: TaskTracker::new(),
            stop: Shutdown::new(),
        }
    }

    /// Has them share this room with other servers.
    pub(crate) fn sharing(mut self, room: Room) -> Self {
        self.room = room;
        self
    }

    /// Path of a module's socket on the host.
    pub(crate) fn path(&self, module: &Name) -> PathBuf {
        self.folder.join(format!("{module}.sock"))
    }

    /// Has all listeners, those to come as well, serve these routes.
    pub(crate) fn serve(&self, routes: Routes) {
        self.routes.send_replace(Some(routes));
    }

    /// Serves the socket that all modules shared in old releases.
    pub(crate) fn serve_shared(&self, listener: Listener) {
        self.spawn(Server::new(listener, self.limits(SHARED_CONNECTIONS)), self.stop.child_token());
    }

    /// With so many connections of one user, or as many as his requests and those that wait need.
    fn limits(&self, connections: usize) -> Limits {
        let connections_per_user = connections.max(self.limits.requests_per_user.saturating_mul(2));
        let connections = connections_per_user.saturating_mul(USERS);
        Limits { connections_per_user, connections, ..self.limits }
    }

    /// Makes sure that the module's socket is there and served: call it before its container starts. A live listener whose file is at the
    /// path stays as it is.
    pub(crate) async fn ensure(self: &Arc<Self>, module: &Name) -> Result<(), SocketError> {
        let (sockets, module) = (Arc::clone(self), module.clone());
        self.to_the_end(async move { sockets.open(&module).await }).await
    }

    async fn open(&self, module: &Name) -> Result<(), SocketError> {
        let _turn = self.turns.take(module.as_str()).await;
        if self.stop.is_cancelled() {
            return Err(SocketError::Stopping);
        }
        let (path, known) = (self.path(module), self.alive(module));
        let (name, folder) = (module.clone(), self.folder.clone());
        let bound = blocking(move || {
            let is_known = known.is_some_and(|known| FileId::of(&path).is_ok_and(|file| file == known));
            if is_known { Ok(None) } else { bind(&folder, &path, name).map(Some) }
        });
        if let Some((listener, file)) = bound.await? {
            let server = Server::new(listener, self.limits(MODULE_CONNECTIONS)).named(Arc::from(module.as_str()));
            let stop = self.stop.child_token();
            let server = self.spawn(server, stop.clone());
            let former = self.listeners().insert(module.clone(), Open { file, server, stop });
            if let Some(former) = former {
                former.stop.cancel();
            }
        }
        Ok(())
    }

    /// Ends the module's listener: call it when its container has stopped. Calls under way are finished, and the file stays.
    pub(crate) async fn close(&self, module: &Name) {
        let _turn = self.turns.take(module.as_str()).await;
        self.end(module);
    }

    /// As [`close`](Self::close), for a module that is removed: what is at the path goes too.
    pub(crate) async fn remove(self: &Arc<Self>, module: &Name) -> Result<(), SocketError> {
        let (sockets, module) = (Arc::clone(self), module.clone());
        let remove = async move {
            let _turn = sockets.turns.take(module.as_str()).await;
            sockets.end(&module);
            let path = sockets.path(&module);
            blocking(move || match std::fs::remove_file(&path) {
                Ok(()) => Ok(()),
                Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(_) => clear(&path).map_err(|source| SocketError::Remove { path, source }),
            })
            .await
        };
        self.to_the_end(remove).await
    }

    /// Work on files that goes on when nobody waits for it any more: the module's turn must not end before it.
    async fn to_the_end(
        &self,
        work: impl Future<Output = Result<(), SocketError>> + Send + 'static,
    ) -> Result<(), SocketError> {
        // It does not panic; the runtime may end first.
        self.servers.spawn(work).await.unwrap_or(Err(SocketError::Stopping))
    }

    /// Ends all listeners and waits, no longer than calls under way may take, until that is done. None is opened afterwards.
    pub(crate) async fn close_all(&self) {
        self.stop.cancel();
        self.listeners().clear();
        self.servers.close();
        // The servers themselves keep to the drain; this is for one that does not.
        if tokio::time::timeout(self.limits.drain + Duration::from_secs(2), self.servers.wait()).await.is_err() {
            tracing::warn!("gave up waiting for {} workload sockets", self.servers.len());
        }
    }

    fn end(&self, module: &Name) {
        if let Some(open) = self.listeners().remove(module) {
            open.stop.cancel();
        }
    }

    /// The file of the module's listener, if that is alive.
    fn alive(&self, module: &Name) -> Option<FileId> {
        let listeners = self.listeners();
        listeners.get(module).filter(|open| !open.server.is_finished()).map(|open| open.file)
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Name, Open>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, server: Server, stop: Shutdown) -> JoinHandle<()> {
        let server = server.identify_processes().sharing(&self.room, RESERVED);
        let mut routes = self.routes.subscribe();
        self.servers.spawn(async move {
            let routes = tokio::select! {
                () = stop.cancelled() => return,
                // Whoever sets the routes outlives the servers, or nobody sets them any more.
                routes = routes.wait_for(Option::is_some) => match routes {
                    Ok(routes) => routes.clone(),
                    Err(_) => return,
                },
            };
            let Some(routes) = routes else { return };
            if let Err(error) = server.serve(routes, stop).await {
                tracing::error!({ fields::ERROR } = %error, "a workload socket is not served any more");
            }
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SocketError> + Send + 'static,
) -> Result<T, SocketError> {
    // It is not cancelled, and does not panic; the runtime may end first.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(SocketError::Stopping))
}

fn bind(folder: &Path, path: &Path, module: Name) -> Result<(Listener, FileId), SocketError> {
    // Traversable, since engines that map users must reach the sockets.
    let _ = create_directory(folder, Mode::SHARED_DIRECTORY).map_err(SocketError::Folder)?;
    if let Err(source) = clear(path) {
        return Err(SocketError::InTheWay { module, path: path.to_owned(), source });
    }
    Listener::replace(path, SocketMode::Everybody).map_err(|source| SocketError::Open { module, source })
}

/// Removes a folder that is in a socket's place: the engine makes one for a container whose socket is missing, and that may have put something
/// there. What cannot be removed, since it is another user's, is put aside.
fn clear(path: &Path) -> io::Result<()> {
    clear_with(path, |path| std::fs::remove_dir_all(path))
}

fn clear_with(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.is_dir() || remove(path).is_ok() {
        return Ok(());
    }
    // No name of a module begins so, and no other file of the folder has this number.
    let aside = path.with_file_name(format!(".aside-{}", found.ino()));
    std::fs::rename(path, &aside)?;
    tracing::warn!(
        "{} was in the way of a workload socket, cannot be removed and is {} now",
        path.display(),
        aside.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
