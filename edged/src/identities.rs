//! Identities of the modules, from the identity service, and for each module the key that it signs with.
//!
//! A module's key is asked for once and then known until its identity is changed, refused, or asked for in another generation. What is known
//! of one module never waits for another: the identity service may be waiting for a throttled hub for minutes. Nothing is kept on disk.

mod containers;
mod error;
mod known;
mod owner;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use aziot_edged_api::identity::{AuthType, CreateIdentity, Identities as Listed, Identity};
use aziot_http::{Client, ClientError};
use aziot_identityd_api::{
    identity::{AziotIdentity, Identity as Answer},
    module::{CreateModule, DeleteModule, ListModules, UpdateModule},
};
use aziot_log::fields;
use tokio::sync::Semaphore;

use crate::places;

pub(crate) use error::Error;
pub(crate) use known::ModuleKey;
pub(crate) use owner::{Containers, Finding};

use known::ModuleKeys;

/// The kind of identity that modules have.
const HUB_IDENTITY: &str = "aziot";
/// Cloud name of the agent.
const AGENT: &str = "$edgeAgent";

/// The identity service, as the runtime uses it.
pub(crate) struct Identities {
    identityd: Client,
    known: ModuleKeys,
    containers: Arc<dyn Containers>,
    changes: Semaphore,
    /// The agent's own: what it asks for keeps nobody from starting it.
    agent: Semaphore,
}

impl Identities {
    /// Identities of the service that `identityd` calls; an attempt of it needs minutes, because the hub may be throttling. `containers` tells
    /// which modules run here.
    pub(crate) fn new(identityd: Client, containers: Arc<dyn Containers>) -> Self {
        let known = ModuleKeys::new(identityd.clone());
        let (changes, agent) = (Semaphore::new(places::IDENTITY_CHANGES), Semaphore::new(places::AGENT_IDENTITY));
        Self { identityd, known, containers, changes, agent }
    }

    /// All modules that the device has at the hub. One that cannot be told in the API's terms is left out.
    pub(crate) async fn list(&self) -> Result<Listed, Error> {
        let listed = {
            let _place = self.changes.acquire().await;
            let call = ListModules { r#type: Some(HUB_IDENTITY.to_owned()) };
            self.identityd.send(&call).await.map_err(|source| Error::List(source.into()))?
        };
        let mut modules = Vec::with_capacity(listed.identities.len());
        for answer in listed.identities {
            let name = name(&answer).to_owned();
            match Told::new(answer) {
                Ok(module) => modules.push(module),
                Err(error) => {
                    tracing::warn!(
                        { fields::MODULE_ID } = name,
                        { fields::ERROR } = %error,
                        "an identity is left out of the list"
                    );
                }
            }
        }
        let owners = self.default_owners(modules.iter()).await;
        Ok(Listed { identities: modules.into_iter().map(|module| module.identity(&owners)).collect() })
    }

    /// Makes an identity, or takes over the one that is there.
    pub(crate) async fn create(&self, call: CreateIdentity) -> Result<Identity, Error> {
        let CreateIdentity { module_id, managed_by } = call;
        let managed_by = managed_by.unwrap_or_else(|| owner::RUNTIME.to_owned());
        let create = CreateModule {
            r#type: HUB_IDENTITY.to_owned(),
            module_id: module_id.clone(),
            local_id_opts: None,
            managed_by: Some(managed_by.clone()),
        };
        let answer = self.change(&self.changes, &module_id, self.identityd.send(&create)).await;
        let answer = answer.map_err(|source| Error::Create { module_id: module_id.clone(), source: source.into() })?;
        let module = Told::new(answer)?;
        tracing::info!({ fields::MODULE_ID } = module_id, "made a module identity");
        let managed_by = module.managed_by.unwrap_or(managed_by);
        Ok(identity(module.module_id, managed_by, module.generation_id))
    }

    /// Gives an identity new keys.
    pub(crate) async fn update(&self, module_id: &str) -> Result<Identity, Error> {
        let module = self.update_module(&self.changes, module_id).await?;
        let owners = self.default_owners([&module]).await;
        Ok(module.identity(&owners))
    }

    /// Gives the agent's identity keys, which the hub makes without any, and tells its generation.
    pub(crate) async fn agent_generation(&self) -> Result<String, Error> {
        Ok(self.update_module(&self.agent, AGENT).await?.generation_id)
    }

    async fn update_module(&self, places: &Semaphore, module_id: &str) -> Result<Told, Error> {
        let update = UpdateModule { module_id: module_id.to_owned(), r#type: Some(HUB_IDENTITY.to_owned()) };
        let answer = self.change(places, module_id, self.identityd.send(&update)).await;
        Told::new(answer.map_err(|source| Error::Update { module_id: module_id.to_owned(), source: source.into() })?)
    }

    /// Deletes an identity at the hub.
    pub(crate) async fn delete(&self, module_id: &str) -> Result<(), Error> {
        let delete = DeleteModule { module_id: module_id.to_owned(), r#type: Some(HUB_IDENTITY.to_owned()) };
        match self.change(&self.changes, module_id, self.identityd.send(&delete)).await {
            Ok(()) => {
                tracing::info!({ fields::MODULE_ID } = module_id, "deleted a module identity");
                Ok(())
            }
            // It says so of whatever the hub did not do.
            Err(error) if is_not_found(&error) && self.is_absent(module_id).await => {
                Err(Error::Absent(module_id.to_owned()))
            }
            Err(source) => Err(Error::Delete { module_id: module_id.to_owned(), source: source.into() }),
        }
    }

    /// Whether the hub, which must answer for that, does not have the module.
    async fn is_absent(&self, module_id: &str) -> bool {
        let _place = self.changes.acquire().await;
        let listed = self.identityd.send(&ListModules { r#type: Some(HUB_IDENTITY.to_owned()) }).await;
        let is_it = |answer: &Answer| matches!(answer, Answer::Aziot(identity) if identity.module_id.as_deref() == Some(module_id));
        listed.is_ok_and(|listed| !listed.identities.iter().any(is_it))
    }

    /// The key of the module in this generation.
    pub(crate) async fn key(&self, module_id: &str, generation_id: &str) -> Result<Arc<ModuleKey>, Error> {
        self.known.get(module_id, generation_id).await
    }

    /// Whether `generation_id` may be the module's: it is not compared where nobody has asked for the module yet, since the hub may be out of
    /// reach.
    pub(crate) async fn check_known(&self, module_id: &str, generation_id: &str) -> Result<(), Error> {
        self.known.check(module_id, generation_id).await
    }

    /// The key service has refused this key of the module: it is asked for anew.
    pub(crate) fn forget_key(&self, module_id: &str, refused: &Arc<ModuleKey>) {
        self.known.forget_key(module_id, refused);
    }

    /// Changes an identity. What readers were told before the change has ended is not kept.
    async fn change<T>(&self, places: &Semaphore, module_id: &str, call: impl Future<Output = T>) -> T {
        let _place = places.acquire().await;
        let _forgetting = Forgetting { known: &self.known, module_id };
        self.known.forget(module_id);
        call.await
    }

    /// Whom the identities belong to for which the hub names nobody.
    async fn default_owners<'m>(&self, modules: impl IntoIterator<Item = &'m Told>) -> owner::Defaults {
        if modules.into_iter().all(|module| module.managed_by.is_some()) {
            return owner::Defaults::default();
        }
        owner::Defaults::find(&*self.containers).await
    }
}

/// The name of the module's container, which the hub's name of a system module is but for a `$`.
pub(crate) fn container_name(module_id: &str) -> &str {
    module_id.strip_prefix('$').unwrap_or(module_id)
}

/// What the identity is called, as far as it says; for the log.
fn name(answer: &Answer) -> &str {
    match answer {
        Answer::Aziot(identity) => identity.module_id.as_deref().unwrap_or("without a name"),
        Answer::Local(local) => &local.module_id,
    }
}

fn is_not_found(error: &ClientError) -> bool {
    error.status().is_some_and(|status| status.as_u16() == 404)
}

/// Forgets at the end of a change too, also where that is cut off.
struct Forgetting<'a> {
    known: &'a ModuleKeys,
    module_id: &'a str,
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        self.known.forget(self.module_id);
    }
}

/// A module as the identity service tells it.
struct Told {
    module_id: String,
    generation_id: String,
    managed_by: Option<String>,
}

impl Told {
    fn new(answer: Answer) -> Result<Self, Error> {
        let (AziotIdentity { managed_by, .. }, module_id, generation_id) = parts(answer)?;
        Ok(Self { module_id, generation_id, managed_by })
    }

    fn identity(self, owners: &owner::Defaults) -> Identity {
        let managed_by = self.managed_by.unwrap_or_else(|| owners.owner(&self.module_id).to_owned());
        identity(self.module_id, managed_by, self.generation_id)
    }
}

fn identity(module_id: String, managed_by: String, generation_id: String) -> Identity {
    Identity { module_id, managed_by, generation_id, auth_type: AuthType::Sas }
}

/// The identity with its name and generation, which a module always has.
fn parts(answer: Answer) -> Result<(AziotIdentity, String, String), Error> {
    let Answer::Aziot(mut identity) = answer else { return Err(Error::IdentityType) };
    let module_id = identity.module_id.take().filter(|id| !id.is_empty()).ok_or(Error::MissingModuleId)?;
    let generation_id = identity.gen_id.take().filter(|id| !id.is_empty());
    let generation_id = generation_id.ok_or_else(|| Error::MissingGeneration(module_id.clone()))?;
    Ok((identity, module_id, generation_id))
}
