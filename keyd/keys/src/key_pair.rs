//! Key pairs: generated, read from and written as PEM, their public parameters, ECDSA and the RSA private operation
//! (`keys.md`, 5.2 and 6.2 to 6.4).
//!
//! Encrypted PEM is refused without ever asking for a passphrase: a daemon that prompts hangs.

use std::sync::atomic::{AtomicUsize, Ordering};

use openssl::bn::BigNumContext;
use openssl::ec::{Asn1Flag, EcGroup, EcKey, PointConversionForm};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{HasPublic, Id, PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::{Padding, Rsa};
use zeroize::Zeroizing;

use crate::context_pool::{self, ContextPool};
use crate::error::{Invalid, NotKeyPair, Problem};
use crate::generation::generate;
use crate::preferred_algorithms::NewKeyPair;

/// The OID of P-256 as DER, header included.
pub(crate) const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// What a key pair can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyPairAlgorithm {
    /// ECDSA signatures.
    Ec,
    /// RSA private operations.
    Rsa,
}

/// Something about the public half of a key pair, as bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PublicParameter {
    /// The curve's OID as DER, header included. Known for P-256 only.
    EcCurveOid,
    /// The public point, SEC1, compressed.
    EcPoint,
    /// The modulus, big-endian without leading zeros.
    RsaModulus,
    /// The public exponent, big-endian without leading zeros.
    RsaExponent,
}

/// What the input of an RSA private operation is filled up with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RsaPadding {
    /// PKCS#1 v1.5, block type 1. The caller supplies the `DigestInfo`, at most 11 bytes less than the modulus.
    Pkcs1,
    /// Nothing: the input is as long as the modulus and numerically below it.
    None,
}

/// A private key with its public parameters, checked once when made.
pub(crate) struct KeyPair {
    key: PKey<Private>,
    public: PublicHalf,
    contexts: ContextPool<SigningContext>,
    /// How many contexts were made.
    made: AtomicUsize,
}

/// Ready for the private operation.
struct SigningContext {
    key: PKey<Private>,
    context: PkeyCtx<Private>,
    padding: Option<Padding>,
}

impl SigningContext {
    fn new(key: PKey<Private>) -> Result<SigningContext, ErrorStack> {
        let mut context = PkeyCtx::new(&key)?;
        context.sign_init()?;
        Ok(SigningContext { key, context, padding: None })
    }

    /// `padding` for RSA.
    fn operate(&mut self, padding: Option<Padding>, input: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        if let Some(other) = padding.filter(|_| padding != self.padding) {
            self.context.set_rsa_padding(other)?;
            self.padding = padding;
        }
        let mut output = Vec::new();
        self.context.sign_to_vec(input, &mut output)?;
        Ok(output)
    }
}

/// Worked out once: taking a key apart copies all of it in OpenSSL 3, and asks a token several times.
pub(crate) enum PublicHalf {
    Ec {
        is_p256: bool,
        point: Vec<u8>,
    },
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// Loads, and can do nothing here.
    Other,
}

impl KeyPair {
    /// The first private key in `pem`: PKCS#8, SEC1 or PKCS#1.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<KeyPair, NotKeyPair> {
        if !contains(pem, b"-----BEGIN ") || !contains(pem, b"PRIVATE KEY-----") {
            return Err(NotKeyPair::NoPem);
        }
        if contains(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(pem, b"Proc-Type: 4,ENCRYPTED") {
            return Err(NotKeyPair::Encrypted);
        }
        // Without a callback OpenSSL would ask on the terminal.
        let key = PKey::private_key_from_pem_callback(pem, |_| Ok(0)).map_err(NotKeyPair::Unreadable)?;
        let public = PublicHalf::of(&key).map_err(NotKeyPair::Unreadable)?;
        let pair = KeyPair { key, public, contexts: ContextPool::default(), made: AtomicUsize::new(0) };
        // A flipped bit can leave a file that parses. With RSA a signature by such a key can give away the key.
        if pair.is_consistent() { Ok(pair) } else { Err(NotKeyPair::Inconsistent) }
    }

    /// A new pair as PKCS#8 PEM.
    pub(crate) fn generate(kind: NewKeyPair) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
        let key = match kind {
            NewKeyPair::EcP256 => {
                let mut group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
                group.set_asn1_flag(Asn1Flag::NAMED_CURVE);
                PKey::from_ec_key(EcKey::generate(&group)?)?
            }
            NewKeyPair::Rsa2048 => PKey::from_rsa(generate(|| Rsa::generate(2048))?)?,
            NewKeyPair::Rsa4096 => PKey::from_rsa(generate(|| Rsa::generate(4096))?)?,
        };
        key.private_key_to_pem_pkcs8().map(Zeroizing::new)
    }

    pub(crate) fn is_p256(&self) -> bool {
        matches!(self.public, PublicHalf::Ec { is_p256: true, .. })
    }

    fn is_rsa(&self) -> bool {
        matches!(self.public, PublicHalf::Rsa { .. })
    }

    /// `padding` for RSA.
    fn private_operation(&self, padding: Option<Padding>, input: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        let mut signing = match self.contexts.take() {
            Some(signing) => signing,
            None => match self.made.fetch_add(1, Ordering::Relaxed) {
                0 => SigningContext::new(self.key.clone())?,
                number if number < *context_pool::SIZE => SigningContext::new(self.another_key()?)?,
                _ => return SigningContext::new(self.key.clone())?.operate(padding, input),
            },
        };
        let outcome = signing.operate(padding, input);
        if outcome.is_err() {
            // The key is as good as before, and a copy of it is dear.
            signing = SigningContext::new(signing.key)?;
        }
        self.contexts.keep(signing);
        outcome
    }

    /// An RSA key has one blinding factor for all who use it at the same moment, and a lock around that: each context has a copy.
    fn another_key(&self) -> Result<PKey<Private>, ErrorStack> {
        if !self.is_rsa() {
            return Ok(self.key.clone());
        }
        let der = Zeroizing::new(self.key.private_key_to_der()?);
        PKey::private_key_from_der(&der)
    }

    fn is_consistent(&self) -> bool {
        if matches!(self.public, PublicHalf::Other) {
            return true;
        }
        let digest = [0x5a; 32];
        let padding = self.is_rsa().then_some(Padding::PKCS1);
        let verified = self.private_operation(padding, &digest).and_then(|signature| {
            let mut context = PkeyCtx::new(&self.key)?;
            context.verify_init()?;
            context.verify(&digest, &signature)
        });
        verified.unwrap_or(false)
    }
}

/// What a key pair does, wherever it is.
pub(crate) trait KeyPairOperations {
    /// Which kind it is.
    fn algorithm(&self) -> Result<KeyPairAlgorithm, Problem>;

    /// Something about the public half.
    fn parameter(&self, parameter: PublicParameter) -> Result<Vec<u8>, Problem>;

    /// Signs `digest` as it is: not hashed, only shortened to the length of the curve's order. DER.
    fn sign_ecdsa(&self, digest: &[u8]) -> Result<Vec<u8>, Problem>;

    /// The padded input to the power of the private exponent, as long as the modulus.
    fn encrypt_rsa(&self, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Problem>;
}

impl KeyPairOperations for KeyPair {
    fn algorithm(&self) -> Result<KeyPairAlgorithm, Problem> {
        match self.public {
            PublicHalf::Ec { .. } => Ok(KeyPairAlgorithm::Ec),
            PublicHalf::Rsa { .. } => Ok(KeyPairAlgorithm::Rsa),
            PublicHalf::Other => Err(Invalid::WrongAlgorithm.into()),
        }
    }

    fn parameter(&self, parameter: PublicParameter) -> Result<Vec<u8>, Problem> {
        Ok(self.public.parameter(parameter)?.to_vec())
    }

    fn sign_ecdsa(&self, digest: &[u8]) -> Result<Vec<u8>, Problem> {
        match self.public {
            PublicHalf::Ec { .. } => Ok(self.private_operation(None, digest)?),
            PublicHalf::Rsa { .. } | PublicHalf::Other => Err(Invalid::WrongAlgorithm.into()),
        }
    }

    fn encrypt_rsa(&self, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Problem> {
        let padding = match padding {
            RsaPadding::Pkcs1 => Padding::PKCS1,
            RsaPadding::None => Padding::NONE,
        };
        match self.public {
            PublicHalf::Rsa { .. } => Ok(self.private_operation(Some(padding), input)?),
            PublicHalf::Ec { .. } | PublicHalf::Other => Err(Invalid::WrongAlgorithm.into()),
        }
    }
}

impl PublicHalf {
    pub(crate) fn of<T: HasPublic>(key: &PKey<T>) -> Result<PublicHalf, ErrorStack> {
        match key.id() {
            Id::EC => {
                let key = key.ec_key()?;
                let is_p256 = key.group().curve_name() == Some(Nid::X9_62_PRIME256V1);
                let mut context = BigNumContext::new()?;
                let point = key.public_key().to_bytes(key.group(), PointConversionForm::COMPRESSED, &mut context)?;
                Ok(PublicHalf::Ec { is_p256, point })
            }
            Id::RSA => {
                let key = key.rsa()?;
                Ok(PublicHalf::Rsa { modulus: key.n().to_vec(), exponent: key.e().to_vec() })
            }
            _ => Ok(PublicHalf::Other),
        }
    }

    pub(crate) fn parameter(&self, parameter: PublicParameter) -> Result<&[u8], Invalid> {
        match (parameter, self) {
            (PublicParameter::EcCurveOid, PublicHalf::Ec { is_p256: true, .. }) => Ok(P256_OID),
            (PublicParameter::EcPoint, PublicHalf::Ec { point, .. }) => Ok(point),
            (PublicParameter::RsaModulus, PublicHalf::Rsa { modulus, .. }) => Ok(modulus),
            (PublicParameter::RsaExponent, PublicHalf::Rsa { exponent, .. }) => Ok(exponent),
            _ => Err(Invalid::WrongAlgorithm),
        }
    }
}

/// Whether the marks of a PEM block are in `bytes`, whole or cut.
pub(crate) fn has_pem_marks(bytes: &[u8]) -> bool {
    contains(bytes, b"-----BEGIN ") || contains(bytes, b"-----END ")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use openssl::sha::sha256;

    use super::*;
    use crate::test_vectors::{EC_PEM, RSA_PEM};

    fn base64(bytes: &[u8]) -> String {
        STANDARD.encode(bytes)
    }

    fn pair(pem: &str) -> KeyPair {
        KeyPair::from_pem(pem.as_bytes()).unwrap()
    }

    fn is_wrong_algorithm(outcome: Result<Vec<u8>, Problem>) -> bool {
        matches!(outcome.map(|_| ()), Err(Problem::Invalid(Invalid::WrongAlgorithm)))
    }

    fn verifies(pair: &KeyPair, digest: &[u8], signature: &[u8]) -> bool {
        let mut context = PkeyCtx::new(&pair.key).unwrap();
        context.verify_init().unwrap();
        context.verify(digest, signature).unwrap_or(false)
    }

    #[test]
    fn the_ec_vectors() {
        let pair = pair(EC_PEM);
        assert_eq!(pair.algorithm().unwrap(), KeyPairAlgorithm::Ec);
        let parameter = |parameter| base64(&pair.parameter(parameter).unwrap());
        assert_eq!(parameter(PublicParameter::EcCurveOid), "BggqhkjOPQMBBw==");
        assert_eq!(parameter(PublicParameter::EcPoint), "AgBe1KRMW3SVnV37q4nMzqox2T9+doTRuCVeA8rFwMms");
        let theirs = STANDARD
            .decode("MEQCIE8XPjKppb8tFo51NLMLbhYoHNA56Wcw3DvnAb5rQOuzAiABrLFOZz5BdX9fA6fByhsppcl5PsknGCKXciQFwq694g==")
            .unwrap();
        let digest = sha256(b"abc");
        assert!(verifies(&pair, &digest, &theirs));
        let ours = pair.sign_ecdsa(&digest).unwrap();
        assert!(ours.len() <= 72 && verifies(&pair, &digest, &ours));
        assert!(pair.parameter(PublicParameter::RsaModulus).is_err());
        assert!(is_wrong_algorithm(pair.encrypt_rsa(RsaPadding::Pkcs1, &digest)));
    }

    #[test]
    fn ecdsa_takes_digests_of_any_length() {
        let pair = pair(EC_PEM);
        let long = [0xab; 64];
        for length in [0, 1, 20, 31, 48, 64] {
            let signature = pair.sign_ecdsa(&long[..length]).unwrap();
            assert!(verifies(&pair, &long[..length], &signature), "{length}");
        }
        let signature = pair.sign_ecdsa(&long).unwrap();
        assert!(verifies(&pair, &long[..32], &signature), "bits beyond the order's length are dropped");
    }

    #[test]
    fn the_rsa_vectors() {
        let pair = pair(RSA_PEM);
        assert_eq!(pair.algorithm().unwrap(), KeyPairAlgorithm::Rsa);
        assert_eq!(
            base64(&pair.parameter(PublicParameter::RsaModulus).unwrap()),
            "xQtH2iBFBi/UWvnHd0mcxhiW4gx4Ec0qPyfoO0gdDrWHIKF4/V2C05QTPqCiT9GcY0HcdQ94xHqq5uSy4f5wWO3U4sAAf/oSN5DlQrXdG9S9RwP\
             /OScwBHmozVri+V0Ff2hcoxaWoMoc1xRdlizqrC6n53W93o6AIubG6cTOfp0="
        );
        assert_eq!(base64(&pair.parameter(PublicParameter::RsaExponent).unwrap()), "AQAB");
        let digest_info =
            STANDARD.decode("MDEwDQYJYIZIAWUDBAIBBQAEILp4Fr+PAc/qQUFA3l2uIiOwA2Gjlhd6nLQQ/2HyABWt").unwrap();
        assert_eq!(
            base64(&pair.encrypt_rsa(RsaPadding::Pkcs1, &digest_info).unwrap()),
            "KLAQzw/KICXJLz/bRMR4Js/eq/4ksVsTgKDQsG70N7eFlUEXuqzsxIjP8XgKAZXnKcFOIfXYYTLiP6TmfP2gBZTgVrcTRnVrzAzjU2rQzDa\
             /2WfHmEf+F2LOcZ02pql3kmrrF5PNEqKGD6wNq3uj/73Wi4UT+6QQlJ/8xnP0PJY="
        );
        let counting: Vec<u8> = (0..128).collect();
        assert_eq!(
            base64(&pair.encrypt_rsa(RsaPadding::None, &counting).unwrap()),
            "XgTwdYY+0LvQhe1VKwkE2hsdZuO8D7kW0S6IKrnx9n0ceLg5n1Duk+i4ELZqktKJGmDwn//PdmcF7DkKT+331ZmAd83nWT3nqcHZqXnNKky\
             fZwpyHc22o64elMI9wK21EAg0ihVNGxrwur8gTY5dvJvSm5PaLkYG67M/s/o8GG4="
        );
        assert!(pair.parameter(PublicParameter::EcPoint).is_err());
        assert!(is_wrong_algorithm(pair.sign_ecdsa(&counting[..32])));
    }

    #[test]
    fn rsa_input_of_a_wrong_size_is_a_failure() {
        let pair = pair(RSA_PEM);
        let modulus = pair.parameter(PublicParameter::RsaModulus).unwrap();
        let fails = |padding, input: &[u8]| matches!(pair.encrypt_rsa(padding, input), Err(Problem::Failure(_)));
        assert!(pair.encrypt_rsa(RsaPadding::Pkcs1, &[1; 117]).is_ok());
        assert!(fails(RsaPadding::Pkcs1, &[1; 118]));
        assert!(fails(RsaPadding::None, &[1; 127]));
        assert!(fails(RsaPadding::None, &[1; 129]));
        assert!(fails(RsaPadding::None, &modulus), "not below the modulus");
    }

    /// What one operation leaves in a context must not be in the next, whichever padding that has and whether it failed.
    fn assert_each_operation_is_as_the_first(pair: &KeyPair) {
        let digest = sha256(b"abc");
        let whole: Vec<u8> = (0..128).collect();
        let fresh = |padding, input: &[u8]| self::pair(RSA_PEM).encrypt_rsa(padding, input).unwrap();
        let (padded, raw) = (fresh(RsaPadding::Pkcs1, &digest), fresh(RsaPadding::None, &whole));
        for _ in 0..3 {
            assert_eq!(pair.encrypt_rsa(RsaPadding::Pkcs1, &digest).unwrap(), padded);
            assert_eq!(pair.encrypt_rsa(RsaPadding::None, &whole).unwrap(), raw);
            assert!(pair.encrypt_rsa(RsaPadding::Pkcs1, &whole).is_err());
            assert_eq!(pair.encrypt_rsa(RsaPadding::None, &whole).unwrap(), raw);
            assert_eq!(pair.encrypt_rsa(RsaPadding::Pkcs1, &[]).unwrap(), fresh(RsaPadding::Pkcs1, &[]));
            assert!(pair.encrypt_rsa(RsaPadding::None, &digest).is_err());
        }
    }

    #[test]
    fn a_copy_of_the_key_does_what_the_key_does() {
        let pair = pair(RSA_PEM);
        assert_each_operation_is_as_the_first(&pair);
        let size = *context_pool::SIZE;
        let mut held = Vec::from_iter(pair.contexts.take());
        for number in 1..size {
            assert_each_operation_is_as_the_first(&pair);
            assert_eq!(
                pair.made.load(Ordering::Relaxed),
                number + 1,
                "neither an error nor the next operation costs a copy"
            );
            held.extend(pair.contexts.take());
        }
        assert_eq!(held.len(), size);
        // More at once than are kept.
        assert_each_operation_is_as_the_first(&pair);
        assert!(pair.contexts.take().is_none());
    }

    #[test]
    fn many_threads_may_use_one_pair() {
        let (rsa, ec, digest) = (pair(RSA_PEM), pair(EC_PEM), sha256(b"abc"));
        let expected = rsa.encrypt_rsa(RsaPadding::Pkcs1, &digest).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert_eq!(rsa.encrypt_rsa(RsaPadding::Pkcs1, &digest).unwrap(), expected);
                        assert!(verifies(&ec, &digest, &ec.sign_ecdsa(&digest).unwrap()));
                    }
                });
            }
        });
    }

    #[test]
    fn generated_pairs_are_written_as_the_public_system_writes_them() {
        let pem = KeyPair::generate(NewKeyPair::EcP256).unwrap();
        assert_eq!(pem.len(), 241);
        assert!(pem.starts_with(b"-----BEGIN PRIVATE KEY-----\n") && pem.ends_with(b"-----END PRIVATE KEY-----\n"));
        assert_eq!(KeyPair::from_pem(&pem).unwrap().parameter(PublicParameter::EcCurveOid).unwrap(), P256_OID);
        let pem = KeyPair::generate(NewKeyPair::Rsa2048).unwrap();
        assert!(pem.starts_with(b"-----BEGIN PRIVATE KEY-----\n"));
        let pair = KeyPair::from_pem(&pem).unwrap();
        assert_eq!(pair.parameter(PublicParameter::RsaModulus).unwrap().len(), 256);
        assert_eq!(pair.parameter(PublicParameter::RsaExponent).unwrap(), [1, 0, 1]);
        // Our own spelling of the vector's key is the vector.
        let key = PKey::private_key_from_pem(EC_PEM.as_bytes()).unwrap();
        assert_eq!(key.private_key_to_pem_pkcs8().unwrap(), EC_PEM.as_bytes());
    }

    #[test]
    fn sec1_and_pkcs1_and_explicit_parameters_are_read() {
        let expected = pair(EC_PEM).parameter(PublicParameter::EcPoint).unwrap();
        let key = PKey::private_key_from_pem(EC_PEM.as_bytes()).unwrap();
        let sec1 = String::from_utf8(key.ec_key().unwrap().private_key_to_pem().unwrap()).unwrap();
        assert!(sec1.contains("BEGIN EC PRIVATE KEY"));
        let with_parameters =
            format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{sec1}");
        for pem in [sec1, with_parameters] {
            assert_eq!(pair(&pem).parameter(PublicParameter::EcPoint).unwrap(), expected);
        }

        let mut group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        group.set_asn1_flag(Asn1Flag::EXPLICIT_CURVE);
        let explicit = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap().private_key_to_pem_pkcs8().unwrap();
        assert!(explicit.len() > 241);
        assert!(KeyPair::from_pem(&explicit).unwrap().sign_ecdsa(&[1; 32]).is_ok());

        let rsa = PKey::private_key_from_pem(RSA_PEM.as_bytes()).unwrap().rsa().unwrap();
        let pkcs1 = String::from_utf8(rsa.private_key_to_pem().unwrap()).unwrap();
        assert!(pkcs1.contains("BEGIN RSA PRIVATE KEY"));
        assert_eq!(pair(&pkcs1).algorithm().unwrap(), KeyPairAlgorithm::Rsa);
    }

    #[test]
    fn another_curve_signs_and_hides_its_oid() {
        let group = EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
        let pem = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap().private_key_to_pem_pkcs8().unwrap();
        let pair = KeyPair::from_pem(&pem).unwrap();
        assert_eq!(pair.algorithm().unwrap(), KeyPairAlgorithm::Ec);
        assert_eq!(pair.parameter(PublicParameter::EcPoint).unwrap().len(), 49);
        assert!(pair.sign_ecdsa(&[1; 48]).is_ok());
        assert!(matches!(pair.parameter(PublicParameter::EcCurveOid), Err(Problem::Invalid(Invalid::WrongAlgorithm))));
    }

    #[test]
    fn another_algorithm_loads_and_can_do_nothing() {
        let pem = PKey::generate_ed25519().unwrap().private_key_to_pem_pkcs8().unwrap();
        let pair = KeyPair::from_pem(&pem).unwrap();
        assert!(pair.algorithm().is_err());
        assert!(is_wrong_algorithm(pair.sign_ecdsa(&[1; 32])));
    }

    #[test]
    fn damaged_and_encrypted_keys_are_refused_without_a_prompt() {
        let refusal = |pem: &[u8]| KeyPair::from_pem(pem).err().unwrap();
        for pem in [EC_PEM, RSA_PEM] {
            assert!(matches!(refusal(&pem.as_bytes()[..pem.len() / 2]), NotKeyPair::Unreadable(_)));
            assert!(matches!(refusal(&pem.as_bytes()[pem.len() / 2..]), NotKeyPair::NoPem));
        }
        assert!(matches!(refusal(b"0123"), NotKeyPair::NoPem));
        assert!(matches!(refusal(&[0; 241]), NotKeyPair::NoPem));
        let key = PKey::private_key_from_pem(EC_PEM.as_bytes()).unwrap();
        for passphrase in [&b"secret"[..], b""] {
            let cipher = openssl::symm::Cipher::aes_256_cbc();
            let pkcs8 = key.private_key_to_pem_pkcs8_passphrase(cipher, passphrase).unwrap();
            assert!(matches!(refusal(&pkcs8), NotKeyPair::Encrypted));
        }
        let old = key.ec_key().unwrap().private_key_to_pem_passphrase(openssl::symm::Cipher::aes_128_cbc(), b"secret");
        assert!(matches!(refusal(&old.unwrap()), NotKeyPair::Encrypted));
    }

    #[test]
    fn a_flipped_bit_that_still_parses_is_found() {
        let mut der = PKey::private_key_from_pem(RSA_PEM.as_bytes()).unwrap().private_key_to_pkcs8().unwrap();
        // In the modulus. OpenSSL itself notices and mends a wrong CRT coefficient.
        der[60] ^= 4;
        let lines: Vec<String> =
            base64(&der).as_bytes().chunks(64).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        assert!(matches!(KeyPair::from_pem(pem.as_bytes()), Err(NotKeyPair::Inconsistent)));
    }
}
