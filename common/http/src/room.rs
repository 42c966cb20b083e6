//! Room for connections: how many descriptors those of one process, of one socket and of all its sockets may take.
//!
//! Sockets that share a room each keep a part of it for themselves, so that whoever fills one does not silence the others. Users and their
//! requests are bounded elsewhere.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for connections, idle ones included, of all servers that [share](crate::Server::sharing) it.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Room {
    /// As much room as the limit of open files leaves, to 4096 descriptors.
    #[must_use]
    pub fn new() -> Self {
        Self::of(descriptors())
    }

    /// Room for this many descriptors. A connection takes one, or [two](crate::Server::identify_processes).
    #[must_use]
    pub fn of(descriptors: usize) -> Self {
        Self(Arc::new(Semaphore::new(descriptors.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes this many out of the room, or as many as are left.
    fn part(&self, descriptors: usize) -> Option<OwnedSemaphorePermit> {
        let taken = descriptors.min(self.0.available_permits());
        Arc::clone(&self.0).try_acquire_many_owned(u32::try_from(taken).ok()?).ok()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

/// Descriptors for the connections of one process. Some are left for its own files and calls.
pub(crate) fn descriptors() -> usize {
    const OWN: u64 = 128;
    const MOST: u64 = 4096;
    let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors = open_files.unwrap_or(MOST).saturating_sub(OWN).clamp(64, MOST);
    usize::try_from(descriptors).unwrap_or(64)
}

/// What one socket has of a room.
pub(crate) struct Share {
    room: Room,
    /// Descriptors that nobody else has.
    own: Arc<Semaphore>,
    /// What the room lacks for `own` and for the socket itself.
    _part: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// All of a room of its own.
    pub(crate) fn whole() -> Self {
        Self::of(Room::new(), 0)
    }

    /// A share with room for this many connections that nobody else has, as long as the room lasts.
    pub(crate) fn of(room: Room, connections: usize) -> Self {
        // Two for each, and one for the socket itself.
        let part = room.part(1 + 2 * connections);
        let own = part.as_ref().map_or(0, |part| part.num_permits().saturating_sub(1));
        Self { room, own: Arc::new(Semaphore::new(own)), _part: part }
    }

    /// The places of a socket that has at most `connections` at once, each of so many descriptors.
    pub(crate) fn places(self, connections: usize, descriptors: u32) -> Places {
        let connections = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Places { share: self, connections, descriptors }
    }
}

/// Places for the connections of one socket.
pub(crate) struct Places {
    share: Share,
    connections: Arc<Semaphore>,
    descriptors: u32,
}

/// Taken until it is dropped.
pub(crate) struct Place {
    _connection: OwnedSemaphorePermit,
    _descriptors: OwnedSemaphorePermit,
}

impl Places {
    /// A place, if there is one.
    pub(crate) fn try_take(&self) -> Option<Place> {
        let connection = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(self.descriptors).ok();
        let descriptors = take(&self.share.own).or_else(|| take(&self.share.room.0))?;
        Some(Place { _connection: connection, _descriptors: descriptors })
    }

    /// The next place.
    pub(crate) async fn take(&self) -> Place {
        let connection = acquire(&self.connections, 1).await;
        let descriptors = tokio::select! {
            own = acquire(&self.share.own, self.descriptors) => own,
            shared = acquire(&self.share.room.0, self.descriptors) => shared,
        };
        Place { _connection: connection, _descriptors: descriptors }
    }
}

async fn acquire(from: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    Arc::clone(from).acquire_many_owned(count).await.expect("nobody closes these semaphores")
}
