//! Certificate requests (PKCS #10): made with a remote key, and taken from others.
//!
//! Of a foreign request only subject, public key and requested extensions count. Whether it should be granted is not
//! decided here.

use const_oid::{
    ObjectIdentifier,
    db::rfc5912::{
        ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_EXTENSION_REQ, SHA_256_WITH_RSA_ENCRYPTION,
        SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
    },
};
use der::{
    Decode as _, Encode as _,
    asn1::{Any, BitString, SetOfVec},
};
use openssl::{
    error::ErrorStack,
    pkey::{Id, PKeyRef, Public},
    x509::X509Req,
};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::{
    attr::{Attribute, Attributes},
    ext::Extension,
    name::Name,
    request::{CertReq, CertReqInfo, Version},
};

use crate::{
    key::{Hash, KeyError, RemoteKey, is_signature, public_key},
    pem::{self, PemError},
};

const LABEL: &str = "CERTIFICATE REQUEST";
/// What Microsoft's and very old programs write.
const OLD_LABEL: &str = "NEW CERTIFICATE REQUEST";
/// Microsoft's attribute of the same content as PKCS #9's.
const MICROSOFT_EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.14");
const LEAST_RSA_BITS: u32 = 2048;

/// Why a request of somebody else's is not taken. The text may go to the one who sent it.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No block with a fitting label.
    #[error("there is no PEM block {LABEL:?}")]
    Missing,
    /// The text is broken.
    #[error("the request is not PEM")]
    Pem(#[source] PemError),
    /// The block holds something else.
    #[error("the request is not PKCS #10")]
    Malformed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The public key is of no known kind or damaged.
    #[error("the request has no usable public key")]
    PublicKey(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The public key is so short that others could sign with it.
    #[error("the RSA key has {bits} bits; at least {LEAST_RSA_BITS} are needed")]
    WeakKey {
        /// Bits of the modulus.
        bits: u32,
    },
    /// Whoever made the request does not hold the private key.
    #[error("CSR failed to be verified with its public key")]
    Unverified,
}

/// Why an own request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The key did not sign.
    #[error("could not sign the certificate request")]
    Key(#[source] KeyError),
    /// Subject or extensions cannot be written.
    #[error("could not write the certificate request")]
    Encoding(#[source] der::Error),
}

/// A request whose own signature holds.
#[derive(Clone, Debug)]
pub struct Request {
    der: Vec<u8>,
    subject: Name,
    public_key: SubjectPublicKeyInfoOwned,
    extensions: Vec<Extension>,
    is_ambiguous: bool,
}

impl Request {
    /// Reads the first request in `text` and verifies it with its own key. Other PEM blocks and free text are skipped.
    pub fn from_pem(text: &str) -> Result<Self, RequestError> {
        for block in pem::blocks(text) {
            let block = block.map_err(RequestError::Pem)?;
            if [LABEL, OLD_LABEL].contains(&block.label()) {
                return Self::from_der(&block.decode().map_err(RequestError::Pem)?);
            }
        }
        Err(RequestError::Missing)
    }

    /// Reads a request and verifies it with its own key.
    pub fn from_der(bytes: &[u8]) -> Result<Self, RequestError> {
        let request = CertReq::from_der(bytes).map_err(|error| RequestError::Malformed(error.into()))?;
        let key = public_key(&request.info.public_key).map_err(RequestError::PublicKey)?;
        let is_rsa = [Id::RSA, Id::RSA_PSS].contains(&key.id());
        if is_rsa && key.bits() < LEAST_RSA_BITS {
            return Err(RequestError::WeakKey { bits: key.bits() });
        }
        if !is_signed(&request, &key) && !is_signed_as_openssl_sees_it(bytes) {
            return Err(RequestError::Unverified);
        }
        let info = request.info;
        let extensions = requested_extensions(&info.attributes);
        let is_ambiguous = is_ambiguous(&info.attributes);
        Ok(Self { der: bytes.to_owned(), subject: info.subject, public_key: info.public_key, extensions, is_ambiguous })
    }

    /// The request as it came, for handing on: nobody else can sign it.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether both are for the same key, subject and extensions; their signatures may differ.
    #[must_use]
    pub fn asks_the_same_as(&self, other: &Self) -> bool {
        let parts = |request: &Self| (request.subject.clone(), request.public_key.clone(), request.extensions.clone());
        parts(self) == parts(other)
    }

    /// Whom the certificate shall name.
    #[must_use]
    pub fn subject(&self) -> &Name {
        &self.subject
    }

    /// The key that the certificate shall hold.
    #[must_use]
    pub fn public_key_info(&self) -> &SubjectPublicKeyInfoOwned {
        &self.public_key
    }

    /// The extensions asked for, as they came and in their order.
    #[must_use]
    pub fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// Whether another reader of the request may see other [`extensions`](Self::extensions): it asks for them more than once,
    /// or in a way that does not decode. Whoever grants a request by its extensions and hands it on must refuse such a one.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        self.is_ambiguous
    }
}

/// Whether the signature holds; only the ways to sign that nearly all requests have are known here.
fn is_signed(request: &CertReq, key: &PKeyRef<Public>) -> bool {
    let hash = match request.algorithm.oid {
        ECDSA_WITH_SHA_256 | SHA_256_WITH_RSA_ENCRYPTION => Hash::Sha256,
        ECDSA_WITH_SHA_384 | SHA_384_WITH_RSA_ENCRYPTION => Hash::Sha384,
        ECDSA_WITH_SHA_512 | SHA_512_WITH_RSA_ENCRYPTION => Hash::Sha512,
        _ => return false,
    };
    let (Ok(message), Some(signature)) = (request.info.to_der(), request.signature.as_bytes()) else { return false };
    is_signature(key, hash, &message, signature)
}

/// Slower, and knows everything. An error means that the signature has no meaning at all, which is no better than a wrong one.
fn is_signed_as_openssl_sees_it(request: &[u8]) -> bool {
    let verify = || -> Result<bool, ErrorStack> {
        let request = X509Req::from_der(request)?;
        request.verify(&*request.public_key()?)
    };
    verify().unwrap_or(false)
}

/// An attribute that does not decode counts as absent, as the public service has it.
fn requested_extensions(attributes: &Attributes) -> Vec<Extension> {
    for oid in [ID_EXTENSION_REQ, MICROSOFT_EXTENSION_REQUEST] {
        for attribute in attributes.iter().filter(|attribute| attribute.oid == oid) {
            match attribute.values.get(0).map(Any::decode_as::<Vec<Extension>>) {
                Some(Ok(extensions)) => return extensions,
                Some(Err(error)) => {
                    tracing::warn!(%error, attribute = %oid, "ignored an extension request that does not decode");
                }
                None => {}
            }
        }
    }
    Vec::new()
}

/// Whether there is anything but one request for extensions, which decodes, or none.
fn is_ambiguous(attributes: &Attributes) -> bool {
    let asks = |attribute: &&Attribute| [ID_EXTENSION_REQ, MICROSOFT_EXTENSION_REQUEST].contains(&attribute.oid);
    let mut asking = attributes.iter().filter(asks);
    let (Some(first), second) = (asking.next(), asking.next()) else { return false };
    let decodes = |value: &Any| value.decode_as::<Vec<Extension>>().is_ok();
    second.is_some() || first.values.len() != 1 || !first.values.get(0).is_some_and(decodes)
}

/// A request for `key`, signed by it, as PEM.
pub async fn create(subject: Name, extensions: &[Extension], key: &RemoteKey) -> Result<String, CreateError> {
    let request = create_signed(subject, extensions, key).await?;
    pem::encode(LABEL, &request.to_der().map_err(CreateError::Encoding)?).map_err(CreateError::Encoding)
}

async fn create_signed(subject: Name, extensions: &[Extension], key: &RemoteKey) -> Result<CertReq, CreateError> {
    let mut attributes = Attributes::new();
    // The list of extensions must not be empty (RFC 5272, section 3.1), which the builder of `x509-cert` does not heed.
    if !extensions.is_empty() {
        attributes
            .insert(extension_request(extensions).map_err(CreateError::Encoding)?)
            .map_err(CreateError::Encoding)?;
    }
    let public_key = key.public_key_info().clone();
    let info = CertReqInfo { version: Version::V1, subject, public_key, attributes };
    let message = info.to_der().map_err(CreateError::Encoding)?;
    let signature = key.sign_sha256(&message).await.map_err(CreateError::Key)?;
    let signature = BitString::from_bytes(&signature).map_err(CreateError::Encoding)?;
    Ok(CertReq { info, algorithm: key.signature_algorithm(), signature })
}

fn extension_request(extensions: &[Extension]) -> der::Result<Attribute> {
    let values = SetOfVec::try_from(vec![Any::encode_from(&extensions.to_vec())?])?;
    Ok(Attribute { oid: ID_EXTENSION_REQ, values })
}
