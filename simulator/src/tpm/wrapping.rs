//! Wrapping for a TPM: a random seed encrypted to one of its keys, and what the seed's keys encrypt and authenticate.
//!
//! Credentials and duplicates are wrapped in the same way (TPM 2.0 Library, Part 1, "Outer Duplication Wrapper" and "Credential Protection").

use openssl::encrypt::{Decrypter, Encrypter};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::memcmp;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Padding;
use openssl::sign::Signer;
use openssl::symm::{self, Cipher};
use zeroize::Zeroizing;

use super::public_area::{Reader, StorageKey};

/// Labels of the seeds; the NUL belongs to them.
pub(super) const IDENTITY: &[u8] = b"IDENTITY\0";
pub(super) const DUPLICATE: &[u8] = b"DUPLICATE\0";

const ZERO_IV: [u8; 16] = [0; 16];

/// What one key of a TPM can unwrap. Neither part has its size in front.
pub(super) struct Wrapped {
    /// HMAC, with its size, and the encrypted content.
    pub(super) blob: Vec<u8>,
    /// The encrypted seed.
    pub(super) seed: Vec<u8>,
}

/// Wraps `content` for `recipient`, bound to the object with this name.
pub(super) fn wrap(recipient: &StorageKey, label: &[u8], name: &[u8], content: &[u8]) -> Result<Wrapped, ErrorStack> {
    let seed: Zeroizing<[u8; 32]> = super::random();
    let [key, integrity_key] = keys(&seed[..], name)?;
    let encrypted = encrypt(&key, content)?;
    let mac = hmac(&integrity_key, &[&encrypted, name])?;
    Ok(Wrapped { blob: [sized(&mac), encrypted].concat(), seed: seal_seed(recipient, label, &seed[..])? })
}

/// The content of what was wrapped for `recipient`; nothing if it was not, or was changed since.
pub(super) fn unwrap(
    recipient: &PKey<Private>,
    label: &[u8],
    name: &[u8],
    blob: &[u8],
    seed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let seed = open_seed(recipient, label, seed).ok().filter(|seed| seed.len() == 32)?;
    let mut reader = Reader(blob);
    let mac = reader.sized().ok()?;
    let encrypted = reader.0;
    let [key, integrity_key] = keys(&seed, name).ok()?;
    let expected = hmac(&integrity_key, &[encrypted, name]).ok()?;
    if mac.len() != expected.len() || !memcmp::eq(mac, &expected) {
        return None;
    }
    decrypt(&key, encrypted).ok()
}

fn seal_seed(recipient: &StorageKey, label: &[u8], seed: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let mut encrypter = Encrypter::new(recipient.key())?;
    encrypter.set_rsa_padding(Padding::PKCS1_OAEP)?;
    encrypter.set_rsa_oaep_md(MessageDigest::sha256())?;
    encrypter.set_rsa_mgf1_md(MessageDigest::sha256())?;
    encrypter.set_rsa_oaep_label(label)?;
    let mut sealed = vec![0; encrypter.encrypt_len(seed)?];
    let length = encrypter.encrypt(seed, &mut sealed)?;
    sealed.truncate(length);
    Ok(sealed)
}

fn open_seed(recipient: &PKey<Private>, label: &[u8], seed: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
    let mut decrypter = Decrypter::new(recipient)?;
    decrypter.set_rsa_padding(Padding::PKCS1_OAEP)?;
    decrypter.set_rsa_oaep_md(MessageDigest::sha256())?;
    decrypter.set_rsa_mgf1_md(MessageDigest::sha256())?;
    decrypter.set_rsa_oaep_label(label)?;
    let mut opened = Zeroizing::new(vec![0; decrypter.decrypt_len(seed)?]);
    let length = decrypter.decrypt(seed, &mut opened)?;
    opened.truncate(length);
    Ok(opened)
}

/// Encrypts under a key that is used once.
pub(super) fn encrypt(key: &[u8], content: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    symm::encrypt(Cipher::aes_128_cfb128(), key, Some(&ZERO_IV), content)
}

/// Undoes [`encrypt`].
pub(super) fn decrypt(key: &[u8], content: &[u8]) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
    symm::decrypt(Cipher::aes_128_cfb128(), key, Some(&ZERO_IV), content).map(Zeroizing::new)
}

/// The keys that a seed stands for: for AES-128, and for HMAC-SHA256.
fn keys(seed: &[u8], name: &[u8]) -> Result<[Zeroizing<Vec<u8>>; 2], ErrorStack> {
    Ok([kdfa(seed, b"STORAGE", name, 128)?, kdfa(seed, b"INTEGRITY", &[], 256)?])
}

/// `KDFa` with SHA-256 (TPM 2.0 Library, Part 1, 11.4.10.2) for up to one block, with an empty second context.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Result<Zeroizing<Vec<u8>>, ErrorStack> {
    let mut block = hmac(key, &[&1_u32.to_be_bytes(), label, &[0], context, &bits.to_be_bytes()])?;
    block.truncate(usize::try_from(bits / 8).unwrap_or(usize::MAX));
    Ok(Zeroizing::new(block))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, ErrorStack> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    for part in parts {
        signer.update(part)?;
    }
    signer.sign_to_vec()
}

/// A structure that begins with its size, as `TPM2B_` structures do.
pub(super) fn sized(content: &[u8]) -> Vec<u8> {
    let size = u16::try_from(content.len()).expect("all that is marshaled here is under a kilobyte");
    [&size.to_be_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kdfa_is_one_hmac_over_counter_label_context_and_length() {
        let key = kdfa(&[0; 32], b"STORAGE", &[1, 2], 128).unwrap();
        assert_eq!(key[..], hmac(&[0; 32], &[b"\0\0\0\x01STORAGE\0\x01\x02\0\0\0\x80"]).unwrap()[..16]);
        assert_eq!(kdfa(&[0; 32], b"INTEGRITY", &[], 256).unwrap().len(), 32);
    }

    #[test]
    fn what_is_encrypted_is_decrypted() {
        let encrypted = encrypt(&[7; 16], b"seventeen bytes..").unwrap();
        assert_eq!(encrypted.len(), 17);
        assert_eq!(&decrypt(&[7; 16], &encrypted).unwrap()[..], b"seventeen bytes..");
    }
}
