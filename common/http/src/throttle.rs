//! How many requests of one user are worked on at once.
//!
//! A slot is taken when bytes are waiting but before any is read: closing a socket with unread bytes resets it, which the
//! deployed blocking clients survive, while an end of file after a request sends them spinning for ever. Idle connections hold no slot.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep, timeout},
};

use crate::stream::Stream;

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
        let requests = requests.min(Semaphore::MAX_PERMITS);
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
/// empties it with its answer, and the task of the call, which may outlive the connection.
#[derive(Clone)]
pub(crate) struct Slot {
    user: Arc<User>,
    wait: Duration,
    place: Arc<Mutex<Place>>,
}

pub(crate) type Permit = Arc<OwnedSemaphorePermit>;

/// What the slot is taken for.
#[derive(Clone, Default)]
enum Place {
    #[default]
    Empty,
    /// A head that is being read.
    Reading(Permit),
    /// A request that is being worked on.
    Working(Permit),
    /// An answer that comes into being while it is written.
    Streaming(Permit),
    /// An answer that is being written: it takes memory until its reader has taken it.
    Answered(Permit),
}

/// Holds the slot of an answer that is streamed, as long as there is more of it.
pub(crate) struct Streaming(Slot);

impl Drop for Streaming {
    fn drop(&mut self) {
        let mut place = self.0.place();
        if let Place::Streaming(permit) = &*place {
            *place = Place::Answered(Arc::clone(permit));
        }
    }
}

impl Slot {
    pub(crate) fn new(user: Arc<User>, wait: Duration) -> Self {
        Self { user, wait, place: Arc::default() }
    }

    /// The permit of the request just read. A pipelined request passed the gate in its predecessor's buffer: it goes on with
    /// that one's permit, or takes its own.
    pub(crate) async fn hold(&self) -> Option<Permit> {
        let held = match &*self.place() {
            Place::Reading(permit) | Place::Working(permit) | Place::Streaming(permit) | Place::Answered(permit) => {
                Some(Arc::clone(permit))
            }
            Place::Empty => None,
        };
        let permit = match held {
            Some(permit) => permit,
            None => Arc::new(acquire(Arc::clone(&self.user.requests), self.wait).await?),
        };
        *self.place() = Place::Working(Arc::clone(&permit));
        Some(permit)
    }

    /// The answer is ready; the slot is empty once it is written.
    pub(crate) fn answered(&self, permit: Permit) {
        *self.place() = Place::Answered(permit);
    }

    /// The head of the answer is ready, and its body comes bit by bit.
    pub(crate) fn streaming(&self, permit: Permit) -> Streaming {
        *self.place() = Place::Streaming(permit);
        Streaming(self.clone())
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn acquire(slots: Arc<Semaphore>, wait: Duration) -> Option<OwnedSemaphorePermit> {
    timeout(wait, slots.acquire_owned()).await.ok()?.ok()
}

/// How long a head may take before its slot goes to others; the connection itself may take longer, and then asks for a slot again.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);

/// A connection that reads nothing until its user has a slot, and does not wait for ever for a peer that takes no answer.
pub(crate) struct Gate {
    stream: Stream,
    slot: Slot,
    waiting: Option<Waiting>,
    head_due: Option<Pin<Box<Sleep>>>,
    write_limit: Duration,
    stream_limit: Duration,
    write_due: Option<Pin<Box<Sleep>>>,
}

type Waiting = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

impl Gate {
    /// An answer may wait for a peer that reads nothing for `write_limit`, a streamed one for `stream_limit`.
    pub(crate) fn new(stream: Stream, slot: Slot, write_limit: Duration, stream_limit: Duration) -> Self {
        Self { stream, slot, waiting: None, head_due: None, write_limit, stream_limit, write_due: None }
    }

    /// Bounds the time in which nothing at all can be written.
    fn limit_write<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_due = None;
            return written;
        }
        let streaming = matches!(*self.slot.place(), Place::Streaming(_));
        let limit = if streaming { self.stream_limit } else { self.write_limit };
        let due = self.write_due.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(due.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answer")))
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let taken_now = matches!(*self.slot.place(), Place::Empty);
            if taken_now {
                if self.waiting.is_none() {
                    ready!(self.stream.poll_read_ready(context))?;
                }
                let slot = self.slot.clone();
                let waiting =
                    self.waiting.get_or_insert_with(|| Box::pin(acquire(Arc::clone(&slot.user.requests), slot.wait)));
                let permit = ready!(waiting.as_mut().poll(context));
                self.waiting = None;
                let Some(permit) = permit else {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::QuotaExceeded, "over the request limit")));
                };
                *self.slot.place() = Place::Reading(Arc::new(permit));
                self.head_due = Some(Box::pin(sleep(HEAD_PATIENCE)));
            }
            let before = buffer.filled().len();
            let result = Pin::new(&mut self.stream).poll_read(context, buffer);
            // Readiness may be stale, and an end of file is no request.
            if taken_now && (result.is_pending() || buffer.filled().len() == before) {
                *self.slot.place() = Place::Empty;
            }
            let reading = matches!(*self.slot.place(), Place::Reading(_));
            if result.is_ready() || !reading {
                return result;
            }
            // Part of a head is here and the rest is not.
            if let Some(due) = &mut self.head_due {
                ready!(due.as_mut().poll(context));
            }
            *self.slot.place() = Place::Empty;
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.limit_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // hyper flushes when all of the answer is written.
        let mut place = self.slot.place();
        if matches!(*place, Place::Answered(_)) {
            *place = Place::Empty;
        }
        Poll::Ready(Ok(()))
    }

    /// Leaves the stream as it is, to be closed as a whole when it is dropped: half a close would show an end of file to a
    /// client whose request was refused unread, where a reset must be. What was written is read first either way.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
