//! Which module is calling: from the connected process through its cgroups to its container, and so to the container's name.
//!
//! The engine is asked about a process once; while the process lives, its container stays the same. Names in cgroup paths prove nothing by
//! themselves, for some users may make cgroups of any name, and a container may be put below another one's: a process belongs to the innermost
//! container where it is where that one's first process is. What a module may do is for the routes to say. A container that is renamed while it runs keeps its name here until its processes end.

mod cgroup;
mod process;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    io,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aziot_edged_api::config::AGENT;
use aziot_http::{Peer, PeerProcess};
use lru::LruCache;

use crate::{
    docker::{self, Container, Docker},
    identities::container_name,
    specification::Name,
};

use cgroup::Cgroups;
use process::{Instance, Processes};

/// Processes whose containers are remembered: those of fifty modules that make a process for every call, some seconds back.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not zero");
/// Time that the engine has to tell about a caller's container.
const LIMIT: Duration = Duration::from_secs(10);
/// Ids in one process' cgroups that the engine is asked about: as deep as engines run in one another's containers.
const DEPTH: usize = 4;
/// Containers whose first processes are held.
const HELD: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// A module that is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Name of the module, which is its container's.
    pub(crate) module: Arc<str>,
    /// Id of its container, 64 hexadecimal digits.
    pub(crate) container: Arc<str>,
}

/// Why a caller may not do what it asks for. For the log; callers read `forbidden`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAModule {
    /// The kernel did not tell who it is, or it was gone before anybody looked.
    #[error("the calling process is not known")]
    NoProcess,
    /// It ended while its request was under way.
    #[error("the calling process {0} has ended")]
    Ended(i32),
    /// It could not be looked at.
    #[error("the calling process {pid} cannot be looked at")]
    Unreadable {
        /// Its process id.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
    /// It runs outside of the engine's containers.
    #[error("the calling process {0} is in no container")]
    NoContainer(i32),
    /// Its container is somebody else's.
    #[error("the container {0} is not a module")]
    Foreign(String),
    /// It only seems to be in the container.
    #[error("the calling process {pid} is not one of the container {container}: {why}")]
    Outside {
        /// Its process id.
        pid: i32,
        /// Name of the container.
        container: String,
        /// What gave it away.
        why: Outside,
    },
    /// It is a module, but not the one whose rights it wants.
    #[error("{module} is not {wanted}")]
    Other {
        /// Name of the module that is calling.
        module: Arc<str>,
        /// Name of the one that may.
        wanted: String,
    },
    /// It came by the socket of another module than the one whose rights it wants.
    #[error("the workload socket of {listener} serves no requests for {wanted}")]
    OtherSocket {
        /// Name of the module whose socket it is.
        listener: Arc<str>,
        /// Name of the one that it wants to be.
        wanted: String,
    },
    /// The engine could not be asked: this says nothing about the caller.
    #[error("could not ask the container engine who is calling")]
    Engine(#[source] docker::Error),
    /// The engine took too long, which says nothing either.
    #[error("the container engine did not tell within {} s who is calling", LIMIT.as_secs())]
    TimedOut,
}

/// What gave a process away that seems to be in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Outside {
    /// Nothing runs there.
    #[error("the container has no first process")]
    NotRunning,
    /// Its cgroup has the container's id in its name, and is another one.
    #[error("its cgroups are others")]
    Cgroup,
    /// It sees more processes than the container's own do.
    #[error("its pid namespace is outside of the container's")]
    Namespace,
}

/// Finds out which module is calling.
pub(crate) struct Callers {
    docker: Docker,
    processes: Processes,
    known: Mutex<LruCache<Instance, Caller>>,
    firsts: Mutex<LruCache<String, Arc<First>>>,
}

/// The first process of a container: wherever it is, the container is.
struct First {
    process: PeerProcess,
    cgroups: Cgroups,
    depth: usize,
}

impl Callers {
    /// Asks this engine about containers.
    pub(crate) fn new(docker: Docker) -> Self {
        Self::looking_at(docker, PathBuf::from("/proc"))
    }

    /// As [`new`](Self::new), with what the kernel tells of processes in another folder.
    pub(crate) fn looking_at(docker: Docker, folder: PathBuf) -> Self {
        Self {
            docker,
            processes: Processes::new(folder),
            known: Mutex::new(LruCache::new(REMEMBERED)),
            firsts: Mutex::new(LruCache::new(HELD)),
        }
    }

    /// The agent, if it is the caller.
    pub(crate) async fn agent(&self, peer: &Peer) -> Result<Caller, NotAModule> {
        self.named(peer, AGENT).await
    }

    /// The module that a path names as the hub does (`$edgeHub`), if it is the caller and came by its own socket or by a shared one.
    pub(crate) async fn own(&self, peer: &Peer, identity: &str) -> Result<Caller, NotAModule> {
        let wanted = container_name(identity);
        if let Some(listener) = peer.listener.as_ref().filter(|listener| &***listener != wanted) {
            return Err(NotAModule::OtherSocket { listener: Arc::clone(listener), wanted: wanted.to_owned() });
        }
        self.named(peer, wanted).await
    }

    async fn named(&self, peer: &Peer, wanted: &str) -> Result<Caller, NotAModule> {
        let caller = self.module(peer).await?;
        if &*caller.module == wanted {
            Ok(caller)
        } else {
            Err(NotAModule::Other { module: caller.module, wanted: wanted.to_owned() })
        }
    }

    /// The module that is calling. Its process was alive before and after it was looked at, so that nothing of what was read is another's.
    pub(crate) async fn module(&self, peer: &Peer) -> Result<Caller, NotAModule> {
        let process = peer.process.as_ref().ok_or(NotAModule::NoProcess)?;
        if let Some(caller) = process.note::<Caller>() {
            return alive(process).map(|()| caller.clone());
        }
        let instance = self.processes.instance(process.pid()).map_err(|source| unreadable(process, source))?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&instance).cloned();
        let caller = if let Some(caller) = known {
            caller
        } else {
            let resolved = tokio::time::timeout(LIMIT, self.resolve(process)).await;
            resolved.map_err(|_| NotAModule::TimedOut)??
        };
        alive(process)?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).put(instance, caller.clone());
        process.set_note(caller.clone());
        Ok(caller)
    }

    async fn resolve(&self, process: &PeerProcess) -> Result<Caller, NotAModule> {
        let pid = process.pid();
        let cgroups = self.processes.cgroups(pid).map_err(|source| unreadable(process, source))?;
        alive(process)?;
        let mut refusal = NotAModule::NoContainer(pid);
        for id in cgroups.containers().into_iter().take(DEPTH) {
            match self.docker.inspect(&id).await {
                // The engine takes names as well, and a container may be called like another one's id.
                Ok(container) if container.id == id => match self.first(&container).await? {
                    Some(first) if cgroups.are_in(&first.cgroups, &id) => {
                        return self.accept(process, &first, &container);
                    }
                    // A cgroup may have any name. The container is one further out, or none.
                    first => refusal = outside(pid, &container, first.map_or(Outside::NotRunning, |_| Outside::Cgroup)),
                },
                Ok(_) => {}
                // One of another engine: around this one, or inside of a container.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(NotAModule::Engine(error)),
            }
        }
        Err(refusal)
    }

    /// The container's first process, held since it was certain that it is that; `None` if there is none.
    ///
    /// When the engine's answer arrives, its pid may already be somebody else's. It is the right one if the engine says the same once the process
    /// is held.
    async fn first(&self, container: &Container) -> Result<Option<Arc<First>>, NotAModule> {
        let (id, pid) = (&container.id, container.state.pid);
        let held = self.firsts.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(first) = held.filter(|first| first.process.pid() == pid && first.process.is_alive()) {
            return Ok(Some(first));
        }
        let Ok(process) = PeerProcess::open(pid) else { return Ok(None) };
        let (Ok(cgroups), Ok(depth)) = (self.processes.cgroups(pid), self.processes.depth(pid)) else {
            return Ok(None);
        };
        let again = match self.docker.inspect(id).await {
            Ok(again) => again,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(NotAModule::Engine(error)),
        };
        let is_same = again.id == *id
            && again.state.pid == pid
            && again.state.started_at == container.state.started_at
            && process.is_alive();
        if !is_same {
            return Ok(None);
        }
        let first = Arc::new(First { process, cgroups, depth });
        self.firsts.lock().unwrap_or_else(PoisonError::into_inner).put(id.clone(), Arc::clone(&first));
        Ok(Some(first))
    }

    /// The caller, which is in this container, if that is a module and sees no more processes than the container's own.
    fn accept(&self, process: &PeerProcess, first: &First, container: &Container) -> Result<Caller, NotAModule> {
        let name = container.name();
        if !container.is_module() || Name::new(name).is_err() {
            return Err(NotAModule::Foreign(name.to_owned()));
        }
        let depth = self.processes.depth(process.pid()).map_err(|source| unreadable(process, source))?;
        if depth < first.depth {
            return Err(outside(process.pid(), container, Outside::Namespace));
        }
        Ok(Caller { module: Arc::from(name), container: Arc::from(container.id.as_str()) })
    }
}

fn outside(pid: i32, container: &Container, why: Outside) -> NotAModule {
    NotAModule::Outside { pid, container: container.name().to_owned(), why }
}

fn alive(process: &PeerProcess) -> Result<(), NotAModule> {
    if process.is_alive() { Ok(()) } else { Err(NotAModule::Ended(process.pid())) }
}

/// What cannot be read of a process that has ended is no fault of the system.
fn unreadable(process: &PeerProcess, source: io::Error) -> NotAModule {
    match alive(process) {
        Ok(()) => NotAModule::Unreadable { pid: process.pid(), source },
        Err(ended) => ended,
    }
}
