//! Chains of certificates: read from PEM or DER, written as PEM, and put in order from what an EST server sends.
//!
//! Whether a chain can be trusted is not asked here.

use std::collections::HashSet;

use openssl::{
    asn1::{Asn1Time, Asn1TimeRef},
    error::ErrorStack,
    pkey::{PKeyRef, Public},
    x509::{X509, X509Ref, X509VerifyResult},
};
use spki::SubjectPublicKeyInfoOwned;

use crate::{
    key::public_key,
    pem::{self, PemError},
};

pub(super) const LABEL: &str = "CERTIFICATE";
/// What very old programs write.
const OLD_LABEL: &str = "X509 CERTIFICATE";

/// Issuers above a leaf; a public one has two.
const DEPTH: usize = 10;
/// Certificates of authorities that are looked at and kept; a server in the middle of a change of its root sends about six.
const AUTHORITIES: usize = 32;
/// Signatures that are verified to put a chain in order. Names alone say little: a server can give all the same one.
const SIGNATURES: usize = 64;

/// Why something is no chain of certificates.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The text is broken.
    #[error("the certificates are not PEM")]
    Pem(#[source] PemError),
    /// A block holds something else.
    #[error("certificate {position} of the chain is not X.509")]
    Malformed {
        /// Place in the chain, counted from 1.
        position: usize,
        /// What OpenSSL said.
        source: ErrorStack,
    },
    /// A certificate cannot be written.
    #[error("could not write certificates as PEM")]
    Encoding(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key that the certificate should be for is none that OpenSSL knows.
    #[error("the public key that a certificate was sought for is unusable")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// None of the certificates is for the key.
    #[error("none of the {count} certificates is for the requested key")]
    NoLeaf {
        /// How many certificates were looked at.
        count: usize,
    },
}

/// Certificates, each one issued by the next: the leaf first.
#[derive(Clone, Debug, Default)]
pub struct Chain(Vec<X509>);

/// From when to when a certificate holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    /// Whether a certificate with these dates is of no use any more, or never was; `now` in seconds since 1970.
    #[must_use]
    pub fn is_over(&self, now: i64) -> bool {
        self.not_before >= self.not_after || self.not_after <= now
    }
}

impl Chain {
    /// Reads all certificates in `text`. Other PEM blocks and free text are skipped; no block makes an empty chain.
    pub fn from_pem(text: &str) -> Result<Self, ChainError> {
        let mut chain = Vec::new();
        for block in pem::blocks(text) {
            let block = block.map_err(ChainError::Pem)?;
            if [LABEL, OLD_LABEL].contains(&block.label()) {
                let bytes = block.decode().map_err(ChainError::Pem)?;
                let malformed = |source| ChainError::Malformed { position: chain.len() + 1, source };
                let certificate = X509::from_der(&bytes).map_err(malformed)?;
                chain.push(certificate);
            }
        }
        Ok(Self(chain))
    }

    /// Reads one certificate in DER, as some tools write files.
    pub fn from_der(bytes: &[u8]) -> Result<Self, ChainError> {
        let certificate = X509::from_der(bytes).map_err(|source| ChainError::Malformed { position: 1, source })?;
        Ok(Self(vec![certificate]))
    }

    /// The chain of the certificate that was issued for the key `info`, out of an answer in any order.
    ///
    /// First the certificate in `answer` that has the key, then its issuers as far as they are among `answer` and `authorities`
    /// (found by name and signature), then the rest of `authorities` as they came. Nothing is there twice. What `answer` holds
    /// beyond that is left out: it belongs to somebody else. Of what no server needs, many authorities, long chains, or many
    /// issuers of one name, the end is left out.
    pub fn for_key(
        info: &SubjectPublicKeyInfoOwned,
        answer: Vec<X509>,
        authorities: &[X509],
    ) -> Result<Self, ChainError> {
        let key = public_key(info).map_err(ChainError::Key)?;
        let count = answer.len();
        let mut pool = answer;
        let leaf = pool.iter().position(|certificate| is_for(certificate, &key)).ok_or(ChainError::NoLeaf { count })?;
        let leaf = pool.remove(leaf);
        if authorities.len() > AUTHORITIES {
            tracing::warn!("{} certificates of authorities were sent, {AUTHORITIES} are kept", authorities.len());
        }
        let authorities = &authorities[..authorities.len().min(AUTHORITIES)];
        pool.extend_from_slice(authorities);
        // Each round takes a certificate out, so circles of issuers end.
        let mut there = HashSet::from([fingerprint(&leaf)]);
        pool.retain(|certificate| there.insert(fingerprint(certificate)));
        let (mut sought, mut chain) = (Sought { signatures: SIGNATURES }, vec![leaf]);
        while chain.len() <= DEPTH
            && let Some(position) = chain.last().and_then(|last| sought.issuer_of(last, &pool))
        {
            chain.push(pool.remove(position));
        }
        let mut there: HashSet<_> = chain.iter().map(|one| fingerprint(one)).collect();
        chain.extend(authorities.iter().filter(|authority| there.insert(fingerprint(authority))).cloned());
        Ok(Self(chain))
    }

    /// The chain as PEM: 64 columns, LF.
    pub fn to_pem(&self) -> Result<String, ChainError> {
        let mut text = String::new();
        for certificate in &self.0 {
            let bytes = certificate.to_der().map_err(|error| ChainError::Encoding(error.into()))?;
            text += &pem::encode(LABEL, &bytes).map_err(|error| ChainError::Encoding(error.into()))?;
        }
        Ok(text)
    }

    /// The first certificate.
    #[must_use]
    pub fn leaf(&self) -> Option<&X509Ref> {
        self.0.first().map(|certificate| &**certificate)
    }

    /// All certificates, the leaf first.
    #[must_use]
    pub fn certificates(&self) -> &[X509] {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// SHA-256 of the first certificate's DER: two chains with the same are of the same certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        fingerprint(self.leaf()?)
    }

    /// The dates of the first certificate; `None` if there is none, or its dates are none.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        let leaf = self.leaf()?;
        let (not_before, not_after) = (unix_seconds(leaf.not_before()).ok()?, unix_seconds(leaf.not_after()).ok()?);
        Some(Validity { not_before, not_after })
    }
}

impl From<Vec<X509>> for Chain {
    /// Takes the certificates as they are, in their order.
    fn from(certificates: Vec<X509>) -> Self {
        Self(certificates)
    }
}

pub(crate) fn unix_seconds(time: &Asn1TimeRef) -> Result<i64, ErrorStack> {
    let since = Asn1Time::from_unix(0)?.diff(time)?;
    Ok(i64::from(since.days) * 86_400 + i64::from(since.secs))
}

fn is_for(certificate: &X509Ref, key: &PKeyRef<Public>) -> bool {
    certificate.public_key().is_ok_and(|own| own.public_eq(key))
}

/// `None` for what cannot be written, which counts as one.
fn fingerprint(certificate: &X509Ref) -> Option<[u8; 32]> {
    certificate.to_der().ok().map(|bytes| openssl::sha::sha256(&bytes))
}

/// The search for issuers.
struct Sought {
    /// How many may yet be verified.
    signatures: usize,
}

impl Sought {
    /// Its place in `pool`.
    fn issuer_of(&mut self, certificate: &X509Ref, pool: &[X509]) -> Option<usize> {
        if self.is_issuer(certificate, certificate) {
            return None;
        }
        pool.iter().position(|candidate| self.is_issuer(candidate, certificate))
    }

    fn is_issuer(&mut self, issuer: &X509Ref, certificate: &X509Ref) -> bool {
        if issuer.issued(certificate) != X509VerifyResult::OK || self.signatures == 0 {
            return false;
        }
        self.signatures -= 1;
        issuer.public_key().is_ok_and(|key| certificate.verify(&key).unwrap_or(false))
    }
}
