//! The thread that talks to the TPM: one at a time, a bounded queue before it, and a deadline for each call.
//!
//! A TPM answers when it likes, and the library that asks it blocks until then. The event loop never waits on it. A call of the library that
//! never returns, as over a network that was lost, cannot be ended: the process ends then, and the service manager starts another.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::chip::{self, Chip};
use crate::error::Error;

/// How long a caller waits. Its own patience is 30 s in the public client, and an answer before that says more than none.
const LIMIT: Duration = Duration::from_secs(20);
/// Calls that wait. With `max_requests` at its default, three users fill it.
const QUEUE: usize = 32;

/// How long one job may take. Making two keys, the longest, takes a slow TPM a minute or two.
pub(crate) const LONGEST: Duration = Duration::from_secs(5 * 60);

type Job = Box<dyn FnOnce(&mut Chip) + Send>;

/// The way to the thread. Dropping it ends the thread when the calls that are queued are done.
pub(crate) struct Worker {
    jobs: mpsc::Sender<Job>,
    doing: Arc<watch::Sender<Option<Doing>>>,
}

/// What the thread does at the moment; `None` when it waits.
#[derive(Clone, Copy)]
struct Doing {
    work: &'static str,
    begun: Instant,
}

/// Why nobody talks to the TPM any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// By a panic, or because the service is stopping.
    #[error("the thread that talks to the TPM ended")]
    Ended,
    /// The library does not return.
    #[error("the TPM was asked to {work} and has not answered for {} minutes", LONGEST.as_secs() / 60)]
    Stuck {
        /// What was to be done.
        work: &'static str,
    },
}

/// Watches over the thread.
pub(crate) struct Watch {
    ended: oneshot::Receiver<()>,
    doing: watch::Receiver<Option<Doing>>,
}

impl Watch {
    /// Resolves when the thread has ended, or is stuck.
    pub(crate) async fn failure(mut self) -> Failure {
        tokio::select! {
            // Nothing is ever sent: the sender goes with the thread.
            _ = self.ended => Failure::Ended,
            work = stuck(&mut self.doing) => Failure::Stuck { work },
        }
    }
}

/// Resolves when one job has taken too long.
async fn stuck(doing: &mut watch::Receiver<Option<Doing>>) -> &'static str {
    loop {
        let now = *doing.borrow_and_update();
        let changed = doing.changed();
        let changed = match now {
            Some(Doing { work, begun }) => match tokio::time::timeout_at((begun + LONGEST).into(), changed).await {
                Ok(changed) => changed,
                Err(_) => return work,
            },
            None => changed.await,
        };
        if changed.is_err() {
            // The thread and all who could ask it are gone.
            std::future::pending::<()>().await;
        }
    }
}

impl Worker {
    /// Starts the thread that owns `chip`.
    pub(crate) fn start(mut chip: Chip) -> std::io::Result<(Worker, Watch)> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let (alive, ended) = oneshot::channel();
        let (begins, doing) = watch::channel(None);
        thread::Builder::new().name("tpm".to_owned()).spawn(move || {
            let _alive: oneshot::Sender<()> = alive;
            while let Some(job) = queue.blocking_recv() {
                job(&mut chip);
            }
        })?;
        Ok((Worker { jobs, doing: Arc::new(begins) }, Watch { ended, doing }))
    }

    /// Has the thread do `work`, which `name` describes as in "could not ...", and waits for its outcome within the limit. `work` is told when
    /// that ends.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut Chip, Instant) -> Result<T, chip::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + LIMIT;
        let outcome = self.queue(name, move |chip| work(chip, deadline))?;
        match tokio::time::timeout(LIMIT, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(|source| Error::Chip { work: name, source }),
            Ok(Err(_)) => Err(Error::Stopping),
            Err(_) => Err(Error::TimedOut { work: name, busy_with: self.doing(), limit: LIMIT }),
        }
    }

    /// The same without the caller's limit; the thread's own, `LONGEST`, ends the process.
    pub(crate) fn queue<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut Chip) -> Result<T, chip::Error> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, chip::Error>>, Error> {
        let (reply, outcome) = oneshot::channel();
        let doing = Arc::clone(&self.doing);
        let job = move |chip: &mut Chip| {
            // Its caller has given up: a call that was answered with an error is not carried out later.
            if reply.is_closed() {
                return;
            }
            doing.send_replace(Some(Doing { work: name, begun: Instant::now() }));
            let outcome = work(chip);
            doing.send_replace(None);
            // The caller may have given up while the TPM worked.
            let _ = reply.send(outcome);
        };
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => Ok(outcome),
            Err(TrySendError::Full(_)) => Err(Error::Overloaded { work: name, waiting: QUEUE }),
            Err(TrySendError::Closed(_)) => Err(Error::Stopping),
        }
    }

    fn doing(&self) -> &'static str {
        self.doing.borrow().map(|doing| doing.work).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use aziot_tpmd_api::config::Config;

    use super::*;

    /// A thread that hangs until the returned sender is dropped.
    async fn hung() -> (Worker, Watch, blocking::Sender<()>) {
        let (worker, watch) = Worker::start(Chip::new(&Config::default())).unwrap();
        let (go_on, waiting) = blocking::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let outcome = worker.queue("hang", move |_| {
            let _ = begun.send(());
            let _ = waiting.recv();
            Ok(())
        });
        has_begun.await.unwrap();
        drop(outcome);
        (worker, watch, go_on)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hung_tpm_fails_calls_in_time_and_does_not_do_them_later() {
        let (worker, _watch, go_on) = hung().await;
        let (done, was_done) = blocking::channel();
        let outcome = worker.ask("sign", move |_, _| {
            let _ = done.send(());
            Ok(())
        });
        let error = outcome.await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not sign within 20 s: the TPM is busy, or does not answer (it was asked to hang)"
        );
        drop(go_on);
        // Not by `ask`: the clock of this test runs ahead of the thread.
        assert_eq!(worker.queue("go on", |_| Ok(7)).unwrap().await.unwrap().unwrap(), 7);
        assert!(was_done.recv().is_err(), "its caller was told that it was not done");
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded() {
        let (worker, _watch, _go_on) = hung().await;
        let queued: Vec<_> = (0..QUEUE).map(|_| worker.queue("wait", |_| Ok(())).unwrap()).collect();
        let error = worker.ask("sign", |_, _| Ok(())).await.unwrap_err();
        assert_eq!(error.to_string(), "could not sign: 32 calls are waiting for the TPM already");
        drop(queued);
    }

    #[tokio::test]
    async fn the_end_of_the_thread_is_noticed() {
        let (worker, watch) = Worker::start(Chip::new(&Config::default())).unwrap();
        let outcome = worker.ask::<()>("fail", |_, _| panic!("a fault of the library")).await;
        assert!(matches!(outcome, Err(Error::Stopping)));
        assert!(matches!(watch.failure().await, Failure::Ended));
        assert!(matches!(worker.ask("sign", |_, _| Ok(())).await, Err(Error::Stopping)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_thread_that_is_stuck_is_noticed_and_one_that_works_is_not() {
        let (_worker, watch, go_on) = hung().await;
        let begun = tokio::time::Instant::now();
        let Failure::Stuck { work } = watch.failure().await else { panic!("it did not end") };
        assert_eq!(work, "hang");
        // The thread looks at the clock outside, which was a moment further.
        assert!(begun.elapsed().abs_diff(LONGEST) < Duration::from_secs(60), "{:?}", begun.elapsed());
        drop(go_on);

        // A job that ends in time counts for nothing, nor does a thread that has nothing to do.
        let (worker, watch) = Worker::start(Chip::new(&Config::default())).unwrap();
        worker.queue("work", |_| Ok(())).unwrap().await.unwrap().unwrap();
        assert!(tokio::time::timeout(2 * LONGEST, watch.failure()).await.is_err());
    }
}
