//! Routes of the identity service, and the status of each error. Nothing is decided here.

use std::{error::Error as _, sync::Arc};

use aziot_http::{Peer, Service, Status, StatusCode};
use aziot_identityd_api::{
    VERSIONS,
    device::{GetDevice, GetIdentity, Reprovision},
    identity::Identity,
    module::{CreateModule, DeleteModule, GetModule, Identities as ModuleList, ListModules, UpdateModule},
    provisioning::{GetProvisioning, ProvisioningInfo},
    trust_bundle::{GetTrustBundle, TrustBundle},
};

use crate::{error::Error, identities::Identities};

type Domain = Arc<Identities>;

/// All calls of the service.
#[must_use]
pub(crate) fn service(identities: Domain) -> Service<Identities> {
    Service::new(identities, VERSIONS)
        .call(get_identity)
        .call(get_device)
        .call(reprovision)
        .call(get_provisioning)
        .call(list_modules)
        .call(create_module)
        .call(get_module)
        .call(update_module)
        .call(delete_module)
        .call(get_trust_bundle)
}

async fn get_identity(identities: Domain, peer: Peer, _call: GetIdentity) -> Result<Identity, Error> {
    identities.own(peer.uid).await
}

async fn get_device(identities: Domain, peer: Peer, _call: GetDevice) -> Result<Identity, Error> {
    identities.device(peer.uid).await
}

async fn reprovision(identities: Domain, peer: Peer, _call: Reprovision) -> Result<(), Error> {
    identities.reprovision(peer.uid).await
}

async fn get_provisioning(identities: Domain, _peer: Peer, _call: GetProvisioning) -> Result<ProvisioningInfo, Error> {
    identities.provisioning_info().await
}

async fn list_modules(identities: Domain, peer: Peer, call: ListModules) -> Result<ModuleList, Error> {
    let identities = identities.list_modules(peer.uid, call.r#type.as_deref()).await?;
    Ok(ModuleList { identities })
}

async fn create_module(identities: Domain, peer: Peer, call: CreateModule) -> Result<Identity, Error> {
    identities.create_module(peer.uid, &call).await
}

async fn get_module(identities: Domain, peer: Peer, call: GetModule) -> Result<Identity, Error> {
    identities.module(peer.uid, call.r#type.as_deref(), &call.module_id).await
}

async fn update_module(identities: Domain, peer: Peer, call: UpdateModule) -> Result<Identity, Error> {
    identities.update_module(peer.uid, call.r#type.as_deref(), &call.module_id).await
}

async fn delete_module(identities: Domain, peer: Peer, call: DeleteModule) -> Result<(), Error> {
    identities.delete_module(peer.uid, call.r#type.as_deref(), &call.module_id).await
}

async fn get_trust_bundle(identities: Domain, peer: Peer, _call: GetTrustBundle) -> Result<TrustBundle, Error> {
    identities.trust_bundle(peer.uid)
}

impl Status for Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::InvalidParameter { .. } | Self::DeviceNotFound | Self::ModuleNotFound => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            // The public service says 404 for whatever the cloud or the device's key did not give.
            Self::Dps(_)
            | Self::Hub(_)
            | Self::DeviceRejected(_)
            | Self::ModuleUnavailable(_)
            | Self::DeviceKey(_)
            | Self::Tpm(_)
            | Self::StillProvisioning => StatusCode::NOT_FOUND,
            Self::ModuleKey { .. }
            | Self::Certificate(_)
            | Self::State(_)
            | Self::LocalIdentity(_)
            | Self::NoLocalDomain
            | Self::Stopping => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The public service tells the cause as well; what lies behind that one is for the log.
    fn message(&self) -> String {
        match self.source() {
            Some(cause) => format!("{self}\ncaused by: {cause}"),
            None => self.to_string(),
        }
    }
}
