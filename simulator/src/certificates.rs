//! The simulator's own certification authority and server certificate, and the wrong certificates it shows on demand.
//!
//! Kept as PEM files in the simulator's folder; a certificate that is missing, near its end, for other names or without its key is issued
//! anew. For development only: the authority's key lies beside its certificate, unencrypted, readable by its owner.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aziot_files::Mode;
use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, PKey, PKeyRef, Private};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName, SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509NameBuilder};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::faults::CertificateFault;

const DAY_SECONDS: i64 = 24 * 60 * 60;
const AUTHORITY_DAYS: i64 = 3650;
const SERVER_DAYS: i64 = 365;
/// A certificate with less than this left is issued anew at the next start.
const RENEW_DAYS: u32 = 30;
/// Clocks of test machines and containers differ a little.
const BACKDATE_SECONDS: i64 = 5 * 60;
const LIMIT_BYTES: u64 = 1 << 20;

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("could not keep the certificates")]
    File(#[source] aziot_files::Error),
    /// A given file is not PEM with what it should hold.
    #[error("could not understand {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What the parser says; it quotes no key.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A given file has no certificate in it.
    #[error("{} has no certificate in it", .0.display())]
    Empty(PathBuf),
    /// OpenSSL cannot make a certificate.
    #[error("could not issue a certificate for {names:?}")]
    Issue {
        /// The names it was for.
        names: Vec<String>,
        /// What OpenSSL says.
        #[source]
        source: ErrorStack,
    },
}

/// A certificate with its chain, the leaf first, and its key: what a TLS server shows.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads what the operator brought: a chain from leaf to root and a key, both PEM. Blocks.
    pub(crate) fn read(chain: &Path, key: &Path) -> Result<Self, Error> {
        let read = |path| aziot_files::read_limited(path, LIMIT_BYTES).map(Zeroizing::new).map_err(Error::File);
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Pem { path, source }
        };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(chain)?).collect();
        let certificates = certificates.map_err(pem(chain))?;
        if certificates.is_empty() {
            return Err(Error::Empty(chain.to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(pem(key))?;
        Ok(Self { chain: certificates, key })
    }
}

/// A certificate and its private key.
pub(crate) struct Issued {
    pub(crate) certificate: X509,
    pub(crate) key: PKey<Private>,
}

impl Issued {
    fn identity(&self, issuer: &Issued) -> Result<Identity, ErrorStack> {
        let chain = vec![self.certificate.to_der()?.into(), issuer.certificate.to_der()?.into()];
        let key = PrivatePkcs8KeyDer::from(self.key.private_key_to_pkcs8()?).into();
        Ok(Identity { chain, key })
    }
}

/// The simulator's certification authority.
pub(crate) struct Authority(Issued);

impl Authority {
    /// Reads `ca.pem` and `ca.key.pem` in `folder`, or makes them. Blocks.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let (certificate_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key.pem"));
        let kept = read_pair(&certificate_path, &key_path)?;
        if let Some(kept) = kept.filter(|kept| lasts(&kept.certificate)) {
            return Ok(Self(kept));
        }
        let made = Self::make().map_err(|source| Error::Issue { names: Vec::new(), source })?;
        write_pair(&made.0, &[], &certificate_path, &key_path)?;
        tracing::info!(path = %certificate_path.display(), "made a new certification authority: clients must trust it");
        Ok(made)
    }

    fn make() -> Result<Self, ErrorStack> {
        new_authority("development CA", None).map(Self)
    }

    /// Reads `server.pem` and `server.key.pem` in `folder`, or issues them for `names`. Blocks.
    pub(crate) fn server(&self, folder: &Path, names: &[String]) -> Result<Identity, Error> {
        let issue_error = |source| Error::Issue { names: names.to_vec(), source };
        let (certificate_path, key_path) = (folder.join("server.pem"), folder.join("server.key.pem"));
        let kept = read_pair(&certificate_path, &key_path)?;
        if let Some(kept) = kept.filter(|kept| self.still_serves(&kept.certificate, names)) {
            return kept.identity(&self.0).map_err(issue_error);
        }
        let issued = self.issue(names, 0, SERVER_DAYS * DAY_SECONDS).map_err(issue_error)?;
        write_pair(&issued, &[&self.0.certificate], &certificate_path, &key_path)?;
        tracing::info!(path = %certificate_path.display(), ?names, "issued a new server certificate");
        issued.identity(&self.0).map_err(issue_error)
    }

    fn still_serves(&self, certificate: &X509, names: &[String]) -> bool {
        let issued_here = certificate.verify(&self.0.key).unwrap_or(false);
        issued_here && lasts(certificate) && names_of(certificate) == names.iter().map(|name| normal(name)).collect()
    }

    fn issue(&self, names: &[String], starts_in_seconds: i64, life_seconds: i64) -> Result<Issued, ErrorStack> {
        let key = new_key()?;
        let start = jiff::Timestamp::now().as_second() + starts_in_seconds;
        let mut builder = begin(&key, start - BACKDATE_SECONDS, start + life_seconds)?;
        let subject = name("aziot-simulator")?;
        builder.set_subject_name(&subject)?;
        builder.set_issuer_name(self.0.certificate.subject_name())?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        builder.append_extension(ExtendedKeyUsage::new().server_auth().build()?)?;
        let mut alternative = SubjectAlternativeName::new();
        for name in names {
            if name.parse::<IpAddr>().is_ok() {
                alternative.ip(name)
            } else {
                alternative.dns(name)
            };
        }
        let context = builder.x509v3_context(Some(&self.0.certificate), None);
        let alternative = alternative.build(&context)?;
        let key_identifier = SubjectKeyIdentifier::new().build(&context)?;
        let issuer_identifier = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
        for extension in [alternative, key_identifier, issuer_identifier] {
            builder.append_extension(extension)?;
        }
        builder.sign(&self.0.key, MessageDigest::sha256())?;
        Ok(Issued { certificate: builder.build(), key })
    }
}

/// A certificate that a careful client refuses, by `authority` where the fault allows it; `None` for no fault.
pub(crate) fn faulty(
    fault: CertificateFault,
    authority: Option<&Authority>,
    names: &[String],
) -> Result<Option<Identity>, Error> {
    let issue = || {
        let stranger;
        let authority = match authority {
            Some(authority) if fault != CertificateFault::OtherCa => authority,
            _ => {
                stranger = Authority::make()?;
                &stranger
            }
        };
        let issued = match fault {
            CertificateFault::Good => return Ok(None),
            CertificateFault::OtherCa => authority.issue(names, 0, DAY_SECONDS)?,
            CertificateFault::WrongName => authority.issue(&["wrong-name.invalid".to_owned()], 0, DAY_SECONDS)?,
            CertificateFault::Expired => authority.issue(names, -10 * DAY_SECONDS, 9 * DAY_SECONDS)?,
        };
        issued.identity(&authority.0).map(Some)
    };
    issue().map_err(|source| Error::Issue { names: names.to_vec(), source })
}

pub(crate) fn new_key() -> Result<PKey<Private>, ErrorStack> {
    PKey::from_ec_key(EcKey::generate(&*EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?)?)
}

fn name(common_name: &str) -> Result<openssl::x509::X509Name, ErrorStack> {
    let mut builder = X509NameBuilder::new()?;
    builder.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    Ok(builder.build())
}

/// A new certification authority: under `issuer`, or a root.
pub(crate) fn new_authority(what: &str, issuer: Option<&Issued>) -> Result<Issued, ErrorStack> {
    let key = new_key()?;
    let name = name(&format!("aziot-simulator {what} {}", &crate::random::uuid()[..8]))?;
    let now = jiff::Timestamp::now().as_second();
    let mut builder = begin(&key, now - BACKDATE_SECONDS, now + AUTHORITY_DAYS * DAY_SECONDS)?;
    builder.set_subject_name(&name)?;
    builder.set_issuer_name(issuer.map_or(&name, |issuer| issuer.certificate.subject_name()))?;
    builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    let context = builder.x509v3_context(issuer.map(|issuer| &*issuer.certificate), None);
    let key_identifier = SubjectKeyIdentifier::new().build(&context)?;
    let issuer_identifier = issuer.map(|_| AuthorityKeyIdentifier::new().keyid(true).build(&context)).transpose()?;
    builder.append_extension(key_identifier)?;
    issuer_identifier.map(|identifier| builder.append_extension(identifier)).transpose()?;
    builder.sign(issuer.map_or(&key, |issuer| &issuer.key), MessageDigest::sha256())?;
    Ok(Issued { certificate: builder.build(), key })
}

/// A certificate in the making: version, random serial, key, and dates in Unix seconds.
pub(crate) fn begin<T: HasPublic>(
    key: &PKeyRef<T>,
    not_before: i64,
    not_after: i64,
) -> Result<X509Builder, ErrorStack> {
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::ONE, false)?; // 127 bits stay positive in 16 bytes
    let mut builder = X509::builder()?;
    builder.set_version(2)?; // X.509 v3
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::from_unix(not_before)?)?;
    builder.set_not_after(&*Asn1Time::from_unix(not_after)?)?;
    Ok(builder)
}

/// Whether a certificate need not be issued anew at this start.
pub(crate) fn lasts(certificate: &X509) -> bool {
    Asn1Time::days_from_now(RENEW_DAYS).is_ok_and(|soon| certificate.not_after() > &*soon)
}

fn names_of(certificate: &X509) -> BTreeSet<String> {
    let names = certificate.subject_alt_names().into_iter().flatten();
    let text = |name: openssl::x509::GeneralName| {
        let address = |bytes: &[u8]| match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        };
        name.dnsname().map(ToOwned::to_owned).or_else(|| name.ipaddress().and_then(address))
    };
    names.filter_map(text).collect()
}

/// The one spelling of an address that has several (`::1`, `0:0:0:0:0:0:0:1`).
fn normal(name: &str) -> String {
    name.parse::<IpAddr>().map_or_else(|_| name.to_owned(), |address| address.to_string())
}

/// The certificate and key, or `None` if one is missing, damaged, or not the other's.
pub(crate) fn read_pair(certificate: &Path, key: &Path) -> Result<Option<Issued>, Error> {
    let read = |path| match aziot_files::read_limited(path, LIMIT_BYTES) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(Error::File(error)),
    };
    let (Some(certificate_pem), Some(key_pem)) = (read(certificate)?, read(key)?) else { return Ok(None) };
    let pair = X509::from_pem(&certificate_pem)
        .and_then(|certificate| Ok(Issued { certificate, key: PKey::private_key_from_pem(&key_pem)? }));
    let belongs = |pair: &Issued| pair.certificate.public_key().is_ok_and(|public| public.public_eq(&pair.key));
    let pair = pair.ok().filter(belongs);
    if pair.is_none() {
        tracing::warn!(certificate = %certificate.display(), "the certificate and its key are damaged or do not belong together");
    }
    Ok(pair)
}

/// The key goes first: a crash in between leaves a pair that does not match and is made anew.
pub(crate) fn write_pair(issued: &Issued, chain: &[&X509], certificate: &Path, key: &Path) -> Result<(), Error> {
    let issue_error = |source| Error::Issue { names: Vec::new(), source };
    let key_pem = Zeroizing::new(issued.key.private_key_to_pem_pkcs8().map_err(issue_error)?);
    let mut pem = issued.certificate.to_pem().map_err(issue_error)?;
    for certificate in chain {
        pem.extend(certificate.to_pem().map_err(issue_error)?);
    }
    aziot_files::write(key, Mode::PRIVATE, key_pem.as_slice()).map_err(Error::File)?;
    aziot_files::write(certificate, Mode::SHARED, pem).map_err(Error::File)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names() -> Vec<String> {
        vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "0:0:0:0:0:0:0:1".to_owned()]
    }

    #[test]
    fn a_second_start_serves_the_same_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let serve =
            |names: &[String]| Authority::open(folder.path()).unwrap().server(folder.path(), names).unwrap().chain;
        let first = serve(&names());
        assert_eq!(serve(&names()), first);
        let renamed = serve(&["other".to_owned()]);
        assert_ne!(renamed[0], first[0]);
        assert_eq!(renamed[1], first[1]);
        for name in ["ca.key.pem", "server.key.pem"] {
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_damaged_or_foreign_pair_is_issued_anew() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path()).unwrap();
        let first = authority.server(folder.path(), &names()).unwrap();
        aziot_files::write(folder.path().join("server.key.pem"), Mode::PRIVATE, "half of a ke").unwrap();
        let second = authority.server(folder.path(), &names()).unwrap();
        assert_ne!(second.chain[0], first.chain[0]);
        aziot_files::remove(folder.path().join("ca.key.pem")).unwrap();
        let third = Authority::open(folder.path()).unwrap().server(folder.path(), &names()).unwrap();
        assert_ne!(third.chain, second.chain);
    }

    #[test]
    fn a_certificate_near_its_end_is_issued_anew() {
        let authority = Authority::make().unwrap();
        let near = authority.issue(&names(), 0, 29 * DAY_SECONDS).unwrap();
        assert!(!authority.still_serves(&near.certificate, &names()));
        let fresh = authority.issue(&names(), 0, 31 * DAY_SECONDS).unwrap();
        assert!(authority.still_serves(&fresh.certificate, &names()));
        assert!(!Authority::make().unwrap().still_serves(&fresh.certificate, &names()));
    }
}
