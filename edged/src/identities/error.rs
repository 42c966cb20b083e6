//! What can go wrong with identities. `http` chooses the status.
//!
//! Errors are cheap to clone: one answer of the identity service is for all who waited for it.

use std::sync::Arc;

use aziot_http::ClientError;

/// Why there is no identity, or no key of it.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The identity service did not list the modules.
    #[error("could not list the module identities")]
    List(#[source] Arc<ClientError>),
    /// It did not make one.
    #[error("could not create the module identity {module_id}")]
    Create {
        /// Name of the module.
        module_id: String,
        /// What the service said.
        source: Arc<ClientError>,
    },
    /// It did not give one new keys.
    #[error("could not update the module identity {module_id}")]
    Update {
        /// Name of the module.
        module_id: String,
        /// What the service said.
        source: Arc<ClientError>,
    },
    /// It did not delete one.
    #[error("could not delete the module identity {module_id}")]
    Delete {
        /// Name of the module.
        module_id: String,
        /// What the service said.
        source: Arc<ClientError>,
    },
    /// The hub has no such module.
    #[error("module identity {0:?} not found")]
    Absent(String),
    /// The service did not tell who the module is.
    #[error("failed to get module identity for {module_id}")]
    Get {
        /// Name of the module.
        module_id: String,
        /// What it said.
        source: Arc<ClientError>,
    },
    /// An identity of another kind than modules of the hub have.
    #[error("invalid identity type")]
    IdentityType,
    /// An identity without a name.
    #[error("the module identity has no module id")]
    MissingModuleId,
    /// An identity that the hub has given no generation.
    #[error("the module identity {0} has no generation id")]
    MissingGeneration(String),
    /// Nothing proves the identity.
    #[error("module identity missing auth")]
    MissingAuthentication,
    /// What proves the identity is no key.
    #[error("module identity missing key")]
    MissingKey,
    /// The module was deleted and made again since, or the caller has made the generation up.
    #[error("{generation_id:?} is not the present generation of the module {module_id}")]
    OtherGeneration {
        /// Name of the module.
        module_id: String,
        /// What was asked for.
        generation_id: String,
    },
}
