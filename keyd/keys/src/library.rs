//! What the key service asks of a key library, whichever it is: [`Keys`], built in, or [`Foreign`](crate::Foreign), a vendor's.
//!
//! Every method blocks, until a disk, a token or a vendor's thread has answered.

use crate::{Error, KeyPairAlgorithm, KeyUsage, Keys, PublicParameter, RsaPadding, Secret, SymmetricUse};

/// The keys of one device. Errors are as for [`Keys`]; a vendor's library tells less about them.
pub trait KeyLibrary: Send + Sync {
    /// Clears away what a crash left, if that is this library's business; in folders that it shares with others, what was left more than
    /// [`LEFTOVER_AGE`](crate::LEFTOVER_AGE) ago. Called while keys are in use already.
    fn tidy(&self) -> Result<(), aziot_files::Error>;
    /// Whether looking at the key `id`, and using it if it is symmetric, neither touches a disk nor waits for anybody.
    fn is_ready(&self, id: &str) -> bool;
    /// Whether [`KeyLibrary::sign_ecdsa`] with the key pair `id` does not either, nor computes for longer than a symmetric key.
    fn is_ready_to_sign_ecdsa(&self, id: &str) -> bool;
    /// Makes the symmetric key `id` unless it exists.
    fn create_key(&self, id: &str, usage: KeyUsage) -> Result<(), Error>;
    /// Makes sure that the symmetric key `id` exists and can be used.
    fn load_key(&self, id: &str) -> Result<(), Error>;
    /// Makes `bytes` the symmetric key `id`, over the one that is there.
    fn import_key(&self, id: &str, usage: KeyUsage, bytes: &Secret) -> Result<(), Error>;
    /// Deletes the symmetric key `id`; absent is fine.
    fn delete_key(&self, id: &str) -> Result<(), Error>;
    /// Makes the key pair `id` unless it exists, with one of the preferred algorithms (none: any).
    fn create_key_pair(&self, id: &str, preferred_algorithms: Option<&str>) -> Result<(), Error>;
    /// Makes sure that the key pair `id` exists and can be used.
    fn load_key_pair(&self, id: &str) -> Result<(), Error>;
    /// Gives the key pair `from` the id `to`, in place of the key pair that has it.
    fn move_key_pair(&self, from: &str, to: &str) -> Result<(), Error>;
    /// Deletes the key pair `id`; absent is fine.
    fn delete_key_pair(&self, id: &str) -> Result<(), Error>;
    /// HMAC-SHA256 of `message`.
    fn sign_hmac(&self, key: SymmetricUse<'_>, message: &[u8]) -> Result<Secret, Error>;
    /// Whether `signature` is the HMAC-SHA256 of `message`, in constant time, under the stored key `id`.
    fn verify_hmac(&self, id: &str, message: &[u8], signature: &[u8]) -> Result<bool, Error>;
    /// The key derived from `base` and `data`.
    fn derive(&self, base: &str, data: &[u8]) -> Result<Secret, Error>;
    /// AES-GCM: version byte, ciphertext, tag.
    fn encrypt_aead(&self, key: SymmetricUse<'_>, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Error>;
    /// The plaintext of what [`KeyLibrary::encrypt_aead`] made.
    fn decrypt_aead(&self, key: SymmetricUse<'_>, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Secret, Error>;
    /// The algorithm of a key pair.
    fn key_pair_algorithm(&self, id: &str) -> Result<KeyPairAlgorithm, Error>;
    /// Something about the public half of a key pair.
    fn public_parameter(&self, id: &str, parameter: PublicParameter) -> Result<Vec<u8>, Error>;
    /// ECDSA over `digest` as it is. DER.
    fn sign_ecdsa(&self, id: &str, digest: &[u8]) -> Result<Vec<u8>, Error>;
    /// The RSA private operation on `input`.
    fn encrypt_rsa(&self, id: &str, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Error>;
}

impl KeyLibrary for Keys {
    fn tidy(&self) -> Result<(), aziot_files::Error> {
        self.tidy()
    }

    fn is_ready(&self, id: &str) -> bool {
        self.is_ready(id)
    }

    fn is_ready_to_sign_ecdsa(&self, id: &str) -> bool {
        self.is_ready_to_sign_ecdsa(id)
    }

    fn create_key(&self, id: &str, usage: KeyUsage) -> Result<(), Error> {
        self.create_key(id, usage)
    }

    fn load_key(&self, id: &str) -> Result<(), Error> {
        self.load_key(id)
    }

    fn import_key(&self, id: &str, usage: KeyUsage, bytes: &Secret) -> Result<(), Error> {
        self.import_key(id, usage, bytes)
    }

    fn delete_key(&self, id: &str) -> Result<(), Error> {
        self.delete_key(id)
    }

    fn create_key_pair(&self, id: &str, preferred_algorithms: Option<&str>) -> Result<(), Error> {
        self.create_key_pair(id, preferred_algorithms)
    }

    fn load_key_pair(&self, id: &str) -> Result<(), Error> {
        self.load_key_pair(id)
    }

    fn move_key_pair(&self, from: &str, to: &str) -> Result<(), Error> {
        self.move_key_pair(from, to)
    }

    fn delete_key_pair(&self, id: &str) -> Result<(), Error> {
        self.delete_key_pair(id)
    }

    fn sign_hmac(&self, key: SymmetricUse<'_>, message: &[u8]) -> Result<Secret, Error> {
        self.sign_hmac(key, message)
    }

    fn verify_hmac(&self, id: &str, message: &[u8], signature: &[u8]) -> Result<bool, Error> {
        self.verify_hmac(SymmetricUse::Stored(id), message, signature)
    }

    fn derive(&self, base: &str, data: &[u8]) -> Result<Secret, Error> {
        self.derive(base, data)
    }

    fn encrypt_aead(&self, key: SymmetricUse<'_>, iv: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        self.encrypt_aead(key, iv, aad, plaintext)
    }

    fn decrypt_aead(&self, key: SymmetricUse<'_>, iv: &[u8], aad: &[u8], ciphertext: &[u8]) -> Result<Secret, Error> {
        self.decrypt_aead(key, iv, aad, ciphertext)
    }

    fn key_pair_algorithm(&self, id: &str) -> Result<KeyPairAlgorithm, Error> {
        self.key_pair_algorithm(id)
    }

    fn public_parameter(&self, id: &str, parameter: PublicParameter) -> Result<Vec<u8>, Error> {
        self.public_parameter(id, parameter)
    }

    fn sign_ecdsa(&self, id: &str, digest: &[u8]) -> Result<Vec<u8>, Error> {
        self.sign_ecdsa(id, digest)
    }

    fn encrypt_rsa(&self, id: &str, padding: RsaPadding, input: &[u8]) -> Result<Vec<u8>, Error> {
        self.encrypt_rsa(id, padding, input)
    }
}
