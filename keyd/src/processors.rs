//! Work that does nothing but compute, on as many threads as there are processors and no more: the rest waits in line.
//!
//! A thread takes the next piece of work itself, so while there is a line no thread goes to sleep and none is woken. For work that waits
//! (for a disk, a token) this is the wrong place: it would hold up everybody behind it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::blocking::Interrupted;

type Work = Box<dyn FnOnce() + Send>;

/// The line, and those who work it off. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Processors {
    line: Arc<Mutex<Line>>,
    places: usize,
}

#[derive(Default)]
struct Line {
    /// One for each request under way at most, which the server bounds.
    waiting: VecDeque<Work>,
    working: usize,
}

impl Processors {
    /// All processors that this process may use.
    pub(crate) fn all() -> Processors {
        Processors::some(thread::available_parallelism().map_or(1, usize::from))
    }

    fn some(places: usize) -> Processors {
        Processors { line: Arc::default(), places }
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
        let mut line = self.line();
        line.waiting.push_back(work);
        if line.working < self.places {
            line.working += 1;
            drop(line);
            let worker = Worker { processors: self.clone(), has_place: true };
            tokio::task::spawn_blocking(move || worker.work_off());
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who works the line off. A place that no thread could be had for is given back too.
struct Worker {
    processors: Processors,
    has_place: bool,
}

impl Worker {
    fn work_off(mut self) {
        while let Some(work) = self.next() {
            work();
        }
    }

    /// The first in the line. Under the same lock as finding nobody there, the place goes: whoever comes next takes it.
    fn next(&mut self) -> Option<Work> {
        let mut line = self.processors.line();
        let next = line.waiting.pop_front();
        if next.is_none() {
            line.working -= 1;
            self.has_place = false;
        }
        next
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.has_place {
            self.processors.line().working -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use tokio::runtime::Builder;

    use super::*;

    /// Work that holds its place until it is told to go on.
    fn held() -> (mpsc::Sender<()>, impl FnOnce() + Send) {
        let (go_on, told) = mpsc::channel();
        (go_on, move || told.recv().unwrap())
    }

    #[tokio::test]
    async fn as_many_work_as_there_are_places_and_all_get_done() {
        let processors = Processors::some(2);
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
        let (processors, order) = (Processors::some(1), Arc::new(Mutex::new(Vec::new())));
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
        let processors = Processors::some(1);
        for _ in 0..3 {
            let panics = AssertUnwindSafe(processors.run(|| panic!("on purpose"))).catch_unwind();
            assert!(panics.await.is_err());
            assert_eq!(processors.run(|| 1).await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn work_of_a_caller_who_left_is_not_begun() {
        let (processors, begun) = (Processors::some(1), Arc::new(AtomicUsize::new(0)));
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

    #[test]
    fn a_place_that_no_thread_took_is_free_again() {
        let ended = Builder::new_current_thread().build().unwrap();
        let handle = ended.handle().clone();
        ended.shutdown_background();
        let processors = Processors::some(1);
        {
            let _ended = handle.enter();
            assert!(processors.run(|| ()).now_or_never().is_none());
        }
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let next = async { tokio::time::timeout(Duration::from_secs(60), processors.run(|| 1)).await };
        assert_eq!(runtime.block_on(next).unwrap().unwrap(), 1);
    }
}
