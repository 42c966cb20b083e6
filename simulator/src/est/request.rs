//! The body of an enrolment: a certificate request (PKCS #10) in base64 (RFC 7030, section 4.2.1; RFC 8951), and what a careful authority
//! asks of it before it looks at who sent it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::x509::X509Req;
use x509_cert::attr::Attributes;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage};
use x509_cert::request::{CertReq, Version};

/// `extensionRequest` of PKCS #9.
const EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SUBJECT_ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
pub(crate) const CLIENT_AUTHENTICATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const SERVER_AUTHENTICATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");

const LEAST_RSA_BITS: u32 = 2048;

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the body is not base64; PEM armour does not belong there")]
    NotBase64,
    #[error("the body is no PKCS #10 request")]
    Malformed,
    #[error("the request has version {0} where PKCS #10 has 0")]
    Version(u8),
    #[error("the request has no usable public key")]
    PublicKey,
    #[error("the request's key is too weak or of an unusual kind: {0}")]
    WeakKey(String),
    #[error("the request's signature is not by its key")]
    Signature,
    #[error("the request names nobody: its subject is empty and it has no other names")]
    Nameless,
    #[error("the request asks for an extended key usage that is not issued here: {0}")]
    Usage(ObjectIdentifier),
    #[error("the extension {0} of the request is malformed or there twice")]
    Extension(ObjectIdentifier),
}

/// A request whose signature holds.
pub(crate) struct Request {
    pub(crate) der: Vec<u8>,
    /// DER of the subject.
    pub(crate) subject: Vec<u8>,
    pub(crate) key: PKey<Public>,
    pub(crate) names: Option<Extension>,
    pub(crate) key_usage: Option<Extension>,
    pub(crate) usages: Vec<ObjectIdentifier>,
    pub(crate) is_ca: bool,
}

impl Request {
    /// Reads the body of an enrolment and checks the request.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self, Error> {
        let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        Self::from_der(STANDARD.decode(text).map_err(|_| Error::NotBase64)?)
    }

    /// Reads a request in PEM, as people have it in files.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let request = X509Req::from_pem(pem).and_then(|request| request.to_der());
        Self::from_der(request.map_err(|_| Error::Malformed)?)
    }

    fn from_der(der: Vec<u8>) -> Result<Self, Error> {
        let CertReq { info, .. } = CertReq::from_der(&der).map_err(|_| Error::Malformed)?;
        if info.version != Version::V1 {
            return Err(Error::Version(info.version as u8));
        }
        let request = X509Req::from_der(&der).map_err(|_| Error::Malformed)?;
        let key = request.public_key().map_err(|_| Error::PublicKey)?;
        check_strength(&key)?;
        if !request.verify(&key).unwrap_or(false) {
            return Err(Error::Signature);
        }
        let extensions = requested_extensions(&info.attributes)?;
        let find = |oid| extensions.iter().find(|extension| extension.extn_id == oid);
        let usages = find(EXTENDED_KEY_USAGE).map(decode::<ExtendedKeyUsage>).transpose()?;
        let usages = usages.map(|usages| usages.0).unwrap_or_default();
        if let Some(odd) = usages.iter().find(|oid| ![CLIENT_AUTHENTICATION, SERVER_AUTHENTICATION].contains(oid)) {
            return Err(Error::Usage(*odd));
        }
        let names = find(SUBJECT_ALTERNATIVE_NAME).cloned();
        if info.subject.is_empty() && names.is_none() {
            return Err(Error::Nameless);
        }
        let constraints = find(BASIC_CONSTRAINTS).map(decode::<BasicConstraints>).transpose()?;
        let key_usage = find(KEY_USAGE).cloned();
        let subject = info.subject.to_der().map_err(|_| Error::Malformed)?;
        Ok(Self { subject, key, names, key_usage, usages, is_ca: constraints.is_some_and(|wanted| wanted.ca), der })
    }

    /// Whether it asks for an identity at this server and nothing else.
    pub(crate) fn is_for_identity(&self) -> bool {
        self.usages == [CLIENT_AUTHENTICATION] && self.names.is_none() && !self.is_ca
    }

    /// Whether it names whom this certificate (DER) names, in subject and further names (RFC 7030, section 4.2.2).
    pub(crate) fn names_the_same_as(&self, certificate: &[u8]) -> bool {
        let Ok(certificate) = x509_cert::Certificate::from_der(certificate) else { return false };
        let inner = certificate.tbs_certificate();
        let is_names = |extension: &&Extension| extension.extn_id == SUBJECT_ALTERNATIVE_NAME;
        let names = inner.extensions().and_then(|extensions| extensions.iter().find(is_names));
        let bytes = |names: Option<&Extension>| names.map(|names| names.extn_value.as_bytes().to_vec());
        inner.subject().to_der().is_ok_and(|subject| subject == self.subject)
            && bytes(names) == bytes(self.names.as_ref())
    }
}

fn decode<'a, T: der::Decode<'a>>(extension: &'a Extension) -> Result<T, Error> {
    T::from_der(extension.extn_value.as_bytes()).map_err(|_| Error::Extension(extension.extn_id))
}

fn check_strength(key: &PKey<Public>) -> Result<(), Error> {
    let weak = |what: String| Err(Error::WeakKey(what));
    match key.id() {
        Id::RSA if key.bits() < LEAST_RSA_BITS => weak(format!("RSA with {} bits", key.bits())),
        Id::RSA => Ok(()),
        Id::EC => {
            let curve = key.ec_key().ok().and_then(|key| key.group().curve_name());
            match curve {
                Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1 | Nid::SECP521R1) => Ok(()),
                Some(curve) => weak(curve.short_name().unwrap_or("unknown curve").to_owned()),
                None => weak("a curve without a name".to_owned()),
            }
        }
        id => weak(format!("key type {}", id.as_raw())),
    }
}

fn requested_extensions(attributes: &Attributes) -> Result<Vec<Extension>, Error> {
    let mut wanted: Vec<Extension> = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.oid == EXTENSION_REQUEST) {
        for value in attribute.values.iter() {
            let extensions: Vec<Extension> = value.decode_as().map_err(|_| Error::Extension(EXTENSION_REQUEST))?;
            for extension in extensions {
                if wanted.iter().any(|other| other.extn_id == extension.extn_id) {
                    return Err(Error::Extension(extension.extn_id));
                }
                wanted.push(extension);
            }
        }
    }
    Ok(wanted)
}

#[cfg(test)]
pub(crate) mod tests {
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::pkey::Private;
    use openssl::rsa::Rsa;
    use openssl::stack::Stack;
    use openssl::x509::extension::{BasicConstraints, ExtendedKeyUsage, SubjectAlternativeName};
    use openssl::x509::{X509Extension, X509NameBuilder};

    use super::*;

    pub(crate) fn ec_key(curve: Nid) -> PKey<Private> {
        PKey::from_ec_key(EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap()).unwrap()
    }

    pub(crate) fn san(name: &str) -> X509Extension {
        let request = X509Req::builder().unwrap();
        SubjectAlternativeName::new().dns(name).build(&request.x509v3_context(None)).unwrap()
    }

    pub(crate) fn client_authentication() -> X509Extension {
        ExtendedKeyUsage::new().client_auth().build().unwrap()
    }

    /// DER of a request.
    pub(crate) fn make(key: &PKey<Private>, common_name: &str, extensions: Vec<X509Extension>) -> Vec<u8> {
        let mut name = X509NameBuilder::new().unwrap();
        if !common_name.is_empty() {
            name.append_entry_by_nid(Nid::COMMONNAME, common_name).unwrap();
        }
        let mut builder = X509Req::builder().unwrap();
        builder.set_pubkey(key).unwrap();
        builder.set_subject_name(&name.build()).unwrap();
        let mut stack = Stack::new().unwrap();
        let any = !extensions.is_empty();
        for extension in extensions {
            stack.push(extension).unwrap();
        }
        if any {
            builder.add_extensions(&stack).unwrap();
        }
        builder.sign(key, MessageDigest::sha256()).unwrap();
        builder.build().to_der().unwrap()
    }

    fn error(der: Vec<u8>) -> Error {
        Request::from_der(der).err().unwrap()
    }

    #[test]
    fn base64_in_any_lines_is_taken_and_pem_is_not() {
        let der = make(&ec_key(Nid::X9_62_PRIME256V1), "pump", vec![san("pump")]);
        let text = STANDARD.encode(&der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        for end in ["\n", "\r\n", ""] {
            let request = Request::from_body(lines.join(end).as_bytes()).unwrap();
            assert!(request.names.is_some() && !request.is_for_identity() && request.der == der);
        }
        let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(Request::from_body(pem.as_bytes()), Err(Error::NotBase64)));
        assert!(matches!(Request::from_body(&text.as_bytes()[..80]), Err(Error::Malformed)));
        assert!(matches!(Request::from_body(b""), Err(Error::Malformed)));
    }

    #[test]
    fn a_signature_by_another_key_is_refused() {
        let mut der = make(&ec_key(Nid::X9_62_PRIME256V1), "pump", vec![]);
        let name = der.windows(4).position(|window| window == b"pump").unwrap();
        der[name] = b'j';
        assert!(matches!(error(der), Error::Signature));
    }

    #[test]
    fn weak_keys_are_refused() {
        let short = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
        assert!(matches!(error(make(&short, "pump", vec![])), Error::WeakKey(what) if what == "RSA with 1024 bits"));
        assert!(matches!(error(make(&ec_key(Nid::SECP256K1), "pump", vec![])), Error::WeakKey(_)));
        for curve in [Nid::SECP384R1, Nid::SECP521R1] {
            Request::from_der(make(&ec_key(curve), "pump", vec![])).map(|_| ()).unwrap();
        }
    }

    #[test]
    fn what_is_asked_for_is_seen() {
        let key = ec_key(Nid::X9_62_PRIME256V1);
        let request = |name, extensions| Request::from_der(make(&key, name, extensions));
        assert!(request("pump", vec![client_authentication()]).unwrap().is_for_identity());
        assert!(!request("pump", vec![]).unwrap().is_for_identity());
        assert!(!request("pump", vec![client_authentication(), san("pump")]).unwrap().is_for_identity());
        let ca = BasicConstraints::new().critical().ca().build().unwrap();
        let ca = request("pump", vec![client_authentication(), ca]).unwrap();
        assert!(ca.is_ca && !ca.is_for_identity());
        let signing = ExtendedKeyUsage::new().code_signing().build().unwrap();
        assert!(matches!(request("pump", vec![signing]), Err(Error::Usage(_))));
        assert!(matches!(request("", vec![]), Err(Error::Nameless)));
        assert!(request("", vec![san("pump")]).is_ok());
        assert!(matches!(request("pump", vec![san("a"), san("b")]), Err(Error::Extension(_))));
    }
}
