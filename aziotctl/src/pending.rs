//! The restarts that are still to be made: which services have new files and run with their old ones, or do not run at all.
//!
//! A run that is killed, fails or is told not to restart anything leaves a marker, and the next run makes good what is missing. The marker lies
//! where a reboot clears it, since that restarts all services.

use std::path::PathBuf;

use aziot_files::Mode;

use crate::layout::{Layout, Service};
use crate::product::Product;

/// Bytes of a marker; five names take a fraction of it.
const LIMIT_BYTES: u64 = 1024;

/// The marker. Each line is the short name of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    path: PathBuf,
    product: Product,
}

impl Pending {
    /// That of a normal installation, the same for both products; elsewhere the services are not ours to restart.
    #[must_use]
    pub fn of(layout: &Layout, product: Product) -> Option<Self> {
        match layout {
            Layout::Normal => Some(Self::at("/run/aziotctl-restart-pending", product)),
            Layout::Relocated(_) | Layout::Staged(_) => None,
        }
    }

    /// The marker that is, or will be, at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>, product: Product) -> Self {
        Self { path: path.into(), product }
    }

    /// The services to restart. A marker that makes no sense stands for all of the product: a restart too many does no harm.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        let bytes = match aziot_files::read_limited(&self.path, LIMIT_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Vec::new(),
            Err(_) => return self.product.services().to_vec(),
        };
        let service = |name: &str| Service::ALL.into_iter().find(|service| service.name() == name);
        let named: Option<Vec<Service>> =
            std::str::from_utf8(&bytes).ok().and_then(|text| text.lines().map(service).collect());
        named.filter(|services| !services.is_empty()).unwrap_or_else(|| self.product.services().to_vec())
    }

    /// Notes that `services` are to be restarted too.
    pub fn add(&self, services: &[Service]) -> Result<(), aziot_files::Error> {
        let noted = self.services();
        if services.iter().all(|service| noted.contains(service)) {
            return Ok(());
        }
        let names: Vec<&str> = united(&noted, services).into_iter().map(Service::name).collect();
        let text = names.join("\n") + "\n";
        aziot_files::write(&self.path, Mode::SHARED, text)
    }

    /// Notes that all restarts have been made.
    pub fn clear(&self) -> Result<(), aziot_files::Error> {
        aziot_files::remove(&self.path).map(drop)
    }
}

/// The services of both lists, each once.
#[must_use]
pub fn united(some: &[Service], others: &[Service]) -> Vec<Service> {
    Service::ALL.into_iter().filter(|service| some.contains(service) || others.contains(service)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: Product = Product::Edge;

    #[test]
    fn what_is_added_stays_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let pending = Pending::at(folder.path().join("pending"), PRODUCT);
        pending.add(&[]).unwrap();
        assert_eq!(pending.services(), []);
        pending.add(&[Service::Identityd]).unwrap();
        pending.add(&[Service::Keyd, Service::Identityd]).unwrap();
        assert_eq!(pending.services(), [Service::Keyd, Service::Identityd]);
        pending.clear().unwrap();
        pending.clear().unwrap();
        assert_eq!(pending.services(), []);
    }

    #[test]
    fn either_tool_knows_what_the_other_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pending");
        Pending::at(&path, Product::Edge).add(&[Service::Edged]).unwrap();
        assert_eq!(Pending::at(&path, Product::IdentityService).services(), [Service::Edged]);
    }

    #[test]
    fn a_marker_without_sense_stands_for_all_services() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pending");
        for text in ["", "keyd\nfluxd\n", &"keyd\n".repeat(1000)] {
            aziot_files::write(&path, Mode::SHARED, text).unwrap();
            let identity_service = Pending::at(&path, Product::IdentityService);
            assert_eq!(identity_service.services(), Product::IdentityService.services(), "{} bytes", text.len());
            assert_eq!(Pending::at(&path, PRODUCT).services(), Service::ALL, "{} bytes", text.len());
        }
        assert_eq!(Pending::at(folder.path(), PRODUCT).services(), Service::ALL, "a folder");
    }

    #[test]
    fn only_a_normal_installation_has_one() {
        assert!(Pending::of(&Layout::Normal, PRODUCT).is_some());
        assert_eq!(Pending::of(&Layout::Relocated("/tmp/d".into()), PRODUCT), None);
        assert_eq!(Pending::of(&Layout::Staged("/tmp/d".into()), PRODUCT), None);
    }
}
