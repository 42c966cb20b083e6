//! Work that blocks, on files or on arithmetic, on a thread for that. Knows nothing of what it does.

use std::{future::pending, panic::resume_unwind};

/// Runs `work`, which goes on to its end when nobody waits for it any more; its panic is the caller's.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Not begun, since the runtime ends, and whoever waits here ends with it.
            Err(_) => pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn work_that_a_shutdown_keeps_from_beginning_makes_no_panic() {
        let ending = Builder::new_current_thread().build().unwrap();
        let handle = ending.handle().clone();
        ending.shutdown_background();
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let waiting = async {
            let work = {
                let _ending = handle.enter();
                let mut work = Box::pin(run(|| ()));
                assert!(futures_util::poll!(&mut work).is_pending());
                work
            };
            tokio::time::timeout(Duration::from_millis(20), work).await
        };
        assert!(runtime.block_on(waiting).is_err());
    }
}
