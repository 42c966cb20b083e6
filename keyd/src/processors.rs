//! Work that does nothing but compute, on as many threads as there are processors and no more: the rest waits in line.
//!
//! A thread takes the next piece of work itself, so while there is a line no thread goes to sleep and none is woken. For work that waits
//! (for a disk, a token) this is the wrong place: it would hold up everybody behind it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::blocking::Interrupted;

/// Priority of the threads, as of `nice`(2): just low enough that whoever brings work or takes a result away goes first. At the same priority
/// that waits for the end of a time slice, and an eighth fewer RSA signatures get done (`docs/benchmarks.md`).
const LOWER: i32 = 2;

/// How long a thread waits for more work before it ends.
const PATIENCE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// The line, and those who work it off. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Processors {
    shared: Arc<Shared>,
    places: usize,
    patience: Duration,
}

#[derive(Default)]
struct Shared {
    line: Mutex<Line>,
    more: Condvar,
}

#[derive(Default)]
struct Line {
    /// One for each request under way at most, which the server bounds.
    waiting: VecDeque<Work>,
    threads: usize,
    /// Of the threads, those that wait for work.
    idle: usize,
}

impl Processors {
    /// All processors that this process may use.
    pub(crate) fn all() -> Processors {
        Processors::some(thread::available_parallelism().map_or(1, usize::from), PATIENCE)
    }

    fn some(places: usize, patience: Duration) -> Processors {
        Processors { shared: Arc::default(), places, patience }
    }

    /// Runs `work` in its turn. A panic of it is the caller's. Work that nobody waits for any more is left out.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        let (done, outcome) = oneshot::channel();
        self.queue(Box::new(move || {
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

    fn queue(&self, work: Work) {
        let mut line = self.shared.line();
        line.waiting.push_back(work);
        if line.idle > 0 {
            self.shared.more.notify_one();
        }
        if line.waiting.len() <= line.idle || line.threads == self.places {
            return;
        }
        line.threads += 1;
        drop(line);
        if self.spawn().is_err() {
            self.without_thread();
        }
    }

    fn spawn(&self) -> io::Result<()> {
        let (shared, patience) = (Arc::clone(&self.shared), self.patience);
        let work_off = move || {
            // At the usual priority it does the same.
            let _ = rustix::process::setpriority_process(None, LOWER);
            shared.work_off(patience);
        };
        thread::Builder::new().name("processor".to_owned()).spawn(work_off).map(drop)
    }

    /// No more threads for this process. If nobody else works the line off, this one has to.
    fn without_thread(&self) {
        let mut line = self.shared.line();
        line.threads -= 1;
        while line.threads == 0
            && let Some(work) = line.waiting.pop_front()
        {
            drop(line);
            work();
            line = self.shared.line();
        }
    }
}

impl Shared {
    /// Ends after waiting so long in vain.
    fn work_off(&self, patience: Duration) {
        let mut line = self.line();
        loop {
            while let Some(work) = line.waiting.pop_front() {
                drop(line);
                work();
                line = self.line();
            }
            line.idle += 1;
            let waited = self.more.wait_timeout_while(line, patience, |line| line.waiting.is_empty());
            (line, _) = waited.unwrap_or_else(PoisonError::into_inner);
            line.idle -= 1;
            if line.waiting.is_empty() {
                // Under the same lock as finding nothing: whoever comes next makes a thread.
                line.threads -= 1;
                return;
            }
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Work that holds its place until it is told to go on.
    fn held() -> (mpsc::Sender<()>, impl FnOnce() + Send) {
        let (go_on, told) = mpsc::channel();
        (go_on, move || told.recv().unwrap())
    }

    #[tokio::test]
    async fn as_many_work_as_there_are_places_and_all_get_done() {
        let processors = Processors::some(2, PATIENCE);
        let (now, most, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let one = |_| async {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            let work = move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            };
            processors.run(work).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        };
        join_all((0..200).map(one)).await;
        assert_eq!(done.into_inner(), 200);
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn the_line_is_worked_off_in_its_order() {
        let (processors, order) = (Processors::some(1, PATIENCE), Arc::new(Mutex::new(Vec::new())));
        let (go_on, work) = held();
        let first = processors.run(work);
        let others = (0..20).map(|number| {
            let order = Arc::clone(&order);
            processors.run(move || order.lock().unwrap().push(number))
        });
        let begin = async {
            tokio::task::yield_now().await;
            go_on.send(()).unwrap();
        };
        let (_, _, ()) = tokio::join!(first, join_all(others), begin);
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_panic_is_the_callers_and_the_line_goes_on() {
        let processors = Processors::some(1, PATIENCE);
        for _ in 0..3 {
            let panics = AssertUnwindSafe(processors.run(|| panic!("on purpose"))).catch_unwind();
            assert!(panics.await.is_err());
            assert_eq!(processors.run(|| 1).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn work_of_a_caller_who_left_is_not_begun() {
        let (processors, begun) = (Processors::some(1, PATIENCE), Arc::new(AtomicUsize::new(0)));
        let (go_on, work) = held();
        let mut first = Box::pin(processors.run(work));
        assert!(first.as_mut().now_or_never().is_none());
        let count = Arc::clone(&begun);
        assert!(processors.run(move || count.fetch_add(1, Ordering::SeqCst)).now_or_never().is_none());
        go_on.send(()).unwrap();
        first.await.unwrap();
        assert_eq!(processors.run(|| 1).await.unwrap(), 1, "came after the work that was left");
        assert_eq!(begun.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn threads_end_after_a_while_and_others_follow() {
        let processors = Processors::some(2, Duration::from_millis(1));
        for _ in 0..3 {
            let name = || thread::current().name().map(str::to_owned);
            assert_eq!(processors.run(name).await.unwrap().as_deref(), Some("processor"));
            let ended = async {
                while processors.shared.line().threads > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_idle_thread_is_used_again_and_a_second_made_only_for_a_second_piece_of_work() {
        let processors = Processors::some(2, PATIENCE);
        let idle = |count| {
            let processors = &processors;
            async move {
                while processors.shared.line().idle < count {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        for _ in 0..3 {
            processors.run(|| ()).await.unwrap();
            tokio::time::timeout(Duration::from_secs(60), idle(1)).await.unwrap();
            assert_eq!(processors.shared.line().threads, 1);
        }
        let (go_on, work) = held();
        let second = async {
            processors.run(|| ()).await.unwrap();
            go_on.send(()).unwrap();
        };
        let (first, ()) = tokio::join!(processors.run(work), second);
        first.unwrap();
        assert_eq!(processors.shared.line().threads, 2);
    }

    #[tokio::test]
    async fn work_that_no_thread_could_be_had_for_is_done_by_who_brought_it() {
        let processors = Processors::some(1, PATIENCE);
        let done = Arc::new(AtomicUsize::new(0));
        {
            let mut line = processors.shared.line();
            for _ in 0..2 {
                let done = Arc::clone(&done);
                line.waiting.push_back(Box::new(move || {
                    done.fetch_add(1, Ordering::SeqCst);
                }));
            }
            line.threads = 1;
        }
        processors.without_thread();
        assert_eq!((done.load(Ordering::SeqCst), processors.shared.line().threads), (2, 0));
        assert_eq!(processors.run(|| 1).await.unwrap(), 1);
    }
}
