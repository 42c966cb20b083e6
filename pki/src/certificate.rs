//! Certificates: issuing with an issuer key that lives in the key service; [`chain`] holds what was issued, here or elsewhere.
//!
//! Nothing is vetted: whoever may have a certificate issued gets the extensions it asks for, `CA:TRUE` included, because
//! deployed programs make their certificate authorities that way. Nothing is stored.

mod chain;
mod known;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use const_oid::AssociatedOid as _;
use der::{
    DateTime, Decode as _, Encode as _,
    asn1::{BitString, OctetString},
};
use openssl::x509::X509Ref;
use spki::SubjectPublicKeyInfoRef;
use x509_cert::{
    TbsCertificate,
    builder::{self, Builder, CertificateBuilder, profile::BuilderProfile},
    ext::{
        Extension,
        pkix::{AuthorityKeyIdentifier, BasicConstraints, SubjectKeyIdentifier},
    },
    name::Name,
    serial_number::SerialNumber,
    time::{self, Time},
};

use crate::{
    key::{KeyError, RemoteKey, Signer},
    pem,
    request::Request,
};

use chain::unix_seconds;
pub use chain::{Chain, ChainError, Validity};
pub use known::KnownChains;

/// How far a certificate is back-dated, so that peers whose clocks are behind accept it at once.
const BACK_DATING: Duration = Duration::from_secs(5 * 60);
/// Lifetime where configuration names none.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// What configuration says about a certificate that is issued here.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Time from now to the end of the certificate; an issuer that ends earlier shortens it.
    pub lifetime: Duration,
    /// Subject in place of the one in the request.
    pub subject: Option<Name>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { lifetime: DEFAULT_LIFETIME, subject: None }
    }
}

/// Who issues a certificate.
#[derive(Clone, Copy, Debug)]
pub enum Issuer<'a> {
    /// The certificate's own subject; the key should be that of the request, and nothing here demands it.
    Itself(&'a RemoteKey),
    /// The first certificate of the chain, with its key.
    Authority(&'a Chain, &'a RemoteKey),
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer's chain is empty.
    #[error("the issuer has no certificate")]
    NoIssuer,
    /// The issuer's certificate is for another key than the one that would sign.
    #[error("the issuer's certificate {subject} does not belong to the issuer's key")]
    ForeignKey {
        /// Subject of the issuer's certificate.
        subject: String,
    },
    /// A certificate of the issuer's chain is over, and with it all that it could issue.
    #[error("the certificate {subject} in the issuer's chain expired on {not_after}")]
    Expired {
        /// Subject of the certificate.
        subject: String,
        /// Its end.
        not_after: String,
    },
    /// A certificate of the issuer's chain cannot be read.
    #[error("could not read the issuer's certificates")]
    Issuer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The certificate cannot be written.
    #[error("could not build the certificate")]
    Build(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The issuer's key did not sign.
    #[error("could not sign the certificate")]
    Key(#[source] KeyError),
    /// The key service made a signature that its public key does not verify.
    #[error("the signature on the certificate is not one by the issuer's key")]
    Unverified,
}

/// Issues a certificate on `request`: as PEM, the new certificate and, with an authority, all of the authority's own.
///
/// `now` is the wall clock. The signature is verified with the issuer's key before the certificate is handed out.
pub async fn issue(
    request: &Request,
    terms: &Terms,
    issuer: Issuer<'_>,
    now: SystemTime,
) -> Result<String, IssueError> {
    let (key, authority) = match issuer {
        Issuer::Itself(key) => (key, None),
        Issuer::Authority(chain, key) => (key, Some(Authority::examine(chain, key, now)?)),
    };
    let builder = prepare(request, terms, authority, now)?;
    let leaf = sign(builder, key).await?;
    let mut text = pem::encode(chain::LABEL, &leaf).map_err(build)?;
    if let Issuer::Authority(parents, _) = issuer {
        text += &parents.to_pem().map_err(build)?;
    }
    Ok(text)
}

/// What an authority's certificates put into those that it issues.
struct Authority {
    name: Name,
    key_id: Option<OctetString>,
    /// Earliest end in its chain, in seconds since 1970.
    not_after: i64,
}

impl Authority {
    fn examine(chain: &Chain, key: &RemoteKey, now: SystemTime) -> Result<Self, IssueError> {
        let certificate = chain.leaf().ok_or(IssueError::NoIssuer)?;
        let own_key = certificate.public_key().map_err(issuer)?;
        if !own_key.public_eq(key.public_key()) {
            return Err(IssueError::ForeignKey { subject: subject(certificate) });
        }
        let now = seconds(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let mut earliest = i64::MAX;
        for certificate in chain.certificates() {
            let not_after = unix_seconds(certificate.not_after()).map_err(issuer)?;
            if not_after <= now {
                let (subject, not_after) = (subject(certificate), certificate.not_after().to_string());
                return Err(IssueError::Expired { subject, not_after });
            }
            earliest = earliest.min(not_after);
        }
        if is_authority(certificate) == Some(false) {
            tracing::warn!(issuer = subject(certificate), "the issuer is no CA: others will not accept what it issues");
        }
        let name = certificate.subject_name().to_der().map_err(issuer)?;
        let key_id = certificate.subject_key_id().map(|id| OctetString::new(id.as_slice())).transpose();
        Ok(Self { name: Name::from_der(&name).map_err(issuer)?, key_id: key_id.map_err(issuer)?, not_after: earliest })
    }
}

fn issuer(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> IssueError {
    IssueError::Issuer(error.into())
}

fn build(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> IssueError {
    IssueError::Build(error.into())
}

fn prepare(
    request: &Request,
    terms: &Terms,
    authority: Option<Authority>,
    now: SystemTime,
) -> Result<CertificateBuilder<Profile>, IssueError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let limit = authority.as_ref().map_or(i64::MAX, |authority| authority.not_after);
    let validity = time::Validity::new(
        Time::from(date(now.saturating_sub(BACK_DATING))),
        Time::from(end(now.saturating_add(terms.lifetime), limit)),
    );
    let mut serial = [0; 16];
    openssl::rand::rand_bytes(&mut serial).map_err(build)?;
    let profile = Profile {
        subject: terms.subject.as_ref().unwrap_or(request.subject()).clone(),
        requested: request.extensions().to_vec(),
        authority,
    };
    let public_key = request.public_key_info().clone();
    CertificateBuilder::new(profile, SerialNumber::new(&serial).map_err(build)?, validity, public_key).map_err(build)
}

/// The certificate as DER.
async fn sign(mut builder: CertificateBuilder<Profile>, key: &RemoteKey) -> Result<Vec<u8>, IssueError> {
    let signer = Signer(key);
    let message = Builder::finalize(&mut builder, &signer).map_err(build)?;
    let signature = key.sign_sha256(&message).await.map_err(IssueError::Key)?;
    if !key.verifies_sha256(&message, &signature) {
        return Err(IssueError::Unverified);
    }
    let signature = BitString::from_bytes(&signature).map_err(build)?;
    Builder::assemble(builder, signature, &signer).map_err(build)?.to_der().map_err(build)
}

/// The last second that a certificate can name (RFC 5280, section 4.1.2.5) if time runs past it.
fn date(since_1970: Duration) -> DateTime {
    DateTime::from_unix_duration(since_1970).unwrap_or(DateTime::INFINITY)
}

/// `limit` is in seconds since 1970.
fn end(wanted: Duration, limit: i64) -> DateTime {
    date(Duration::from_secs(wanted.as_secs().min(u64::try_from(limit).unwrap_or(0))))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// The subject as people write it, for the log.
pub(crate) fn subject(certificate: &X509Ref) -> String {
    let name = certificate.subject_name().to_der().ok().and_then(|bytes| Name::from_der(&bytes).ok());
    name.map_or_else(|| "with an unreadable subject".to_owned(), |name| format!("{:?}", name.to_string()))
}

/// `None` where it cannot be told.
fn is_authority(certificate: &X509Ref) -> Option<bool> {
    let certificate = x509_cert::Certificate::from_der(&certificate.to_der().ok()?).ok()?;
    let constraints = certificate.tbs_certificate().get_extension::<BasicConstraints>().ok()?;
    Some(constraints.is_some_and(|(_, constraints)| constraints.ca))
}

/// How the parts of a certificate come together; those that `x509-cert` ships add extensions of their own.
struct Profile {
    subject: Name,
    requested: Vec<Extension>,
    authority: Option<Authority>,
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, subject: &Name) -> Name {
        self.authority.as_ref().map_or(subject, |authority| &authority.name).clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        public_key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        _certificate: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let mut extensions = self.requested.clone();
        let is_there = |extensions: &[Extension], oid| extensions.iter().any(|extension| extension.extn_id == oid);
        if !is_there(&extensions, SubjectKeyIdentifier::OID) {
            // Method 1 of RFC 5280, section 4.2.1.2.
            let digest = openssl::sha::sha1(public_key.subject_public_key.raw_bytes());
            let id = SubjectKeyIdentifier(OctetString::new(digest.as_slice())?);
            extensions.push(plain(SubjectKeyIdentifier::OID, &id)?);
        }
        let issuer_key_id = self.authority.as_ref().and_then(|authority| authority.key_id.clone());
        if let key_identifier @ Some(_) = issuer_key_id {
            let id = AuthorityKeyIdentifier { key_identifier, ..AuthorityKeyIdentifier::default() };
            let extension = plain(AuthorityKeyIdentifier::OID, &id)?;
            // One that the requester made up would keep others from finding the issuer.
            match extensions.iter_mut().find(|extension| extension.extn_id == AuthorityKeyIdentifier::OID) {
                Some(made_up) => *made_up = extension,
                None => extensions.push(extension),
            }
        }
        Ok(extensions)
    }
}

fn plain(oid: const_oid::ObjectIdentifier, value: &impl der::Encode) -> der::Result<Extension> {
    Ok(Extension { extn_id: oid, critical: false, extn_value: OctetString::new(value.to_der()?)? })
}
