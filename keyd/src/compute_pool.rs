//! A thread pool for work that does nothing but compute: as many threads as there are processors and no more, and a queue for the rest.
//!
//! A thread takes the next piece of work itself, so while there is a queue no thread goes to sleep and none is woken. For work that waits
//! (for a disk, a token) this is the wrong place: it would hold up everybody behind it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::blocking::Interrupted;

/// By how much the threads are nicer than others, as of `nice`(2): just enough that whoever brings work or takes a result away goes first. At the
/// same priority that waits for the end of a time slice, and a tenth fewer RSA signatures get done (`docs/benchmarks.md`).
const NICER: i32 = 2;

/// How long a thread waits for more work before it ends.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// The pool. Dropped, it leaves its threads to end by themselves.
pub(crate) struct ComputePool {
    shared: Arc<Shared>,
    size: usize,
    keep_alive: Duration,
    /// For a thread that is still to be named.
    builder: fn() -> thread::Builder,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    /// One for each request under way at most, which the server bounds.
    waiting: VecDeque<Work>,
    threads: usize,
    /// Of the threads, those that wait for work.
    idle: usize,
}

impl ComputePool {
    /// One thread for each processor that this process may use.
    pub(crate) fn new() -> ComputePool {
        ComputePool::of(thread::available_parallelism().map_or(1, usize::from))
    }

    fn of(size: usize) -> ComputePool {
        ComputePool { shared: Arc::default(), size, keep_alive: KEEP_ALIVE, builder: thread::Builder::new }
    }

    /// Runs `work` in its turn. A panic of it is the caller's. Work that nobody waits for any more is left out.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let (done, outcome) = oneshot::channel();
        self.push(Box::new(move || {
            if !done.is_closed() {
                // Whoever waited may be gone by now.
                let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
            }
        }));
        match outcome.await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(Interrupted),
        }
    }

    fn push(&self, work: Work) {
        let mut queue = self.shared.queue();
        queue.waiting.push_back(work);
        if queue.idle > 0 {
            self.shared.more.notify_one();
        }
        if queue.waiting.len() <= queue.idle || queue.threads == self.size {
            return;
        }
        queue.threads += 1;
        drop(queue);
        if self.spawn().is_err() {
            self.without_thread();
        }
    }

    fn spawn(&self) -> io::Result<()> {
        let (shared, keep_alive) = (Arc::clone(&self.shared), self.keep_alive);
        let work_off = move || {
            // At the usual priority it does the same.
            let _ = rustix::process::nice(NICER);
            shared.work_off(keep_alive);
        };
        (self.builder)().name("compute".to_owned()).spawn(work_off).map(drop)
    }

    /// No more threads for this process. If nobody else works the queue off, this one has to.
    fn without_thread(&self) {
        let mut queue = self.shared.queue();
        queue.threads -= 1;
        while queue.threads == 0
            && let Some(work) = queue.waiting.pop_front()
        {
            drop(queue);
            work();
            queue = self.shared.queue();
        }
    }
}

impl Shared {
    /// Ends after waiting so long in vain.
    fn work_off(&self, keep_alive: Duration) {
        let mut queue = self.queue();
        loop {
            while let Some(work) = queue.waiting.pop_front() {
                drop(queue);
                work();
                queue = self.queue();
            }
            queue.idle += 1;
            let waited = self.more.wait_timeout_while(queue, keep_alive, |queue| queue.waiting.is_empty());
            (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
            if queue.waiting.is_empty() {
                // Under the same lock as finding nothing: whoever comes next makes a thread.
                queue.threads -= 1;
                return;
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;

    /// Work that holds its thread until it is told to go on.
    fn held() -> (mpsc::Sender<()>, impl FnOnce() + Send) {
        let (go_on, told) = mpsc::channel();
        (go_on, move || told.recv().unwrap())
    }

    #[tokio::test]
    async fn no_more_than_its_size_work_at_once_and_all_get_done() {
        let pool = ComputePool::of(2);
        let (now, most, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let one = |_| async {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            let work = move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            };
            pool.run(work).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        };
        join_all((0..200).map(one)).await;
        assert_eq!(done.into_inner(), 200);
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn the_queue_is_worked_off_in_its_order() {
        let (pool, order) = (ComputePool::of(1), Arc::new(Mutex::new(Vec::new())));
        let (go_on, work) = held();
        let first = pool.run(work);
        let others = (0..20).map(|number| {
            let order = Arc::clone(&order);
            pool.run(move || order.lock().unwrap().push(number))
        });
        let begin = async {
            tokio::task::yield_now().await;
            go_on.send(()).unwrap();
        };
        let (_, _, ()) = tokio::join!(first, join_all(others), begin);
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_panic_is_the_callers_and_the_next_are_done() {
        let pool = ComputePool::of(1);
        for _ in 0..3 {
            let panics = AssertUnwindSafe(pool.run(|| panic!("on purpose"))).catch_unwind();
            assert!(panics.await.is_err());
            assert_eq!(pool.run(|| 1).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn work_of_a_caller_who_left_is_not_begun() {
        let (pool, begun) = (ComputePool::of(1), Arc::new(AtomicUsize::new(0)));
        let (go_on, work) = held();
        let mut first = Box::pin(pool.run(work));
        assert!(first.as_mut().now_or_never().is_none());
        let count = Arc::clone(&begun);
        assert!(pool.run(move || count.fetch_add(1, Ordering::SeqCst)).now_or_never().is_none());
        go_on.send(()).unwrap();
        first.await.unwrap();
        assert_eq!(pool.run(|| 1).await.unwrap(), 1, "came after the work that was left");
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn threads_end_after_a_while_and_others_follow() {
        let pool = ComputePool { keep_alive: Duration::from_millis(1), ..ComputePool::of(2) };
        for _ in 0..3 {
            let name = || thread::current().name().map(str::to_owned);
            assert_eq!(pool.run(name).await.unwrap().as_deref(), Some("compute"));
            let ended = async {
                while pool.shared.queue().threads > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_idle_thread_is_used_again_and_a_second_made_only_for_a_second_piece_of_work() {
        let pool = ComputePool::of(2);
        let idle = |count| {
            let pool = &pool;
            async move {
                while pool.shared.queue().idle < count {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        for _ in 0..3 {
            pool.run(|| ()).await.unwrap();
            tokio::time::timeout(Duration::from_secs(60), idle(1)).await.unwrap();
            assert_eq!(pool.shared.queue().threads, 1);
        }
        let (go_on, work) = held();
        let second = async {
            pool.run(|| ()).await.unwrap();
            go_on.send(()).unwrap();
        };
        let both = async { tokio::join!(pool.run(work), second) };
        let (first, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
        first.unwrap();
        assert_eq!(pool.shared.queue().threads, 2);
    }

    #[tokio::test]
    async fn work_that_no_thread_could_be_had_for_is_done_by_who_brought_it() {
        // More than any address space.
        let pool = ComputePool { builder: || thread::Builder::new().stack_size(1 << 60), ..ComputePool::of(2) };
        for _ in 0..3 {
            let here = thread::current().id();
            assert_eq!(pool.run(|| thread::current().id()).await.unwrap(), here);
            assert_eq!(pool.shared.queue().threads, 0);
        }
    }

    #[tokio::test]
    async fn work_gives_way_to_others() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let own = priority();
        assert_eq!(ComputePool::of(1).run(priority).await.unwrap(), (own + NICER).min(19));
        assert_eq!(priority(), own);
    }
}
