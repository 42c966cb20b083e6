//! Where work on keys runs: on this thread when it is short, otherwise on a thread that may block.

use std::sync::Arc;

use aziot_keys::KeyLibrary;
use aziot_log::RequestId;

/// The service stopped before the work had begun.
#[derive(Debug, thiserror::Error)]
#[error("the service is stopping")]
pub(crate) struct Interrupted;

/// Runs `work` on the library. `here` means that it neither touches the disk nor computes for long.
pub(crate) async fn run<T: Send + 'static>(
    library: &Arc<dyn KeyLibrary>,
    here: bool,
    work: impl FnOnce(&dyn KeyLibrary) -> T + Send + 'static,
) -> Result<T, Interrupted> {
    if here {
        return Ok(work(&**library));
    }
    let library = Arc::clone(library);
    match tokio::task::spawn_blocking(RequestId::carry(move || work(&*library))).await {
        Ok(outcome) => Ok(outcome),
        Err(error) => match error.try_into_panic() {
            // The server answers a panic, wherever it began.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Interrupted),
        },
    }
}
