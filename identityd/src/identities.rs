//! What callers may ask of this service: who may do it, and what it takes. Knows no HTTP.
//!
//! A caller is authorized before anything else is looked at. Then it waits, if need be, until the first attempt at provisioning has ended; what
//! the state knew before can be read without that.

use std::sync::Arc;

use aziot_identityd_api::{
    config::{CertificateUse, LocalIdOptions, module_name_is_valid},
    identity::Identity,
    module::CreateModule,
    provisioning::ProvisioningInfo,
    trust_bundle::TrustBundle,
};
use aziot_pki::key::next_id;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    credentials::Credentials,
    device::Device,
    error::{Error, Invalid},
    info,
    keys::Keys,
    local::{LocalIdentities, Wanted},
    modules::{Calls, Modules, Prefer},
    principals::Operation,
    provisioning::Situation,
    schedule::Wish,
    settings::{LONGEST_WAIT, Proof, Settings, Shared, Source},
};

/// The identities of this device.
pub(crate) struct Identities {
    /// The settings in force.
    pub(crate) settings: Shared,
    /// The key service.
    pub(crate) keys: Keys,
    /// What the device proves itself with.
    pub(crate) credentials: Arc<Credentials>,
    /// The modules.
    pub(crate) modules: Arc<Modules>,
    /// The identities of the local network.
    pub(crate) local: LocalIdentities,
    /// What is known about the device.
    pub(crate) situation: watch::Receiver<Situation>,
    /// The way to the task that provisions.
    pub(crate) wishes: mpsc::Sender<Wish>,
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

    /// Makes a module, or takes over the one that is there; or gives a local identity to a name that is no principal's.
    pub(crate) async fn create_module(&self, uid: u32, call: &CreateModule) -> Result<Identity, Error> {
        let CreateModule { r#type, module_id, local_id_opts, managed_by } = call;
        let settings = self.settings.load_full();
        authorize(&settings, uid, Operation::CreateModule)?;
        match r#type.as_str() {
            "aziot" => {
                check_name(module_id)?;
                let device = self.settled_device().await?;
                self.modules
                    .create(&device, module_id, managed_by.as_deref(), &Calls::default())
                    .await
                    .map(Identity::Aziot)
            }
            "local" => {
                let purpose = purpose(local_id_opts.as_ref())?;
                if settings.principals.local(module_id).is_some() {
                    return Err(Error::invalid("moduleId", Invalid::LocalIdentityExists(module_id.clone())));
                }
                self.local_identity(&settings, module_id, purpose, uid).await
            }
            _ => Err(Error::invalid("type", Invalid::Type(r#type.clone()))),
        }
    }

    /// The identity of one module.
    pub(crate) async fn module(&self, uid: u32, kind: Option<&str>, module_id: &str) -> Result<Identity, Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, Operation::GetModule(module_id))?;
        if kind == Some("local") {
            let Some(purpose) = settings.principals.local(module_id) else {
                return Err(Error::invalid("moduleId", Invalid::NoLocalIdentity(module_id.to_owned())));
            };
            return self.local_identity(&settings, module_id, purpose, uid).await;
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
        self.modules.update(&device, module_id, &Calls::default()).await.map(Identity::Aziot)
    }

    /// Deletes a module.
    pub(crate) async fn delete_module(&self, uid: u32, kind: Option<&str>, module_id: &str) -> Result<(), Error> {
        authorize(&self.settings.load(), uid, Operation::DeleteModule)?;
        hub_type(kind)?;
        check_name(module_id)?;
        let device = self.settled_device().await?;
        self.modules.delete(&device, module_id, &Calls::default()).await
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
        info::provisioning_info(&settings, &self.credentials).await
    }

    async fn device_identity(&self) -> Result<Identity, Error> {
        let known = self.wait(|situation| situation.device.is_some() || situation.first_attempt_ended).await?;
        let device = provisioned(known)?;
        let authentication = device.credential.authentication(&self.keys).await?;
        Ok(Identity::Aziot(device.identity(authentication)))
    }

    async fn hub_module(&self, settings: &Settings, module_id: &str) -> Result<Identity, Error> {
        check_name(module_id)?;
        let prefer = prefer(settings);
        let get = |device: Arc<Device>| async move { self.modules.get(&device, module_id, prefer).await };
        self.read(get).await.map(Identity::Aziot)
    }

    /// A local identity for this name, whose private key is for this user alone.
    async fn local_identity(
        &self,
        settings: &Settings,
        module_id: &str,
        purpose: CertificateUse,
        caller: u32,
    ) -> Result<Identity, Error> {
        let localid = settings.config.localid.as_ref().ok_or(Error::NoLocalDomain)?;
        let invalid = |source| Error::invalid("moduleId", source);
        if module_id.trim().is_empty() {
            return Err(invalid(Invalid::EmptyModuleName));
        }
        if self.is_device_certificate(settings, module_id) {
            return Err(invalid(Invalid::DeviceCertificate(module_id.to_owned())));
        }
        let wanted = Wanted::new(module_id, &settings.config.hostname, &localid.domain, purpose, caller);
        let wanted = wanted.map_err(|error| invalid(Invalid::CertificateName(error)))?;
        Ok(Identity::Local(self.local.identity(wanted).await?))
    }

    /// Whether the device's own certificate is kept under this id, or its successor; a local identity would take its place.
    fn is_device_certificate(&self, settings: &Settings, id: &str) -> bool {
        let in_force = self.situation.borrow().device.as_ref().map(|device| Arc::clone(&device.settings));
        let sources = [Some(&settings.source), in_force.as_ref().map(|settings| &settings.source)];
        sources.into_iter().flatten().filter_map(certificate_id).any(|own| id == own || id == next_id(own))
    }

    /// Reads what may be known already. A no that comes before the first attempt has ended may be outdated by it, so then it is asked again.
    async fn read<T, F>(&self, ask: impl Fn(Arc<Device>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let known = self.wait(|situation| situation.is_known || situation.first_attempt_ended).await?;
        let early = !known.first_attempt_ended;
        match ask(provisioned(known)?).await {
            Err(error) if early && error.is_refusal() => ask(self.settled_device().await?).await,
            answered => answered,
        }
    }

    /// The device, once its modules have been looked after for the first time.
    async fn settled_device(&self) -> Result<Arc<Device>, Error> {
        provisioned(self.wait(|situation| situation.first_attempt_ended).await?)
    }

    /// What is so at one moment, once this is so, or as it is when the caller has waited long enough.
    async fn wait(&self, enough: impl Fn(&Situation) -> bool) -> Result<Situation, Error> {
        let mut situation = self.situation.clone();
        match timeout(LONGEST_WAIT, situation.wait_for(enough)).await {
            Ok(Ok(reached)) => return Ok(reached.clone()),
            Ok(Err(_)) => return Err(Error::Stopping),
            Err(_) => {}
        }
        let situation = situation.borrow().clone();
        Ok(situation)
    }
}

fn provisioned(situation: Situation) -> Result<Arc<Device>, Error> {
    situation.device.ok_or(Error::DeviceNotFound)
}

fn authorize(settings: &Settings, uid: u32, operation: Operation<'_>) -> Result<(), Error> {
    if settings.principals.allows(uid, operation) { Ok(()) } else { Err(Error::Unauthorized) }
}

/// The id of the certificate that a device proves itself with.
fn certificate_id(source: &Source) -> Option<&str> {
    match source.proof() {
        Some(Proof::X509(certificate)) => Some(&certificate.certificate_id),
        _ => None,
    }
}

/// What the options of a local identity say; a certificate for clients without any.
fn purpose(options: Option<&Value>) -> Result<CertificateUse, Error> {
    let Some(options) = options else { return Ok(CertificateUse::default()) };
    let options = LocalIdOptions::deserialize(options);
    options.map(|options| options.attributes).map_err(|_| Error::invalid("localIdOpts", Invalid::LocalIdOptions))
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

#[cfg(test)]
mod tests {
    use aziot_identityd_cloud::{Roots, TlsExchanges};

    use super::*;
    use crate::{
        settings::Proof,
        state::{DeviceInfo, State},
    };

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
            let exchanges = Arc::new(TlsExchanges::new(Roots::System, None));
            let services = crate::services(&settings.load().config.endpoints, 0, exchanges).unwrap();
            let keys = Keys::new(services.keyd.clone());
            let local = LocalIdentities::new(services.certd.clone());
            let state = Arc::new(State::open(folder.path()).unwrap());
            let modules = Arc::new(Modules::new(keys.clone(), Arc::clone(&state)));
            let (publish, situation) = watch::channel(Situation::default());
            let (wishes, received) = mpsc::channel(1);
            let credentials = Credentials::new(
                Arc::clone(&settings),
                keys.clone(),
                services,
                state,
                situation.clone(),
                wishes.downgrade(),
            );
            let credentials = Arc::new(credentials);
            let identities = Identities { settings, keys, credentials, modules, local, situation, wishes };
            Self { identities, publish, _folder: folder, _wishes: received }
        }

        fn publish_device(&self) {
            let info =
                DeviceInfo { hub_name: "hub".into(), local_gateway_hostname: "hub".into(), device_id: "device".into() };
            let Identities { settings, credentials, .. } = &self.identities;
            let proof = Proof::SymmetricKey { key_id: "key".into() };
            let settings = settings.load_full();
            let access = credentials.access(&proof, &settings);
            let device = Device::new(info, (&proof).into(), access, &settings);
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
