//! Ways to sign, and the blocks that the key service's bare RSA operations are given for them (RFC 8017, section 9).

use openssl::{error::ErrorStack, hash::MessageDigest};

use super::KeyError;

/// A hash of the SHA-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// A way to sign a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// The signature is a DER sequence of r and s.
    Ecdsa(Hash),
    /// PKCS #1 v1.5.
    RsaPkcs1(Hash),
    /// With MGF1 over the same hash and a salt as long as the digest, as TLS has it.
    RsaPss(Hash),
}

impl Hash {
    pub(crate) fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => openssl::sha::sha256(message).to_vec(),
            Self::Sha384 => openssl::sha::sha384(message).to_vec(),
            Self::Sha512 => openssl::sha::sha512(message).to_vec(),
        }
    }

    pub(crate) fn openssl(self) -> MessageDigest {
        match self {
            Self::Sha256 => MessageDigest::sha256(),
            Self::Sha384 => MessageDigest::sha384(),
            Self::Sha512 => MessageDigest::sha512(),
        }
    }

    const fn length(self) -> u8 {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Last number of the hash's object identifier.
    const fn arc(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha384 => 2,
            Self::Sha512 => 3,
        }
    }
}

/// The digest with its `DigestInfo` (section 9.2, note 1); the key service pads it.
pub(super) fn digest_info(hash: Hash, message: &[u8]) -> Vec<u8> {
    let (length, arc) = (hash.length(), hash.arc());
    let mut block =
        vec![0x30, 17 + length, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, arc];
    block.extend([0x05, 0x00, 0x04, length]);
    block.extend(hash.digest(message));
    block
}

/// Whether a modulus of so many bits has room for a PSS block with this hash.
pub(crate) fn has_room_for_pss(hash: Hash, modulus_bits: u32) -> bool {
    encoded_length(modulus_bits) >= 2 * usize::from(hash.length()) + 2
}

/// The PSS block (section 9.1.1) as long as the modulus, for an operation without padding.
pub(super) fn pss(hash: Hash, message: &[u8], modulus_bits: u32) -> Result<Vec<u8>, KeyError> {
    let mut salt = vec![0; usize::from(hash.length())];
    openssl::rand::rand_bytes(&mut salt).map_err(random)?;
    pss_with(hash, &hash.digest(message), &salt, modulus_bits)
}

fn random(source: ErrorStack) -> KeyError {
    KeyError::Block(source.into())
}

/// The block proper has a bit less than the modulus, and so at times a byte.
fn encoded_length(modulus_bits: u32) -> usize {
    usize::try_from(modulus_bits.saturating_sub(1).div_ceil(8)).unwrap_or(0)
}

fn pss_with(hash: Hash, digest: &[u8], salt: &[u8], modulus_bits: u32) -> Result<Vec<u8>, KeyError> {
    let length = encoded_length(modulus_bits);
    if length < digest.len() + salt.len() + 2 {
        return Err(KeyError::Block(format!("an RSA key of {modulus_bits} bits is too short for {hash:?}").into()));
    }
    let seed = hash.digest(&[&[0; 8], digest, salt].concat());
    let mut block = vec![0; length - seed.len() - 1];
    let at = block.len() - salt.len();
    block[at - 1] = 1;
    block[at..].copy_from_slice(salt);
    for (byte, mask) in block.iter_mut().zip(mask(hash, &seed)) {
        *byte ^= mask;
    }
    let unused = u32::try_from(8 * length).unwrap_or(0).saturating_sub(modulus_bits.saturating_sub(1));
    block[0] &= 0xff >> unused;
    block.extend(seed);
    block.push(0xbc);
    if modulus_bits % 8 == 1 {
        block.insert(0, 0);
    }
    Ok(block)
}

/// The mask generation function MGF1 (appendix B.2.1), without end.
fn mask(hash: Hash, seed: &[u8]) -> impl Iterator<Item = u8> + '_ {
    (0_u32..).flat_map(move |counter| hash.digest(&[seed, &counter.to_be_bytes()].concat()))
}

#[cfg(test)]
mod tests {
    use openssl::{
        pkey::PKey,
        rsa::{Padding, Rsa},
        sign::{RsaPssSaltlen, Verifier},
    };

    use super::*;

    #[test]
    fn openssl_verifies_blocks_of_every_hash_and_of_odd_moduli() {
        // 2041 and 2042 bits: the block is a byte shorter than the modulus, and a bit longer than that.
        for bits in [2048, 2041, 2042] {
            let rsa = Rsa::generate(bits).unwrap();
            let key = PKey::from_rsa(rsa.clone()).unwrap();
            for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
                let block = pss(hash, b"message", bits).unwrap();
                assert_eq!(block.len(), usize::try_from(rsa.size()).unwrap());
                let mut signature = vec![0; block.len()];
                rsa.private_encrypt(&block, &mut signature, Padding::NONE).unwrap();
                let mut verifier = Verifier::new(hash.openssl(), &key).unwrap();
                verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
                verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
                assert!(verifier.verify_oneshot(&signature, b"message").unwrap(), "{bits} bits, {hash:?}");

                let info = digest_info(hash, b"message");
                rsa.private_encrypt(&info, &mut signature, Padding::PKCS1).unwrap();
                let mut verifier = Verifier::new(hash.openssl(), &key).unwrap();
                assert!(verifier.verify_oneshot(&signature, b"message").unwrap(), "PKCS #1, {hash:?}");
            }
        }
    }

    #[test]
    fn short_keys_are_told_not_overrun() {
        assert!(has_room_for_pss(Hash::Sha384, 1024) && !has_room_for_pss(Hash::Sha512, 1024));
        assert!(pss(Hash::Sha384, b"", 1024).is_ok());
        for bits in [0, 1, 8, 511, 1024] {
            assert!(matches!(pss(Hash::Sha512, b"", bits), Err(KeyError::Block(_))), "{bits}");
        }
    }
}
