//! The blob that DPS sends: five structures back to back, each behind its size. Taken apart here and understood by the TPM.
//!
//! Knows sizes and nothing else; what is inside is encrypted and authenticated.

use std::fmt;

/// Why bytes are no such blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within this structure.
    #[error("it ends within its {0}")]
    Short(&'static str),
    /// Larger than that structure is in any TPM.
    #[error("its {0} has {1} bytes, more than any TPM takes")]
    Long(&'static str, usize),
    /// Nothing in it.
    #[error("its {0} is empty")]
    Empty(&'static str),
    /// Something else than its place wants.
    #[error("its {0} is none")]
    Unknown(&'static str),
    /// More in that structure than belongs to it.
    #[error("its {0} is followed by {1} bytes that its size includes")]
    Trailing(&'static str, usize),
}

/// The structures of an import blob, without their sizes, unless stated.
#[derive(PartialEq, Eq)]
pub struct Parts<'b> {
    /// `TPMS_ID_OBJECT`: the inner wrapper's key, encrypted.
    pub credential: &'b [u8],
    /// The seed of the credential, encrypted to the endorsement key.
    pub credential_seed: &'b [u8],
    /// `_PRIVATE`: the key in its two wrappers.
    pub duplicate: &'b [u8],
    /// The seed of the outer wrapper, encrypted to the storage root key.
    pub duplicate_seed: &'b [u8],
    /// `TPMT_PUBLIC` of the key.
    pub public_area: &'b [u8],
}

impl fmt::Debug for Parts<'_> {
    /// Lengths: the blob stays out of every log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Parts")
            .field("credential", &self.credential.len())
            .field("credential_seed", &self.credential_seed.len())
            .field("duplicate", &self.duplicate.len())
            .field("duplicate_seed", &self.duplicate_seed.len())
            .field("public_area", &self.public_area.len())
            .finish()
    }
}

/// Most bytes of a credential, a seed, a duplicate and a public area in the TSS (`tss2_tpm2_types.h`), rounded up: no TPM has more.
const CREDENTIAL: usize = 132;
const SEED: usize = 512;
const DUPLICATE: usize = 2048;
const PUBLIC_AREA: usize = 1024;

impl<'b> Parts<'b> {
    /// Takes `blob` apart. What follows the fifth structure is ignored.
    pub fn split(blob: &'b [u8]) -> Result<Self, Malformed> {
        let mut rest = blob;
        let mut next = |name, most| {
            let (part, behind) = sized(rest).ok_or(Malformed::Short(name))?;
            rest = behind;
            match part.len() {
                0 => Err(Malformed::Empty(name)),
                length if length > most => Err(Malformed::Long(name, length)),
                _ => Ok(part),
            }
        };
        Ok(Self {
            credential: next("credential", CREDENTIAL)?,
            credential_seed: next("credential's seed", SEED)?,
            duplicate: next("duplicate", DUPLICATE)?,
            duplicate_seed: next("duplicate's seed", SEED)?,
            public_area: next("public area", PUBLIC_AREA)?,
        })
    }
}

/// A structure behind its big-endian size, and what follows it.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &[u8] = b"\0\x02ab\0\x01c\0\x03def\0\x01g\0\x02hi";

    #[test]
    fn five_structures_are_told_apart_and_the_rest_is_ignored() {
        let parts = Parts {
            credential: b"ab",
            credential_seed: b"c",
            duplicate: b"def",
            duplicate_seed: b"g",
            public_area: b"hi",
        };
        assert_eq!(Parts::split(BLOB), Ok(parts));
        let shown = format!("{:?}", Parts::split(BLOB).unwrap());
        assert!(shown.contains("duplicate: 3") && !shown.contains("100"), "{shown}");
        let longer = [BLOB, b"\xff\xff"].concat();
        assert_eq!(Parts::split(&longer), Parts::split(BLOB));
    }

    #[test]
    fn a_cut_tells_where_it_was_cut() {
        for length in 0..BLOB.len() {
            let name = match length {
                0..4 => "credential",
                4..7 => "credential's seed",
                7..12 => "duplicate",
                12..15 => "duplicate's seed",
                _ => "public area",
            };
            assert_eq!(Parts::split(&BLOB[..length]), Err(Malformed::Short(name)), "{length}");
        }
    }

    #[test]
    fn sizes_are_looked_at() {
        assert_eq!(Parts::split(b"\0\0\0\0"), Err(Malformed::Empty("credential")));
        let long = [&[0, 133][..], &[7; 133]].concat();
        assert_eq!(Parts::split(&long), Err(Malformed::Long("credential", 133)));
        let longest = [&[0, 132][..], &[7; 132]].concat();
        assert_eq!(Parts::split(&longest), Err(Malformed::Short("credential's seed")));
    }
}
