//! What others want of the watchdog. Asking twice for the same is asking once, so nothing queues up.

use aziot_http::Shutdown;
use tokio::sync::Notify;

/// Wishes that have not been granted yet.
#[derive(Debug)]
pub(crate) struct Requests {
    reprovision: Notify,
    restart: Notify,
    /// Cancelled when nobody looks at wishes any more.
    ended: Shutdown,
}

impl Requests {
    /// Nobody wants anything. `ended` is cancelled when the runtime ends.
    pub(crate) fn new(ended: Shutdown) -> Self {
        Self { reprovision: Notify::new(), restart: Notify::new(), ended }
    }

    /// Wants the device to be provisioned anew; tells whether somebody will.
    pub(crate) fn reprovision(&self) -> bool {
        self.reprovision.notify_one();
        !self.ended.is_cancelled()
    }

    /// Wants the running modules to be restarted, because their certificates have lost their issuer.
    pub(crate) fn restart_modules(&self) {
        self.restart.notify_one();
    }

    pub(super) async fn reprovision_wanted(&self) {
        self.reprovision.notified().await;
    }

    pub(super) async fn restart_wanted(&self) {
        self.restart.notified().await;
    }
}
