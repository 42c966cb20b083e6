//! The cloud's side of TPM attestation: a key that only one TPM can take, made from the two public keys by which DPS knows that TPM.
//!
//! Pure functions over OpenSSL, after TPM 2.0 Library, Part 1, "Duplication" and "Credential Protection". What a real DPS does
//! before, comparing the endorsement key with its enrollments, is not here; a TPM in software that opens what is made here is in [`testing`].

mod public_area;
pub mod testing;
mod wrapping;

use openssl::error::ErrorStack;
use openssl::sha::sha256;
use zeroize::Zeroizing;

use public_area::StorageKey;
use wrapping::{DUPLICATE, IDENTITY, Wrapped, sized};

/// Why there is no challenge for these keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the public key of a TPM that can be challenged.
    #[error("the {name} key is not usable")]
    PublicKey {
        /// `endorsement` or `storage root`.
        name: &'static str,
        /// What is wrong with it.
        source: PublicKeyError,
    },
    /// A TPM would refuse it.
    #[error("a key for HMAC-SHA256 in a TPM has 1 to {KEY_BYTES} bytes, not {0}")]
    KeyLength(usize),
    /// OpenSSL failed.
    #[error("could not encrypt for the TPM")]
    OpenSsl(#[from] ErrorStack),
}

pub use public_area::Error as PublicKeyError;

/// Longest key: a block of the hash (TPM 2.0 Library, Part 1, "HMAC key").
const KEY_BYTES: usize = 64;
/// `TPM_ALG_KEYEDHASH`, `TPM_ALG_SHA256`, `TPM_ALG_HMAC`.
const KEYEDHASH: [u8; 2] = [0x00, 0x08];
const SHA256: [u8; 2] = [0x00, 0x0b];
const HMAC: [u8; 2] = [0x00, 0x05];
/// `userWithAuth` and `sign`; neither `fixedTPM` nor `fixedParent`, as for everything that is imported.
const ATTRIBUTES: [u8; 4] = [0x00, 0x04, 0x00, 0x40];

/// The blob that delivers `key` to the TPM with these public keys, each a marshaled `TPM2B_PUBLIC`: what DPS calls `authenticationKey` and
/// `/import_auth_key` takes. Every call gives another one.
pub fn challenge(endorsement_key: &[u8], storage_root_key: &[u8], key: &[u8]) -> Result<Vec<u8>, Error> {
    let public_key = |name, bytes| StorageKey::parse(bytes).map_err(|source| Error::PublicKey { name, source });
    let endorsement_key = public_key("endorsement", endorsement_key)?;
    let storage_root_key = public_key("storage root", storage_root_key)?;
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(Error::KeyLength(key.len()));
    }

    let inner_key: Zeroizing<[u8; 16]> = random();
    let credential = wrapping::wrap(&endorsement_key, IDENTITY, storage_root_key.name(), &sized(&inner_key[..]))?;

    let obfuscation: Zeroizing<[u8; 32]> = random();
    let public_area = public_area_of(&obfuscation[..], key);
    let name = public_area::name(&public_area);
    let sensitive = sized(&[&KEYEDHASH[..], &sized(&[]), &sized(&obfuscation[..]), &sized(key)].concat());
    let integrity = sha256(&[&sensitive[..], &name].concat());
    let inner = [&sized(&integrity)[..], &sensitive].concat();
    let inner = Zeroizing::new(wrapping::encrypt(&inner_key[..], &Zeroizing::new(inner))?);
    let duplicate = wrapping::wrap(&storage_root_key, DUPLICATE, &name, &inner)?;

    let Wrapped { blob: identity, seed: identity_seed } = credential;
    let Wrapped { blob: private, seed: private_seed } = duplicate;
    Ok([sized(&identity), sized(&identity_seed), sized(&private), sized(&private_seed), sized(&public_area)].concat())
}

/// `TPMT_PUBLIC` of an HMAC key without a policy.
fn public_area_of(obfuscation: &[u8], key: &[u8]) -> Vec<u8> {
    let unique = sha256(&Zeroizing::new([obfuscation, key].concat()));
    [&KEYEDHASH[..], &SHA256, &ATTRIBUTES, &sized(&[]), &HMAC, &SHA256, &sized(&unique)].concat()
}

fn random<const LENGTH: usize>() -> Zeroizing<[u8; LENGTH]> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    crate::random::fill(&mut bytes[..]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::testing::SoftwareTpm;
    use super::*;

    #[test]
    fn the_tpm_it_is_for_opens_it_and_no_other() {
        let (tpm, other) = (SoftwareTpm::new(), SoftwareTpm::new());
        for length in [1, 32, 64] {
            let key: Vec<u8> = (1..=length).collect();
            let blob = challenge(tpm.endorsement_key(), tpm.storage_root_key(), &key).unwrap();
            assert_eq!(tpm.open(&blob).unwrap(), key);
            assert!(other.open(&blob).is_err());
        }
    }

    /// `tpm.md`, section 13: "With an empty policy the parts are 54 + 258 + 144 + 258 + 50 = 764 bytes."
    #[test]
    fn parts_have_the_documented_sizes() {
        let tpm = SoftwareTpm::new();
        let blob = challenge(tpm.endorsement_key(), tpm.storage_root_key(), &[7; 32]).unwrap();
        let mut rest = &blob[..];
        let mut sizes = Vec::new();
        while let [high, low, ..] = rest {
            let size = 2 + usize::from(u16::from_be_bytes([*high, *low]));
            sizes.push(size);
            rest = &rest[size..];
        }
        assert_eq!(sizes, [54, 258, 144, 258, 50]);
    }

    #[test]
    fn a_changed_blob_is_not_opened() {
        let tpm = SoftwareTpm::new();
        let blob = challenge(tpm.endorsement_key(), tpm.storage_root_key(), &[7; 32]).unwrap();
        for at in (0..blob.len()).step_by(13) {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            assert!(tpm.open(&changed).is_err(), "byte {at}");
        }
        for length in [0, 1, 53, 54, 311, 763] {
            assert!(tpm.open(&blob[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(tpm.open(&[&blob[..], b"more"].concat()).unwrap(), [7; 32], "TPM services ignore what follows");
    }

    #[test]
    fn keys_that_no_tpm_would_have_are_refused() {
        let tpm = SoftwareTpm::new();
        let (endorsement, storage) = (tpm.endorsement_key(), tpm.storage_root_key());
        for length in [0, 65] {
            assert!(matches!(challenge(endorsement, storage, &vec![1; length]), Err(Error::KeyLength(_))));
        }
        for length in 0..endorsement.len() {
            assert!(challenge(&endorsement[..length], storage, &[1]).is_err(), "{length} bytes");
        }
        assert!(challenge(&[endorsement, &[0]].concat(), storage, &[1]).is_err());
        for at in (0..6).chain([7, 9, 10, 11]).chain(44..54) {
            let mut changed = endorsement.to_vec();
            changed[at] ^= 0xff;
            assert!(challenge(&changed, storage, &[1]).is_err(), "byte {at}");
        }
        let error = challenge(endorsement, b"", &[1]).unwrap_err();
        assert!(error.to_string().contains("storage root"), "{error}");
    }

    #[test]
    fn names_are_the_hash_behind_its_algorithm() {
        let area = public_area_of(&[0; 32], &[0; 32]);
        assert_eq!(area.len(), 48);
        assert_eq!(public_area::name(&area)[..2], SHA256);
        assert_eq!(public_area::name(&area)[2..], sha256(&area));
    }
}
