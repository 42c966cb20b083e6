//! A key pair of the key service, as a signer.
//!
//! Requests and certificates are signed with SHA-256; TLS chooses its own way. A [`RemoteKey`] is what the key was when it was loaded: a
//! handle stands for a key id, and after a move or an import it stands for another key. [`KnownKeys`] keeps them all the same.

mod known;
mod public;
mod scheme;

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
    bn::{BigNum, BigNumContext},
    ec::EcGroup,
    error::ErrorStack,
    pkey::{PKey, PKeyRef, Public},
    sign::Verifier as OpenSslVerifier,
};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

pub use known::{KnownKeys, Name, UnknownKey};
pub(crate) use public::public_key;
pub(crate) use scheme::{Hash, Scheme, has_room_for_pss};

/// Ends the id of what is to take the place of a key pair, or of a certificate, that has the rest of the id.
pub const NEXT_SUFFIX: &str = "-temp";

/// The id under which the successor of the key pair or certificate `id` comes into being.
#[must_use]
pub fn next_id(id: &str) -> String {
    format!("{id}{NEXT_SUFFIX}")
}

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
    /// What the key service should sign cannot be written.
    #[error("could not prepare the block that the key pair should sign")]
    Block(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The pair signs in other ways.
    #[error("the key pair cannot sign in the way asked for")]
    Scheme,
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
                // A whole DER object identifier.
                let oid = ObjectIdentifier::from_der(&oid).map_err(unusable("ec-curve-oid"))?;
                let group = public::named_curve(oid).map_err(unusable("ec-curve-oid"))?;
                let order_bytes = order_bytes(&group).map_err(unusable("ec-curve-oid"))?;
                (Kind::Ec { order_bytes }, public::ec_key(&group, &point).map_err(unusable("ec-point"))?)
            }
            "RSA" => {
                let (n, e) = (parameters.bytes("rsa-modulus").await?, parameters.bytes("rsa-exponent").await?);
                (Kind::Rsa, public::rsa_key(&n, &e).map_err(unusable("rsa-modulus"))?)
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
        public_key(info).is_ok_and(|key| self.public.public_eq(&key))
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
        let scheme = match self.kind {
            Kind::Ec { .. } => Scheme::Ecdsa(Hash::Sha256),
            Kind::Rsa => Scheme::RsaPkcs1(Hash::Sha256),
        };
        self.sign(scheme, message).await
    }

    /// Whether `signature` is one that [`sign_sha256`](Self::sign_sha256) makes of `message`.
    #[must_use]
    pub(crate) fn verifies_sha256(&self, message: &[u8], signature: &[u8]) -> bool {
        is_signature(&self.public, Hash::Sha256, message, signature)
    }

    /// Signs `message` in a way that fits the pair's algorithm.
    pub(crate) async fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match (scheme, self.kind) {
            (Scheme::Ecdsa(hash), Kind::Ec { order_bytes }) => {
                let mut digest = hash.digest(message);
                digest.truncate(order_bytes);
                let mechanism = SignMechanism::Ecdsa { digest: Base64(digest) };
                let call = Sign { key_handle: self.handle.clone(), mechanism };
                Ok(self.keyd.send(&call).await.map_err(KeyError::Sign)?.signature.0)
            }
            (Scheme::RsaPkcs1(hash), Kind::Rsa) => {
                self.private_operation(EncryptMechanism::RsaPkcs1, scheme::digest_info(hash, message)).await
            }
            (Scheme::RsaPss(hash), Kind::Rsa) => {
                let block = scheme::pss(hash, message, self.public.bits())?;
                self.private_operation(EncryptMechanism::RsaNoPadding, block).await
            }
            (Scheme::Ecdsa(_), Kind::Rsa) | (Scheme::RsaPkcs1(_) | Scheme::RsaPss(_), Kind::Ec { .. }) => {
                Err(KeyError::Scheme)
            }
        }
    }

    async fn private_operation(&self, mechanism: EncryptMechanism, block: Vec<u8>) -> Result<Vec<u8>, KeyError> {
        let call = Encrypt { key_handle: self.handle.clone(), mechanism, plaintext: SecretBytes::new(block) };
        Ok(self.keyd.send(&call).await.map_err(KeyError::Sign)?.ciphertext.0)
    }
}

/// ECDSA or PKCS #1 v1.5, as the key is. An error means a signature that is none.
pub(crate) fn is_signature(key: &PKeyRef<Public>, hash: Hash, message: &[u8], signature: &[u8]) -> bool {
    let verify = || -> Result<bool, ErrorStack> {
        OpenSslVerifier::new(hash.openssl(), key)?.verify_oneshot(signature, message)
    };
    verify().unwrap_or(false)
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

fn order_bytes(group: &EcGroup) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    let mut order = BigNum::new()?;
    group.order(&mut order, &mut *BigNumContext::new()?)?;
    Ok(usize::try_from(order.num_bytes())?)
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
