//! Cases of one test at once, each with a device of its own: for those that are mostly waiting.

use std::thread;

use anyhow::{Result, anyhow};

/// Works on all cases, each in a thread, and returns the results in the order of the cases, or the first failure.
pub fn at_once<C: Send, R: Send>(
    cases: impl IntoIterator<Item = C>,
    work: impl Fn(C) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = cases.into_iter().map(|case| scope.spawn(move || work(case))).collect();
        // All of them, so that the first failure is the one that is told.
        let ends: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ends.into_iter().map(|end| end.map_err(|_| anyhow!("a case panicked"))?).collect()
    })
}
