//! Where everything of a device lies: in the file system, or in a folder of its own, or staged in a folder for another file system.
//!
//! Two paths belong to each file: the one to write to now, and the one that the services' configuration names. Only staging tells them apart.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aziot_http::Endpoint;

/// The longest path of a Unix socket, in bytes; one more is the kernel's zero at the end.
const LONGEST_SOCKET_PATH: usize = 107;

/// A service that is configured here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Keys.
    Keyd,
    /// Certificates.
    Certd,
    /// Identities.
    Identityd,
    /// The TPM.
    Tpmd,
    /// Modules, in containers.
    Edged,
}

impl Service {
    /// All of them, in the order in which their files are written.
    pub const ALL: [Self; 5] = [Self::Keyd, Self::Certd, Self::Identityd, Self::Tpmd, Self::Edged];

    /// The short name, as in paths: `keyd`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keyd => "keyd",
            Self::Certd => "certd",
            Self::Identityd => "identityd",
            Self::Tpmd => "tpmd",
            Self::Edged => "edged",
        }
    }

    /// The Unix user that the service runs as.
    #[must_use]
    pub fn user(self) -> &'static str {
        match self {
            Self::Keyd => "aziotks",
            Self::Certd => "aziotcs",
            Self::Identityd => "aziotid",
            Self::Tpmd => "aziottpm",
            Self::Edged => "iotedge",
        }
    }
}

/// Which kind of installation, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The packages' paths, one user per service, systemd.
    Normal,
    /// A device in a folder: everything lies and runs below an absolute path, as the caller.
    Relocated(PathBuf),
    /// The files of a normal installation, put below a folder.
    Staged(PathBuf),
}

/// A folder that sockets do not fit into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the socket path {} has {length} bytes, but Unix allows {LONGEST_SOCKET_PATH}; use a folder with a shorter path", path.display())]
pub struct SocketPathTooLong {
    path: PathBuf,
    length: usize,
}

impl Layout {
    /// Where to find or put, now, what the services know as `path`.
    #[must_use]
    pub fn on_disk(&self, path: &Path) -> PathBuf {
        match self {
            Self::Normal | Self::Relocated(_) => path.to_owned(),
            Self::Staged(folder) => below(folder, path),
        }
    }

    /// The super-config that is read unless another is named.
    #[must_use]
    pub fn super_config(&self) -> PathBuf {
        match self {
            // Staging describes another machine, but with this machine's super-config unless one is named.
            Self::Normal | Self::Staged(_) => PathBuf::from("/etc/aziot/config.toml"),
            Self::Relocated(_) => self.path("/etc/aziot/config.toml"),
        }
    }

    /// The file that is generated for a service.
    #[must_use]
    pub fn service_config(&self, service: Service) -> PathBuf {
        self.path(&format!("/etc/aziot/{}/config.d/00-super.toml", service.name()))
    }

    /// A service's home directory.
    #[must_use]
    pub fn home(&self, service: Service) -> PathBuf {
        self.path(&format!("/var/lib/aziot/{}", service.name()))
    }

    /// The file of a device key that stands in the super-config itself.
    #[must_use]
    pub fn device_key(&self) -> PathBuf {
        self.path("/var/secrets/aziot/keyd/device-id")
    }

    /// The file of a master encryption key that a former release of IoT Edge left.
    #[must_use]
    pub fn master_key(&self) -> PathBuf {
        self.path("/var/secrets/aziot/keyd/imported-master-encryption-key")
    }

    /// The folder of the sockets.
    #[must_use]
    pub fn sockets(&self) -> PathBuf {
        self.path("/run/aziot")
    }

    /// The folder of the module runtime's sockets for everybody: `mgmt.sock` and `workload.sock`.
    #[must_use]
    pub fn edge_sockets(&self) -> PathBuf {
        match self {
            // As containers know it, which outlive the daemon and its version.
            Self::Normal | Self::Staged(_) => PathBuf::from("/var/run/iotedge"),
            Self::Relocated(_) => self.path("/run/iotedge"),
        }
    }

    /// The socket that a service listens on, unless the super-config names another; of the module runtime that for its management.
    #[must_use]
    pub fn endpoint(&self, service: Service) -> Endpoint {
        Endpoint::Unix(match service {
            Service::Edged => self.edge_sockets().join("mgmt.sock"),
            _ => self.sockets().join(format!("{}.sock", service.name())),
        })
    }

    /// Whether the sockets of `services` can be made where this layout puts them.
    pub fn check_sockets(&self, services: &[Service]) -> Result<(), SocketPathTooLong> {
        for &service in services {
            let endpoint = self.endpoint(service);
            // Each module has a socket there; no device is without this one.
            let agent = (service == Service::Edged).then(|| self.home(service).join("mnt/edgeAgent.sock"));
            let Endpoint::Unix(path) = endpoint else { continue };
            for path in [Some(path), agent].into_iter().flatten() {
                let length = path.as_os_str().as_bytes().len();
                if length > LONGEST_SOCKET_PATH {
                    return Err(SocketPathTooLong { path, length });
                }
            }
        }
        Ok(())
    }

    /// As the services will see it.
    fn path(&self, path: &str) -> PathBuf {
        match self {
            Self::Normal | Self::Staged(_) => PathBuf::from(path),
            Self::Relocated(folder) => below(folder, Path::new(path)),
        }
    }
}

fn below(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Product;

    #[test]
    fn a_device_in_a_folder_knows_only_paths_of_its_folder() {
        let layout = Layout::Relocated("/tmp/d".into());
        for path in [
            layout.service_config(Service::Keyd),
            layout.home(Service::Certd),
            layout.device_key(),
            layout.master_key(),
            layout.sockets(),
            layout.edge_sockets(),
        ] {
            assert!(path.starts_with("/tmp/d"), "{}", path.display());
            assert_eq!(layout.on_disk(&path), path);
        }
        assert_eq!(layout.super_config(), Path::new("/tmp/d/etc/aziot/config.toml"));
        assert_eq!(layout.endpoint(Service::Keyd).to_string(), "unix:///tmp/d/run/aziot/keyd.sock");
        assert_eq!(layout.endpoint(Service::Edged).to_string(), "unix:///tmp/d/run/iotedge/mgmt.sock");
    }

    #[test]
    fn staged_files_name_the_paths_of_their_later_place() {
        let layout = Layout::Staged("/tmp/image".into());
        let path = layout.service_config(Service::Identityd);
        assert_eq!(path, Path::new("/etc/aziot/identityd/config.d/00-super.toml"));
        assert_eq!(layout.on_disk(&path), Path::new("/tmp/image/etc/aziot/identityd/config.d/00-super.toml"));
        assert_eq!(layout.endpoint(Service::Keyd), Endpoint::of_service("keyd"));
    }

    #[test]
    fn a_folder_too_deep_for_sockets_is_told() {
        // "/run/aziot/identityd.sock" takes 25 bytes.
        let layout = |letters| Layout::Relocated(PathBuf::from(format!("/{}", "d".repeat(letters))));
        let services = Product::IdentityService.services();
        assert_eq!(layout(81).check_sockets(services), Ok(()));
        let error = layout(82).check_sockets(services).unwrap_err();
        assert!(error.to_string().contains("has 108 bytes"), "{error}");
        // "/var/lib/aziot/edged/mnt/edgeAgent.sock" takes 39.
        assert_eq!(layout(67).check_sockets(&Service::ALL), Ok(()));
        let error = layout(68).check_sockets(&Service::ALL).unwrap_err();
        assert!(error.to_string().contains("edgeAgent.sock has 108 bytes"), "{error}");
    }
}
