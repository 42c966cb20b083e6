//! New settings when the configuration's files change, while requests under way keep those they began with.
//!
//! Home, limits and sockets stay as they were at the start; a change of them is told, not applied. New settings are built
//! completely before they take the place of the old ones: if a trusted certificate cannot be read, all stays as it was.

use std::{path::PathBuf, sync::Arc};

use aziot_certd_api::config::Config;
use aziot_config::Live;

use crate::{
    certificates::Certificates,
    est::{Surroundings, servers::TrustError},
    settings::Settings,
};

/// Applies each change of the files for as long as it is polled.
pub(crate) async fn follow(
    live: Live<Config>,
    started_with: Fixed,
    surroundings: Surroundings,
    certificates: Arc<Certificates>,
) {
    live.follow(|config| apply(config, &started_with, &surroundings, &certificates)).await;
}

async fn apply(
    config: Config,
    started_with: &Fixed,
    surroundings: &Surroundings,
    certificates: &Certificates,
) -> Result<(), TrustError> {
    started_with.tell_difference(&config);
    let settings = Settings::new(&started_with.homedir, config, surroundings);
    settings.est.prepare().await?;
    certificates.replace_settings(settings).await;
    Ok(())
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
    use aziot_certd_api::config::{Est, EstAuth, KeyPair, Principal};
    use aziot_http::{Glob, Retry};
    use aziot_pki::renewal::{Engine, SystemClock};

    use super::*;
    use crate::{
        certificates::Error,
        est::{enrolment::Patience, servers::Limits},
    };

    #[tokio::test]
    async fn new_principals_act_and_the_home_never_moves() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let config = Config::new(&home);
        let keyd = aziot_keyd_api::client(&config.endpoints.aziot_keyd, Retry::local(0)).unwrap();
        let surroundings = Surroundings::new(keyd, None, Limits::default());
        let settings = Settings::new(&home, config.clone(), &surroundings);
        let engine = Engine::new(SystemClock::new());
        let certificates = Certificates::new(settings, &surroundings, engine, Patience::default());
        let started_with = Fixed::of(&config);
        let import = async || certificates.import(4_000_000, "a".into(), "text".into()).await;
        assert!(matches!(import().await, Err(Error::Unauthorized { .. })));

        let mut changed = Config::new("/elsewhere");
        changed.principal = vec![Principal { uid: 4_000_000, certs: vec![Glob::new("a")] }];
        apply(changed.clone(), &started_with, &surroundings, &certificates).await.unwrap();
        assert!(import().await.is_ok());
        assert!(home.join("certs").is_dir());

        let identity = Some(KeyPair { cert: "i".into(), pk: "i".into() });
        let auth = Some(EstAuth { basic: None, identity, bootstrap_identity: None });
        let est = Est { trusted_certs: vec!["absent".into()], auth, ..Est::default() };
        let mut untrusting = Config::new("/elsewhere");
        untrusting.cert_issuance.est = Some(est);
        assert!(apply(untrusting, &started_with, &surroundings, &certificates).await.is_err());
        assert!(import().await.is_ok(), "the old settings are in force");

        apply(Config::new("/elsewhere"), &started_with, &surroundings, &certificates).await.unwrap();
        assert!(matches!(import().await, Err(Error::Unauthorized { .. })));
    }
}
