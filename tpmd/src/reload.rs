//! Takes over changed principals while the service runs. Everything else in the configuration is read at the start only.

use std::convert::Infallible;
use std::sync::Arc;

use aziot_config::Live;
use aziot_tpmd_api::config::Config;

use crate::principals::Principals;
use crate::tpm::Tpm;

/// Applies each change for as long as it is polled. `started_with` is the config that the service started with.
pub(crate) async fn follow(live: Live<Config>, started_with: Config, tpm: Arc<Tpm>) {
    live.follow(|mut config| {
        tpm.set_principals(Principals::new(config.principal.as_deref()));
        config.principal.clone_from(&started_with.principal);
        if config != started_with {
            tracing::warn!(
                "the config differs in more than its principals from what the service started with: the rest needs a restart"
            );
        }
        std::future::ready(Ok::<_, Infallible>(()))
    })
    .await;
}
