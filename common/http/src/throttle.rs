//! How many requests of one user are worked on at once.
//!
//! A slot is taken when bytes are waiting but before any is read: closing a socket with unread bytes resets it, which the
//! deployed blocking clients survive, while an end of file after a request sends them spinning for ever. Idle connections hold no slot.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Slots of all users. A user's counter lives as long as one of its connections.
pub(crate) struct Throttle {
    requests: usize,
    connections: usize,
    users: Mutex<HashMap<u32, Weak<User>>>,
}

/// What one user may have open at once.
pub(crate) struct User {
    requests: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Throttle {
    pub(crate) fn new(requests: usize, connections: usize) -> Self {
        Self { requests, connections, users: Mutex::default() }
    }

    pub(crate) fn user(&self, uid: u32) -> Arc<User> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        users.retain(|_, user| user.strong_count() > 0);
        let user = Arc::new(User {
            requests: Arc::new(Semaphore::new(self.requests)),
            connections: Arc::new(Semaphore::new(self.connections)),
        });
        users.insert(uid, Arc::downgrade(&user));
        user
    }
}

impl User {
    /// Room for one more connection, held until the permit is dropped.
    pub(crate) fn connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }
}

/// The slot of the request that a connection is working on: shared by the [`Gate`], which takes it, the service, which
/// empties it when the answer is ready, and the task of the call, which may outlive the connection.
#[derive(Clone)]
pub(crate) struct Slot {
    user: Arc<User>,
    wait: Duration,
    permit: Arc<Mutex<Option<Permit>>>,
}

pub(crate) type Permit = Arc<OwnedSemaphorePermit>;

impl Slot {
    pub(crate) fn new(user: Arc<User>, wait: Duration) -> Self {
        Self { user, wait, permit: Arc::default() }
    }

    /// The permit of the request just read. A pipelined request passed the gate in its predecessor's buffer, and takes its own.
    pub(crate) async fn hold(&self) -> Option<Permit> {
        if let Some(permit) = self.current() {
            return Some(permit);
        }
        let permit = Arc::new(acquire(Arc::clone(&self.user.requests), self.wait).await?);
        self.put(Some(Arc::clone(&permit)));
        Some(permit)
    }

    pub(crate) fn clear(&self) {
        self.put(None);
    }

    fn current(&self) -> Option<Permit> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, permit: Option<Permit>) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }
}

async fn acquire(slots: Arc<Semaphore>, wait: Duration) -> Option<OwnedSemaphorePermit> {
    timeout(wait, slots.acquire_owned()).await.ok()?.ok()
}

/// A connection that reads nothing until its user has a slot.
pub(crate) struct Gate {
    stream: UnixStream,
    slot: Slot,
    waiting: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

impl Gate {
    pub(crate) fn new(stream: UnixStream, slot: Slot) -> Self {
        Self { stream, slot, waiting: None }
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let taken_now = self.slot.current().is_none();
        if taken_now {
            if self.waiting.is_none() {
                ready!(self.stream.poll_read_ready(context))?;
            }
            let slot = self.slot.clone();
            let waiting =
                self.waiting.get_or_insert_with(|| Box::pin(acquire(Arc::clone(&slot.user.requests), slot.wait)));
            let permit = ready!(waiting.as_mut().poll(context));
            self.waiting = None;
            match permit {
                Some(permit) => self.slot.put(Some(Arc::new(permit))),
                None => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::QuotaExceeded, "over the request limit")));
                }
            }
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        // Readiness may be stale, and an end of file is no request.
        if taken_now && (result.is_pending() || buffer.filled().len() == before) {
            self.slot.clear();
        }
        result
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
