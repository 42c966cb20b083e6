//! A new host name on a device with modules: it stands in their certificates and in the environment of their containers, and neither changes by
//! itself. So it is refused while there are modules.

use aziot_edged_api::config::EngineUri;

use crate::engine::{self, EngineError};
use crate::generate::Generated;
use crate::layout::{Layout, Service};

/// A configuration of a service is small; a file larger than this is none.
const LARGEST_CONFIG_BYTES: u64 = 1024 * 1024;

/// Why the host name cannot be changed now.
#[derive(Debug, thiserror::Error)]
pub enum HostNameError {
    /// There are modules.
    #[error("the host name cannot change from `{old}` to `{new}` while there are modules: {}", modules.join(", "))]
    Modules {
        /// In force.
        old: String,
        /// Of the super-config.
        new: String,
        /// Names of all modules, running or not.
        modules: Vec<String>,
    },
    /// Nobody knows.
    #[error("the host name is to change from `{old}` to `{new}`, and whether there are modules is not known")]
    Unknown {
        /// In force.
        old: String,
        /// Of the super-config.
        new: String,
        /// Why.
        source: EngineError,
    },
}

/// What became of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The name may be put in force.
    Free,
    /// The name in force cannot be read.
    Unreadable,
}

/// Compares the host name of `generated` with the one in force. The engine is asked only if they differ.
pub fn check(generated: &Generated, layout: &Layout) -> Result<Compared, HostNameError> {
    let Some(edged) = &generated.edged else { return Ok(Compared::Free) };
    check_with(&edged.hostname, &edged.moby_runtime.uri, layout, engine::modules)
}

fn check_with(
    new: &str,
    engine: &EngineUri,
    layout: &Layout,
    modules: impl FnOnce(&EngineUri) -> Result<Vec<String>, EngineError>,
) -> Result<Compared, HostNameError> {
    #[derive(serde::Deserialize)]
    struct Named {
        hostname: String,
    }
    let path = layout.on_disk(&layout.service_config(Service::Identityd));
    let bytes = match aziot_files::read_limited(path, LARGEST_CONFIG_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(Compared::Free),
        Err(_) => return Ok(Compared::Unreadable),
    };
    let Ok(Named { hostname: old }) = toml::from_slice(&bytes) else { return Ok(Compared::Unreadable) };
    if old == new {
        return Ok(Compared::Free);
    }
    let new = new.to_owned();
    match modules(engine) {
        Ok(modules) if modules.is_empty() => Ok(Compared::Free),
        Ok(modules) => Err(HostNameError::Modules { old, new, modules }),
        Err(source) => Err(HostNameError::Unknown { old, new, source }),
    }
}

#[cfg(test)]
mod tests {
    use aziot_files::Mode;

    use super::*;

    fn device(hostname_line: &str) -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::Relocated(folder.path().to_owned());
        let path = layout.service_config(Service::Identityd);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        aziot_files::write(&path, Mode::PRIVATE, hostname_line).unwrap();
        (folder, layout)
    }

    fn engine() -> EngineUri {
        EngineUri::try_from("unix:///nonexistent/docker.sock".to_owned()).unwrap()
    }

    #[test]
    fn modules_hold_on_to_the_name() {
        let (_folder, layout) = device("hostname = 'old'\n");
        let found = |modules: &[&str]| {
            let modules = modules.iter().map(|&name| name.to_owned()).collect();
            check_with("new", &engine(), &layout, |_| Ok(modules))
        };
        assert!(matches!(found(&[]), Ok(Compared::Free)));
        let error = found(&["edgeAgent", "sampler"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the host name cannot change from `old` to `new` while there are modules: edgeAgent, sampler"
        );
        let error = check_with("new", &engine(), &layout, engine::modules).unwrap_err();
        assert!(matches!(error, HostNameError::Unknown { .. }), "{error}");
    }

    #[test]
    fn without_a_change_nobody_is_asked() {
        let (_folder, layout) = device("hostname = 'same'\n");
        let compared = check_with("same", &engine(), &layout, |_| panic!("nobody is to be asked"));
        assert!(matches!(compared, Ok(Compared::Free)));
        let (folder, layout) = device("hostname = ");
        let compared = check_with("new", &engine(), &layout, |_| panic!("nobody is to be asked"));
        assert!(matches!(compared, Ok(Compared::Unreadable)));
        std::fs::remove_dir_all(folder.path()).unwrap();
        let compared = check_with("new", &engine(), &layout, |_| panic!("nobody is to be asked"));
        assert!(matches!(compared, Ok(Compared::Free)), "the first time");
    }
}
