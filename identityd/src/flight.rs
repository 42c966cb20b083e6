//! Calls under way that any number of callers wait for: nobody asks a second time for what is being asked for already.
//!
//! A call has a task of its own and runs to its end, also when nobody waits for it any more. It must have a limit of its own. What becomes of
//! its outcome afterwards is for others to decide. At the service's end nobody waits for calls: what they learn is of use to callers only.

use aziot_log::RequestId;
use futures_util::{FutureExt as _, future::Shared};
use tokio::sync::oneshot;

/// A call under way, or one that has just ended.
#[derive(Clone)]
pub(crate) struct Flight<T: Clone>(Shared<oneshot::Receiver<T>>);

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Begins a call; what it logs is part of the request that began it.
    #[expect(
        clippy::disallowed_methods,
        reason = "a shutdown need not wait: calls read, or can be made again, and files are written whole or not at all"
    )]
    pub(crate) fn begin(call: impl Future<Output = T> + Send + 'static) -> Self {
        let (land, landed) = oneshot::channel();
        let request = RequestId::current();
        tokio::spawn(Box::pin(async move {
            let outcome = match request {
                Some(request) => request.scope(call).await,
                None => call.await,
            };
            // Perhaps nobody waits any more.
            let _: Result<(), T> = land.send(outcome);
        }));
        Self(landed.shared())
    }

    /// Whether nobody is to join it any more: its outcome has been seen, or it panicked.
    pub(crate) fn is_over(&self) -> bool {
        self.0.peek().is_some()
    }

    /// Its outcome; `None` if it has none, because the runtime ends, or because it panicked.
    pub(crate) async fn outcome(self) -> Option<T> {
        self.0.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_get_one_outcome_and_nobody_has_to_wait() {
        let (open, gate) = oneshot::channel::<u32>();
        let flight = Flight::begin(async move { gate.await.unwrap() });
        assert!(!flight.is_over());
        let (one, other) = (flight.clone().outcome(), flight.clone().outcome());
        open.send(7).unwrap();
        assert_eq!(tokio::join!(one, other), (Some(7), Some(7)));
        assert!(flight.is_over());

        let (open, gate) = oneshot::channel::<u32>();
        let (done, mut finished) = oneshot::channel();
        drop(Flight::begin(async move { done.send(gate.await.unwrap()).unwrap() }));
        assert!(finished.try_recv().is_err());
        open.send(8).unwrap();
        assert_eq!(finished.await.unwrap(), 8);
    }

    #[test]
    fn a_call_that_the_end_of_the_runtime_cuts_off_has_no_outcome() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ending = runtime();
        let flight = ending.block_on(async { Flight::begin(std::future::pending::<u32>()) });
        drop(ending);
        assert_eq!(runtime().block_on(flight.clone().outcome()), None);
        assert!(flight.is_over());
    }
}
