//! Where the device's certificate comes from: it is stored, or it is requested for the key that is there, or for a new one.
//!
//! Only what the services say to be absent is made. Nothing is ever deleted here: a key may be one that a person has put there.

use aziot_certd_api::certificate::{CreateCertificate, GetCertificate};
use aziot_http::{Client, ClientError};
use aziot_keyd_api::key_pair::{CreateKeyPair, LoadKeyPair};
use aziot_log::fields;
use aziot_pki::{certificate::Chain, key::RemoteKey, name, request};
use openssl::{nid::Nid, x509::X509Ref};

use super::{CertificateError, Services};
use crate::settings::CertificateSettings;

/// What a new key is, as the key service names it: the public service's choice.
pub(super) const PREFERRED_ALGORITHMS: &str = "rsa-2048:*";
/// How certd says that there is no such certificate; its status, 400, it has for much else.
const ABSENT: &str = "caused by: not found";

/// The certificate with its chain as the certificate service has it; `None` only if that says so itself.
pub(super) async fn stored(certd: &Client, id: &str) -> Result<Option<Chain>, CertificateError> {
    match certd.send(&GetCertificate { cert_id: id.to_owned() }).await {
        Ok(certificate) => parse(id, &certificate.pem).map(Some),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(CertificateError::Service { action: "read", id: id.to_owned(), source }),
    }
}

fn is_absent(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { message, .. } if message.lines().any(|line| line == ABSENT))
}

fn parse(id: &str, pem: &str) -> Result<Chain, CertificateError> {
    let chain = Chain::from_pem(pem).map_err(|source| CertificateError::Broken { id: id.to_owned(), source })?;
    if chain.is_empty() { Err(CertificateError::Empty(id.to_owned())) } else { Ok(chain) }
}

/// Requests the certificate.
pub(super) async fn issue(services: &Services, settings: &CertificateSettings) -> Result<Chain, CertificateError> {
    let CertificateSettings { certificate_id: id, key_id, subject, .. } = settings;
    let subject = subject.as_ref().ok_or_else(|| CertificateError::Absent(id.clone()))?;
    let subject = name::from_entries(subject.entries()?).map_err(CertificateError::Name)?;
    let key = key_or_new(&services.keyd, key_id).await?;
    let csr = request::create(subject, &[], &key).await;
    let csr = csr.map_err(|source| CertificateError::Request { key_id: key_id.clone(), source })?;
    let issued = services.certd.send(&CreateCertificate { cert_id: id.clone(), csr, issuer: None }).await;
    let failed = |source| CertificateError::Service { action: "issue", id: id.clone(), source };
    let chain = parse(id, &issued.map_err(failed)?.pem)?;
    tracing::info!({ fields::CERTIFICATE_ID } = id, { fields::KEY_ID } = key_id, "the device's certificate was issued");
    Ok(chain)
}

async fn key_or_new(keyd: &Client, key_id: &str) -> Result<RemoteKey, CertificateError> {
    match key(keyd, key_id).await {
        Err(error) if error.is_key_absent() => {
            let preferred_algorithms = Some(PREFERRED_ALGORITHMS.to_owned());
            let made = keyd.send(&CreateKeyPair { key_id: key_id.to_owned(), preferred_algorithms }).await;
            made.map_err(|source| CertificateError::Key { action: "create", id: key_id.to_owned(), source })?;
            key(keyd, key_id).await
        }
        found => found,
    }
}

/// The key pair with this id.
pub(super) async fn key(keyd: &Client, key_id: &str) -> Result<RemoteKey, CertificateError> {
    let id = || key_id.to_owned();
    let loaded = keyd.send(&LoadKeyPair { key_id: id() }).await;
    let handle = loaded.map_err(|source| CertificateError::Key { action: "load", id: id(), source })?.key_handle;
    let key = RemoteKey::load(keyd, handle).await;
    key.map_err(|source| CertificateError::Unusable { id: id(), source })
}

/// Whom a certificate names, if it has a common name.
pub(super) fn common_name(leaf: &X509Ref) -> Option<String> {
    leaf.subject_name().entries_by_nid(Nid::COMMONNAME).next()?.data().to_string().ok()
}
