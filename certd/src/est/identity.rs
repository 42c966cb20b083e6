//! A TLS client identity for EST servers: how it is first obtained with a bootstrap identity, and renewed (certs.md, 5.4 and 6.6).
//!
//! The bootstrap identity is used when the certificate is absent, over or another key's, and on no other failure: who cannot
//! tell does nothing. A new key never takes the place of the old one before there is a certificate for it.

use std::{sync::Arc, time::Duration};

use aziot_certd_api::{config::KeyPair, renewal::AutoRenew};
use aziot_log::fields;
use aziot_pki::{
    Extension, Name, OctetString,
    certificate::Chain,
    key::RemoteKey,
    name::NameError,
    renewal::{Credential, Doing, Failure, Renewed},
    request::{self, CreateError, Request, RequestError},
    tls::{ClientIdentity, IdentityError},
};
use x509_cert::{
    Certificate,
    der::{Decode as _, oid::ObjectIdentifier},
};

use super::{
    client::{self, Enrolled},
    keys,
    memory::Asked,
    pair::{self, Pair, belongs, is_over},
    servers::{Servers, TrustError},
    settings::{Access, IdentitySettings},
};
use crate::issuance;

const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SUBJECT_ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
/// Client authentication, alone (RFC 5280, section 4.2.1.12).
const CLIENT_AUTHENTICATION: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// Why there is no identity, or no new one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It is absent, over or another key's, and there is nothing to obtain a new one with.
    #[error("the EST identity {id:?} is {state}, and no bootstrap identity is configured for it")]
    NoBootstrap { id: String, state: &'static str },
    /// There is no server to obtain it from.
    #[error("no EST server is configured for the EST identity {id:?}")]
    NoServer { id: String },
    /// The certificate or its key.
    #[error(transparent)]
    Pair(Box<pair::Error>),
    /// Its parts cannot be read.
    #[error("could not read the certificate {id:?}")]
    Unreadable { id: String, source: x509_cert::der::Error },
    /// Certificate and key make no client identity.
    #[error("the certificate {id:?} and its key are no TLS client identity")]
    Identity { id: String, source: IdentityError },
    /// The configured subject is none.
    #[error("identity_subject of the EST identity {id:?} is unusable")]
    Subject { id: String, source: NameError },
    /// The request for it was not made.
    #[error("could not make a request for the EST identity {id:?}")]
    Create { id: String, source: CreateError },
    /// The request came out wrong.
    #[error("could not read back the request for the EST identity {id:?}")]
    Request { id: String, source: RequestError },
    /// No server can be trusted.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The server.
    #[error("could not enroll the EST identity {id:?}")]
    Server { id: String, source: Box<client::Error> },
    /// The server has not decided.
    #[error("the EST server has not decided about the identity {id:?} yet; it asks to come back in {} s", pause.as_secs())]
    NotYet { id: String, pause: Duration },
    /// What was issued is over already.
    #[error("the EST server issued the identity {id:?} with an end in the past")]
    Over { id: String },
}

impl From<pair::Error> for Error {
    fn from(error: pair::Error) -> Self {
        Self::Pair(Box::new(error))
    }
}

impl From<keys::Error> for Error {
    fn from(error: keys::Error) -> Self {
        pair::Error::from(error).into()
    }
}

impl Error {
    /// Whether it says that the key is not the one that the certificate is for, or is gone.
    pub(crate) fn is_of_key(&self) -> bool {
        match self {
            Self::Pair(error) => matches!(&**error, pair::Error::Key(keys::Error::Absent { .. })),
            Self::Identity { source, .. } => matches!(source, IdentityError::ForeignKey { .. }),
            _ => false,
        }
    }

    /// What the server said.
    pub(crate) fn server(&self) -> Option<&client::Error> {
        match self {
            Self::Server { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::NoBootstrap { .. } | Error::NoServer { .. } => Self::fatal(error),
            Error::Pair(pair) if pair.is_absent() => Self::fatal(error),
            Error::Pair(pair) if pair.is_other_next_time() => Self::AtOnce(error.into()),
            Error::NotYet { pause, .. } => Self::NotYet(*pause, error.into()),
            Error::Server { source, .. } => match source.retry_after() {
                Some(pause) => Self::Busy(pause, error.into()),
                None => Self::retryable(error),
            },
            _ => Self::retryable(error),
        }
    }
}

/// For whom an identity is obtained that is not there yet.
pub(crate) struct Wish {
    /// Where: there is no URL of its own for this.
    pub(crate) access: Access,
    /// Its subject where the settings name none.
    pub(crate) subject: Name,
}

/// An identity with what it needs to renew itself.
pub(crate) struct Identity {
    settings: IdentitySettings,
    pair: Pair,
    servers: Arc<Servers>,
}

/// What an identity proves itself with to obtain another certificate.
struct Proof {
    identity: Arc<ClientIdentity>,
    is_bootstrap: bool,
}

impl Identity {
    pub(crate) fn new(settings: IdentitySettings, pair: Pair, servers: Arc<Servers>) -> Self {
        Self { settings, pair, servers }
    }

    pub(crate) fn ids(&self) -> &KeyPair {
        self.pair.ids()
    }

    /// Whether there is a certificate that can be read. A failure to look is an error, not absence.
    pub(crate) async fn is_there(&self) -> Result<bool, Error> {
        match self.pair.certificate().await {
            Ok(_) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is anything to look after: a certificate, or what is left of obtaining the first one.
    pub(crate) async fn is_begun(&self) -> Result<bool, Error> {
        Ok(self.is_there().await? || self.pair.is_noted().await?)
    }

    /// Obtains it with the bootstrap identity, unless a crash has left it almost done. Call it only where
    /// [`is_there`](Self::is_there) says no, and not twice at once.
    pub(crate) async fn bootstrap(&self, wish: &Wish) -> Result<(), Error> {
        self.pair.settle().await?;
        if self.is_there().await? {
            return Ok(());
        }
        let proof = self.bootstrap_proof("absent").await?;
        let subject = self.configured_subject()?.unwrap_or_else(|| wish.subject.clone());
        let new = self.enroll(&proof, &wish.access, subject, Vec::new(), true).await?;
        self.refuse_if_over(&new)?;
        self.pair.install(None, &new).await?;
        tracing::info!(
            { fields::CERTIFICATE_ID } = self.ids().cert,
            { fields::KEY_ID } = self.ids().pk,
            "obtained an EST identity with the bootstrap identity"
        );
        Ok(())
    }

    /// The identity with this certificate, for as long as nobody exchanges its key.
    pub(crate) async fn client_identity(&self, certificate: &Chain) -> Result<Arc<ClientIdentity>, Error> {
        let KeyPair { cert, pk } = self.ids();
        prove(cert, certificate, self.pair.keys().load(pk).await?)
    }

    async fn bootstrap_proof(&self, state: &'static str) -> Result<Proof, Error> {
        let pair = self.settings.bootstrap.as_ref();
        let pair = pair.ok_or_else(|| Error::NoBootstrap { id: self.ids().cert.clone(), state })?;
        let certificate = self.pair.read(&pair.cert).await?;
        let key = self.pair.keys().load(&pair.pk).await?;
        Ok(Proof { identity: prove(&pair.cert, &certificate, key)?, is_bootstrap: true })
    }

    /// What proves a renewal: the identity itself while it is good, else the bootstrap identity.
    async fn proof_of_renewal(&self, old: &Chain) -> Result<Proof, Error> {
        if is_over(old) {
            return self.bootstrap_proof("over").await;
        }
        match self.pair.key().await? {
            Some(key) if belongs(old, &key) => {
                Ok(Proof { identity: prove(&self.ids().cert, old, key)?, is_bootstrap: false })
            }
            _ => self.bootstrap_proof("of another key").await,
        }
    }

    fn configured_subject(&self) -> Result<Option<Name>, Error> {
        let name = self.settings.subject.as_ref().map(issuance::name_of).transpose();
        name.map_err(|source| Error::Subject { id: self.ids().cert.clone(), source })
    }

    /// A new certificate, for a new key if `rotate` and the key service permits. The old pair stays as it is.
    async fn enroll(
        &self,
        proof: &Proof,
        access: &Access,
        subject: Name,
        names: Vec<Extension>,
        rotate: bool,
    ) -> Result<Renewed, Error> {
        let client = self.servers.client(access, Some(Arc::clone(&proof.identity))).await?;
        let asked = self.request(access, subject, names, rotate).await?;
        let (id, memory) = (|| self.ids().cert.clone(), self.pair.memory());
        match client.enroll(&asked.request, !proof.is_bootstrap).await {
            Ok(Enrolled::Issued(chain)) => {
                memory.decided();
                Ok(Renewed { chain, key_id: asked.key_id.clone() })
            }
            Ok(Enrolled::NotYet(pause)) => {
                memory.keep(asked);
                Err(Error::NotYet { id: id(), pause })
            }
            Err(source) => {
                if source.is_decision() {
                    memory.decided();
                }
                Err(Error::Server { id: id(), source: Box::new(source) })
            }
        }
    }

    /// The request that the server has not decided on yet, if there is one, or else a new one.
    async fn request(
        &self,
        access: &Access,
        subject: Name,
        names: Vec<Extension>,
        rotate: bool,
    ) -> Result<Arc<Asked>, Error> {
        let undecided = self.pair.memory().undecided();
        if let Some(asked) = undecided.filter(|undecided| undecided.access == *access) {
            let key = self.pair.keys().find(&asked.key_id).await?;
            if key.is_some_and(|key| key.is_public_key(asked.request.public_key_info())) {
                return Ok(asked);
            }
        }
        self.pair.memory().decided();
        let (key_id, key) = self.pair.next_key(rotate).await?;
        let id = || self.ids().cert.clone();
        let mut extensions = names;
        extensions.push(client_authentication().map_err(|source| Error::Unreadable { id: id(), source })?);
        let text = request::create(subject, &extensions, &key).await;
        let text = text.map_err(|source| Error::Create { id: id(), source })?;
        let request = Request::from_pem(&text).map_err(|source| Error::Request { id: id(), source })?;
        Ok(Arc::new(Asked { request, key_id, access: access.clone() }))
    }

    fn refuse_if_over(&self, new: &Renewed) -> Result<(), Error> {
        if is_over(&new.chain) { Err(Error::Over { id: self.ids().cert.clone() }) } else { Ok(()) }
    }

    async fn repaired(&self) -> Result<(), Failure> {
        if self.pair.settle().await.map_err(Error::from)? {
            return Ok(());
        }
        let KeyPair { cert, pk } = self.ids().clone();
        Err(Failure::fatal(Mismatch { id: cert, key: pk }))
    }

    async fn renewed(&self, old: Chain) -> Result<Renewed, Error> {
        let id = || self.ids().cert.clone();
        let access = self.settings.access.as_ref().ok_or_else(|| Error::NoServer { id: id() })?;
        let proof = self.proof_of_renewal(&old).await?;
        let parts = Parts::of(&old).map_err(|source| Error::Unreadable { id: id(), source })?;
        let subject = if proof.is_bootstrap { self.configured_subject()? } else { None };
        // A server that renews wants subject and names as they were (RFC 7030, section 4.2.2).
        let names = if access.reenroll { parts.names } else { Vec::new() };
        let rotate = self.settings.policy.rotate_key;
        self.enroll(&proof, access, subject.unwrap_or(parts.subject), names, rotate).await
    }
}

impl Credential for Identity {
    fn certificate_id(&self) -> &str {
        &self.ids().cert
    }

    fn key_id(&self) -> &str {
        &self.ids().pk
    }

    fn policy(&self) -> AutoRenew {
        self.settings.policy
    }

    fn repair(&self) -> Doing<'_, ()> {
        Box::pin(self.repaired())
    }

    fn current(&self) -> Doing<'_, Chain> {
        Box::pin(async move { Ok(self.pair.certificate().await.map_err(Error::from)?) })
    }

    fn renew(&self, old: Chain) -> Doing<'_, Renewed> {
        Box::pin(async move { Ok(self.renewed(old).await?) })
    }

    fn commit(&self, old: Chain, new: Renewed) -> Doing<'_, ()> {
        Box::pin(async move { Ok(self.pair.install(Some(&old), &new).await.map_err(Error::from)?) })
    }
}

fn prove(id: &str, certificate: &Chain, key: RemoteKey) -> Result<Arc<ClientIdentity>, Error> {
    ClientIdentity::new(certificate, key).map_err(|source| Error::Identity { id: id.to_owned(), source })
}

#[derive(Debug, thiserror::Error)]
#[error("the certificate {id:?} does not belong to the key pair {key:?}")]
struct Mismatch {
    id: String,
    key: String,
}

/// What of a certificate its successor takes over.
struct Parts {
    subject: Name,
    names: Vec<Extension>,
}

impl Parts {
    fn of(chain: &Chain) -> Result<Self, x509_cert::der::Error> {
        let certificate = parsed(chain)?;
        let certificate = certificate.tbs_certificate();
        let extensions = certificate.extensions().into_iter().flatten();
        let names = extensions.filter(|extension| extension.extn_id == SUBJECT_ALTERNATIVE_NAME).cloned().collect();
        Ok(Self { subject: certificate.subject().clone(), names })
    }
}

fn parsed(chain: &Chain) -> Result<Certificate, x509_cert::der::Error> {
    let der = chain.leaf().and_then(|leaf| leaf.to_der().ok()).unwrap_or_default();
    Certificate::from_der(&der)
}

/// Whether the first certificate is of this subject.
pub(super) fn is_same_subject(chain: &Chain, subject: &Name) -> bool {
    parsed(chain).is_ok_and(|certificate| certificate.tbs_certificate().subject() == subject)
}

fn client_authentication() -> Result<Extension, x509_cert::der::Error> {
    let extn_value = OctetString::new(CLIENT_AUTHENTICATION)?;
    Ok(Extension { extn_id: EXTENDED_KEY_USAGE, critical: false, extn_value })
}
