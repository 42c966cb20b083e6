//! The certification authorities behind the EST server: a root with the authority that issues, and another one for bootstrap certificates,
//! as a factory has it.
//!
//! Kept as PEM files in the folder `est` of the simulator. Nothing is decided here about who may have a certificate.

use std::path::Path;

use aziot_files::Mode;
use openssl::asn1::{Asn1Object, Asn1OctetString};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKeyRef, Public};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectKeyIdentifier,
};
use openssl::x509::store::{X509Store, X509StoreBuilder};
use openssl::x509::{X509, X509Builder, X509Extension, X509Name, X509PurposeId};
use x509_cert::ext::Extension;

use super::request::{CLIENT_AUTHENTICATION, Request};
use crate::certificates::{self, Error, Issued, begin, lasts, new_authority, read_pair, write_pair};
use crate::client_certificate::{self, ClientCertificate};
use crate::thumbprint::hex;

/// Where a client's certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Issued by the EST server.
    Issued,
    /// From the factory.
    Bootstrap,
}

/// From and until when a certificate is valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// The authorities of an EST server.
pub(crate) struct Authorities {
    root: Issued,
    issuing: Issued,
    bootstrap: Issued,
    /// Both roots, for the certificates of clients.
    trusted: X509Store,
}

impl Authorities {
    /// Reads what is in `folder`, and makes what is missing. Blocks.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let _new_or_not = aziot_files::create_directory(folder, Mode::SHARED_DIRECTORY).map_err(Error::File)?;
        let root = Self::pair(folder, "ca", "EST root CA", None)?;
        let issuing = Self::pair(folder, "issuing-ca", "EST issuing CA", Some(&root))?;
        let bootstrap = Self::pair(folder, "bootstrap-ca", "bootstrap CA", None)?;
        Self::new(root, issuing, bootstrap).map_err(issue_error)
    }

    fn new(root: Issued, issuing: Issued, bootstrap: Issued) -> Result<Self, ErrorStack> {
        let mut trusted = X509StoreBuilder::new()?;
        trusted.add_cert(root.certificate.clone())?;
        trusted.add_cert(bootstrap.certificate.clone())?;
        trusted.set_purpose(X509PurposeId::SSL_CLIENT)?;
        Ok(Self { root, issuing, bootstrap, trusted: trusted.build() })
    }

    fn pair(folder: &Path, name: &str, what: &str, issuer: Option<&Issued>) -> Result<Issued, Error> {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key.pem")));
        let is_usable = |kept: &Issued| {
            let by_issuer = issuer.is_none_or(|issuer| kept.certificate.verify(&issuer.key).unwrap_or(false));
            by_issuer && lasts(&kept.certificate)
        };
        if let Some(kept) = read_pair(&certificate, &key)?.filter(is_usable) {
            return Ok(kept);
        }
        let made = new_authority(what, issuer).map_err(issue_error)?;
        write_pair(&made, &[], &certificate, &key)?;
        tracing::info!(path = %certificate.display(), "made a new {what}");
        Ok(made)
    }

    /// The issuers of what is issued, the nearest first.
    pub(crate) fn issuers(&self) -> [&X509; 2] {
        [&self.issuing.certificate, &self.root.certificate]
    }

    /// Issues a certificate for the request's key, or for `other_key` instead.
    pub(crate) fn issue(
        &self,
        request: &Request,
        other_key: Option<&PKeyRef<Public>>,
        validity: Validity,
    ) -> Result<X509, ErrorStack> {
        certify(request, other_key.unwrap_or(&request.key), validity, &self.issuing)
    }

    /// The same by an authority that nobody knows.
    pub(crate) fn issue_as_stranger(request: &Request, validity: Validity) -> Result<X509, ErrorStack> {
        let stranger = new_authority("stranger CA", None)?;
        certify(request, &request.key, validity, &stranger)
    }

    /// Issues a bootstrap certificate: PEM, with its issuer.
    pub(crate) fn bootstrap(&self, request: &Request, validity: Validity) -> Result<Vec<u8>, ErrorStack> {
        let mut pem = certify(request, &request.key, validity, &self.bootstrap)?.to_pem()?;
        pem.extend(self.bootstrap.certificate.to_pem()?);
        Ok(pem)
    }

    /// Verifies what a client showed in its handshake, up to one of the roots.
    pub(crate) fn verify(&self, client: &ClientCertificate) -> Result<Origin, client_certificate::Error> {
        let root = client.verify(&self.trusted)?;
        Ok(if root == self.bootstrap.certificate { Origin::Bootstrap } else { Origin::Issued })
    }
}

fn certify(request: &Request, key: &PKeyRef<Public>, validity: Validity, issuer: &Issued) -> Result<X509, ErrorStack> {
    let mut builder = begin(key, validity.not_before, validity.not_after)?;
    let subject = X509Name::from_der(&request.subject)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(issuer.certificate.subject_name())?;
    let constraints = if request.is_ca {
        BasicConstraints::new().critical().ca().pathlen(0).build()?
    } else {
        BasicConstraints::new().critical().build()?
    };
    builder.append_extension(constraints)?;
    add_key_usage(&mut builder, request)?;
    if !request.is_ca {
        let mut usages = ExtendedKeyUsage::new();
        // A device that asks for nothing gets what devices need.
        if request.usages.is_empty() {
            usages.client_auth();
        }
        for usage in &request.usages {
            if *usage == CLIENT_AUTHENTICATION {
                usages.client_auth()
            } else {
                usages.server_auth()
            };
        }
        builder.append_extension(usages.build()?)?;
    }
    if let Some(names) = &request.names {
        builder.append_extension(copy(names)?)?;
    }
    let context = builder.x509v3_context(Some(&issuer.certificate), None);
    let key_identifier = SubjectKeyIdentifier::new().build(&context)?;
    let issuer_identifier = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
    builder.append_extension(key_identifier)?;
    builder.append_extension(issuer_identifier)?;
    builder.sign(&issuer.key, MessageDigest::sha256())?;
    Ok(builder.build())
}

fn add_key_usage(builder: &mut X509Builder, request: &Request) -> Result<(), ErrorStack> {
    if let Some(wanted) = &request.key_usage {
        return builder.append_extension(copy(wanted)?);
    }
    let mut usage = KeyUsage::new();
    usage.critical().digital_signature();
    if request.is_ca {
        usage.key_cert_sign();
    } else if request.key.id() == Id::RSA {
        usage.key_encipherment();
    }
    builder.append_extension(usage.build()?)
}

/// An extension as it was asked for, byte for byte.
fn copy(extension: &Extension) -> Result<X509Extension, ErrorStack> {
    let oid = Asn1Object::from_str(&extension.extn_id.to_string())?;
    let value = Asn1OctetString::new_from_bytes(extension.extn_value.as_bytes())?;
    X509Extension::new_from_der(&oid, extension.critical, &value)
}

/// SHA-256 over the subject public key info of a certificate, in lower-case hex.
pub(crate) fn key_digest(certificate: &X509) -> Result<String, ErrorStack> {
    Ok(hex(&openssl::sha::sha256(&certificate.public_key()?.public_key_to_der()?)))
}

fn issue_error(source: ErrorStack) -> certificates::Error {
    certificates::Error::Issue { names: Vec::new(), source }
}

#[cfg(test)]
pub(crate) mod tests {
    use openssl::nid::Nid;
    use openssl::pkey::{PKey, Private};

    use super::super::request::tests::{client_authentication, ec_key, make, san};
    use super::*;

    pub(crate) fn authorities() -> Authorities {
        let root = new_authority("root", None).unwrap();
        let issuing = new_authority("issuing", Some(&root)).unwrap();
        Authorities::new(root, issuing, new_authority("bootstrap", None).unwrap()).unwrap()
    }

    pub(crate) fn validity(seconds: i64) -> Validity {
        let now = jiff::Timestamp::now().as_second();
        Validity { not_before: now - 60, not_after: now + seconds }
    }

    fn request(extensions: Vec<X509Extension>) -> (PKey<Private>, Request) {
        let key = ec_key(Nid::X9_62_PRIME256V1);
        let body = openssl::base64::encode_block(&make(&key, "pump", extensions));
        (key, Request::from_body(body.as_bytes()).unwrap())
    }

    fn verify(authorities: &Authorities, chain: &[&X509]) -> Result<Origin, String> {
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.to_der().unwrap()).collect();
        let client = ClientCertificate::from_der(chain.iter().map(Vec::as_slice));
        client.and_then(|client| authorities.verify(&client)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_chain_counts_only_with_the_issuers_that_the_client_sent() {
        let authorities = authorities();
        let (_, request) = request(vec![]);
        let leaf = authorities.issue(&request, None, validity(60)).unwrap();
        let [issuing, root] = authorities.issuers();
        assert_eq!(verify(&authorities, &[&leaf, issuing]), Ok(Origin::Issued));
        assert_eq!(verify(&authorities, &[&leaf, root, issuing]), Ok(Origin::Issued));
        assert!(verify(&authorities, &[&leaf]).unwrap_err().contains("unable to get local issuer"));
        let expired = authorities.issue(&request, None, validity(-1)).unwrap();
        assert!(verify(&authorities, &[&expired, issuing]).unwrap_err().contains("expired"));
        let strange = Authorities::issue_as_stranger(&request, validity(60)).unwrap();
        assert!(verify(&authorities, &[&strange, issuing]).is_err());
        assert!(verify(&authorities, &[]).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn bootstrap_certificates_are_told_apart() {
        let authorities = authorities();
        let (_, request) = request(vec![client_authentication()]);
        let pem = authorities.bootstrap(&request, validity(60)).unwrap();
        let chain = X509::stack_from_pem(&pem).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(verify(&authorities, &[&chain[0]]), Ok(Origin::Bootstrap));
        assert_eq!(verify(&authorities, &[&chain[0], &chain[1]]), Ok(Origin::Bootstrap));
    }

    #[test]
    fn a_server_certificate_makes_no_client() {
        let authorities = authorities();
        let server = ExtendedKeyUsage::new().server_auth().build().unwrap();
        let (_, request) = request(vec![server, san("pump")]);
        let leaf = authorities.issue(&request, None, validity(60)).unwrap();
        let names: Vec<_> =
            leaf.subject_alt_names().unwrap().iter().filter_map(|name| name.dnsname().map(str::to_owned)).collect();
        assert_eq!(names, ["pump"]);
        let text = verify(&authorities, &[&leaf, authorities.issuers()[0]]).unwrap_err();
        assert!(text.contains("purpose"), "{text}");
        assert!(request.names_the_same_as(&leaf.to_der().unwrap()));
    }

    #[test]
    fn a_second_start_has_the_same_authorities() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let authorities = Authorities::open(folder.path()).unwrap();
            [authorities.root, authorities.issuing, authorities.bootstrap]
                .map(|pair| pair.certificate.to_der().unwrap())
        };
        let first = open();
        assert_eq!(open(), first);
        // An issuing authority of another root is of no use.
        aziot_files::remove(folder.path().join("ca.pem")).unwrap();
        let second = open();
        assert!(second[0] != first[0] && second[1] != first[1] && second[2] == first[2]);
    }
}
