//! New settings when the configuration's files change, while requests under way keep those they began with.
//!
//! Home, limits and sockets stay as they were at the start; a change of them is told, not applied.

use std::{path::PathBuf, sync::Arc};

use aziot_certd_api::config::Config;
use aziot_config::{Finding, Sources, Watch};
use aziot_log::chain;

use crate::{certificates::Certificates, settings::Settings};

/// Starts watching; without a watch the service goes on with the settings it has.
pub(crate) fn watch(sources: &Sources) -> Option<Watch> {
    match Watch::start(sources) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!("{}; changed settings need a restart", chain(&error));
            None
        }
    }
}

/// What is odd about the configuration, as warnings.
pub(crate) fn log_findings(findings: &[Finding]) {
    for finding in findings {
        tracing::warn!("{}", finding.one_line());
    }
}

/// Applies each change of the files for as long as it is polled.
pub(crate) async fn keep_current(
    watch: Option<Watch>,
    sources: Sources,
    started_with: Fixed,
    certificates: Arc<Certificates>,
) {
    let Some(mut watch) = watch else { return std::future::pending().await };
    loop {
        watch.changed().await;
        reload(&sources, &started_with, &certificates).await;
    }
}

async fn reload(sources: &Sources, started_with: &Fixed, certificates: &Certificates) {
    let sources = sources.clone();
    match tokio::task::spawn_blocking(move || aziot_config::load::<Config>(&sources)).await {
        Ok(Ok(loaded)) => {
            tracing::info!("Detected change in config files. Updating config.");
            log_findings(&loaded.findings);
            started_with.tell_difference(&loaded.value);
            certificates.replace_settings(Settings::new(&started_with.homedir, loaded.value));
            tracing::info!("Config update finished.");
        }
        Ok(Err(error)) => {
            tracing::warn!("Detected config file update, but new config failed to parse. Error: {}", chain(&error));
        }
        // The runtime is going down, or the parser panicked, which the panic log tells: the old settings stay.
        Err(_) => {}
    }
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
    use std::path::Path;

    use aziot_files::{Mode, write};
    use aziot_http::Retry;

    use super::*;
    use crate::certificates::Error;

    fn put(path: &Path, text: &str) {
        write(path, Mode::PRIVATE, text).unwrap();
    }

    #[tokio::test]
    async fn a_mistake_keeps_the_old_settings_and_the_home_never_moves() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { main: folder.path().join("config.toml"), directory: folder.path().join("config.d") };
        let home = folder.path().join("home");
        let config = Config::new(&home);
        let keyd = aziot_keyd_api::client(&config.endpoints.aziot_keyd, Retry::local(0)).unwrap();
        let certificates = Certificates::new(Settings::new(&home, config.clone()), keyd);
        let started_with = Fixed::of(&config);
        let import = async || certificates.import(4_000_000, "a".into(), "text".into()).await;
        assert!(matches!(import().await, Err(Error::Unauthorized { .. })));

        put(&sources.main, "homedir_path = \"/elsewhere\"\n[[principal]]\nuid = 4000000\ncerts = [\"a\"]\n");
        reload(&sources, &started_with, &certificates).await;
        assert!(import().await.is_ok());
        assert!(home.join("certs").is_dir());

        for mistake in ["homedir_path = ", "homedir_path = 5", "", "homedir_path = \"/\"\npreloaded_certs = 5"] {
            put(&sources.main, mistake);
            reload(&sources, &started_with, &certificates).await;
            assert!(import().await.is_ok(), "{mistake}");
        }

        put(&sources.main, "homedir_path = \"/elsewhere\"");
        reload(&sources, &started_with, &certificates).await;
        assert!(matches!(import().await, Err(Error::Unauthorized { .. })));
    }
}
