//! Whom we take a server's word from: the system's certification authorities, certificates of our own choice, or both.
//!
//! The system's are checked by rustls. Own ones are checked by OpenSSL, because servers inside companies have certificates that rustls
//! refuses on principle: self-signed with `CA:TRUE`, X.509 version 1, the name in the subject alone. Revocation is not looked at.

use std::{fmt, net::IpAddr, sync::Arc};

use der::{AnyRef, Decode as _, Encode as _};
use openssl::{
    error::ErrorStack,
    stack::Stack,
    x509::{
        X509, X509PurposeId, X509StoreContext, X509VerifyResult,
        store::{X509Store, X509StoreBuilder},
        verify::{X509CheckFlags, X509VerifyParam},
    },
};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, PeerMisbehaved, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::ParsedCertificate,
};
use spki::SubjectPublicKeyInfoRef;

use crate::certificate::{self, Chain};

/// Least strength of keys and signatures in OpenSSL's levels, as distributions set it: 112 bits, so no SHA-1 and no RSA under 2048 bits.
const LEVEL: i32 = 2;

/// Who vouches for servers. Cheap to clone.
#[derive(Clone)]
pub struct Trust {
    system: Option<Arc<RootCertStore>>,
    own: Arc<[X509]>,
}

impl Trust {
    /// The system's certification authorities, or others that rustls can check.
    #[must_use]
    pub fn system(roots: Arc<RootCertStore>) -> Self {
        Self { system: Some(roots), own: Arc::default() }
    }

    /// The system's certification authorities, and the certificates of `own`: self-signed ones vouch, others help to reach one.
    #[must_use]
    pub fn system_and(roots: Arc<RootCertStore>, own: &Chain) -> Self {
        Self { system: Some(roots), own: own.certificates().into() }
    }

    /// The certificates of `own` and nobody else; with an empty chain no server is trusted.
    #[must_use]
    pub fn only(own: &Chain) -> Self {
        Self { system: None, own: own.certificates().into() }
    }

    /// The part that rustls can check by itself, if there is no other.
    pub(super) fn plain(&self) -> Option<&Arc<RootCertStore>> {
        self.system.as_ref().filter(|_| self.own.is_empty())
    }

    pub(super) fn verifier(&self, algorithms: WebPkiSupportedAlgorithms) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Verifier { trust: self.clone(), algorithms })
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = self.system.as_ref().map(|roots| roots.len());
        formatter.debug_struct("Trust").field("system", &system).field("own", &self.own.len()).finish()
    }
}

/// What OpenSSL does not like about a server's certificates.
#[derive(thiserror::Error)]
#[error("{reason}: {subject}")]
pub struct Distrust {
    subject: String,
    reason: X509VerifyResult,
}

impl Distrust {
    /// Whether nobody that we trust has issued the certificate, as opposed to a fault of the certificate.
    fn is_unknown_issuer(&self) -> bool {
        // X509_V_ERR_ of openssl/x509_vfy.h: no issuer, self-signed leaf, self-signed root, no issuer here, leaf only.
        [2, 18, 19, 20, 21].contains(&self.reason.as_raw())
    }
}

// rustls prints foreign errors with Debug.
impl fmt::Debug for Distrust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn by_own(
        &self,
        leaf: &X509,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<Option<Distrust>, ErrorStack> {
        let mut chain = Stack::new()?;
        for certificate in others {
            chain.push(X509::from_der(certificate)?)?;
        }
        let store = self.store(name)?;
        X509StoreContext::new()?.init(&store, leaf, &chain, |context| {
            if context.verify_cert()? {
                return Ok(None);
            }
            let subject = certificate::subject(context.current_cert().unwrap_or(leaf));
            Ok(Some(Distrust { subject, reason: context.error() }))
        })
    }

    /// The name to check is part of the store in this binding; the few certificates are shared, not copied.
    fn store(&self, name: &ServerName<'_>) -> Result<X509Store, ErrorStack> {
        let mut parameters = X509VerifyParam::new()?;
        parameters.set_purpose(X509PurposeId::SSL_SERVER)?;
        parameters.set_auth_level(LEVEL);
        parameters.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
        match name {
            ServerName::IpAddress(address) => parameters.set_ip(IpAddr::from(*address))?,
            name => parameters.set_host(name.to_str().trim_end_matches('.'))?,
        }
        let mut store = X509StoreBuilder::new()?;
        for certificate in &*self.trust.own {
            store.add_cert(certificate.clone())?;
        }
        store.set_param(&parameters)?;
        Ok(store.build())
    }

    fn by_system(
        &self,
        roots: &RootCertStore,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let own = self.trust.own.iter().filter_map(|certificate| certificate.to_der().ok()).map(CertificateDer::from);
        let others: Vec<_> = others.iter().cloned().chain(own).collect();
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, &others, now, self.algorithms.all)?;
        verify_server_name(&leaf, name)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let by_system = self.trust.system.as_ref().map(|roots| self.by_system(roots, leaf, others, name, now));
        if let Some(Ok(())) = by_system {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = X509::from_der(leaf).map_err(malformed)?;
        let Some(distrust) = self.by_own(&certificate, others, name).map_err(malformed)? else {
            return Ok(ServerCertVerified::assertion());
        };
        // The more telling of two refusals: one knows the issuer, the other does not.
        match by_system {
            Some(Err(error)) if distrust.is_unknown_issuer() && !is_unknown_issuer(&error) => Err(error),
            _ => Err(CertificateError::Other(OtherError(Arc::new(distrust))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let refused = || rustls::Error::from(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme);
        let bytes = public_key_info(certificate)?;
        let bad = |_| rustls::Error::from(CertificateError::BadEncoding);
        let info = SubjectPublicKeyInfoRef::from_der(&bytes).map_err(bad)?;
        let key_algorithm = info.algorithm.to_der().map_err(bad)?;
        let key_algorithm = AnyRef::from_der(&key_algorithm).map_err(bad)?.value();
        let offered = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, ways) = offered.ok_or_else(refused)?;
        // Before TLS 1.3 a scheme names a hash, not a curve.
        let way = ways.iter().find(|way| way.public_key_alg_id().as_ref() == key_algorithm).ok_or_else(refused)?;
        way.verify_signature(info.subject_public_key.raw_bytes(), message, signed.signature())
            .map_err(|_| rustls::Error::from(CertificateError::BadSignature))?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let info = SubjectPublicKeyInfoDer::from(public_key_info(certificate)?);
        verify_tls13_signature_with_raw_key(message, &info, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Read by OpenSSL, which takes certificates of version 1.
fn public_key_info(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, rustls::Error> {
    let key = X509::from_der(certificate).and_then(|certificate| certificate.public_key());
    key.and_then(|key| key.public_key_to_der()).map_err(malformed)
}

fn malformed(error: ErrorStack) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn is_unknown_issuer(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
}
