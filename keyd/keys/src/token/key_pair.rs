//! Key pairs on a token: made, looked at, and used for ECDSA and the RSA private operation (`keys.md`, 7.4 to 7.6).
//!
//! Where only the private key has an object, as operators leave it who import a key with its certificate, the public half comes from the
//! private object or from the certificate.

use aziot_log::{chain, fields};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::types::Ulong;
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcPoint, PointConversionForm};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::pkey_ctx::PkeyCtx;
use openssl::x509::X509;

use super::error::TokenError;
use super::object::{TEMPLATES, Template, labelled};
use super::session::TokenSession;
use crate::error::{Invalid, Problem};
use crate::key_pair::{KeyPairAlgorithm, KeyPairOperations, P256_OID, PublicHalf, PublicParameter, RsaPadding};
use crate::preferred_algorithms::NewKeyPair;

/// Curves by the OID in `CKA_EC_PARAMS`.
const CURVES: [(&[u8], Nid); 3] = [
    (P256_OID, Nid::X9_62_PRIME256V1),
    (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22], Nid::SECP384R1),
    (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23], Nid::SECP521R1),
];

/// The public exponent of new RSA keys.
const F4: &[u8] = &[1, 0, 1];

/// Tag and length of a DER OCTET STRING of less than 128 bytes, and of one of up to 255.
const OCTET_STRING: u8 = 0x04;
const LONG_LENGTH: u8 = 0x81;

/// Makes a pair of the first algorithm that the token can do.
pub(super) fn generate(
    session: &TokenSession<'_>,
    label: Option<&str>,
    algorithms: &[NewKeyPair],
) -> Result<(), Problem> {
    for algorithm in algorithms {
        for which in TEMPLATES {
            let (mechanism, public, private) = templates(*algorithm, label, which);
            match session.check(session.generate_key_pair(&mechanism, &public, &private)) {
                Ok(_) => return Ok(()),
                Err(error) if session.is_transient(&error) => return Err(error.into()),
                Err(error) => {
                    tracing::info!(
                        ?algorithm,
                        template = ?which,
                        { fields::ERROR } = %chain(&error),
                        "the token does not make such a key pair"
                    );
                }
            }
        }
    }
    Err(Invalid::NoAlgorithmOfToken.into())
}

fn templates(
    algorithm: NewKeyPair,
    label: Option<&str>,
    which: Template,
) -> (Mechanism<'static>, Vec<Attribute>, Vec<Attribute>) {
    let mut public = vec![Attribute::Private(false), Attribute::Token(true), Attribute::Verify(true)];
    let mut private =
        vec![Attribute::Private(true), Attribute::Sensitive(true), Attribute::Sign(true), Attribute::Token(true)];
    let rsa = |bits| [Attribute::ModulusBits(Ulong::new(bits)), Attribute::PublicExponent(F4.to_vec())];
    let mechanism = match algorithm {
        NewKeyPair::EcP256 => {
            public.push(Attribute::EcParams(P256_OID.to_vec()));
            Mechanism::EccKeyPairGen
        }
        NewKeyPair::Rsa2048 => {
            public.extend(rsa(2048));
            Mechanism::RsaPkcsKeyPairGen
        }
        NewKeyPair::Rsa4096 => {
            public.extend(rsa(4096));
            Mechanism::RsaPkcsKeyPairGen
        }
    };
    match which {
        Template::Strict => private.push(Attribute::Extractable(false)),
        Template::Public => {
            public.push(Attribute::Encrypt(true));
            private.push(Attribute::Decrypt(true));
        }
    }
    public.extend(labelled(label));
    private.extend(labelled(label));
    (mechanism, public, private)
}

/// A key pair on a token, for the time of one call.
pub(super) struct TokenKeyPair<'a> {
    session: &'a TokenSession<'a>,
    label: Option<&'a str>,
    private: ObjectHandle,
    /// `None`: of a kind that nothing can be done with here.
    algorithm: Option<KeyPairAlgorithm>,
}

impl<'a> TokenKeyPair<'a> {
    /// The pair with the first private key of this label.
    pub(super) fn find(
        session: &'a TokenSession<'a>,
        label: Option<&'a str>,
    ) -> Result<Option<TokenKeyPair<'a>>, Problem> {
        let Some(private) = session.first((ObjectClass::PRIVATE_KEY, label))? else { return Ok(None) };
        let algorithm = algorithm(session, private)?;
        Ok(Some(TokenKeyPair { session, label, private, algorithm }))
    }

    /// Whether both halves are there and belong together as far as can be seen.
    pub(super) fn check(&self) -> Result<(), Problem> {
        match self.algorithm {
            Some(_) => self.public().map(|_| ()),
            None => Ok(()),
        }
    }

    fn public(&self) -> Result<PublicHalf, Problem> {
        let algorithm = self.algorithm.ok_or(Invalid::WrongAlgorithm)?;
        if let Some(public) = self.session.first((ObjectClass::PUBLIC_KEY, self.label))? {
            if self::algorithm(self.session, public)? != self.algorithm {
                return Err(TokenError::NoPair { token: self.session.token_name() }.into());
            }
            if let Some(half) = self.half_in(public, algorithm)? {
                return Ok(half);
            }
        }
        match self.half_in(self.private, algorithm)? {
            Some(half) => Ok(half),
            None => self.half_in_certificate(),
        }
    }

    /// The public half as attributes of an object.
    fn half_in(&self, object: ObjectHandle, algorithm: KeyPairAlgorithm) -> Result<Option<PublicHalf>, Problem> {
        match algorithm {
            KeyPairAlgorithm::Rsa => {
                let modulus = self.session.attribute(object, AttributeType::Modulus)?;
                let exponent = self.session.attribute(object, AttributeType::PublicExponent)?;
                match (modulus, exponent) {
                    (Some(Attribute::Modulus(modulus)), Some(Attribute::PublicExponent(exponent)))
                        if !modulus.is_empty() && !exponent.is_empty() =>
                    {
                        let (modulus, exponent) = (minimal(&modulus)?, minimal(&exponent)?);
                        Ok(Some(PublicHalf::Rsa { modulus, exponent }))
                    }
                    _ => Ok(None),
                }
            }
            KeyPairAlgorithm::Ec => match self.session.attribute(object, AttributeType::EcPoint)? {
                Some(Attribute::EcPoint(point)) if !point.is_empty() => {
                    let Some(curve) = self.curve(object)? else { return Err(Invalid::WrongAlgorithm.into()) };
                    let group = EcGroup::from_curve_name(curve)?;
                    let mut context = BigNumContext::new()?;
                    // The standard wants an OCTET STRING; some tokens give the bare point.
                    let parsed = EcPoint::from_bytes(&group, octets(&point), &mut context)
                        .or_else(|_| EcPoint::from_bytes(&group, &point, &mut context))
                        .map_err(|_| self.session.nonsense("a public point"))?;
                    let point = parsed.to_bytes(&group, PointConversionForm::COMPRESSED, &mut context)?;
                    Ok(Some(PublicHalf::Ec { is_p256: curve == Nid::X9_62_PRIME256V1, point }))
                }
                _ => Ok(None),
            },
        }
    }

    fn curve(&self, object: ObjectHandle) -> Result<Option<Nid>, TokenError> {
        match self.session.attribute(object, AttributeType::EcParams)? {
            Some(Attribute::EcParams(oid)) => {
                Ok(CURVES.into_iter().find(|(known, _)| **known == oid).map(|(_, curve)| curve))
            }
            _ => Ok(None),
        }
    }

    /// Nothing but the label says that the certificate is this key's, so a signature is tried.
    fn half_in_certificate(&self) -> Result<PublicHalf, Problem> {
        if let Some(certificate) = self.session.first((ObjectClass::CERTIFICATE, self.label))?
            && let Some(Attribute::Value(der)) = self.session.attribute(certificate, AttributeType::Value)?
            && let Ok(key) = X509::from_der(&der).and_then(|certificate| certificate.public_key())
            && self.fits(&key)?
        {
            return Ok(PublicHalf::of(&key)?);
        }
        Err(TokenError::NoPublicKey { token: self.session.token_name() }.into())
    }

    fn fits(&self, key: &PKey<Public>) -> Result<bool, Problem> {
        let digest = [0x5a; 32];
        let signature = match (self.algorithm, key.id()) {
            (Some(KeyPairAlgorithm::Ec), Id::EC) => self.sign_ecdsa(&digest)?,
            (Some(KeyPairAlgorithm::Rsa), Id::RSA) => self.encrypt_rsa(RsaPadding::Pkcs1, &digest)?,
            _ => return Ok(false),
        };
        let mut context = PkeyCtx::new(key)?;
        context.verify_init()?;
        Ok(context.verify(&digest, &signature).unwrap_or(false))
    }

    /// The digest without the bytes beyond the length of the curve's order: not every token cuts it.
    fn shortened<'d>(&self, digest: &'d [u8]) -> Result<&'d [u8], Problem> {
        let Some(curve) = self.curve(self.private)? else { return Ok(digest) };
        let bits = EcGroup::from_curve_name(curve)?.order_bits() as usize;
        Ok(&digest[..digest.len().min(bits.div_ceil(8))])
    }

    fn is(&self, algorithm: KeyPairAlgorithm) -> Result<(), Invalid> {
        if self.algorithm == Some(algorithm) { Ok(()) } else { Err(Invalid::WrongAlgorithm) }
    }
}

impl KeyPairOperations for TokenKeyPair<'_> {
    fn algorithm(&self) -> Result<KeyPairAlgorithm, Problem> {
        Ok(self.algorithm.ok_or(Invalid::WrongAlgorithm)?)
    }

    fn parameter(&self, parameter: PublicParameter) -> Result<Vec<u8>, Problem> {
        Ok(self.public()?.parameter(parameter)?.to_vec())
    }

    fn sign_ecdsa(&self, digest: &[u8]) -> Result<Vec<u8>, Problem> {
        self.is(KeyPairAlgorithm::Ec)?;
        let digest = self.shortened(digest)?;
        let raw = self.session.check(self.session.sign(&Mechanism::Ecdsa, self.private, digest))?;
        if raw.is_empty() || raw.len() % 2 != 0 {
            return Err(self.session.nonsense("an ECDSA signature").into());
        }
        let (r, s) = raw.split_at(raw.len() / 2);
        Ok(EcdsaSig::from_private_components(BigNum::from_slice(r)?, BigNum::from_slice(s)?)?.to_der()?)
    }

    fn encrypt_rsa(&self, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Problem> {
        self.is(KeyPairAlgorithm::Rsa)?;
        let mechanism = match padding {
            RsaPadding::Pkcs1 => Mechanism::RsaPkcs,
            RsaPadding::None => Mechanism::RsaX509,
        };
        let output = self.session.check(self.session.sign(&mechanism, self.private, input))?;
        // Some tokens fill up a short input with zeros; whoever sends one has made a mistake.
        if padding == RsaPadding::None && output.len() != input.len() {
            return Err(self.session.nonsense("an RSA result of another length than its input").into());
        }
        Ok(output)
    }
}

fn algorithm(session: &TokenSession<'_>, object: ObjectHandle) -> Result<Option<KeyPairAlgorithm>, TokenError> {
    Ok(match session.attribute(object, AttributeType::KeyType)? {
        Some(Attribute::KeyType(KeyType::EC)) => Some(KeyPairAlgorithm::Ec),
        Some(Attribute::KeyType(KeyType::RSA)) => Some(KeyPairAlgorithm::Rsa),
        Some(_) => None,
        None => return Err(session.nonsense("a key without a type")),
    })
}

/// Without leading zeros.
fn minimal(number: &[u8]) -> Result<Vec<u8>, Problem> {
    Ok(BigNum::from_slice(number)?.to_vec())
}

/// What a DER OCTET STRING holds; anything else as it is.
fn octets(der: &[u8]) -> &[u8] {
    match der {
        [OCTET_STRING, LONG_LENGTH, length, rest @ ..] | [OCTET_STRING, length, rest @ ..]
            if usize::from(*length) == rest.len() =>
        {
            rest
        }
        _ => der,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_come_out_of_their_octet_string() {
        assert_eq!(octets(&[4, 2, 7, 8]), [7, 8]);
        assert_eq!(octets(&[&[4, 0x81, 133][..], &[9; 133]].concat()), [9; 133]);
        // A bare point begins with the same byte.
        let bare = [&[4][..], &[9; 64]].concat();
        assert_eq!(octets(&bare), bare);
        assert_eq!(octets(&[]), [0; 0]);
    }
}
