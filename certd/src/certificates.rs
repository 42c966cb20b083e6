//! Certificates: who may change one, and what reading, importing, deleting and creating mean. Knows no HTTP.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aziot_certd_api::{certificate::CreateCertificate, config::Method};
use aziot_log::{chain, fields};
use aziot_pki::{
    certificate::{Chain, KnownChains},
    key::KnownKeys,
    renewal::{Engine, Status},
    request::{Request, RequestError},
};
use aziot_turns::Turns;

use crate::{
    est::{
        Surroundings,
        enrolment::{Enrolments, Patience},
        pair,
    },
    issuance::{self, Issuing},
    policy,
    settings::Settings,
    store,
};

/// Why a call on certificates fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The uid has no principal for this certificate.
    #[error("user {uid} is not authorized to modify the cert {id}")]
    Unauthorized { uid: u32, id: String },
    /// The caller sent something that cannot be used.
    #[error("parameter {name:?} has an invalid value")]
    Parameter { name: &'static str, source: ParameterError },
    /// A certificate could not be read.
    #[error("could not read the certificate {id:?}")]
    Read { id: String, source: store::Error },
    /// A certificate could not be stored.
    #[error("could not store the certificate {id:?}")]
    Write { id: String, source: store::Error },
    /// A certificate could not be deleted.
    #[error("could not delete the certificate {id:?}")]
    Remove { id: String, source: store::Error },
    /// No certificate was issued.
    #[error("could not issue the certificate {id:?}")]
    Issue { id: String, source: Box<issuance::Error> },
}

/// What is wrong with a parameter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParameterError {
    /// There is no such certificate. Clients tell absence by this text.
    #[error("not found")]
    NotFound,
    /// The certificate that is to issue others is no PEM certificate.
    #[error("invalid issuer")]
    Issuer,
    /// A handle with a NUL in it is none.
    #[error("a key handle has no NUL character")]
    Handle,
    /// The certificate request is not taken.
    #[error(transparent)]
    Request(RequestError),
    /// The certificate request asks for more than it may.
    #[error(transparent)]
    Policy(policy::Refused),
}

/// All certificates of the device, as far as this service keeps them.
pub(crate) struct Certificates {
    settings: Arc<ArcSwap<Settings>>,
    /// The keys of those who issue here.
    keys: KnownKeys,
    chains: KnownChains,
    pub(crate) turns: Arc<Turns>,
    enrolments: Enrolments,
}

impl Certificates {
    /// Nothing is renewed before [`look_after`](Self::look_after) is called, and the engine runs.
    pub(crate) fn new(settings: Settings, surroundings: &Surroundings, engine: Engine, patience: Patience) -> Self {
        let (settings, turns) = (Arc::new(ArcSwap::from_pointee(settings)), Arc::clone(&surroundings.turns));
        let enrolments = Enrolments::new(engine, Arc::clone(&settings), Arc::clone(&turns), patience);
        Self {
            settings,
            keys: KnownKeys::new(surroundings.keyd.clone()),
            chains: KnownChains::default(),
            turns,
            enrolments,
        }
    }

    /// New settings for the calls that begin from now on, and new schedules for the identities that they have.
    pub(crate) async fn replace_settings(&self, settings: Settings) {
        let settings = Arc::new(settings);
        let switch = || self.settings.store(Arc::clone(&settings));
        settings.est.look_after(self.enrolments.engine(), switch).await;
    }

    /// Keeps those EST identities renewed that are there. Once, at the start.
    pub(crate) async fn look_after(&self) {
        self.settings.load_full().est.look_after(self.enrolments.engine(), || {}).await;
    }

    /// What is renewed next.
    pub(crate) fn renewals(&self) -> Vec<Status> {
        let mut renewals = self.enrolments.engine().status();
        renewals.sort_by_key(|status| status.next_attempt);
        renewals
    }

    /// Enrolments that outlast the calls that began them.
    pub(crate) fn enrolments(&self) -> &Enrolments {
        &self.enrolments
    }

    /// The text that is stored under `id`. Waits for nothing but local files.
    pub(crate) async fn get(&self, id: String) -> Result<String, Error> {
        let text = read(&self.settings.load_full(), id).await?;
        text.ok_or(Error::Parameter { name: "id", source: ParameterError::NotFound })
    }

    /// Stores `pem`, whatever it is, in the place of what is there.
    pub(crate) async fn import(&self, uid: u32, id: String, pem: String) -> Result<String, Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, &id)?;
        if settings.store.is_preloaded(&id) {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = id,
                { fields::UID } = uid,
                "the operator's preloaded certificate is replaced"
            );
        }
        if !Chain::from_pem(&pem).is_ok_and(|chain| !chain.is_empty()) {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = id,
                { fields::UID } = uid,
                "what is imported holds no PEM certificate"
            );
        }
        self.write(&settings, id, pem).await
    }

    /// Deletes the certificate if it is there.
    pub(crate) async fn delete(&self, uid: u32, id: String) -> Result<(), Error> {
        let settings = self.settings.load_full();
        authorize(&settings, uid, &id)?;
        let turn = self.turns.take(&id).await;
        self.enrolments.overtake(&id);
        let removed = settings.store.run({
            let id = id.clone();
            move |store| {
                let _turn = turn;
                pair::forget_note(store, &id)?;
                store.remove(&id)
            }
        });
        match removed.await {
            Ok(removed) => {
                self.enrolments.engine().look_again(&id);
                if removed && settings.store.is_preloaded(&id) {
                    tracing::warn!(
                        { fields::CERTIFICATE_ID } = id,
                        { fields::UID } = uid,
                        "the operator's preloaded certificate was deleted"
                    );
                }
                Ok(())
            }
            Err(source) => Err(Error::Remove { id, source }),
        }
    }

    /// Has a certificate issued on the call's request and stores it with its chain.
    pub(crate) async fn create(&self, uid: u32, call: CreateCertificate) -> Result<String, Error> {
        let settings = self.settings.load_full();
        let CreateCertificate { cert_id: id, csr, issuer } = call;
        authorize(&settings, uid, &id)?;
        let request = Request::from_pem(&csr)
            .map_err(|error| Error::Parameter { name: "csr", source: ParameterError::Request(error) })?;
        if let Some(policy) = settings.policy(&id) {
            let refused = |refused| Error::Parameter { name: "csr", source: ParameterError::Policy(refused) };
            policy::check(policy, &request).map_err(refused)?;
        }
        let (keys, chains) = (&self.keys, &self.chains);
        let issuing = Issuing { id: &id, request: &request, settings: &settings, keys, chains };
        let pem = match issuer {
            Some(issuer) => {
                let chain = named_issuer(&settings, chains, issuer.cert_id).await?;
                if issuer.private_key_handle.contains('\0') {
                    let (name, source) = ("issuer.privateKeyHandle", ParameterError::Handle);
                    return Err(Error::Parameter { name, source });
                }
                issuing.by_named_issuer(&chain, issuer.private_key_handle).await
            }
            None => match settings.method(&id) {
                None => Err(issuance::Error::NotConfigured),
                Some(Method::SelfSigned) => issuing.self_signed().await,
                Some(Method::LocalCa) => issuing.by_local_ca().await,
                Some(Method::Est) => {
                    let outcome = self.enrolments.enroll(settings, &id, request).await;
                    return outcome
                        .map_err(|source| Error::Issue { id, source: Box::new(issuance::Error::Est(source)) });
                }
            },
        };
        let pem = pem.map_err(|source| Error::Issue { id: id.clone(), source: Box::new(source) })?;
        // The request's own line has only the path, and here the id is in the body.
        tracing::info!({ fields::CERTIFICATE_ID } = id, { fields::UID } = uid, "issued a certificate");
        self.write(&settings, id, pem).await
    }

    /// Returns what was stored. Enrolments of the same certificate that are under way are overtaken.
    async fn write(&self, settings: &Settings, id: String, pem: String) -> Result<String, Error> {
        let turn = self.turns.take(&id).await;
        self.enrolments.overtake(&id);
        let written = settings.store.run({
            let id = id.clone();
            move |store| {
                let _turn = turn;
                pair::forget_note(store, &id)?;
                store.write(&id, &pem).map(|()| pem)
            }
        });
        let written = written.await;
        self.enrolments.engine().look_again(&id);
        written.map_err(|source| Error::Write { id, source })
    }
}

fn authorize(settings: &Settings, uid: u32, id: &str) -> Result<(), Error> {
    if settings.allow(uid, id) { Ok(()) } else { Err(Error::Unauthorized { uid, id: id.to_owned() }) }
}

async fn read(settings: &Settings, id: String) -> Result<Option<String>, Error> {
    let text = settings.store.run({
        let id = id.clone();
        move |store| store.read(&id)
    });
    text.await.map_err(|source| Error::Read { id, source })
}

async fn named_issuer(settings: &Settings, chains: &KnownChains, id: String) -> Result<Chain, Error> {
    let invalid = |source| Error::Parameter { name: "issuer.certId", source };
    let text = read(settings, id.clone()).await?.ok_or_else(|| invalid(ParameterError::NotFound))?;
    match chains.parse(&text) {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(invalid(ParameterError::Issuer)),
        Err(error) => {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = id,
                "an issuer was named that cannot be used: {}",
                chain(&error)
            );
            Err(invalid(ParameterError::Issuer))
        }
    }
}
