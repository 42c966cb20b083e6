//! What modules ask for: signatures, secrets, certificates.
//!
//! Whether the caller is the module that it names is decided before. The keys stay in the key service; what a module may have of them is
//! decided here: its own key in its present generation, its own secrets, and certificates in its own name.

mod certificates;
mod error;
mod generation;
mod request;
mod secrets;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use aziot_edged_api::workload::{
    Ciphertext, CreateIdentityCertificate, CreateServerCertificate, Decrypt, Digest, Encrypt, IssuedCertificate,
    Plaintext, Sign,
};
use aziot_http::{Base64, Client, ClientError, SecretBytes};
use aziot_keyd_api::{
    is_absent,
    operation::{self as keyd, SignMechanism},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::sync::Semaphore;

use crate::{edge_ca::EdgeCa, identities::Identities, places};

pub(crate) use error::Error;

use certificates::Certificates;
use secrets::Secrets;

/// The device at the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Host name of the hub.
    pub(crate) hub_name: String,
    /// Name of the device.
    pub(crate) device_id: String,
}

/// The services whose keys and certificates modules use.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    /// The key service.
    pub(crate) keyd: Client,
    /// The certificate service.
    pub(crate) certd: Client,
}

/// What modules ask for.
pub(crate) struct Workload {
    identities: Arc<Identities>,
    keyd: Client,
    signatures: Semaphore,
    secrets: Secrets,
    certificates: Certificates,
}

impl Workload {
    /// Nothing is asked of any service yet.
    pub(crate) fn new(identities: Arc<Identities>, edge_ca: Arc<EdgeCa>, services: Services, device: Device) -> Self {
        let Services { keyd, certd } = services;
        Self {
            identities,
            signatures: Semaphore::new(places::SIGNATURES),
            secrets: Secrets::new(keyd.clone()),
            certificates: Certificates::new(certd, edge_ca, device),
            keyd,
        }
    }

    /// Signs with the module's key.
    pub(crate) async fn sign(&self, call: Sign) -> Result<Digest, Error> {
        let Sign { module_id, generation_id, data } = call;
        let message = Base64(decode("data", &data)?);
        generation::check(&generation_id)?;
        let mut key = self.identities.key(&module_id, &generation_id).await?;
        let mechanism = SignMechanism::HmacSha256 { message };
        let mut sign = keyd::Sign { key_handle: key.handle.clone(), mechanism };
        let mut signed = self.ask_for(&sign).await;
        if signed.as_ref().is_err_and(is_absent) {
            // The key service's own key was replaced, or the module's was.
            self.identities.forget_key(&module_id, &key);
            key = self.identities.key(&module_id, &generation_id).await?;
            sign.key_handle = key.handle.clone();
            signed = self.ask_for(&sign).await;
        }
        match signed {
            Ok(signed) => Ok(Digest { digest: signed.signature }),
            Err(source) => {
                if source.status().is_some() {
                    self.identities.forget_key(&module_id, &key);
                }
                Err(Error::Sign { module_id, source })
            }
        }
    }

    /// A place is had for no longer than the key service takes: the identity service may take minutes, which are one module's own.
    async fn ask_for(&self, sign: &keyd::Sign) -> Result<keyd::Signature, ClientError> {
        let _place = self.signatures.acquire().await;
        self.keyd.send(sign).await
    }

    /// Encrypts a secret for the module in its present generation.
    pub(crate) async fn encrypt(&self, call: Encrypt) -> Result<Ciphertext, Error> {
        let Encrypt { module_id, generation_id, plaintext, initialization_vector } = call;
        let plaintext = SecretBytes::new(decode("plaintext", plaintext.expose())?);
        let iv = vector(&initialization_vector)?;
        generation::check(&generation_id)?;
        self.identities.key(&module_id, &generation_id).await?;
        let ciphertext = self.secrets.encrypt(iv, bound_to(&module_id, &generation_id), plaintext).await?;
        Ok(Ciphertext { ciphertext: Base64(ciphertext) })
    }

    /// Decrypts a secret of the module. Any generation may be named: secrets outlive the identity in which they were encrypted, and one that
    /// was encrypted in another is not opened by this one.
    pub(crate) async fn decrypt(&self, call: Decrypt) -> Result<Plaintext, Error> {
        let Decrypt { module_id, generation_id, ciphertext, initialization_vector } = call;
        let ciphertext = decode("ciphertext", &ciphertext)?;
        let iv = vector(&initialization_vector)?;
        generation::check_old(&generation_id)?;
        let plaintext = self.secrets.decrypt(iv, bound_to(&module_id, &generation_id), ciphertext).await?;
        Ok(Plaintext { plaintext })
    }

    /// Issues a certificate for a TLS server of the module. A device whose hub is out of reach must get it too: the generation is compared with
    /// the present one where that is known.
    pub(crate) async fn server_certificate(&self, call: CreateServerCertificate) -> Result<IssuedCertificate, Error> {
        let CreateServerCertificate { module_id, generation_id, common_name } = call;
        generation::check(&generation_id)?;
        self.identities.check_known(&module_id, &generation_id).await?;
        self.certificates.server(&module_id, &generation_id, &common_name).await
    }

    /// Issues a certificate with which the module proves itself to TLS servers.
    pub(crate) async fn identity_certificate(
        &self,
        call: CreateIdentityCertificate,
    ) -> Result<IssuedCertificate, Error> {
        self.certificates.identity(&call.module_id).await
    }
}

/// What is authenticated with a secret, so that no other module and no other generation opens it. No separator stands between the two: what
/// the public runtime has encrypted must stay readable.
fn bound_to(module_id: &str, generation_id: &str) -> Vec<u8> {
    [module_id, generation_id].concat().into_bytes()
}

fn decode(name: &'static str, text: &str) -> Result<Vec<u8>, Error> {
    // The decoder's own words would quote a byte of what may be a secret.
    STANDARD.decode(text).map_err(|_| Error::NotBase64(name))
}

/// The initialization vector: any length that the key service takes, since stock modules send 32 bytes.
fn vector(text: &str) -> Result<Vec<u8>, Error> {
    let bytes = decode("initializationVector", text)?;
    if (1..=128).contains(&bytes.len()) { Ok(bytes) } else { Err(Error::VectorLength(bytes.len())) }
}
