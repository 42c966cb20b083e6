//! AES-256-GCM (NIST SP 800-38D) under a key that is prepared once: a context that knows the key takes one message after the other.
//!
//! OpenSSL 3 looks its cipher up anew for each new context, which costs more than encrypting a kilobyte (`docs/benchmarks.md`).

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use zeroize::Zeroizing;

use crate::context_pool::ContextPool;

/// Length of a key in bytes.
pub(crate) const KEY_LENGTH: usize = 32;
/// Length of a tag in bytes.
pub(crate) const TAG_LENGTH: usize = 16;

/// A key's part in AES-256-GCM.
#[derive(Default)]
pub(crate) struct Aead {
    contexts: ContextPool<Context>,
}

struct Context {
    cipher: CipherCtx,
    /// Bytes of IV that it expects.
    iv_length: usize,
}

impl Aead {
    /// Appends the ciphertext of `plaintext` and its tag to `output`. `key` is the same at each call.
    pub(crate) fn encrypt(
        &self,
        key: &[u8; KEY_LENGTH],
        iv: &[u8],
        aad: &[u8],
        plaintext: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), ErrorStack> {
        let mut context = self.context(key)?;
        context.expect_iv_of(iv.len())?;
        let cipher = &mut context.cipher;
        cipher.encrypt_init(None, None, Some(iv))?;
        cipher.cipher_update(aad, None)?;
        cipher.cipher_update_vec(plaintext, output)?;
        cipher.cipher_final(&mut [])?;
        let end = output.len();
        output.resize(end + TAG_LENGTH, 0);
        cipher.tag(&mut output[end..])?;
        self.contexts.keep(context);
        Ok(())
    }

    /// The plaintext of `ciphertext`; `None` unless `tag` is right. `key` is the same at each call.
    pub(crate) fn decrypt(
        &self,
        key: &[u8; KEY_LENGTH],
        iv: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, ErrorStack> {
        let mut context = self.context(key)?;
        context.expect_iv_of(iv.len())?;
        let cipher = &mut context.cipher;
        cipher.decrypt_init(None, None, Some(iv))?;
        cipher.cipher_update(aad, None)?;
        let mut plaintext = Zeroizing::new(Vec::with_capacity(ciphertext.len()));
        cipher.cipher_update_vec(ciphertext, &mut plaintext)?;
        cipher.set_tag(tag)?;
        // GCM reports a wrong tag with no reason of its own.
        if cipher.cipher_final(&mut []).is_err() {
            return Ok(None);
        }
        self.contexts.keep(context);
        Ok(Some(plaintext))
    }

    fn context(&self, key: &[u8; KEY_LENGTH]) -> Result<Context, ErrorStack> {
        match self.contexts.take() {
            Some(context) => Ok(context),
            None => Context::new(key),
        }
    }
}

impl Context {
    fn new(key: &[u8; KEY_LENGTH]) -> Result<Context, ErrorStack> {
        let mut cipher = CipherCtx::new()?;
        // Both directions have the same key schedule.
        cipher.encrypt_init(Some(Cipher::aes_256_gcm()), Some(key), None)?;
        Ok(Context { iv_length: cipher.iv_length(), cipher })
    }

    fn expect_iv_of(&mut self, length: usize) -> Result<(), ErrorStack> {
        if self.iv_length != length {
            self.cipher.set_iv_length(length)?;
            self.iv_length = length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use openssl::symm;

    use super::*;

    const KEY: [u8; KEY_LENGTH] = [7; KEY_LENGTH];

    /// A long message in one direction and a short one in the other must leave nothing behind in the context.
    #[test]
    fn is_what_openssl_makes_of_any_message_in_any_order() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let key = Aead::default();
        for (round, length) in [0, 1, 15, 16, 17, 1024, 3000, 3, 0].into_iter().enumerate() {
            for iv_length in [12, 1, 16, 128, 12] {
                for aad_length in [0, 9, 100] {
                    let iv: Vec<u8> = bytes.iter().skip(round).copied().take(iv_length).collect();
                    let (aad, plaintext) = (&bytes[..aad_length], &bytes[..length]);
                    let mut tag = [0; TAG_LENGTH];
                    let cipher = symm::Cipher::aes_256_gcm();
                    let expected = symm::encrypt_aead(cipher, &KEY, Some(&iv), aad, plaintext, &mut tag).unwrap();
                    let mut output = b"before".to_vec();
                    key.encrypt(&KEY, &iv, aad, plaintext, &mut output).unwrap();
                    assert_eq!(output, [b"before", &*expected, &tag].concat());
                    let decrypted = key.decrypt(&KEY, &iv, aad, &expected, &tag).unwrap();
                    assert_eq!(**decrypted.as_ref().unwrap(), *plaintext);
                    tag[0] ^= 1;
                    assert!(key.decrypt(&KEY, &iv, aad, &expected, &tag).unwrap().is_none());
                }
            }
        }
    }

    #[test]
    fn many_threads_may_use_one_key() {
        let key = Aead::default();
        let encrypt = || {
            let mut output = Vec::new();
            key.encrypt(&KEY, &[1; 12], b"aad", b"message", &mut output).unwrap();
            output
        };
        let expected = encrypt();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| assert_eq!(encrypt(), expected)));
            }
        });
    }
}
