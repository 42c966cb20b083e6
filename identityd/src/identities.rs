//! What callers may ask of this service: who may do it, and what it takes. Knows no HTTP.
//!
//! A caller is authorized before anything else is looked at. Then it waits, if need be, until the first attempt at provisioning has ended; what
//! the state knew before can be read without that.

use std::{sync::Arc, time::Duration};

use aziot_identityd_api::{
    config::module_name_is_valid,
    identity::Identity,
    provisioning::{DpsAuthentication, ManualAuthentication, ProvisioningInfo},
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
    settings::{DpsSource, Settings, Shared, Source},
};

/// A little less than the 600 s that the public client waits for an answer. An attempt ends sooner.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(570);

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
        let reprovisioned = async {
            self.wishes.send(Wish::Reprovision(caller)).await.map_err(|_| Error::Stopping)?;
            answer.await.map_err(|_| Error::Stopping)?
        };
        timeout(LONGEST_WAIT, reprovisioned).await.unwrap_or(Err(Error::StillProvisioning))
    }

    /// All modules at the hub.
    pub(crate) async fn list_modules(&self, uid: u32, kind: Option<&str>) -> Result<Vec<Identity>, Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, Operation::GetAllHubModules)?;
        hub_type(kind)?;
        let prefer = prefer(&settings);
        let list = |device: Arc<Device>| async move { self.modules.list(&device, prefer).await };
        Ok(self.read(list).await?.into_iter().map(Identity::Aziot).collect())
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
        let in_force = self.situation.borrow().device.as_ref().map(|device| Arc::clone(&device.settings));
        let settings = in_force.unwrap_or_else(|| self.settings.load_full());
        Ok(match &settings.source {
            Source::Off => ProvisioningInfo::None,
            Source::Manual { .. } => ProvisioningInfo::Manual { auth: ManualAuthentication::Sas },
            Source::Dps(dps) => {
                let DpsSource { endpoint, scope_id, registration_id, key_id: _, payload: file } = dps;
                ProvisioningInfo::Dps {
                    auth: DpsAuthentication::SymmetricKey,
                    endpoint: endpoint.as_str().to_owned(),
                    scope_id: scope_id.clone(),
                    registration_id: registration_id.clone(),
                    payload: payload(file.as_ref()).await?,
                }
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
        let prefer = prefer(settings);
        let get = |device: Arc<Device>| async move { self.modules.get(&device, module_id, prefer).await };
        self.read(get).await.map(Identity::Aziot)
    }

    /// Reads what may be known already. A no that comes before the first attempt has ended may be outdated by it, so then it is asked again.
    async fn read<T, F>(&self, ask: impl Fn(Arc<Device>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let device = self.wait(|situation| situation.is_known || situation.first_attempt_ended).await?;
        let early = !self.situation.borrow().first_attempt_ended;
        match ask(device).await {
            Err(error) if early && error.is_refusal() => ask(self.settled_device().await?).await,
            answered => answered,
        }
    }

    /// The device, once its modules have been looked after for the first time.
    async fn settled_device(&self) -> Result<Arc<Device>, Error> {
        self.wait(|situation| situation.first_attempt_ended).await
    }

    /// The device, once this is so, or as it is when the caller has waited long enough.
    async fn wait(&self, enough: impl FnMut(&Situation) -> bool) -> Result<Arc<Device>, Error> {
        let mut situation = self.situation.clone();
        if let Ok(ended) = timeout(LONGEST_WAIT, situation.wait_for(enough)).await {
            drop(ended.map_err(|_| Error::Stopping)?);
        }
        let device = situation.borrow().device.clone();
        device.ok_or(Error::DeviceNotFound)
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

#[cfg(test)]
mod tests {
    use aziot_http::Retry;
    use aziot_identityd_cloud::Exchange;

    use super::*;
    use crate::state::{DeviceInfo, State};

    /// Everything that the service's parts are given, and a first attempt that never ends.
    struct Stuck {
        identities: Identities,
        publish: watch::Sender<Situation>,
        _folder: tempfile::TempDir,
        _wishes: mpsc::Receiver<Wish>,
    }

    impl Stuck {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let text = "hostname = 'e'\nhomedir = '/h'\nprovisioning.source = 'none'\n";
            let settings = Settings::new(aziot_config::load_str("config.toml", text).unwrap().value).unwrap().share();
            let endpoint = settings.load().config.endpoints.aziot_keyd.clone();
            let keys = Keys::new(aziot_keyd_api::client(&endpoint, Retry::local(0)).unwrap());
            let modules = Arc::new(Modules::new(keys.clone(), Arc::new(State::open(folder.path()).unwrap())));
            let (publish, situation) = watch::channel(Situation::default());
            let (wishes, received) = mpsc::channel(1);
            let identities = Identities { settings, keys, modules, situation, wishes };
            Self { identities, publish, _folder: folder, _wishes: received }
        }

        fn publish_device(&self) {
            let info =
                DeviceInfo { hub_name: "hub".into(), local_gateway_hostname: "hub".into(), device_id: "device".into() };
            let exchange: Arc<dyn Exchange> = Arc::new(|_| std::future::pending());
            let Identities { settings, keys, .. } = &self.identities;
            let device = Device::with_key(info, "key", keys, &exchange, &settings.load_full());
            self.publish.send_modify(|situation| situation.device = Some(Arc::new(device)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waited_long_enough_is_told_what_is_so() {
        let stuck = Stuck::new();
        let begun = tokio::time::Instant::now();
        // The second finds the queue full.
        let (one, other) = tokio::join!(stuck.identities.reprovision(0), stuck.identities.reprovision(0));
        for answer in [one, other] {
            assert!(matches!(answer, Err(Error::StillProvisioning)), "{answer:?}");
        }
        assert_eq!(begun.elapsed(), LONGEST_WAIT, "within the patience of the public client");
        assert!(matches!(stuck.identities.settled_device().await, Err(Error::DeviceNotFound)));
        stuck.publish_device();
        assert_eq!(stuck.identities.settled_device().await.unwrap().info.device_id, "device");
    }
}
