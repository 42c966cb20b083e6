//! New settings when their files change. They act as a whole or not at all.

use std::sync::Arc;

use aziot_config::Live;
use aziot_identityd_api::config::Config;
use tokio::sync::mpsc;

use crate::{
    schedule::Wish,
    settings::{Settings, Shared, Unusable},
};

/// Follows the files for ever.
pub(crate) async fn run(live: Live<Config>, settings: Shared, wishes: mpsc::Sender<Wish>) {
    live.follow(|config| apply(config, Arc::clone(&settings), wishes.clone())).await;
}

/// Puts new settings in force if they are good, and lets the schedule know.
pub(crate) async fn apply(config: Config, settings: Shared, wishes: mpsc::Sender<Wish>) -> Result<(), Unusable> {
    let new = Settings::new(config)?;
    settings.load().log_delayed(&new);
    settings.store(Arc::new(new));
    // Without a schedule the service is about to end.
    let _ = wishes.send(Wish::Reload).await;
    Ok(())
}
