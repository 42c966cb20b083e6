//! A key pair of the key service, as a signer.
//!
//! Only signatures with SHA-256 are made here; they are all that requests and certificates need. Nothing is kept between
//! one [`RemoteKey`] and the next: a handle stands for a key id, and after a move or an import it stands for another key.

use aziot_http::{Base64, Client, ClientError, SecretBytes};
use aziot_keyd_api::{
    key::KeyHandle,
    key_pair::GetParameter,
    operation::{Encrypt, EncryptMechanism, Sign, SignMechanism},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use const_oid::{
    ObjectIdentifier,
    db::rfc5912::{ECDSA_WITH_SHA_256, SHA_256_WITH_RSA_ENCRYPTION},
};
use der::{Any, Decode as _, Document, Encode as _};
use openssl::{
    asn1::Asn1Object,
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    error::ErrorStack,
    pkey::{PKey, PKeyRef, Public},
    rsa::Rsa,
};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// What stands before a SHA-256 digest in the block that RSA signs (RFC 8017, section 9.2, note 1).
const DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];

/// Why a key pair of the key service cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key service did not tell a public parameter.
    #[error("could not read the parameter {name} of the key pair")]
    Parameter {
        /// Name of the parameter.
        name: &'static str,
        /// What the key service said, or why it did not answer.
        source: ClientError,
    },
    /// A parameter is not what it should be.
    #[error("the key service sent an unusable {name} for the key pair")]
    Unusable {
        /// Name of the parameter.
        name: &'static str,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The key service made no signature.
    #[error("could not sign with the key pair")]
    Sign(#[source] ClientError),
}

/// A key pair of the key service: its public half, and signatures by its private half.
#[derive(Clone, Debug)]
pub struct RemoteKey {
    keyd: Client,
    handle: KeyHandle,
    kind: Kind,
    public: PKey<Public>,
    info: SubjectPublicKeyInfoOwned,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// With the bytes of the group's order, to which a digest is cut.
    Ec {
        order_bytes: usize,
    },
    Rsa,
}

impl RemoteKey {
    /// Asks the key service for the public half of the pair: RSA, or EC on a curve that OpenSSL knows by name.
    pub async fn load(keyd: &Client, handle: KeyHandle) -> Result<Self, KeyError> {
        let parameters = Parameters { keyd, handle: &handle };
        let (kind, public) = match parameters.text("algorithm").await?.as_str() {
            "ECDSA" => {
                let (oid, point) = (parameters.bytes("ec-curve-oid").await?, parameters.bytes("ec-point").await?);
                let group = named_curve(&oid).map_err(unusable("ec-curve-oid"))?;
                let order_bytes = order_bytes(&group).map_err(unusable("ec-curve-oid"))?;
                (Kind::Ec { order_bytes }, ec_key(&group, &point).map_err(unusable("ec-point"))?)
            }
            "RSA" => {
                let (n, e) = (parameters.bytes("rsa-modulus").await?, parameters.bytes("rsa-exponent").await?);
                (Kind::Rsa, rsa_key(&n, &e).map_err(unusable("rsa-modulus"))?)
            }
            other => return Err(unusable("algorithm")(format!("{other:?} is neither ECDSA nor RSA"))),
        };
        let info = public_key_info(&public).map_err(unusable("public key"))?;
        Ok(Self { keyd: keyd.clone(), handle, kind, public, info })
    }

    /// The public half, for verifying and comparing.
    #[must_use]
    pub fn public_key(&self) -> &PKeyRef<Public> {
        &self.public
    }

    /// The public half as it stands in requests and certificates.
    #[must_use]
    pub fn public_key_info(&self) -> &SubjectPublicKeyInfoOwned {
        &self.info
    }

    /// Whether `info` is the public half of this pair, in whatever form its point is written.
    #[must_use]
    pub fn is_public_key(&self, info: &SubjectPublicKeyInfoOwned) -> bool {
        let key = info.to_der().ok().and_then(|bytes| PKey::public_key_from_der(&bytes).ok());
        key.is_some_and(|key| self.public.public_eq(&key))
    }

    /// The algorithm of the signatures that [`sign_sha256`](Self::sign_sha256) makes.
    #[must_use]
    pub fn signature_algorithm(&self) -> AlgorithmIdentifierOwned {
        match self.kind {
            Kind::Ec { .. } => AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None },
            // RFC 4055, section 5: the parameters are NULL, not absent.
            Kind::Rsa => AlgorithmIdentifierOwned { oid: SHA_256_WITH_RSA_ENCRYPTION, parameters: Some(Any::null()) },
        }
    }

    /// Signs `message`: a DER sequence of r and s for EC, PKCS #1 v1.5 for RSA, both over its SHA-256 digest.
    pub async fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let digest = openssl::sha::sha256(message);
        match self.kind {
            Kind::Ec { order_bytes } => {
                let digest = Base64(digest[..digest.len().min(order_bytes)].to_vec());
                let call = Sign { key_handle: self.handle.clone(), mechanism: SignMechanism::Ecdsa { digest } };
                Ok(self.keyd.send(&call).await.map_err(KeyError::Sign)?.signature.0)
            }
            Kind::Rsa => {
                let plaintext = SecretBytes::new([DIGEST_INFO.as_slice(), &digest].concat());
                let mechanism = EncryptMechanism::RsaPkcs1;
                let call = Encrypt { key_handle: self.handle.clone(), mechanism, plaintext };
                Ok(self.keyd.send(&call).await.map_err(KeyError::Sign)?.ciphertext.0)
            }
        }
    }
}

struct Parameters<'a> {
    keyd: &'a Client,
    handle: &'a KeyHandle,
}

impl Parameters<'_> {
    async fn text(&self, name: &'static str) -> Result<String, KeyError> {
        let call = GetParameter { name: name.to_owned(), key_handle: self.handle.clone() };
        let answer = self.keyd.send(&call).await.map_err(|source| KeyError::Parameter { name, source })?;
        Ok(answer.value)
    }

    async fn bytes(&self, name: &'static str) -> Result<Vec<u8>, KeyError> {
        STANDARD.decode(self.text(name).await?).map_err(unusable(name))
    }
}

fn unusable<E>(name: &'static str) -> impl FnOnce(E) -> KeyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| KeyError::Unusable { name, source: source.into() }
}

/// `oid` is a whole DER object identifier.
fn named_curve(oid: &[u8]) -> Result<EcGroup, Box<dyn std::error::Error + Send + Sync>> {
    let oid: ObjectIdentifier = ObjectIdentifier::from_der(oid)?;
    Ok(EcGroup::from_curve_name(Asn1Object::from_str(&oid.to_string())?.nid())?)
}

fn order_bytes(group: &EcGroup) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    let mut order = BigNum::new()?;
    group.order(&mut order, &mut *BigNumContext::new()?)?;
    Ok(usize::try_from(order.num_bytes())?)
}

/// `point` is a SEC 1 point in any of its forms; the key service sends the compressed one.
fn ec_key(group: &EcGroup, point: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    let point = EcPoint::from_bytes(group, point, &mut *BigNumContext::new()?)?;
    PKey::from_ec_key(EcKey::from_public_key(group, &point)?)
}

fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    let (modulus, exponent) = (BigNum::from_slice(modulus)?, BigNum::from_slice(exponent)?);
    PKey::from_rsa(Rsa::from_public_components(modulus, exponent)?)
}

fn public_key_info(
    key: &PKeyRef<Public>,
) -> Result<SubjectPublicKeyInfoOwned, Box<dyn std::error::Error + Send + Sync>> {
    Ok(SubjectPublicKeyInfoOwned::from_der(&key.public_key_to_der()?)?)
}

/// The remote key as the builders of `x509-cert` know signers; it never signs by itself.
pub(crate) struct Signer<'k>(pub(crate) &'k RemoteKey);

/// The public half of a [`Signer`].
#[derive(Clone)]
pub(crate) struct Verifier(SubjectPublicKeyInfoOwned);

impl signature::Keypair for Signer<'_> {
    type VerifyingKey = Verifier;

    fn verifying_key(&self) -> Verifier {
        Verifier(self.0.info.clone())
    }
}

impl spki::EncodePublicKey for Verifier {
    fn to_public_key_der(&self) -> spki::Result<Document> {
        Ok(Document::try_from(self.0.to_der()?)?)
    }
}

impl spki::DynSignatureAlgorithmIdentifier for Signer<'_> {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        Ok(self.0.signature_algorithm())
    }
}
