//! The certificate and the key of the Edge CA as the services have them: looked at, made where they are absent, and mended where nobody renews
//! them.
//!
//! A key is loaded or made right before it is used, after all repairs: a repair may put another one in its place. Where a certificate is stored
//! that nobody renews, its key is the operator's: none is made in the place of one that is missing.

use std::fmt;

use aziot_certd_api::certificate::{CreateCertificate, GetCertificate};
use aziot_edged_api::config;
use aziot_http::ClientError;
use aziot_keyd_api::{
    key::KeyHandle,
    key_pair::{CreateKeyPair, LoadKeyPair},
};
use aziot_log::fields;
use aziot_pki::{
    Extension, Name,
    certificate::Chain,
    key::RemoteKey,
    renewal::{Credential as _, Failure, issued::Issued},
    request as csr,
};
use jiff::Timestamp;

use super::{Error, PREFERRED_ALGORITHMS};
use crate::workload::Services;

/// Why the CA can issue nothing that anybody would trust.
#[derive(Debug)]
pub(super) enum Problem {
    NoCertificate(String),
    NoKey(String),
    Broken(String),
    Empty,
    Undated,
    Ended(Timestamp),
    /// Certificate and key, by their ids.
    Mismatched(String, String),
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate(id) => write!(formatter, "there is no certificate {id}"),
            Self::NoKey(id) => write!(formatter, "there is no key pair {id}"),
            Self::Broken(why) => formatter.write_str(why),
            Self::Empty => formatter.write_str("it is empty"),
            Self::Undated => formatter.write_str("its dates are unreadable"),
            Self::Ended(not_after) => write!(formatter, "it ended on {not_after}"),
            Self::Mismatched(certificate, key) => {
                write!(formatter, "the certificate {certificate} does not belong to the key pair {key}")
            }
        }
    }
}

/// The CA as configured.
pub(super) struct Making {
    pub(super) services: Services,
    pub(super) config: config::EdgeCa,
    pub(super) subject: Name,
    pub(super) extensions: Vec<Extension>,
}

impl Making {
    /// Issues the certificate if there is none, and makes its key. Whether they are any good is for the renewal to find out.
    pub(super) async fn make_if_absent(&self) -> Result<(), Error> {
        match self.stored().await?.map(|text| Chain::from_pem(&text)) {
            Some(Ok(chain)) if !chain.is_empty() => {
                let rotates = self.config.auto_renew.is_some_and(|policy| policy.rotate_key);
                // A key service that does not answer is told from one without the key.
                if self.key().await?.is_none() && !rotates {
                    tracing::warn!(
                        { fields::KEY_ID } = self.config.key,
                        "the key pair of the Edge CA is not there: making another one, and renewing the certificate for it"
                    );
                    self.key_or_new().await?;
                }
                return Ok(());
            }
            Some(_) => tracing::warn!(
                { fields::CERTIFICATE_ID } = self.config.cert,
                "what is stored as the Edge CA is no certificate, asking for another one"
            ),
            None => {}
        }
        self.issue().await
    }

    /// Makes or mends the CA where nobody renews it later. One that cannot be mended is no error, but told about.
    pub(super) async fn make_or_mend(&self, issued: &Issued) -> Result<(), Error> {
        if self.stored().await?.is_none() {
            return self.issue().await;
        }
        match issued.repair().await {
            // What cannot be repaired shows below.
            Ok(()) | Err(Failure::Fatal(_)) => {}
            Err(failure) => return Err(Error::Repair(failure)),
        }
        let Some(problem) = self.look().await? else { return Ok(()) };
        if let Problem::NoKey(_) = problem {
            tracing::error!(
                { fields::CERTIFICATE_ID } = self.config.cert,
                { fields::KEY_ID } = self.config.key,
                "the key pair of the Edge CA's certificate is not there: modules get no certificates until it is, or until the certificate \
                 is deleted too and the runtime restarted"
            );
            return Ok(());
        }
        tracing::warn!(
            { fields::CERTIFICATE_ID } = self.config.cert,
            { fields::KEY_ID } = self.config.key,
            { fields::ERROR } = %problem,
            "the Edge CA is of no use, asking for another certificate"
        );
        match self.issue().await {
            Err(error) if !error.is_passing() => {
                tracing::error!(
                    { fields::CERTIFICATE_ID } = self.config.cert,
                    { fields::KEY_ID } = self.config.key,
                    { fields::ERROR } = %aziot_log::chain(&error),
                    "there is no other certificate for the Edge CA: modules get no certificates until its certificate and key are replaced"
                );
                Ok(())
            }
            issued => issued,
        }
    }

    /// What is wrong with certificate and key as they are now; `None` if the CA can issue.
    pub(super) async fn look(&self) -> Result<Option<Problem>, Error> {
        let config::EdgeCa { cert, key: key_id, .. } = &self.config;
        let Some(text) = self.stored().await? else { return Ok(Some(Problem::NoCertificate(cert.clone()))) };
        let Some(key) = self.key().await? else { return Ok(Some(Problem::NoKey(key_id.clone()))) };
        let chain = match Chain::from_pem(&text) {
            Ok(chain) => chain,
            Err(error) => return Ok(Some(Problem::Broken(aziot_log::chain(&error).to_string()))),
        };
        let Some(leaf) = chain.leaf() else { return Ok(Some(Problem::Empty)) };
        let end = chain.validity().and_then(|validity| Timestamp::from_second(validity.not_after).ok());
        Ok(match end {
            None => Some(Problem::Undated),
            Some(not_after) if not_after <= Timestamp::now() => Some(Problem::Ended(not_after)),
            Some(_) if leaf.public_key().is_ok_and(|leaf_key| key.public_key().public_eq(&leaf_key)) => None,
            Some(_) => Some(Problem::Mismatched(cert.clone(), key_id.clone())),
        })
    }

    /// The certificate as it is stored; `None` only if the certificate service says so itself.
    async fn stored(&self) -> Result<Option<String>, Error> {
        match self.services.certd.send(&GetCertificate { cert_id: self.config.cert.clone() }).await {
            Ok(certificate) => Ok(Some(certificate.pem)),
            Err(error) if aziot_certd_api::is_absent(&error) => Ok(None),
            Err(source) => Err(self.certificate_error("read", source)),
        }
    }

    /// Has a certificate issued for the key that is there, or for a new one.
    async fn issue(&self) -> Result<(), Error> {
        let key = self.key_or_new().await?;
        let csr = csr::create(self.subject.clone(), &self.extensions, &key).await;
        let csr = csr.map_err(|source| Error::Request { key_id: self.config.key.clone(), source })?;
        let call = CreateCertificate { cert_id: self.config.cert.clone(), csr, issuer: None };
        let issued = self.services.certd.send(&call).await;
        let pem = issued.map_err(|source| self.certificate_error("issue", source))?.pem;
        let chain = Chain::from_pem(&pem).map_err(|source| Error::Broken { id: self.config.cert.clone(), source })?;
        let leaf_key = chain.leaf().and_then(|leaf| leaf.public_key().ok());
        if !leaf_key.is_some_and(|leaf_key| key.public_key().public_eq(&leaf_key)) {
            return Err(Error::ForeignKey { id: self.config.cert.clone(), key_id: self.config.key.clone() });
        }
        tracing::info!(
            { fields::CERTIFICATE_ID } = self.config.cert,
            { fields::KEY_ID } = self.config.key,
            "the Edge CA's certificate was issued"
        );
        Ok(())
    }

    async fn key_or_new(&self) -> Result<RemoteKey, Error> {
        if let Some(key) = self.key().await? {
            return Ok(key);
        }
        let key_id = self.config.key.clone();
        let call = CreateKeyPair { key_id, preferred_algorithms: Some(PREFERRED_ALGORITHMS.to_owned()) };
        let made = self.services.keyd.send(&call).await.map_err(|source| self.key_error("create", source))?;
        self.read(made.key_handle).await
    }

    /// The key; `None` only if the key service says itself that there is none.
    async fn key(&self) -> Result<Option<RemoteKey>, Error> {
        match self.services.keyd.send(&LoadKeyPair { key_id: self.config.key.clone() }).await {
            Ok(loaded) => self.read(loaded.key_handle).await.map(Some),
            Err(error) if aziot_keyd_api::is_absent(&error) => Ok(None),
            Err(source) => Err(self.key_error("load", source)),
        }
    }

    async fn read(&self, handle: KeyHandle) -> Result<RemoteKey, Error> {
        let key = RemoteKey::load(&self.services.keyd, handle).await;
        key.map_err(|source| Error::Unreadable { id: self.config.key.clone(), source })
    }

    fn certificate_error(&self, action: &'static str, source: ClientError) -> Error {
        Error::Certificate { action, id: self.config.cert.clone(), source }
    }

    fn key_error(&self, action: &'static str, source: ClientError) -> Error {
        Error::Key { action, id: self.config.key.clone(), source }
    }
}
