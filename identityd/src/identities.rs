//! What callers may ask of this service: who may do it, and what it takes. Knows no HTTP.
//!
//! A caller is authorized before anything else is looked at. Then it waits, if need be, until the first attempt at provisioning has ended.

use std::{sync::Arc, time::Duration};

use aziot_identityd_api::{
    config::{Attestation, Dps, ManualAuthentication, Provisioning, module_name_is_valid},
    identity::{AziotIdentity, Identity},
    provisioning::{self, DpsAuthentication, ProvisioningInfo},
    trust_bundle::TrustBundle,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    device::Device,
    error::{Error, Invalid},
    keys::Keys,
    modules::{Modules, Prefer},
    principals::Operation,
    provisioning::{Situation, payload},
    schedule::Wish,
    settings::{Settings, Shared},
};

/// As long as the public client waits for an answer. An attempt ends sooner.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The identities of this device.
pub(crate) struct Identities {
    /// The settings in force.
    pub(crate) settings: Shared,
    /// The key service.
    pub(crate) keys: Keys,
    /// The modules.
    pub(crate) modules: Arc<Modules>,
    /// What is known about the device.
    pub(crate) situation: watch::Receiver<Situation>,
    /// The way to the task that provisions.
    pub(crate) wishes: mpsc::Sender<Wish>,
}

/// Whether a local identity must be configured or must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LocalName {
    Configured,
    Free,
}

impl Identities {
    /// The caller's own identity.
    pub(crate) async fn own(&self, uid: u32) -> Result<Identity, Error> {
        let settings = self.settings.load_full();
        if settings.principals.allows(uid, Operation::GetDevice) {
            return self.device_identity().await;
        }
        let own = settings.principals.own_module(uid).ok_or(Error::Unauthorized)?;
        authorize(&settings, uid, Operation::GetModule(own))?;
        self.hub_module(&settings, own).await
    }

    /// The device's identity.
    pub(crate) async fn device(&self, uid: u32) -> Result<Identity, Error> {
        authorize(&self.settings.load(), uid, Operation::GetDevice)?;
        self.device_identity().await
    }

    /// Registers the device anew, or waits for the registration under way.
    pub(crate) async fn reprovision(&self, uid: u32) -> Result<(), Error> {
        authorize(&self.settings.load(), uid, Operation::ReprovisionDevice)?;
        let (caller, answer) = oneshot::channel();
        let wish = timeout(LONGEST_WAIT, self.wishes.send(Wish::Reprovision(caller)));
        wish.await.map_err(|_| Error::Stopping)?.map_err(|_| Error::Stopping)?;
        timeout(LONGEST_WAIT, answer).await.map_err(|_| Error::Stopping)?.map_err(|_| Error::Stopping)?
    }

    /// All modules at the hub.
    pub(crate) async fn list_modules(&self, uid: u32, kind: Option<&str>) -> Result<Vec<Identity>, Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, Operation::GetAllHubModules)?;
        hub_type(kind)?;
        let device = self.settled_device().await?;
        let modules = self.modules.list(&device, prefer(&settings)).await?;
        Ok(modules.into_iter().map(Identity::Aziot).collect())
    }

    /// Makes a module, or takes over the one that is there.
    pub(crate) async fn create_module(
        &self,
        uid: u32,
        kind: &str,
        module_id: &str,
        managed_by: Option<&str>,
    ) -> Result<Identity, Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, Operation::CreateModule)?;
        match kind {
            "aziot" => {
                check_name(module_id)?;
                let device = self.settled_device().await?;
                self.modules.create(&device, module_id, managed_by).await.map(Identity::Aziot)
            }
            "local" => local_identity(&settings, module_id, LocalName::Free),
            _ => Err(Error::invalid("type", Invalid::Type(kind.to_owned()))),
        }
    }

    /// The identity of one module.
    pub(crate) async fn module(&self, uid: u32, kind: Option<&str>, module_id: &str) -> Result<Identity, Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, Operation::GetModule(module_id))?;
        if kind == Some("local") {
            return local_identity(&settings, module_id, LocalName::Configured);
        }
        hub_type(kind)?;
        self.hub_module(&settings, module_id).await
    }

    /// Gives a module this device's keys.
    pub(crate) async fn update_module(&self, uid: u32, kind: Option<&str>, module_id: &str) -> Result<Identity, Error> {
        authorize(&self.settings.load(), uid, Operation::UpdateModule)?;
        hub_type(kind)?;
        check_name(module_id)?;
        let device = self.settled_device().await?;
        self.modules.update(&device, module_id).await.map(Identity::Aziot)
    }

    /// Deletes a module.
    pub(crate) async fn delete_module(&self, uid: u32, kind: Option<&str>, module_id: &str) -> Result<(), Error> {
        authorize(&self.settings.load(), uid, Operation::DeleteModule)?;
        hub_type(kind)?;
        check_name(module_id)?;
        let device = self.settled_device().await?;
        self.modules.delete(&device, module_id).await
    }

    /// Certificates to trust: none are configured anywhere yet.
    pub(crate) fn trust_bundle(&self, uid: u32) -> Result<TrustBundle, Error> {
        authorize(&self.settings.load(), uid, Operation::GetTrustBundle)?;
        Ok(TrustBundle::default())
    }

    /// How the device got its identity, or will get it. Anybody may ask.
    pub(crate) async fn provisioning_info(&self) -> Result<ProvisioningInfo, Error> {
        let in_force = self.situation.borrow().device.as_ref().map(|device| device.provisioning.clone());
        let provisioning = in_force.unwrap_or_else(|| self.settings.load().config.provisioning.clone());
        Ok(match provisioning {
            Provisioning::None => ProvisioningInfo::None,
            Provisioning::Manual(manual) => ProvisioningInfo::Manual {
                auth: match manual.authentication {
                    ManualAuthentication::Sas { .. } => provisioning::ManualAuthentication::Sas,
                    ManualAuthentication::X509 { .. } => provisioning::ManualAuthentication::X509,
                },
            },
            Provisioning::Dps(dps) => {
                let payload = payload(&dps).await?;
                let Dps { global_endpoint, scope_id, attestation, .. } = dps;
                let (auth, registration_id) = match attestation {
                    Attestation::SymmetricKey { registration_id, .. } => {
                        (DpsAuthentication::SymmetricKey, registration_id)
                    }
                    Attestation::Tpm { registration_id } => (DpsAuthentication::Tpm, registration_id),
                    Attestation::X509 { registration_id, .. } => {
                        let name = registration_id.as_ref().map_or("", |subject| subject.common_name());
                        (DpsAuthentication::X509, name.to_owned())
                    }
                };
                let endpoint = String::from(global_endpoint);
                ProvisioningInfo::Dps { auth, endpoint, scope_id, registration_id, payload }
            }
        })
    }

    async fn device_identity(&self) -> Result<Identity, Error> {
        let device = self.wait(|situation| situation.device.is_some() || situation.first_attempt_ended).await?;
        let key = self.keys.load(&device.key_id).await.map_err(|error| Error::DeviceKey(Arc::new(error)))?;
        Ok(Identity::Aziot(device.identity(key)))
    }

    async fn hub_module(&self, settings: &Settings, module_id: &str) -> Result<Identity, Error> {
        check_name(module_id)?;
        let device = self.settled_device().await?;
        let identity: AziotIdentity = self.modules.get(&device, module_id, prefer(settings)).await?;
        Ok(Identity::Aziot(identity))
    }

    /// The device, once its modules have been looked after for the first time.
    async fn settled_device(&self) -> Result<Arc<Device>, Error> {
        self.wait(|situation| situation.first_attempt_ended).await
    }

    async fn wait(&self, enough: impl FnMut(&Situation) -> bool) -> Result<Arc<Device>, Error> {
        let mut situation = self.situation.clone();
        let waited = timeout(LONGEST_WAIT, situation.wait_for(enough)).await;
        let situation = waited.map_err(|_| Error::DeviceNotFound)?.map_err(|_| Error::Stopping)?;
        situation.device.clone().ok_or(Error::DeviceNotFound)
    }
}

fn authorize(settings: &Settings, uid: u32, operation: Operation<'_>) -> Result<(), Error> {
    if settings.principals.allows(uid, operation) { Ok(()) } else { Err(Error::Unauthorized) }
}

fn prefer(settings: &Settings) -> Prefer {
    Prefer::from_setting(settings.config.prefer_module_identity_cache)
}

fn hub_type(kind: Option<&str>) -> Result<(), Error> {
    match kind {
        Some("aziot") => Ok(()),
        Some(other) => Err(Error::invalid("type", Invalid::Type(other.to_owned()))),
        None => Err(Error::invalid("type", Invalid::Missing)),
    }
}

/// Only names that the hub takes reach its URL.
fn check_name(module_id: &str) -> Result<(), Error> {
    if module_id.trim().is_empty() {
        return Err(Error::invalid("module_id", Invalid::EmptyModuleName));
    }
    if module_name_is_valid(module_id) { Ok(()) } else { Err(Error::invalid("module_id", Invalid::ModuleName)) }
}

/// The place where local identities will be issued. Until then, every answer but that one is as specified.
fn local_identity(settings: &Settings, module_id: &str, expected: LocalName) -> Result<Identity, Error> {
    let invalid = |source| Err(Error::invalid("moduleId", source));
    match (expected, settings.principals.has_local(module_id)) {
        (LocalName::Configured, false) => invalid(Invalid::NoLocalIdentity(module_id.to_owned())),
        (LocalName::Free, true) => invalid(Invalid::LocalIdentityExists(module_id.to_owned())),
        _ if settings.config.localid.is_none() => Err(Error::NoLocalDomain),
        _ => Err(Error::NotAvailable("local identities are")),
    }
}
