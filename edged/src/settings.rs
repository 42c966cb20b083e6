//! The settings in force: the configuration with the home folder resolved and made, and what is odd about it told.
//!
//! They are read once; a changed configuration needs a restart, as for the public daemon.

mod leftovers;

use std::{collections::BTreeSet, io, path::PathBuf};

use aziot_config::{Loaded, Sources};
use aziot_edged_api::config::Config;
use aziot_files::{Mode, create_directory};
use aziot_log::fields;

/// Folders in the home: what was remembered of the device, the modules' sockets, and when images were used.
const CACHE: &str = "cache";
const SOCKETS: &str = "mnt";
const IMAGE_USE: &str = "gc";

/// Members of the system information that come from the runtime alone.
const OWN_MEMBERS: [&str; 5] = ["osType", "cpus", "total_memory", "version", "provisioning"];

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The files cannot be read or understood.
    #[error(transparent)]
    Unreadable(#[from] aziot_config::Error),
    /// The home cannot be made.
    #[error("could not make the home folder or what it holds")]
    Home(#[from] aziot_files::Error),
    /// The home cannot be found where it is said to be.
    #[error("the home folder {} cannot be resolved", path.display())]
    Unresolved {
        /// As configured.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether a person must mend it. A full disk, a full table of files or a file system that is not there yet may pass.
    pub(crate) fn is_mistake(&self) -> bool {
        match self {
            Self::Unreadable(error) => error.problem().is_some(),
            Self::Home(error) => {
                matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists)
            }
            Self::Unresolved { .. } => false,
        }
    }
}

/// The settings in force.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The configuration as it was read.
    pub(crate) config: Config,
    /// The home folder, without symbolic links: the engine mounts what lies in it.
    home: PathBuf,
}

impl Settings {
    /// Reads the configuration, tells what is odd about it, and makes the home. Blocks on files.
    pub(crate) fn read(sources: &Sources) -> Result<Self, Error> {
        let Loaded { value: mut config, findings } = aziot_config::load::<Config>(sources)?;
        for finding in findings {
            tracing::warn!("{}", finding.one_line());
        }
        tell_what_is_ignored(&mut config);
        Self::new(config)
    }

    /// Settings with a home that is there, and its folders too.
    pub(crate) fn new(config: Config) -> Result<Self, Error> {
        let path = &config.homedir;
        let _ = create_directory(path, Mode::SHARED_DIRECTORY)?;
        let resolved = path.canonicalize();
        let home = resolved.map_err(|source| Error::Unresolved { path: path.clone(), source })?;
        let settings = Self { config, home };
        for folder in [CACHE, SOCKETS, IMAGE_USE] {
            let _ = create_directory(settings.home.join(folder), Mode::SHARED_DIRECTORY)?;
        }
        Ok(settings)
    }

    /// Folder of what was remembered of the device.
    pub(crate) fn cache(&self) -> PathBuf {
        self.home.join(CACHE)
    }

    /// Folder of the modules' sockets.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.home.join(SOCKETS)
    }

    /// Removes the sockets of all other modules than these.
    pub(crate) async fn remove_stale_sockets(&self, modules: BTreeSet<String>) {
        let folder = self.sockets();
        // The runtime may end first: then the next start does it.
        let _ = tokio::task::spawn_blocking(move || leftovers::remove_stale_sockets(&folder, &modules)).await;
    }

    /// Folder of the times at which images were used.
    pub(crate) fn image_use(&self) -> PathBuf {
        self.home.join(IMAGE_USE)
    }

    /// The home folder, resolved.
    #[cfg(test)]
    pub(crate) fn home(&self) -> &std::path::Path {
        &self.home
    }
}

/// Keys that are understood and have no effect: whoever wrote them expects one.
fn tell_what_is_ignored(config: &mut Config) {
    let agent = &config.agent.config;
    let ignored = [
        ("agent.config.digest", agent.digest.is_some()),
        ("agent.config.imageHash", agent.image_hash.is_some()),
        ("moby_runtime.content_trust", config.moby_runtime.content_trust.is_some()),
    ];
    for (key, _) in ignored.iter().filter(|(_, is_set)| *is_set) {
        tracing::warn!("`{key}` has no effect: images are pulled by the reference that is configured");
    }
    config.additional_info.retain(|name, _| {
        let is_free = !OWN_MEMBERS.contains(&name.as_str());
        if !is_free {
            tracing::warn!("`additional_info.{name}` is left out: the runtime itself tells {name}");
        }
        is_free
    });
    if config.edge_ca.common_name.is_some() && config.edge_ca.subject.is_some() {
        tracing::warn!("`edge_ca.subject` has no effect: `edge_ca.common_name` is there too");
    }
    let duplicates = duplicate_binds(config);
    for bind in duplicates {
        tracing::warn!({ fields::FILE } = bind, "a bind of the agent is given twice in `agent.config.createOptions`");
    }
}

/// Drop-ins add to arrays instead of replacing them, so that a bind is easily there twice.
fn duplicate_binds(config: &Config) -> Vec<String> {
    let host_config = config.agent.config.create_options.0.get("HostConfig");
    let binds = host_config.and_then(|host| host.get("Binds")).and_then(|binds| binds.as_array());
    let binds: Vec<&str> = binds.into_iter().flatten().filter_map(|bind| bind.as_str()).collect();
    let is_again = |position: usize| binds[..position].contains(&binds[position]);
    (0..binds.len()).filter(|position| is_again(*position)).map(|position| binds[position].to_owned()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// The least configuration, with this home.
    pub(crate) fn config(home: &Path) -> Config {
        let text = format!(
            r#"
            hostname = "gw-7"
            homedir = "{}"
            [agent]
            name = "edgeAgent"
            type = "docker"
            config = {{ image = "agent:1" }}
            [connect]
            workload_uri = "unix:///var/run/iotedge/workload.sock"
            management_uri = "unix:///var/run/iotedge/mgmt.sock"
            [listen]
            workload_uri = "fd://aziot-edged.workload.socket"
            management_uri = "fd://aziot-edged.mgmt.socket"
            [moby_runtime]
            uri = "unix:///var/run/docker.sock"
            network = "azure-iot-edge"
            "#,
            home.display()
        );
        aziot_config::load_str("config.toml", &text).unwrap().value
    }

    #[test]
    fn the_home_is_made_with_its_folders_and_links_are_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("a/real");
        let _ = create_directory(&real, Mode::SHARED_DIRECTORY).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let settings = Settings::new(config(&link.join("home"))).unwrap();
        assert_eq!(settings.home(), real.canonicalize().unwrap().join("home"));
        for made in [settings.cache(), settings.sockets(), settings.image_use()] {
            assert!(made.is_dir(), "{}", made.display());
        }
    }

    #[test]
    fn a_home_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        aziot_files::write(&file, Mode::PRIVATE, "").unwrap();
        let error = Settings::new(config(&file.join("home"))).unwrap_err();
        assert!(error.is_mistake());
        assert!(aziot_log::chain(&error).to_string().contains("file"), "{}", aziot_log::chain(&error));
    }

    #[test]
    fn only_what_a_person_must_mend_is_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("config.toml");
        aziot_files::write(&main, Mode::PRIVATE, "hostname = 7").unwrap();
        let read = |main: &Path| {
            let sources = Sources { main: main.to_owned(), directory: folder.path().join("config.d") };
            Settings::read(&sources).unwrap_err()
        };
        assert!(read(&main).is_mistake());
        // A folder in its place stands for a disk that fails: reading it is an error of the system.
        assert!(!read(folder.path()).is_mistake());
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(!Error::Unresolved { path: main, source: full }.is_mistake());
    }

    #[test]
    fn information_of_the_runtimes_own_is_not_overridden() {
        let mut config = config(Path::new("/"));
        config.additional_info = ["version", "cpus", "plant"].map(|name| (name.to_owned(), "x".to_owned())).into();
        tell_what_is_ignored(&mut config);
        assert_eq!(config.additional_info.into_keys().collect::<Vec<_>>(), ["plant"]);
    }

    #[test]
    fn a_bind_that_stands_twice_is_found() {
        let mut config = config(Path::new("/"));
        let options = serde_json::json!({ "HostConfig": { "Binds": ["/a:/a", "/b:/b", "/a:/a"] } });
        config.agent.config.create_options.0 = options.as_object().unwrap().clone();
        assert_eq!(duplicate_binds(&config), ["/a:/a"]);
    }
}
