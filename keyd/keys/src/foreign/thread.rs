//! The one thread that a vendor's library is called from. Its ABI promises that calls come one after another, and whoever waits for an
//! answer must not wait for ever.
//!
//! A thread in the middle of a call cannot be stopped. When a call outlasts its limit its caller gets an error, and so does everybody
//! else at once, until the call returns; then the thread goes on with the next caller who still waits. If it never returns, the
//! process lives on without keys, and its log says why.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::error::CallError;

/// Callers that may wait; the service lets far fewer through.
const QUEUE: usize = 256;

/// What is done with the library once it is its turn; none before it was opened.
type Work<L> = Box<dyn FnOnce(&mut Option<L>) + Send>;

/// Work, and whether anybody still waits for it.
struct Job<L> {
    work: Work<L>,
    is_abandoned: Arc<AtomicBool>,
}

/// A library of type `L` that lives and dies on its own thread.
pub(super) struct Thread<L> {
    jobs: SyncSender<Job<L>>,
    /// When the call under way began.
    began: Arc<Mutex<Option<Instant>>>,
    limit: Duration,
}

impl<L: 'static> Thread<L> {
    /// A thread without library yet; no call may take longer than `limit`, the wait for its turn included.
    pub(super) fn new(limit: Duration) -> io::Result<Thread<L>> {
        let (jobs, queue) = sync_channel(QUEUE);
        let began = Arc::new(Mutex::new(None));
        let thread = Thread { jobs, began: Arc::clone(&began), limit };
        // Not joined: it ends when the last caller is gone, unless the library keeps it.
        thread::Builder::new().name("key-library".to_owned()).spawn(move || serve(&queue, &began, limit))?;
        Ok(thread)
    }

    /// Puts the library that `open` makes onto the thread.
    pub(super) fn open<E: Send + 'static>(
        &self,
        open: impl FnOnce() -> Result<L, E> + Send + 'static,
    ) -> Result<Result<(), E>, CallError> {
        self.run(move |library| open().map(|opened| *library = Some(opened)))
    }

    /// Calls the library.
    pub(super) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&L) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        self.run(move |library| work(library.as_ref().ok_or(CallError::Gone)?))?
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce(&mut Option<L>) -> T + Send + 'static) -> Result<T, CallError> {
        if self.is_stuck() {
            return Err(CallError::Stuck(self.limit));
        }
        let (reply, answer) = sync_channel(1);
        let is_abandoned = Arc::new(AtomicBool::new(false));
        let work = Box::new(move |library: &mut Option<L>| {
            // Whoever gave up does not hear it.
            let _ = reply.send(work(library));
        });
        let job = Job { work, is_abandoned: Arc::clone(&is_abandoned) };
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => CallError::Busy,
            TrySendError::Disconnected(_) => CallError::Gone,
        })?;
        answer.recv_timeout(self.limit).map_err(|error| {
            is_abandoned.store(true, Ordering::Relaxed);
            match error {
                RecvTimeoutError::Timeout => CallError::Late(self.limit),
                RecvTimeoutError::Disconnected => CallError::Gone,
            }
        })
    }

    fn is_stuck(&self) -> bool {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.is_some_and(|began| began.elapsed() > self.limit)
    }
}

fn serve<L>(queue: &Receiver<Job<L>>, began: &Mutex<Option<Instant>>, limit: Duration) {
    let set_began = |instant| *began.lock().unwrap_or_else(PoisonError::into_inner) = instant;
    let mut library = None;
    while let Ok(job) = queue.recv() {
        // Done late, a call would surprise: its caller was told that it failed, and may have called again.
        if job.is_abandoned.load(Ordering::Relaxed) {
            continue;
        }
        let now = Instant::now();
        set_began(Some(now));
        // A fault on our side of a call ends that call: its caller sees the reply channel close.
        let outcome = catch_unwind(AssertUnwindSafe(|| (job.work)(&mut library)));
        set_began(None);
        if outcome.is_err() {
            tracing::error!("a call of the key library was cut short");
        }
        if now.elapsed() > limit {
            let seconds = now.elapsed().as_secs();
            tracing::warn!(seconds, "the key library answered after its callers had given up; it is used again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(30);

    fn opened(limit: Duration) -> Thread<u32> {
        let thread = Thread::new(limit).unwrap();
        thread.open(|| Ok::<_, ()>(7)).unwrap().unwrap();
        thread
    }

    #[test]
    fn calls_come_one_after_another_from_one_thread() {
        let thread = opened(LONG);
        let ids = Arc::new(Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let ids = Arc::clone(&ids);
                    let library = thread.call(move |library| {
                        ids.try_lock().unwrap().push(thread::current().id());
                        Ok(*library)
                    });
                    assert_eq!(library.unwrap(), 7);
                });
            }
        });
        let ids = ids.lock().unwrap();
        assert_eq!(ids.len(), 8);
        assert!(ids.iter().all(|id| *id == ids[0] && *id != thread::current().id()));
    }

    #[test]
    fn a_library_that_could_not_be_opened_is_never_called() {
        let thread: Thread<u32> = Thread::new(LONG).unwrap();
        assert_eq!(thread.open(|| Err("no")).unwrap(), Err("no"));
        assert!(matches!(thread.call(|_| Ok(())), Err(CallError::Gone)));
    }

    #[test]
    fn a_call_that_hangs_fails_and_what_waited_behind_it_is_not_done_late() {
        let thread = opened(SHORT);
        let (release, hold) = channel::<()>();
        let (told, tell) = channel();
        let hung = thread.call(move |_| hold.recv().map_err(|_| CallError::Gone));
        assert!(matches!(hung, Err(CallError::Late(_))));
        let told_too = told.clone();
        let refused = thread.call(move |_| told_too.send("refused").map_err(|_| CallError::Gone));
        assert!(matches!(refused, Err(CallError::Stuck(_) | CallError::Late(_))));
        assert!(matches!(thread.call(|_| Ok(())), Err(CallError::Stuck(_))), "at once");

        drop(release);
        let again = loop {
            match thread.call(|library| Ok(*library)) {
                Err(CallError::Stuck(_) | CallError::Late(_)) => thread::yield_now(),
                outcome => break outcome,
            }
        };
        assert_eq!(again.unwrap(), 7);
        drop(told);
        assert!(tell.recv().is_err(), "nobody waited for it any more");
    }

    #[test]
    fn the_queue_has_a_bound() {
        let thread = opened(LONG);
        let (release, hold) = channel::<()>();
        thread::scope(|scope| {
            let (enter, inside) = channel();
            let thread = &thread;
            scope.spawn(move || {
                thread.call(move |_| {
                    enter.send(()).unwrap();
                    hold.recv().map_err(|_| CallError::Gone)
                })
            });
            inside.recv().unwrap();
            for _ in 0..QUEUE {
                let job = Job { work: Box::new(|_| ()), is_abandoned: Arc::default() };
                assert!(thread.jobs.try_send(job).is_ok());
            }
            assert!(matches!(thread.call(|_| Ok(())), Err(CallError::Busy)));
            drop(release);
        });
    }

    #[test]
    fn a_fault_in_one_call_does_not_end_the_thread() {
        let thread = opened(LONG);
        assert!(matches!(thread.call::<()>(|_| panic!("on purpose")), Err(CallError::Gone)));
        assert_eq!(thread.call(|library| Ok(*library)).unwrap(), 7);
    }
}
