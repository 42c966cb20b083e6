//! Who we are to a server that asks: a chain of certificates, and signatures that the key service makes during the handshake.
//!
//! rustls wants a signature at once, and only the runtime can fetch it. So the signing thread waits on a channel while a task of the
//! runtime calls the key service: the handshake must run on a blocking thread, as [`Connector`](super::Connector) sees to. Keys on P-521
//! work in TLS 1.3; before that servers want the curve for the key exchange too, and we do not offer it.

use std::{
    fmt,
    sync::{Arc, mpsc},
    time::Duration,
};

use aziot_log::RequestId;
use openssl::{
    error::ErrorStack,
    nid::Nid,
    pkey::{Id, PKeyRef, Public},
    rsa::Padding,
    sign::{RsaPssSaltlen, Verifier},
};
use rustls::{
    OtherError, SignatureAlgorithm, SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, SubjectPublicKeyInfoDer},
    sign::{CertifiedKey, Signer, SigningKey},
};
use tokio::runtime::{Handle, TryCurrentError};

use crate::{
    certificate::{self, Chain},
    key::{Hash, KeyError, RemoteKey, Scheme, has_room_for_pss},
};

/// Time that the key service has for a signature; a TPM takes up to a second.
pub const SIGNING_LIMIT: Duration = Duration::from_secs(15);

/// Why certificates and a key are no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain is empty.
    #[error("there is no client certificate")]
    NoCertificate,
    /// The first certificate is for another key.
    #[error("the client certificate {subject} does not belong to its key")]
    ForeignKey {
        /// Subject of the certificate.
        subject: String,
    },
    /// TLS knows no signatures with such a key.
    #[error(
        "the key of the client certificate {subject} cannot sign for TLS: it is neither RSA nor on P-256, P-384 or P-521"
    )]
    UnsupportedKey {
        /// Subject of the certificate.
        subject: String,
    },
    /// The certificates cannot be read or written.
    #[error("could not read the client certificate")]
    Malformed(#[source] ErrorStack),
    /// Called outside of a runtime, where nobody would call the key service.
    #[error("a client identity needs a runtime")]
    NoRuntime(#[source] TryCurrentError),
}

/// Why the key service made no signature for a handshake.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// It said no, or did not answer.
    #[error("the key of the client certificate did not sign")]
    Key(#[source] KeyError),
    /// It took too long.
    #[error("the key of the client certificate did not sign within {} s", limit.as_secs_f32())]
    TimedOut {
        /// The time it had.
        limit: Duration,
    },
    /// The runtime is shutting down.
    #[error("the key of the client certificate was not asked: the service is stopping")]
    Stopping,
    /// The signature is by another key; somebody moved a key to this one's name.
    #[error("the key service signed with another key than that of the client certificate")]
    ForeignKey,
}

/// A client certificate with its chain, whose key is in the key service.
#[derive(Debug)]
pub struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    /// An identity that shows the whole of `chain` and signs with `key`, which must be the key of its first certificate.
    ///
    /// Call it in the runtime whose client reaches the key service.
    pub fn new(chain: &Chain, key: RemoteKey) -> Result<Arc<Self>, IdentityError> {
        Self::with_limit(chain, key, SIGNING_LIMIT)
    }

    /// The same with another limit for each signature than [`SIGNING_LIMIT`].
    pub fn with_limit(chain: &Chain, key: RemoteKey, limit: Duration) -> Result<Arc<Self>, IdentityError> {
        let leaf = chain.leaf().ok_or(IdentityError::NoCertificate)?;
        if !leaf.public_key().map_err(IdentityError::Malformed)?.public_eq(key.public_key()) {
            return Err(IdentityError::ForeignKey { subject: certificate::subject(leaf) });
        }
        let schemes = schemes(key.public_key());
        if schemes.is_empty() {
            return Err(IdentityError::UnsupportedKey { subject: certificate::subject(leaf) });
        }
        let info = key.public_key().public_key_to_der().map_err(IdentityError::Malformed)?;
        let runtime = Handle::try_current().map_err(IdentityError::NoRuntime)?;
        let certificates: Result<Vec<_>, _> =
            chain.certificates().iter().map(|certificate| certificate.to_der().map(CertificateDer::from)).collect();
        let key = Key(Arc::new(Remote { key, info, schemes, runtime, limit }));
        let certified = CertifiedKey::new(certificates.map_err(IdentityError::Malformed)?, Arc::new(key));
        Ok(Arc::new(Self(Arc::new(certified))))
    }
}

impl ResolvesClientCert for ClientIdentity {
    // Hints are not heeded: there is one identity, and servers know best whether they like it.
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Ways in which such a key signs in TLS, the best first.
fn schemes(key: &PKeyRef<Public>) -> Vec<(SignatureScheme, Scheme)> {
    match key.id() {
        Id::EC => match key.ec_key().ok().and_then(|key| key.group().curve_name()) {
            Some(Nid::X9_62_PRIME256V1) => {
                vec![(SignatureScheme::ECDSA_NISTP256_SHA256, Scheme::Ecdsa(Hash::Sha256))]
            }
            Some(Nid::SECP384R1) => vec![(SignatureScheme::ECDSA_NISTP384_SHA384, Scheme::Ecdsa(Hash::Sha384))],
            Some(Nid::SECP521R1) => vec![(SignatureScheme::ECDSA_NISTP521_SHA512, Scheme::Ecdsa(Hash::Sha512))],
            _ => Vec::new(),
        },
        Id::RSA => {
            let all = [
                (SignatureScheme::RSA_PSS_SHA256, Scheme::RsaPss(Hash::Sha256)),
                (SignatureScheme::RSA_PSS_SHA384, Scheme::RsaPss(Hash::Sha384)),
                (SignatureScheme::RSA_PSS_SHA512, Scheme::RsaPss(Hash::Sha512)),
                (SignatureScheme::RSA_PKCS1_SHA256, Scheme::RsaPkcs1(Hash::Sha256)),
                (SignatureScheme::RSA_PKCS1_SHA384, Scheme::RsaPkcs1(Hash::Sha384)),
                (SignatureScheme::RSA_PKCS1_SHA512, Scheme::RsaPkcs1(Hash::Sha512)),
            ];
            let fits = |scheme| !matches!(scheme, Scheme::RsaPss(hash) if !has_room_for_pss(hash, key.bits()));
            all.into_iter().filter(|(_, scheme)| fits(*scheme)).collect()
        }
        _ => Vec::new(),
    }
}

struct Remote {
    key: RemoteKey,
    /// The public half, as DER.
    info: Vec<u8>,
    schemes: Vec<(SignatureScheme, Scheme)>,
    runtime: Handle,
    limit: Duration,
}

impl Remote {
    fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let (key, owned) = (self.key.clone(), message.to_vec());
        let signing = async move {
            // The handshake may have been given up.
            let _ = answer.send(key.sign(scheme, &owned).await);
        };
        let task = match RequestId::current() {
            Some(id) => self.runtime.spawn(id.scope(signing)),
            None => self.runtime.spawn(signing),
        };
        let signature = match answered.recv_timeout(self.limit) {
            Ok(signature) => signature.map_err(SigningError::Key)?,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                task.abort();
                return Err(SigningError::TimedOut { limit: self.limit });
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(SigningError::Stopping),
        };
        // An error means a signature that is none.
        if verify(self.key.public_key(), scheme, message, &signature).unwrap_or(false) {
            Ok(signature)
        } else {
            Err(SigningError::ForeignKey)
        }
    }
}

fn verify(key: &PKeyRef<Public>, scheme: Scheme, message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
    let (Scheme::Ecdsa(hash) | Scheme::RsaPkcs1(hash) | Scheme::RsaPss(hash)) = scheme;
    let mut verifier = Verifier::new(hash.openssl(), key)?;
    if let Scheme::RsaPss(_) = scheme {
        verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
        verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
    }
    verifier.verify_oneshot(signature, message)
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Remote").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Key(Arc<Remote>);

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let chosen = self.0.schemes.iter().find(|(scheme, _)| offered.contains(scheme));
        let Some(&(name, scheme)) = chosen else {
            tracing::warn!(?offered, "the server accepts no signature that the client certificate's key can make");
            return None;
        };
        Some(Box::new(RemoteSigner { remote: Arc::clone(&self.0), name, scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.info.as_slice()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        if self.0.key.public_key().id() == Id::RSA { SignatureAlgorithm::RSA } else { SignatureAlgorithm::ECDSA }
    }
}

#[derive(Debug)]
struct RemoteSigner {
    remote: Arc<Remote>,
    name: SignatureScheme,
    scheme: Scheme,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.remote.sign(self.scheme, message).map_err(|error| rustls::Error::Other(OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        self.name
    }
}
