//! Where work on keys runs: on this thread when it is short, on a processor in its turn when it computes for longer, otherwise on a
//! thread that may block.

use std::sync::Arc;

use aziot_keys::KeyLibrary;
use aziot_log::RequestId;

use crate::compute_pool::ComputePool;

/// The service stopped before the work had begun.
#[derive(Debug, thiserror::Error)]
#[error("the service is stopping")]
pub(crate) struct Interrupted;

/// The thread for a piece of work.
#[derive(Clone, Copy)]
pub(crate) enum Where<'a> {
    /// This one, for what neither writes nor waits nor computes for long. Whether a file is as it was may be looked up.
    Here,
    /// One of those that may block.
    BlockingThread,
    /// One of these, for what computes for long and does not wait. Whether a file is as it was may be looked up.
    ComputePool(&'a ComputePool),
}

impl Where<'_> {
    /// Here, if the work is that quick.
    pub(crate) fn here_if(is_quick: bool) -> Self {
        if is_quick { Where::Here } else { Where::BlockingThread }
    }
}

/// Runs `work` on the library.
pub(crate) async fn run<T: Send + 'static>(
    library: &Arc<dyn KeyLibrary>,
    place: Where<'_>,
    work: impl FnOnce(&dyn KeyLibrary) -> T + Send + 'static,
) -> Result<T, Interrupted> {
    if let Where::Here = place {
        return Ok(work(&**library));
    }
    let library = Arc::clone(library);
    let work = RequestId::carry(move || work(&*library));
    if let Where::ComputePool(pool) = place {
        return pool.run(work).await;
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => Ok(outcome),
        Err(error) => match error.try_into_panic() {
            // The server answers a panic, wherever it began.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Interrupted),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use aziot_http::Peer;
    use aziot_keys::{KeyUsage, Keys as Library, Settings, file_name};

    use crate::keys::Keys;
    use crate::principals::Principals;

    /// Making a key writes it and waits for the disk, even where the key in memory says that there is nothing to make.
    #[tokio::test]
    async fn a_key_whose_file_is_gone_is_not_made_on_this_thread() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { homedir_path: Some(folder.path().into()), ..Settings::default() };
        let keys = Keys::new(Arc::new(Library::new(settings).unwrap()), Principals::default());
        let path = folder.path().join("keys").join(file_name("k").unwrap());
        let root = Peer::new(0, 0, 1);
        let create = || Box::pin(keys.create_key(&root, "k".to_owned(), KeyUsage::SIGN, None));
        let mut context = Context::from_waker(Waker::noop());
        create().await.unwrap();
        assert!(create().as_mut().poll(&mut context).is_ready(), "what is in memory is answered at once");
        std::fs::remove_file(&path).unwrap();
        let mut creation = create();
        assert!(creation.as_mut().poll(&mut context).is_pending());
        creation.await.unwrap();
        assert!(path.exists());
    }
}
