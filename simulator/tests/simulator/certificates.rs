//! Certificates for devices of the tests, right and wrong ones.

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::{MessageDigest, hash};
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::BasicConstraints;
use openssl::x509::{X509, X509NameBuilder};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const DAY: i64 = 24 * 60 * 60;

/// A certificate with its issuers, the leaf first, and its key.
#[derive(Clone)]
pub(crate) struct Certified {
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// What is special about a certificate.
pub(crate) struct Kind {
    pub(crate) is_authority: bool,
    /// Days from now.
    pub(crate) valid: (i64, i64),
}

pub(crate) const LEAF: Kind = Kind { is_authority: false, valid: (-1, 30) };
pub(crate) const AUTHORITY: Kind = Kind { is_authority: true, valid: (-1, 30) };
pub(crate) const EXPIRED: Kind = Kind { is_authority: false, valid: (-30, -1) };

impl Certified {
    /// A certificate that nobody but itself issued.
    pub(crate) fn itself(name: &str, kind: &Kind) -> Self {
        Self::make(name, kind, None)
    }

    /// One more certificate under this one.
    pub(crate) fn issue(&self, name: &str, kind: &Kind) -> Self {
        Self::make(name, kind, Some(self))
    }

    fn make(name: &str, kind: &Kind, issuer: Option<&Self>) -> Self {
        let key =
            PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap());
        let key = key.unwrap();
        let mut subject = X509NameBuilder::new().unwrap();
        subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
        let subject = subject.build();
        let mut serial = BigNum::new().unwrap();
        serial.rand(127, MsbOption::ONE, false).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let day = |days: i64| Asn1Time::from_unix(now + days * DAY).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(issuer.map_or(&subject, |issuer| issuer.chain[0].subject_name())).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&day(kind.valid.0)).unwrap();
        builder.set_not_after(&day(kind.valid.1)).unwrap();
        let mut constraints = BasicConstraints::new();
        if kind.is_authority {
            constraints.ca();
        }
        builder.append_extension(constraints.critical().build().unwrap()).unwrap();
        builder.sign(issuer.map_or(&key, |issuer| &issuer.key), MessageDigest::sha256()).unwrap();
        let issuers = issuer.map(|issuer| issuer.chain.clone()).unwrap_or_default();
        Self { chain: [vec![builder.build()], issuers].concat(), key }
    }

    /// A pair that somebody else made, both PEM.
    pub(crate) fn from_pem(certificate: &[u8], key: &[u8]) -> Self {
        let chain = X509::stack_from_pem(certificate).unwrap();
        Self { chain, key: PKey::private_key_from_pem(key).unwrap() }
    }

    /// The same with so many of its certificates: 1 is the leaf alone.
    pub(crate) fn cut(&self, length: usize) -> Self {
        Self { chain: self.chain[..length].to_vec(), key: self.key.clone() }
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().map(|certificate| certificate.to_der().unwrap().into()).collect()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.private_key_to_pkcs8().unwrap()).into()
    }

    /// PEM of the leaf.
    pub(crate) fn pem(&self) -> Vec<u8> {
        self.chain[0].to_pem().unwrap()
    }

    /// Upper-case hex.
    pub(crate) fn thumbprint(&self, digest: MessageDigest) -> String {
        let digest = hash(digest, &self.chain[0].to_der().unwrap()).unwrap();
        digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02X}"))
    }

    pub(crate) fn sha256(&self) -> String {
        self.thumbprint(MessageDigest::sha256())
    }
}
