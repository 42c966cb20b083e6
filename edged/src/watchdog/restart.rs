//! Restarts the modules that run, since a renewed CA takes the worth from the certificates that they have. Modules that somebody stopped stay so.

use aziot_edged_api::config::AGENT;
use aziot_log::{chain, fields};
use futures_util::future::join_all;

use super::Runtime;
use crate::error::BoxError;

/// It is not known which modules run: all go on with their old certificates.
#[derive(Clone, Copy, Debug)]
pub(super) struct NotListed;

/// Restarts what runs, the agent last: it would start the others itself. What does not stop or start gets a second chance when the others have
/// had theirs. Where the agent does not run, nothing is done: the next round starts it, and it starts the others.
pub(super) async fn restart(runtime: &impl Runtime) -> Result<(), NotListed> {
    let running = runtime.running().await.map_err(|error| {
        tracing::warn!({ fields::ERROR } = %chain(&*error), "the modules could not be listed, and go on with their old certificates for now");
        NotListed
    })?;
    if !running.iter().any(|module| module == AGENT) {
        tracing::info!("the agent does not run: no module is restarted for the renewed CA");
        return Ok(());
    }
    tracing::info!("restarting the modules, because their certificates' CA was renewed");
    let stops = running.iter().map(|module| async move { succeeded(module, "stop", &runtime.stop(module).await) });
    let stopped = join_all(stops).await;
    let (agent, others): (Vec<_>, Vec<_>) = running.iter().zip(stopped).partition(|(module, _)| *module == AGENT);
    let mut again = Vec::new();
    for (module, is_stopped) in others {
        // One that did not stop is started all the same: it may have ended since.
        let is_started = succeeded(module, "start", &runtime.start(module).await);
        if !(is_stopped && is_started) {
            again.push((module, is_stopped));
        }
    }
    for (module, is_stopped) in again.into_iter().chain(agent) {
        if !is_stopped {
            succeeded(module, "stop", &runtime.stop(module).await);
        }
        succeeded(module, "start", &runtime.start(module).await);
    }
    Ok(())
}

fn succeeded(module: &str, action: &str, outcome: &Result<(), BoxError>) -> bool {
    if let Err(error) = outcome {
        tracing::warn!({ fields::MODULE_ID } = module, { fields::ERROR } = %chain(&**error), "could not {action} the module");
    }
    outcome.is_ok()
}
