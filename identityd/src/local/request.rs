//! The key of a local identity and the request for its certificate, as the public service makes them (`identity.md`, 4.5).
//!
//! Blocks for as long as it takes to find two primes. What the certificate says beyond this is up to who issues it.

use aziot_http::SecretBytes;
use aziot_identityd_api::config::CertificateUse;
use aziot_pki::name::cut_common_name;
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
    stack::Stack,
    x509::{
        X509Name, X509Req,
        extension::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName},
    },
};

/// Bits of the modulus.
const RSA_BITS: u32 = 2048;
/// Bytes of a DNS name and of each of its labels (RFC 1035, section 2.3.4).
const LONGEST_DNS_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Whom the certificate of a local identity names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    common_name: String,
    /// The whole name, where it is too long to be a common name.
    alternative: Option<String>,
}

impl Subject {
    /// The subject for a name, unless no certificate can have it.
    ///
    /// A name of up to 64 characters is the common name, as with the public service. Of a longer one that service cuts off the end, and with it
    /// the domain; here the beginning is the common name and the whole stands beside it as a DNS name, which is what TLS peers look at.
    pub(super) fn new(name: &str) -> Option<Self> {
        if name.chars().any(char::is_control) {
            return None;
        }
        let common_name = cut_common_name(name);
        if common_name == name {
            return Some(Self { common_name: name.to_owned(), alternative: None });
        }
        is_dns_name(name).then(|| Self { common_name: common_name.to_owned(), alternative: Some(name.to_owned()) })
    }

    /// The name that was too long to be a common name.
    pub(super) fn alternative(&self) -> Option<&str> {
        self.alternative.as_deref()
    }
}

fn is_dns_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(fits);
    name.len() <= LONGEST_DNS_NAME && name.split('.').all(label)
}

/// A new key, and the request that it signed.
pub(super) struct Request {
    /// The key.
    pub(super) key: PKey<Private>,
    /// The key in PKCS#8, PEM.
    pub(super) private_key: SecretBytes,
    /// PKCS #10, PEM.
    pub(super) text: String,
}

impl Request {
    /// Makes both.
    pub(super) fn new(subject: &Subject, purpose: CertificateUse) -> Result<Self, ErrorStack> {
        let key = PKey::from_rsa(Rsa::generate(RSA_BITS)?)?;
        let private_key = SecretBytes::new(key.private_key_to_pem_pkcs8()?);

        let mut request = X509Req::builder()?;
        let mut name = X509Name::builder()?;
        name.append_entry_by_nid(Nid::COMMONNAME, &subject.common_name)?;
        request.set_subject_name(&name.build())?;
        request.set_pubkey(&key)?;

        let mut extensions = Stack::new()?;
        extensions.push(BasicConstraints::new().critical().build()?)?;
        let mut usage = KeyUsage::new();
        extensions.push(usage.critical().digital_signature().non_repudiation().key_encipherment().build()?)?;
        let mut purposes = ExtendedKeyUsage::new();
        purposes.critical().client_auth();
        if purpose == CertificateUse::Server {
            purposes.server_auth();
        }
        extensions.push(purposes.build()?)?;
        if let Some(alternative) = &subject.alternative {
            let names = SubjectAlternativeName::new().dns(alternative).build(&request.x509v3_context(None))?;
            extensions.push(names)?;
        }
        request.add_extensions(&extensions)?;
        request.sign(&key, MessageDigest::sha256())?;
        let text = request.build().to_pem()?;
        Ok(Self { key, private_key, text: String::from_utf8_lossy(&text).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request as OpenSSL's own program reads it.
    fn shown(subject: &Subject, purpose: CertificateUse) -> String {
        let made = Request::new(subject, purpose).unwrap();
        let request = X509Req::from_pem(made.text.as_bytes()).unwrap();
        assert!(request.verify(&made.key).unwrap());
        assert!(made.private_key.expose().starts_with(b"-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(PKey::private_key_from_pem(made.private_key.expose()).unwrap().bits(), RSA_BITS);
        // OpenSSL's versions set blanks differently.
        let text = String::from_utf8(request.to_text().unwrap()).unwrap().replace(" = ", "=");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_are_those_of_the_specification() {
        let subject = Subject::new("m.edge.example.com").unwrap();
        let client = shown(&subject, CertificateUse::Client);
        for part in [
            "Subject: CN=m.edge.example.com Subject",
            "X509v3 Basic Constraints: critical CA:FALSE X509v3",
            "X509v3 Key Usage: critical Digital Signature, Non Repudiation, Key Encipherment X509v3",
            "X509v3 Extended Key Usage: critical TLS Web Client Authentication Signature",
            "Signature Algorithm: sha256WithRSAEncryption",
        ] {
            assert!(client.contains(part), "{part:?} is not in {client}");
        }
        assert!(!client.contains("Alternative"), "{client}");
        let server = shown(&subject, CertificateUse::Server);
        assert!(server.contains("TLS Web Client Authentication, TLS Web Server Authentication Signature"), "{server}");
    }

    #[test]
    fn a_long_name_is_whole_beside_its_beginning() {
        let longest = "x".repeat(64);
        assert_eq!(Subject::new(&longest), Some(Subject { common_name: longest.clone(), alternative: None }));
        let accents = "é".repeat(64);
        assert_eq!(Subject::new(&accents).unwrap().common_name, accents, "64 characters, 128 bytes");
        let name = format!("{}.edge.example.com", "m".repeat(60));
        let subject = Subject::new(&name).unwrap();
        assert_eq!(subject.alternative(), Some(name.as_str()));
        let text = shown(&subject, CertificateUse::Client);
        assert!(text.contains(&format!(" DNS:{name} ")), "{text}");
        assert!(text.contains(&format!("CN={}.edg Subject", "m".repeat(60))), "{text}");
    }

    #[test]
    fn what_no_certificate_can_say_is_refused() {
        for name in
            ["a\0.b", "a\n", &"x".repeat(65), &format!("{}.é", "x".repeat(63)), &"a.".repeat(40), &"a.b".repeat(99)]
        {
            assert_eq!(Subject::new(name), None, "{name:?}");
        }
    }
}
