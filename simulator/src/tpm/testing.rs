//! A TPM in software for tests: two keys, and what a TPM does with the blob that DPS sends it.
//!
//! For tests that script a TPM service. Nothing protects its keys; a TPM to run commands on is swtpm.

use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sha::sha256;
use zeroize::Zeroizing;

use super::public_area::{self, PARAMETERS, RSA, Reader, StorageKey};
use super::wrapping::{self, DUPLICATE, IDENTITY, sized};

/// The keys of a TPM, made anew each time.
pub struct SoftwareTpm {
    endorsement: Key,
    storage: Key,
}

struct Key {
    private: PKey<Private>,
    public: Vec<u8>,
}

/// The blob was not made for this TPM, or changed on its way.
#[derive(Debug, thiserror::Error)]
#[error("the TPM refuses the blob: {0}")]
pub struct Refused(&'static str);

/// Attributes and policy of an endorsement key (TCG EK Credential Profile, template L-1) and of a storage root key.
const ENDORSEMENT_ATTRIBUTES: [u8; 4] = [0x00, 0x03, 0x00, 0xb2];
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
const STORAGE_ATTRIBUTES: [u8; 4] = [0x00, 0x03, 0x04, 0x72];

impl SoftwareTpm {
    /// A TPM that nobody has seen before.
    ///
    /// # Panics
    /// When OpenSSL makes no RSA keys.
    #[must_use]
    pub fn new() -> Self {
        Self {
            endorsement: Key::new(ENDORSEMENT_ATTRIBUTES, &ENDORSEMENT_POLICY),
            storage: Key::new(STORAGE_ATTRIBUTES, &[]),
        }
    }

    /// Public part of the endorsement key: a marshaled `TPM2B_PUBLIC`, byte for byte as a TPM has it.
    #[must_use]
    pub fn endorsement_key(&self) -> &[u8] {
        &self.endorsement.public
    }

    /// Public part of the storage root key.
    #[must_use]
    pub fn storage_root_key(&self) -> &[u8] {
        &self.storage.public
    }

    /// The key in a blob, after the checks of `TPM2_ActivateCredential`, `TPM2_Import` and `TPM2_Load`. A TPM would keep it to itself.
    pub fn open(&self, blob: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut reader = Reader(blob);
        let mut part = || reader.sized().map_err(|_| Refused("it is cut short"));
        let (identity, identity_seed, private, private_seed, area) = (part()?, part()?, part()?, part()?, part()?);

        let storage = StorageKey::parse(&self.storage.public).map_err(|_| Refused("the TPM is broken"))?;
        let credential = wrapping::unwrap(&self.endorsement.private, IDENTITY, storage.name(), identity, identity_seed);
        let credential = credential.ok_or(Refused("the credential is not for these keys"))?;
        let inner_key = Reader(&credential).sized().ok().filter(|key| key.len() == 16);
        let inner_key = inner_key.ok_or(Refused("the credential is no AES key"))?;

        let name = public_area::name(area);
        let inner = wrapping::unwrap(&self.storage.private, DUPLICATE, &name, private, private_seed);
        let inner = inner.ok_or(Refused("the duplicate is not for the storage root key"))?;
        let inner = wrapping::decrypt(inner_key, &inner).map_err(|_| Refused("the duplicate is not encrypted"))?;
        let mut reader = Reader(&inner);
        let integrity = reader.sized().map_err(|_| Refused("the inner wrapper is of another key"))?;
        if integrity != sha256(&Zeroizing::new([reader.0, &name[..]].concat())) {
            return Err(Refused("the inner wrapper is damaged"));
        }
        key_in(reader.0, area).ok_or(Refused("the key does not belong to its public part"))
    }
}

impl Default for SoftwareTpm {
    fn default() -> Self {
        Self::new()
    }
}

/// The key in a `TPM2B_SENSITIVE`, if it is one for HMAC without a password and `area` is its public part.
fn key_in(sensitive: &[u8], area: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader(sensitive);
    let content = reader.sized().ok()?;
    reader.end().ok()?;
    let mut reader = Reader(content);
    let (kind, password) = (reader.take(2).ok()?, reader.sized().ok()?);
    let (obfuscation, key) = (reader.sized().ok()?, reader.sized().ok()?);
    let fits = kind == super::KEYEDHASH && password.is_empty() && super::public_area_of(obfuscation, key) == area;
    fits.then(|| key.to_vec())
}

impl Key {
    fn new(attributes: [u8; 4], policy: &[u8]) -> Self {
        let rsa = Rsa::generate(2048).expect("an RSA key");
        // An exponent of 0 stands for 65537.
        let exponent = [0; 4];
        let modulus = sized(&rsa.n().to_vec());
        let area = [&RSA[..], &super::SHA256, &attributes, &sized(policy), &PARAMETERS, &exponent, &modulus].concat();
        Self { private: PKey::from_rsa(rsa).expect("an RSA key"), public: sized(&area) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tpm.md`, section 5.
    #[test]
    fn public_keys_are_marshaled_as_a_tpm_does() {
        let tpm = SoftwareTpm::new();
        assert_eq!((tpm.endorsement_key().len(), tpm.storage_root_key().len()), (316, 284));
        let parameters = [0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 1, 0];
        let endorsement_key = tpm.endorsement_key();
        assert_eq!(endorsement_key[..12], [0x01, 0x3a, 0, 1, 0, 0x0b, 0, 3, 0, 0xb2, 0, 0x20]);
        assert_eq!(endorsement_key[12..16], [0x83, 0x71, 0x97, 0x67]);
        assert_eq!(endorsement_key[40..44], [0x33, 0x14, 0x69, 0xaa]);
        assert_eq!(endorsement_key[44..60], parameters);
        assert_eq!(tpm.storage_root_key()[..12], [0x01, 0x1a, 0, 1, 0, 0x0b, 0, 3, 4, 0x72, 0, 0]);
        assert_eq!(tpm.storage_root_key()[12..28], parameters);
    }
}
