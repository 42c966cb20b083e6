//! What OpenSSL does on this machine without any service: the same operation in a loop, on one processor and on all of them.
//!
//! Keys are parsed and prepared once, as in the service. Making a key includes the file that a key is, on the same file system.

use std::{
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aziot_files::{Created, Mode};
use openssl::{
    cipher::Cipher,
    cipher_ctx::CipherCtx,
    ec::{Asn1Flag, EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::PKey,
    pkey_ctx::PkeyCtx,
    rand::rand_priv_bytes,
    rsa::{Padding, Rsa},
    sign::Signer,
};
use serde::Serialize;
use tempfile::TempDir;

use crate::operation::{AAD, DIGEST, IV, MESSAGE, Operation, PLAINTEXT, digest_info};

/// Operations per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rates {
    pub(crate) one_core: f64,
    pub(crate) all_cores: f64,
}

/// How many processors there are.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// An operation that OpenSSL does alone.
pub(crate) struct Raw {
    operation: Operation,
    /// Where new key files go.
    folder: TempDir,
    rounds: Vec<Rates>,
}

impl Raw {
    /// `None` where OpenSSL has nothing to do with it. New key files go below `folder`.
    pub(crate) fn new(operation: Operation, folder: &Path) -> Result<Option<Self>> {
        if operation == Operation::EmptyRoute {
            return Ok(None);
        }
        let folder = tempfile::tempdir_in(folder).context("could not make a folder")?;
        Ok(Some(Self { operation, folder, rounds: Vec::new() }))
    }

    /// Measures once, on one processor for so long and on all of them.
    pub(crate) fn round(&mut self, seconds: Duration) -> Result<()> {
        let rate = |threads| rate(self.operation, self.folder.path(), threads, seconds);
        self.rounds.push(Rates { one_core: rate(1)?, all_cores: rate(cores())? });
        Ok(())
    }

    /// What each round has come to.
    pub(crate) fn rounds(&self) -> &[Rates] {
        &self.rounds
    }

    /// The best round of each.
    pub(crate) fn best(&self) -> Rates {
        let best = |rate: fn(&Rates) -> f64| self.rounds.iter().map(rate).fold(0.0, f64::max);
        Rates { one_core: best(|rates| rates.one_core), all_cores: best(|rates| rates.all_cores) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 operations")]
fn rate(operation: Operation, folder: &Path, threads: usize, seconds: Duration) -> Result<f64> {
    let ready = &Barrier::new(threads);
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || -> Result<f64> {
                    let work = work(operation, folder);
                    // Making the keys is not measured.
                    ready.wait();
                    let (mut work, begun, mut count) = (work?, Instant::now(), 0_u64);
                    while begun.elapsed() < seconds {
                        work()?;
                        count += 1;
                    }
                    Ok(count as f64 / begun.elapsed().as_secs_f64())
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<f64>>| {
            thread.join().map_err(|_| anyhow!("a measuring thread panicked"))?
        };
        started.into_iter().map(join).sum::<Result<f64>>()
    })
}

type Work = Box<dyn FnMut() -> Result<()>>;

fn work(operation: Operation, folder: &Path) -> Result<Work> {
    let mut output = vec![0; 512];
    Ok(match operation {
        Operation::EmptyRoute => Box::new(|| Ok(())),
        Operation::HmacSha256 => {
            let key = PKey::hmac(&[1; 32])?;
            Box::new(move || {
                Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot(&mut output, &MESSAGE)?;
                Ok(())
            })
        }
        Operation::EcdsaP256 => {
            let group = p256()?;
            let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
            let mut context = PkeyCtx::new(&key)?;
            context.sign_init()?;
            Box::new(move || {
                context.sign(&DIGEST, Some(&mut output))?;
                Ok(())
            })
        }
        Operation::Rsa2048 => {
            let (key, input) = (PKey::from_rsa(Rsa::generate(2048)?)?, digest_info());
            let mut context = PkeyCtx::new(&key)?;
            context.sign_init()?;
            context.set_rsa_padding(Padding::PKCS1)?;
            Box::new(move || {
                context.sign(&input, Some(&mut output))?;
                Ok(())
            })
        }
        Operation::Aead1Kib => {
            let mut context = CipherCtx::new()?;
            context.encrypt_init(Some(Cipher::aes_256_gcm()), Some(&[1; 32]), None)?;
            let mut ciphertext = Vec::with_capacity(2 * PLAINTEXT.len());
            Box::new(move || {
                let mut tag = [0; 16];
                ciphertext.clear();
                context.encrypt_init(None, None, Some(&IV))?;
                context.cipher_update(AAD, None)?;
                context.cipher_update_vec(&PLAINTEXT, &mut ciphertext)?;
                context.cipher_final(&mut [])?;
                Ok(context.tag(&mut tag)?)
            })
        }
        Operation::CreateKey => {
            let folder = folder.to_owned();
            Box::new(move || {
                let mut key = [0; 32];
                rand_priv_bytes(&mut key)?;
                write_new(&folder, &key)
            })
        }
        Operation::CreateKeyPair => {
            let (folder, group) = (folder.to_owned(), p256()?);
            Box::new(move || {
                write_new(&folder, &PKey::from_ec_key(EcKey::generate(&group)?)?.private_key_to_pem_pkcs8()?)
            })
        }
    })
}

fn p256() -> Result<EcGroup> {
    let mut group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    group.set_asn1_flag(Asn1Flag::NAMED_CURVE);
    Ok(group)
}

/// A file that survives a power cut, as a key's does.
fn write_new(folder: &Path, bytes: &[u8]) -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    match aziot_files::write_new(folder.join(name), Mode::PRIVATE, bytes)? {
        Created::New => Ok(()),
        Created::AlreadyThere => bail!("a file of an empty folder is there already"),
    }
}
