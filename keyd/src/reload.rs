//! Takes over changed principals while the service runs. Everything else in the configuration is read at the start only.

use std::sync::Arc;

use aziot_config::{Finding, Loaded, Sources, Watch};
use aziot_keyd_api::config::Config;
use aziot_log::chain;

use crate::keys::Keys;
use crate::principals::Principals;

/// Starts watching; without a watch the service goes on with the principals it has.
pub(crate) fn watch(sources: &Sources) -> Option<Watch> {
    match Watch::start(sources) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!("{}; changed principals need a restart", chain(&error));
            None
        }
    }
}

/// Logs what is odd in a configuration.
pub(crate) fn log_findings(findings: &[Finding]) {
    for finding in findings {
        tracing::warn!("{}", finding.one_line());
    }
}

/// Applies each change for as long as it is polled. `config` is the one that the service started with.
pub(crate) async fn keep_current(watch: Option<Watch>, sources: Sources, config: Config, keys: Arc<Keys>) {
    let Some(mut watch) = watch else { return std::future::pending().await };
    loop {
        watch.changed().await;
        reload(&sources, &config, &keys).await;
    }
}

async fn reload(sources: &Sources, started_with: &Config, keys: &Keys) {
    let sources = sources.clone();
    match tokio::task::spawn_blocking(move || aziot_config::load::<Config>(&sources)).await {
        Ok(Ok(loaded)) => apply(loaded, started_with, keys),
        Ok(Err(error)) => {
            tracing::warn!("Detected config file update, but new config failed to parse. Error: {}", chain(&error));
        }
        // The runtime is going down, or the parser panicked, which the panic log tells: the old principals stay.
        Err(_) => {}
    }
}

fn apply(loaded: Loaded<Config>, started_with: &Config, keys: &Keys) {
    tracing::info!("Detected change in config files. Updating config.");
    log_findings(&loaded.findings);
    let mut config = loaded.value;
    keys.set_principals(Principals::new(&config.principal));
    config.principal.clone_from(&started_with.principal);
    if config != *started_with {
        tracing::warn!(
            "the config differs in more than its principals from what the service started with: the rest needs a restart"
        );
    }
    tracing::info!("Config update finished.");
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use aziot_files::{Mode, create_directory, remove, write};
    use aziot_http::Peer;
    use aziot_keys::{Keys as Library, Settings};

    use super::*;

    const USER: Peer = Peer { uid: 4_000_000, gid: 1, pid: 1 };

    fn put(path: &Path, text: &str) {
        let _ = create_directory(path.parent().unwrap(), Mode::PRIVATE_DIRECTORY).unwrap();
        write(path, Mode::PRIVATE, text).unwrap();
    }

    fn principal(pattern: &str) -> String {
        format!("[[principal]]\nuid = {}\nkeys = [\"{pattern}\"]\n", USER.uid)
    }

    async fn is_allowed(keys: &Keys, id: &str) -> bool {
        keys.create_key(USER, id.to_owned(), None).await.is_ok()
    }

    /// Applies changes until `id` is allowed.
    async fn until_allowed(watch: &mut Watch, sources: &Sources, config: &Config, keys: &Arc<Keys>, id: &str) {
        let reloading = async {
            while !is_allowed(keys, id).await {
                let _ = watch.changed().await;
                reload(sources, config, keys).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reloading).await.unwrap();
    }

    #[tokio::test]
    async fn changed_principals_are_taken_over_and_a_broken_config_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { main: folder.path().join("config.toml"), directory: folder.path().join("config.d") };
        let library =
            Library::new(Settings { homedir_path: Some(folder.path().into()), ..Settings::default() }).unwrap();
        let keys = Arc::new(Keys::new(library, Principals::default()));
        let config = Config::default();
        let mut watch = watch(&sources).unwrap();
        assert!(!is_allowed(&keys, "first").await);

        put(&sources.directory.join("a.toml"), &principal("first"));
        until_allowed(&mut watch, &sources, &config, &keys, "first").await;

        put(&sources.directory.join("b.toml"), "[[principal]]\nuid = ");
        put(&sources.directory.join("a.toml"), &principal("second"));
        let _ = watch.changed().await;
        reload(&sources, &config, &keys).await;
        assert!(is_allowed(&keys, "first").await && !is_allowed(&keys, "second").await);

        assert!(remove(sources.directory.join("b.toml")).unwrap());
        until_allowed(&mut watch, &sources, &config, &keys, "second").await;
        assert!(!is_allowed(&keys, "first").await);
    }
}
