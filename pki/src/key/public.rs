//! Public keys out of their DER, without OpenSSL's decoders: those try every format they know, which takes a third of a millisecond.

use const_oid::{
    ObjectIdentifier,
    db::rfc5912::{ID_EC_PUBLIC_KEY, RSA_ENCRYPTION},
};
use der::Encode as _;
use openssl::{
    asn1::Asn1Object,
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    error::ErrorStack,
    pkey::{PKey, Public},
    rsa::Rsa,
};
use spki::SubjectPublicKeyInfoOwned;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The key in `info`: RSA and EC on named curves directly, whatever else OpenSSL knows by its own ways.
pub(crate) fn public_key(info: &SubjectPublicKeyInfoOwned) -> Result<PKey<Public>, BoxError> {
    let bits = info.subject_public_key.as_bytes();
    match (info.algorithm.oid, &info.algorithm.parameters, bits) {
        (ID_EC_PUBLIC_KEY, Some(parameters), Some(point)) => {
            if let Ok(curve) = parameters.decode_as::<ObjectIdentifier>() {
                return Ok(ec_key(&named_curve(curve)?, point)?);
            }
        }
        (RSA_ENCRYPTION, _, Some(key)) => return Ok(PKey::from_rsa(Rsa::public_key_from_der_pkcs1(key)?)?),
        _ => {}
    }
    Ok(PKey::public_key_from_der(&info.to_der()?)?)
}

pub(super) fn named_curve(oid: ObjectIdentifier) -> Result<EcGroup, BoxError> {
    Ok(EcGroup::from_curve_name(Asn1Object::from_str(&oid.to_string())?.nid())?)
}

/// `point` is a SEC 1 point in any of its forms; the key service sends the compressed one. One that is not on the curve is refused.
pub(super) fn ec_key(group: &EcGroup, point: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    let point = EcPoint::from_bytes(group, point, &mut *BigNumContext::new()?)?;
    PKey::from_ec_key(EcKey::from_public_key(group, &point)?)
}

pub(super) fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Result<PKey<Public>, ErrorStack> {
    let (modulus, exponent) = (BigNum::from_slice(modulus)?, BigNum::from_slice(exponent)?);
    PKey::from_rsa(Rsa::from_public_components(modulus, exponent)?)
}

#[cfg(test)]
mod tests {
    use der::Decode as _;
    use openssl::{nid::Nid, pkey::Id};

    use super::*;

    fn info(der: &[u8]) -> SubjectPublicKeyInfoOwned {
        SubjectPublicKeyInfoOwned::from_der(der).unwrap()
    }

    #[test]
    fn keys_are_those_that_openssl_reads() {
        let curves = [Nid::X9_62_PRIME256V1, Nid::SECP384R1, Nid::SECP521R1];
        let ec = curves.map(|curve| {
            let key = EcKey::generate(&EcGroup::from_curve_name(curve).unwrap()).unwrap();
            PKey::from_ec_key(key).unwrap().public_key_to_der().unwrap()
        });
        let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap().public_key_to_der().unwrap();
        let other = PKey::generate_ed25519().unwrap().public_key_to_der().unwrap();
        for der in ec.into_iter().chain([rsa, other]) {
            let read = public_key(&info(&der)).unwrap();
            assert!(read.public_eq(&PKey::public_key_from_der(&der).unwrap()));
            assert_eq!(read.public_key_to_der().unwrap(), der);
        }
    }

    #[test]
    fn a_point_off_the_curve_and_half_a_key_are_refused() {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        assert_eq!(key.id(), Id::EC);
        let mut der = key.public_key_to_der().unwrap();
        *der.last_mut().unwrap() ^= 1;
        assert!(public_key(&info(&der)).is_err());
        let mut rsa = info(&PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap().public_key_to_der().unwrap());
        rsa.subject_public_key = der::asn1::BitString::from_bytes(&[0x30, 0x03, 0x02, 0x01]).unwrap();
        assert!(public_key(&rsa).is_err());
    }
}
