//! New settings when the configuration's files change, while requests under way keep those they began with.
//!
//! Home, limits and sockets stay as they were at the start; a change of them is told, not applied.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use aziot_certd_api::config::Config;
use aziot_config::Live;

use crate::{certificates::Certificates, settings::Settings};

/// Applies each change of the files for as long as it is polled.
pub(crate) async fn follow(live: Live<Config>, started_with: Fixed, certificates: Arc<Certificates>) {
    live.follow(|config| {
        apply(config, &started_with, &certificates);
        std::future::ready(Ok::<_, Infallible>(()))
    })
    .await;
}

fn apply(config: Config, started_with: &Fixed, certificates: &Certificates) {
    started_with.tell_difference(&config);
    certificates.replace_settings(Settings::new(&started_with.homedir, config));
}

/// What a running service keeps from the configuration it was started with.
pub(crate) struct Fixed {
    pub(crate) homedir: PathBuf,
    rest: Config,
}

impl Fixed {
    pub(crate) fn of(config: &Config) -> Self {
        let mut rest = Config::new(&config.homedir_path);
        rest.max_requests = config.max_requests;
        rest.endpoints = config.endpoints.clone();
        Self { homedir: config.homedir_path.clone(), rest }
    }

    fn tell_difference(&self, config: &Config) {
        if Self::of(config).rest != self.rest {
            tracing::warn!("homedir_path, max_requests and [endpoints] change with the next start only");
        }
    }
}

#[cfg(test)]
mod tests {
    use aziot_certd_api::config::Principal;
    use aziot_http::{Glob, Retry};

    use super::*;
    use crate::certificates::Error;

    #[tokio::test]
    async fn new_principals_act_and_the_home_never_moves() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let config = Config::new(&home);
        let keyd = aziot_keyd_api::client(&config.endpoints.aziot_keyd, Retry::local(0)).unwrap();
        let certificates = Certificates::new(Settings::new(&home, config.clone()), keyd);
        let started_with = Fixed::of(&config);
        let import = async || certificates.import(4_000_000, "a".into(), "text".into()).await;
        assert!(matches!(import().await, Err(Error::Unauthorized { .. })));

        let mut changed = Config::new("/elsewhere");
        changed.principal = vec![Principal { uid: 4_000_000, certs: vec![Glob::new("a")] }];
        apply(changed, &started_with, &certificates);
        assert!(import().await.is_ok());
        assert!(home.join("certs").is_dir());

        apply(Config::new("/elsewhere"), &started_with, &certificates);
        assert!(matches!(import().await, Err(Error::Unauthorized { .. })));
    }
}
