//! Routes of the workload API.

use std::sync::Arc;

use aziot_edged_api::{
    VERSIONS,
    config::AGENT,
    module::{ListModules, ModuleDetails, Modules as ModuleList},
    workload::{
        Ciphertext, CreateIdentityCertificate, CreateServerCertificate, Decrypt, Digest, Encrypt,
        GetManifestTrustBundle, GetTrustBundle, IssuedCertificate, Plaintext, Sign, TrustBundle,
    },
};
use aziot_http::{Peer, Service, Status, StatusCode, Target, service::Routes};
use serde_json::Value;

use super::paths;
use crate::{
    caller::{Callers, NotAModule},
    docker::OWNER_LABEL,
    error,
    modules::Modules,
    shared::Shared,
    specification::ORIGINAL_IMAGE,
    trust_bundle::{self, TrustBundles},
    workload::{self, Workload},
};

/// What the workload API stands on.
pub(crate) struct WorkloadApi {
    /// Tells modules from one another.
    pub(crate) callers: Arc<Callers>,
    /// Containers.
    pub(crate) modules: Arc<Modules>,
    /// Signatures, secrets and certificates.
    pub(crate) workload: Arc<Workload>,
    /// Whom modules are to trust.
    pub(crate) trust_bundles: Arc<TrustBundles>,
    /// Lists of the modules.
    pub(crate) lists: Shared<Vec<ModuleDetails>, error::Error>,
}

type Api = Arc<WorkloadApi>;

impl WorkloadApi {
    /// All calls of the API.
    pub(crate) fn routes(self) -> Routes {
        Service::new(Arc::new(self), VERSIONS)
            .rewrite(paths::rewrite)
            .call(list_modules)
            .guarded(own_module, sign)
            .guarded(own_module, encrypt)
            .guarded(own_module, decrypt)
            .guarded(own_module, create_server_certificate)
            .guarded(own_module, create_identity_certificate)
            .call(get_trust_bundle)
            .call(get_manifest_trust_bundle)
            .into_routes()
    }
}

/// Lets the module pass that the path names.
fn own_module(api: Api, peer: Peer, target: &Target) -> impl Future<Output = Result<(), NotAModule>> + Send + use<> {
    let module = target.get("moduleId").unwrap_or_default().to_owned();
    async move { api.callers.own(&peer, &module).await.map(|_| ()) }
}

async fn list_modules(api: Api, peer: Peer, _call: ListModules) -> Result<ModuleList, ListFailed> {
    let modules = api.lists.get(api.modules.list()).await.map_err(ListFailed)?;
    let mut modules = Arc::unwrap_or_clone(modules);
    // By the sockets of other modules the agent is one of them; the engine need not say who it is.
    if api.callers.own(&peer, AGENT).await.is_err() {
        modules.iter_mut().for_each(hide_label_values);
    }
    Ok(ModuleList { modules })
}

/// Labels of other modules are not for everybody who reaches a workload socket: the agent keeps environments in them. The names stay.
fn hide_label_values(module: &mut ModuleDetails) {
    let labels = module.config.settings.pointer_mut("/createOptions/Labels").and_then(Value::as_object_mut);
    for (name, value) in labels.into_iter().flatten() {
        if name != OWNER_LABEL && name != ORIGINAL_IMAGE {
            *value = Value::String(String::new());
        }
    }
}

async fn sign(api: Api, _peer: Peer, call: Sign) -> Result<Digest, workload::Error> {
    api.workload.sign(call).await
}

async fn encrypt(api: Api, _peer: Peer, call: Encrypt) -> Result<Ciphertext, workload::Error> {
    api.workload.encrypt(call).await
}

async fn decrypt(api: Api, _peer: Peer, call: Decrypt) -> Result<Plaintext, workload::Error> {
    api.workload.decrypt(call).await
}

async fn create_server_certificate(
    api: Api,
    _peer: Peer,
    call: CreateServerCertificate,
) -> Result<IssuedCertificate, workload::Error> {
    api.workload.server_certificate(call).await
}

async fn create_identity_certificate(
    api: Api,
    _peer: Peer,
    call: CreateIdentityCertificate,
) -> Result<IssuedCertificate, workload::Error> {
    api.workload.identity_certificate(call).await
}

async fn get_trust_bundle(api: Api, _peer: Peer, _call: GetTrustBundle) -> Result<TrustBundle, trust_bundle::Error> {
    api.trust_bundles.trust_bundle().await
}

async fn get_manifest_trust_bundle(
    api: Api,
    _peer: Peer,
    _call: GetManifestTrustBundle,
) -> Result<TrustBundle, trust_bundle::Error> {
    api.trust_bundles.manifest_trust_bundle().await
}

/// A list that failed is a failure here, whatever the engine's status.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct ListFailed(Arc<error::Error>);

impl Status for ListFailed {
    fn status(&self) -> StatusCode {
        StatusCode::INTERNAL_SERVER_ERROR
    }

    fn message_of_failure(&self) -> String {
        self.0.message()
    }
}

#[cfg(test)]
mod tests {
    use aziot_edged_api::module::{ModuleConfig, ModuleStatus, RuntimeStatus, Status};
    use serde_json::json;

    use super::*;

    #[test]
    fn strangers_see_which_labels_there_are_and_what_says_that_it_is_a_module() {
        let labels = json!({ OWNER_LABEL: "agent", ORIGINAL_IMAGE: "i:1", "net.azure-devices.edge.env": "secret" });
        let mut module = ModuleDetails {
            id: "id".to_owned(),
            name: "m".to_owned(),
            r#type: "docker".to_owned(),
            config: ModuleConfig { settings: json!({ "createOptions": { "Labels": labels } }), env: None },
            status: ModuleStatus {
                start_time: None,
                exit_status: None,
                runtime_status: RuntimeStatus { status: Status::Running, description: None },
            },
        };
        hide_label_values(&mut module);
        assert_eq!(
            module.config.settings["createOptions"]["Labels"],
            json!({ OWNER_LABEL: "agent", ORIGINAL_IMAGE: "i:1", "net.azure-devices.edge.env": "" })
        );
        module.config.settings = json!({ "image": "i" });
        hide_label_values(&mut module);
    }
}
