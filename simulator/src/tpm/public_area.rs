//! Public keys of TPMs: `TPM2B_PUBLIC` of RSA storage keys (TPM 2.0 Library, Part 2, 12.2.5), and names of objects.

use openssl::bn::BigNum;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Public};
use openssl::rsa::Rsa;
use openssl::sha::sha256;

/// Why bytes are not the public key of a TPM that can be challenged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sizes do not add up.
    #[error("it is no marshaled TPM2B_PUBLIC")]
    Marshaling,
    /// Some other kind of object.
    #[error("it is no RSA-2048 storage key with AES-128-CFB and SHA-256: its {0} differs")]
    Kind(&'static str),
    /// OpenSSL does not take the modulus.
    #[error("it is no RSA key")]
    Rsa(#[source] ErrorStack),
}

/// A key that decrypts seeds: endorsement keys and storage root keys are such.
pub(super) struct StorageKey {
    key: PKey<Public>,
    name: [u8; 34],
}

/// `TPM_ALG_RSA`, and the parameters of a storage key: AES, 128 bits, CFB, no scheme, 2048 bits.
pub(super) const RSA: [u8; 2] = [0x00, 0x01];
pub(super) const PARAMETERS: [u8; 10] = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00];
const MODULUS_BYTES: usize = 256;
/// `fixedTPM`, `fixedParent`, `restricted`, `decrypt`: whoever encrypts to such a key knows that the TPM alone sees what is inside.
const NEEDED: u32 = 0x0003_0012;
/// `sign`
const FORBIDDEN: u32 = 0x0004_0000;
const DEFAULT_EXPONENT: u32 = 65537;

impl StorageKey {
    /// Reads a `TPM2B_PUBLIC` and nothing behind it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        let area = reader.sized()?;
        reader.end()?;
        let mut reader = Reader(area);
        expect(reader.take(2)? == RSA, "type")?;
        expect(reader.take(2)? == super::SHA256, "name algorithm")?;
        let attributes = reader.number()?;
        expect(attributes & NEEDED == NEEDED && attributes & FORBIDDEN == 0, "list of attributes")?;
        let policy = reader.sized()?;
        expect(policy.is_empty() || policy.len() == 32, "policy")?;
        expect(reader.take(PARAMETERS.len())? == PARAMETERS, "list of parameters")?;
        let exponent = match reader.number()? {
            0 => DEFAULT_EXPONENT,
            exponent => exponent,
        };
        expect(exponent > 2 && exponent % 2 == 1, "exponent")?;
        let modulus = reader.sized()?;
        expect(modulus.len() == MODULUS_BYTES && modulus[0] >= 0x80 && modulus[MODULUS_BYTES - 1] % 2 == 1, "modulus")?;
        reader.end()?;
        let key = rsa(modulus, exponent).map_err(Error::Rsa)?;
        Ok(Self { key, name: name(area) })
    }

    pub(super) fn key(&self) -> &PKey<Public> {
        &self.key
    }

    /// What the TPM calls it.
    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }
}

fn expect(fits: bool, what: &'static str) -> Result<(), Error> {
    if fits { Ok(()) } else { Err(Error::Kind(what)) }
}

fn rsa(modulus: &[u8], exponent: u32) -> Result<PKey<Public>, ErrorStack> {
    PKey::from_rsa(Rsa::from_public_components(BigNum::from_slice(modulus)?, BigNum::from_u32(exponent)?)?)
}

/// The name of an object with this `TPMT_PUBLIC`: what tells it from every other one (TPM 2.0 Library, Part 1, 16).
pub(super) fn name(area: &[u8]) -> [u8; 34] {
    let mut name = [0; 34];
    name[..2].copy_from_slice(&super::SHA256);
    name[2..].copy_from_slice(&sha256(area));
    name
}

/// Takes marshaled structures apart.
pub(super) struct Reader<'b>(pub(super) &'b [u8]);

impl<'b> Reader<'b> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'b [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Marshaling)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The content of a structure that begins with its size.
    pub(super) fn sized(&mut self) -> Result<&'b [u8], Error> {
        let size = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([size[0], size[1]])))
    }

    fn number(&mut self) -> Result<u32, Error> {
        Ok(self.take(4)?.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    pub(super) fn end(&self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Marshaling) }
    }
}
