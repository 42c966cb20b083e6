//! Routes of the management API.

use std::sync::Arc;

use aziot_edged_api::{
    VERSIONS,
    identity::{CreateIdentity, DeleteIdentity, Identities as IdentityList, Identity, ListIdentities, UpdateIdentity},
    logs::{GetLogs, flag},
    module::{
        CreateModule, DeleteModule, GetModule, ListModules, ModuleDetails, Modules as ModuleList, PrepareUpdate,
        RestartModule, StartModule, StopModule, UpdateModule,
    },
    system::{GetResources, GetSupportBundle, GetSystemInfo, Reprovision, Resources, SystemInfo},
};
use aziot_http::{Peer, Service, Streamed, Target, service::Routes};
use jiff::Timestamp;

use super::paths;
use crate::{
    caller::{Callers, NotAModule},
    error::Error,
    identities::{self, Identities},
    modules::Modules,
    specification::Name,
    system::System,
    watchdog::Requests,
};

/// What the management API stands on.
pub(crate) struct Management {
    /// Tells the agent from strangers.
    pub(crate) callers: Arc<Callers>,
    /// Containers.
    pub(crate) modules: Arc<Modules>,
    /// What the modules are at the hub.
    pub(crate) identities: Arc<Identities>,
    /// The device itself.
    pub(crate) system: Arc<System>,
    /// Where a wish to be provisioned anew goes.
    pub(crate) requests: Arc<Requests>,
}

type Api = Arc<Management>;

impl Management {
    /// All calls of the API.
    pub(crate) fn routes(self) -> Routes {
        Service::new(Arc::new(self), VERSIONS)
            .rewrite(paths::rewrite)
            .call(list_modules)
            .guarded(agent, create_module)
            .call(get_module)
            .guarded(agent, update_module)
            .guarded(agent, delete_module)
            .call(start_module)
            .call(stop_module)
            .call(restart_module)
            .guarded(agent, prepare_update)
            .stream(get_logs)
            .guarded(agent, list_identities)
            .guarded(agent, create_identity)
            .guarded(agent, update_identity)
            .guarded(agent, delete_identity)
            .call(get_system_info)
            .call(get_resources)
            .stream(get_support_bundle)
            .guarded(agent, reprovision)
            .into_routes()
    }
}

/// Lets the agent pass.
fn agent(api: Api, peer: Peer, _target: &Target) -> impl Future<Output = Result<(), NotAModule>> + Send + use<> {
    async move { api.callers.agent(&peer).await.map(|_| ()) }
}

/// The module that a path names.
fn named(segment: &str) -> Result<Name, Error> {
    Name::of_path(segment).map_err(|error| Error::Invalid(error.to_string()))
}

async fn list_modules(api: Api, _peer: Peer, _call: ListModules) -> Result<ModuleList, Error> {
    Ok(ModuleList { modules: api.modules.list().await? })
}

async fn create_module(api: Api, _peer: Peer, call: CreateModule) -> Result<ModuleDetails, Error> {
    api.modules.create(call.specification).await
}

async fn get_module(api: Api, _peer: Peer, call: GetModule) -> Result<ModuleDetails, Error> {
    api.modules.get(&named(&call.module)?).await
}

async fn update_module(api: Api, _peer: Peer, call: UpdateModule) -> Result<ModuleDetails, Error> {
    let start = parameter(flag("start", call.start.as_deref()))?;
    api.modules.update(&named(&call.module)?, call.specification, start).await
}

async fn delete_module(api: Api, _peer: Peer, call: DeleteModule) -> Result<(), Error> {
    api.modules.remove(&named(&call.module)?).await
}

async fn start_module(api: Api, _peer: Peer, call: StartModule) -> Result<(), Error> {
    api.modules.start(&named(&call.module)?).await
}

async fn stop_module(api: Api, _peer: Peer, call: StopModule) -> Result<(), Error> {
    api.modules.stop(&named(&call.module)?).await
}

async fn restart_module(api: Api, _peer: Peer, call: RestartModule) -> Result<(), Error> {
    api.modules.restart(&named(&call.module)?).await
}

async fn prepare_update(api: Api, _peer: Peer, call: PrepareUpdate) -> Result<(), Error> {
    api.modules.prepare_update(&named(&call.module)?, call.specification).await
}

async fn get_logs(api: Api, _peer: Peer, call: GetLogs) -> Result<Streamed, Error> {
    let options = parameter(call.options(Timestamp::now()))?;
    let frames = api.modules.logs(&named(&call.module)?, &options).await?;
    Ok(Streamed::text(frames.into_stream()))
}

async fn list_identities(api: Api, _peer: Peer, _call: ListIdentities) -> Result<IdentityList, identities::Error> {
    api.identities.list().await
}

async fn create_identity(api: Api, _peer: Peer, call: CreateIdentity) -> Result<Identity, identities::Error> {
    api.identities.create(call).await
}

async fn update_identity(api: Api, _peer: Peer, call: UpdateIdentity) -> Result<Identity, identities::Error> {
    api.identities.update(&call.module_id).await
}

async fn delete_identity(api: Api, _peer: Peer, call: DeleteIdentity) -> Result<(), identities::Error> {
    api.identities.delete(&call.module_id).await
}

async fn get_system_info(api: Api, _peer: Peer, _call: GetSystemInfo) -> Result<SystemInfo, Error> {
    api.system.info().await
}

async fn get_resources(api: Api, _peer: Peer, _call: GetResources) -> Result<Resources, Error> {
    api.system.resources().await
}

async fn get_support_bundle(api: Api, _peer: Peer, call: GetSupportBundle) -> Result<Streamed, Error> {
    api.system.support_bundle(&call).await
}

async fn reprovision(api: Api, _peer: Peer, _call: Reprovision) -> Result<(), Error> {
    if api.requests.reprovision() { Ok(()) } else { Err(Error::Reprovision) }
}

fn parameter<T, E: std::error::Error>(outcome: Result<T, E>) -> Result<T, Error> {
    outcome.map_err(|error| Error::Invalid(error.to_string()))
}
