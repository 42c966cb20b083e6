//! Key pairs on a token: made there, used, moved and deleted, and those that an operator put there.

use aziot_keys::{Error, Failure, Invalid, KeyPairAlgorithm, KeyUsage, PublicParameter, RsaPadding, TokenError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cryptoki::object::{Attribute, AttributeType, CertificateType, KeyType, ObjectClass};
use openssl::asn1::Asn1Time;
use openssl::bn::BigNumContext;
use openssl::ec::{EcGroup, EcKey, PointConversionForm};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sha::sha256;
use openssl::x509::{X509, X509NameBuilder};

use crate::softhsm::{self, LABEL, OTHER_LABEL, Operator, PIN, has_key_files};
use crate::test_vectors::{EC_PEM, RSA_PEM};
use crate::{invalid, is_external, is_preloaded, point, token_failure, verifies};

const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

#[test]
fn key_pairs_are_made_used_moved_and_deleted() {
    softhsm::run("key_pairs::key_pairs_are_made_used_moved_and_deleted", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key_pair("ec", None).unwrap();
        keys.create_key_pair("rsa", Some("foo:rsa-2048:*")).unwrap();
        keys.create_key_pair("ec", Some("rsa-2048")).unwrap();
        assert_eq!(keys.key_pair_algorithm("ec").unwrap(), KeyPairAlgorithm::Ec);
        assert_eq!(keys.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
        assert_eq!(keys.public_parameter("ec", PublicParameter::EcCurveOid).unwrap(), P256_OID);
        assert_eq!(keys.public_parameter("rsa", PublicParameter::RsaModulus).unwrap().len(), 256);
        assert_eq!(keys.public_parameter("rsa", PublicParameter::RsaExponent).unwrap(), [1, 0, 1]);
        let wrong = keys.public_parameter("rsa", PublicParameter::EcPoint);
        assert!(matches!(invalid(wrong), Invalid::WrongAlgorithm));
        assert!(matches!(invalid(keys.sign_ecdsa("rsa", &[1; 32])), Invalid::WrongAlgorithm));
        assert!(matches!(invalid(keys.encrypt_rsa("ec", RsaPadding::Pkcs1, &[1])), Invalid::WrongAlgorithm));
        assert!(matches!(invalid(keys.create_key_pair("new", Some("foo"))), Invalid::NoKnownAlgorithm));
        for length in [1, 20, 31, 32, 48, 64] {
            let digest = &[0xab; 64][..length];
            let signature = keys.sign_ecdsa("ec", digest).unwrap();
            assert!(verifies(&point(&keys, "ec"), &digest[..length.min(32)], &signature), "{length}");
        }
        assert!(!has_key_files(&device.path("home/keys")));

        let operator = Operator::at(LABEL);
        let [private] = operator.find(ObjectClass::PRIVATE_KEY, "ec")[..] else { panic!("one private key") };
        let wanted = [AttributeType::Extractable, AttributeType::Sensitive, AttributeType::Decrypt];
        let attributes = operator.session.get_attributes(private, &wanted).unwrap();
        assert!(
            attributes.contains(&Attribute::Extractable(false)) && attributes.contains(&Attribute::Sensitive(true))
        );

        // A move of nothing leaves its target alone.
        let ec = point(&keys, "ec");
        let error = keys.move_key_pair("missing", "ec").unwrap_err();
        assert!(matches!(error, Error::External { id, source: Failure::NothingToMove } if id == "missing"));
        assert_eq!(point(&keys, "ec"), ec);
        keys.create_key_pair("next", None).unwrap();
        let next = point(&keys, "next");
        keys.move_key_pair("next", "ec").unwrap();
        assert_eq!(point(&keys, "ec"), next);
        assert!(verifies(&next, &[1; 32], &keys.sign_ecdsa("ec", &[1; 32]).unwrap()));
        assert!(matches!(invalid(keys.load_key_pair("next")), Invalid::NotFound));
        assert_eq!((operator.counts("ec"), operator.counts("next")), ((0, 1, 1), (0, 0, 0)));
        assert_eq!(operator.counts("ec (replaced)"), (0, 0, 0));
        keys.move_key_pair("ec", "free").unwrap();
        assert_eq!(point(&keys, "free"), next);

        // A symmetric key and a pair may share an id on a token.
        keys.create_key("free", KeyUsage::SIGN).unwrap();
        keys.delete_key_pair("free").unwrap();
        keys.delete_key_pair("free").unwrap();
        assert_eq!(operator.counts("free"), (1, 0, 0));
        assert!(matches!(invalid(keys.sign_ecdsa("free", &[1; 32])), Invalid::NotFound));
    });
}

/// Puts the halves of a key on the token, as an operator would.
fn put_key_pair(operator: &Operator, label: &str, pem: &str, with_public: bool) -> PKey<Private> {
    let key = PKey::private_key_from_pem(pem.as_bytes()).unwrap();
    let common = |class, key_type| {
        vec![
            Attribute::Class(class),
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Label(label.into()),
        ]
    };
    let key_type = if key.ec_key().is_ok() { KeyType::EC } else { KeyType::RSA };
    let mut private = common(ObjectClass::PRIVATE_KEY, key_type);
    let mut public = common(ObjectClass::PUBLIC_KEY, key_type);
    private.extend([Attribute::Private(true), Attribute::Sensitive(true), Attribute::Sign(true)]);
    public.extend([Attribute::Private(false), Attribute::Verify(true)]);
    if let Ok(ec) = key.ec_key() {
        let mut context = BigNumContext::new().unwrap();
        let point = ec.public_key().to_bytes(ec.group(), PointConversionForm::UNCOMPRESSED, &mut context).unwrap();
        private.extend([Attribute::EcParams(P256_OID.to_vec()), Attribute::Value(ec.private_key().to_vec())]);
        public.extend([
            Attribute::EcParams(P256_OID.to_vec()),
            Attribute::EcPoint([&[4, u8::try_from(point.len()).unwrap()][..], &point].concat()),
        ]);
    } else {
        let rsa = key.rsa().unwrap();
        let numbers = [Attribute::Modulus(rsa.n().to_vec()), Attribute::PublicExponent(rsa.e().to_vec())];
        public.extend(numbers.clone());
        private.extend(numbers);
        private.extend([
            Attribute::PrivateExponent(rsa.d().to_vec()),
            Attribute::Prime1(rsa.p().unwrap().to_vec()),
            Attribute::Prime2(rsa.q().unwrap().to_vec()),
            Attribute::Exponent1(rsa.dmp1().unwrap().to_vec()),
            Attribute::Exponent2(rsa.dmq1().unwrap().to_vec()),
            Attribute::Coefficient(rsa.iqmp().unwrap().to_vec()),
        ]);
    }
    operator.put(&private);
    if with_public {
        operator.put(&public);
    }
    key
}

#[test]
fn the_vectors_of_key_pairs_of_an_operator() {
    softhsm::run("key_pairs::the_vectors_of_key_pairs_of_an_operator", 1, |device, _| {
        let uri = |object| format!("pkcs11:token={OTHER_LABEL};object={object}?pin-value={PIN}");
        let keys = device.keys(&[("device", &uri("their%20ec")), ("rsa", &uri("their-rsa"))]);
        let operator = Operator::at(OTHER_LABEL);
        put_key_pair(&operator, "their ec", EC_PEM, true);
        put_key_pair(&operator, "their-rsa", RSA_PEM, true);

        let base64 = |id, parameter| STANDARD.encode(keys.public_parameter(id, parameter).unwrap());
        assert_eq!(base64("device", PublicParameter::EcCurveOid), "BggqhkjOPQMBBw==");
        assert_eq!(base64("device", PublicParameter::EcPoint), "AgBe1KRMW3SVnV37q4nMzqox2T9+doTRuCVeA8rFwMms");
        let signature = keys.sign_ecdsa("device", &sha256(b"abc")).unwrap();
        assert!(verifies(&point(&keys, "device"), &sha256(b"abc"), &signature));
        assert_eq!(base64("rsa", PublicParameter::RsaExponent), "AQAB");
        assert!(base64("rsa", PublicParameter::RsaModulus).starts_with("xQtH2iBFBi/UWvnHd0mcxhiW4gx4Ec0q"));
        let digest_info =
            STANDARD.decode("MDEwDQYJYIZIAWUDBAIBBQAEILp4Fr+PAc/qQUFA3l2uIiOwA2Gjlhd6nLQQ/2HyABWt").unwrap();
        assert_eq!(
            STANDARD.encode(keys.encrypt_rsa("rsa", RsaPadding::Pkcs1, &digest_info).unwrap()),
            "KLAQzw/KICXJLz/bRMR4Js/eq/4ksVsTgKDQsG70N7eFlUEXuqzsxIjP8XgKAZXnKcFOIfXYYTLiP6TmfP2gBZTgVrcTRnVrzAzjU2rQzDa\
             /2WfHmEf+F2LOcZ02pql3kmrrF5PNEqKGD6wNq3uj/73Wi4UT+6QQlJ/8xnP0PJY="
        );
        let all: Vec<u8> = (0..128).collect();
        assert_eq!(
            STANDARD.encode(keys.encrypt_rsa("rsa", RsaPadding::None, &all).unwrap()),
            "XgTwdYY+0LvQhe1VKwkE2hsdZuO8D7kW0S6IKrnx9n0ceLg5n1Duk+i4ELZqktKJGmDwn//PdmcF7DkKT+331ZmAd83nWT3nqcHZqXnNKky\
             fZwpyHc22o64elMI9wK21EAg0ihVNGxrwur8gTY5dvJvSm5PaLkYG67M/s/o8GG4="
        );
        for (padding, input) in
            [(RsaPadding::Pkcs1, &all[..118]), (RsaPadding::None, &all[..127]), (RsaPadding::None, &[0xff; 128])]
        {
            assert!(is_external(keys.encrypt_rsa("rsa", padding, input)));
        }

        // What an operator put there stays, whatever is asked.
        keys.create_key_pair("movable", None).unwrap();
        keys.create_key_pair("device", Some("rsa-2048")).unwrap();
        assert!(is_preloaded(keys.delete_key_pair("device")));
        assert!(is_preloaded(keys.move_key_pair("device", "new")));
        assert!(is_preloaded(keys.move_key_pair("movable", "device")));
        assert_eq!(operator.counts("their ec"), (0, 1, 1));
        keys.load_key_pair("movable").unwrap();
    });
}

fn certificate(key: &PKey<Private>) -> X509 {
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, "device").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.sign(key, MessageDigest::sha256()).unwrap();
    builder.build()
}

#[test]
fn a_private_key_without_its_public_object_is_never_destroyed() {
    softhsm::run("key_pairs::a_private_key_without_its_public_object_is_never_destroyed", 1, |device, _| {
        let keys = device.keys(&[]);
        let operator = Operator::at(LABEL);
        let key = put_key_pair(&operator, "ec", EC_PEM, false);
        put_key_pair(&operator, "rsa", RSA_PEM, false);
        assert!(matches!(token_failure(keys.load_key_pair("ec")), TokenError::NoPublicKey { .. }));
        assert!(matches!(token_failure(keys.create_key_pair("ec", None)), TokenError::NoPublicKey { .. }));
        assert_eq!(operator.counts("ec"), (0, 0, 1));
        // An RSA private key tells its public half itself.
        keys.create_key_pair("rsa", None).unwrap();
        assert_eq!(keys.key_pair_algorithm("rsa").unwrap(), KeyPairAlgorithm::Rsa);
        assert_eq!(keys.public_parameter("rsa", PublicParameter::RsaModulus).unwrap().len(), 128);
        assert_eq!(operator.counts("rsa"), (0, 0, 1));

        let put_certificate = |certificate: &X509| {
            let subject = certificate.subject_name().to_der().unwrap();
            operator.put(&[
                Attribute::Class(ObjectClass::CERTIFICATE),
                Attribute::CertificateType(CertificateType::X_509),
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::Label("ec".into()),
                Attribute::Subject(subject),
                Attribute::Value(certificate.to_der().unwrap()),
            ])
        };
        // Of another key: the name alone proves nothing.
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let stranger = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let wrong = put_certificate(&certificate(&stranger));
        assert!(matches!(token_failure(keys.load_key_pair("ec")), TokenError::NoPublicKey { .. }));
        operator.session.destroy_object(wrong).unwrap();
        put_certificate(&certificate(&key));
        keys.create_key_pair("ec", None).unwrap();
        assert_eq!(STANDARD.encode(point(&keys, "ec")), "AgBe1KRMW3SVnV37q4nMzqox2T9+doTRuCVeA8rFwMms");
        assert_eq!(operator.counts("ec"), (0, 0, 1));
    });
}
