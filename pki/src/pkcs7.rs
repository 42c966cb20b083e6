//! The certificates in an answer of an EST server (RFC 7030: a certs-only PKCS#7 in base64), whatever form servers give it.
//!
//! OpenSSL reads the structure, because it keeps the order of the certificates and takes BER. Signatures, signers and revocation
//! lists are not looked at; which certificate is whose is the business of [`Chain::for_key`](crate::certificate::Chain::for_key).

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use openssl::{error::ErrorStack, pkcs7::Pkcs7, x509::X509};

use crate::pem::{self, PemError};

/// Bytes of an answer; one certificate has about 1,000.
const LARGEST: usize = 1024 * 1024;
/// Certificates in an answer; a leaf and its authorities are fewer than ten.
const MOST: usize = 100;
/// `CERTIFICATE` around PKCS#7 is what some servers send.
const LABELS: [&str; 3] = ["PKCS7", "PKCS #7 SIGNED DATA", "CERTIFICATE"];
/// Both a SEQUENCE in DER or BER; base64 of one begins with `M`.
const SEQUENCE: u8 = 0x30;
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why an answer gives no certificates.
#[derive(Debug, thiserror::Error)]
pub enum Pkcs7Error {
    /// Longer than any list of certificates.
    #[error("the PKCS#7 answer has {length} bytes, more than {LARGEST}")]
    TooLong {
        /// Its bytes.
        length: usize,
    },
    /// More certificates than anybody needs.
    #[error("the PKCS#7 answer holds {count} certificates, more than {MOST}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Nothing, or nothing but white space.
    #[error("the PKCS#7 answer is empty")]
    Empty,
    /// Broken PEM.
    #[error("the PKCS#7 answer is broken PEM")]
    Pem(#[source] PemError),
    /// PEM of something else.
    #[error("the answer holds no PEM block of PKCS#7")]
    NoBlock,
    /// Neither DER nor PEM nor base64.
    #[error("the PKCS#7 answer is not base64")]
    NotBase64,
    /// The bytes are something else.
    #[error("the answer is not PKCS#7")]
    Malformed(#[source] ErrorStack),
}

/// The certificates of a PKCS#7 `SignedData`, in order of appearance; other contents, and none, are an empty list.
///
/// `answer` is PEM (`PKCS7`, `PKCS #7 SIGNED DATA`, or `CERTIFICATE` around PKCS#7), base64 with any white space and with or
/// without padding, or binary DER.
pub fn certificates(answer: &[u8]) -> Result<Vec<X509>, Pkcs7Error> {
    if answer.len() > LARGEST {
        return Err(Pkcs7Error::TooLong { length: answer.len() });
    }
    let structure = if answer.first() == Some(&SEQUENCE) {
        Pkcs7::from_der(answer)
    } else {
        Pkcs7::from_der(&decode(&String::from_utf8_lossy(answer))?)
    };
    let structure = structure.map_err(Pkcs7Error::Malformed)?;
    let Some(found) = structure.signed().and_then(|signed| signed.certificates()) else { return Ok(Vec::new()) };
    if found.len() > MOST {
        return Err(Pkcs7Error::TooMany { count: found.len() });
    }
    Ok(found.iter().map(ToOwned::to_owned).collect())
}

/// A `SignedData` in DER with these certificates, in their order, and nothing else (RFC 8951, section 3.2): what a server
/// answers. For tests.
#[cfg(feature = "testing")]
pub fn from_certificates(certificates: &[X509]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    use const_oid::db::rfc5911::{ID_DATA, ID_SIGNED_DATA};
    use der::{Any, Encode as _, Tag, TagNumber, asn1::SetOfVec};
    // Tag of both the signed data and its certificates.
    const FIRST: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber(0) };
    let constructed = |tag, parts: &[Vec<u8>]| Any::new(tag, parts.concat())?.to_der();
    let list = certificates.iter().map(|certificate| certificate.to_der()).collect::<Result<Vec<_>, _>>()?;
    let nothing = SetOfVec::<Any>::new().to_der()?;
    let content = constructed(Tag::Sequence, &[ID_DATA.to_der()?])?;
    let list = constructed(FIRST, &list)?;
    let signed = constructed(Tag::Sequence, &[1_u8.to_der()?, nothing.clone(), content, list, nothing])?;
    Ok(constructed(Tag::Sequence, &[ID_SIGNED_DATA.to_der()?, constructed(FIRST, &[signed])?])?)
}

fn decode(text: &str) -> Result<Vec<u8>, Pkcs7Error> {
    if text.contains("-----BEGIN ") {
        for block in pem::blocks(text) {
            let block = block.map_err(Pkcs7Error::Pem)?;
            if LABELS.contains(&block.label()) {
                return block.decode().map_err(Pkcs7Error::Pem);
            }
        }
        return Err(Pkcs7Error::NoBlock);
    }
    let text: String = text.split_whitespace().collect();
    if text.is_empty() {
        return Err(Pkcs7Error::Empty);
    }
    BASE64.decode(text).map_err(|_| Pkcs7Error::NotBase64)
}
