//! Whom a module identity belongs to where the hub names nobody.
//!
//! The agent can be told to delete identities that say `iotedge` and are in no deployment. Other programs of the host have identities at the
//! same device, which must never look so.

use std::{collections::BTreeSet, future::Future, pin::Pin};

use aziot_log::fields;

/// The owner of what this runtime looks after.
pub(super) const RUNTIME: &str = "iotedge";
/// The owner of what it does not.
const NOBODY: &str = "unmanaged";
/// Identities that the hub makes for the runtime.
const SYSTEM_MODULES: [&str; 2] = ["$edgeAgent", "$edgeHub"];

/// The containers that this runtime has as modules.
pub(crate) trait Containers: Send + Sync {
    /// Their names.
    fn module_names(&self) -> Finding<'_>;
}

/// A look at the containers. Its failure says no more than that they are not known.
pub(crate) type Finding<'a> = Pin<Box<dyn Future<Output = Result<BTreeSet<String>, BoxError>> + Send + 'a>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Owners by default.
#[derive(Default)]
pub(super) struct Defaults(BTreeSet<String>);

impl Defaults {
    /// Asks which modules run here. If nobody can tell, none do: what is nobody's is not deleted.
    pub(super) async fn find(containers: &dyn Containers) -> Self {
        Self(containers.module_names().await.unwrap_or_else(|error| {
            tracing::warn!(
                { fields::ERROR } = %aziot_log::chain(&*error),
                "could not see which modules run here; identities without an owner at the hub are told as {NOBODY}"
            );
            BTreeSet::new()
        }))
    }

    /// The owner of this module.
    pub(super) fn owner(&self, module_id: &str) -> &'static str {
        let is_ours = SYSTEM_MODULES.contains(&module_id) || self.0.contains(module_id);
        if is_ours { RUNTIME } else { NOBODY }
    }
}
