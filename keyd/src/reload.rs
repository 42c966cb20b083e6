//! Takes over changed principals while the service runs. Everything else in the configuration is read at the start only.

use std::convert::Infallible;
use std::sync::Arc;

use aziot_config::Live;
use aziot_keyd_api::config::Config;

use crate::keys::Keys;
use crate::principals::Principals;

/// Applies each change for as long as it is polled. `started_with` is the config that the service started with.
pub(crate) async fn follow(live: Live<Config>, started_with: Config, keys: Arc<Keys>) {
    live.follow(|config| {
        apply(config, &started_with, &keys);
        std::future::ready(Ok::<_, Infallible>(()))
    })
    .await;
}

fn apply(mut config: Config, started_with: &Config, keys: &Keys) {
    keys.set_principals(Principals::new(&config.principal));
    config.principal.clone_from(&started_with.principal);
    if config != *started_with {
        tracing::warn!(
            "the config differs in more than its principals from what the service started with: the rest needs a restart"
        );
    }
}

#[cfg(test)]
mod tests {
    use aziot_http::{Glob, Peer};
    use aziot_keyd_api::config::Principal;
    use aziot_keys::{KeyUsage, Keys as Library, Settings};

    use super::*;

    const USER: Peer = Peer::new(4_000_000, 1, 1);

    #[tokio::test]
    async fn new_principals_replace_the_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let library =
            Library::new(Settings { homedir_path: Some(folder.path().into()), ..Settings::default() }).unwrap();
        let keys = Keys::new(Arc::new(library), Principals::default());
        for allowed in ["first", "second"] {
            let principal = vec![Principal { uid: USER.uid, keys: vec![Glob::new(allowed)] }];
            apply(Config { principal, ..Config::default() }, &Config::default(), &keys);
            for id in ["first", "second"] {
                let created = keys.create_key(&USER, id.to_owned(), KeyUsage::SIGN, None).await;
                assert_eq!(created.is_ok(), id == allowed, "{id} where {allowed} is allowed");
            }
        }
    }
}
