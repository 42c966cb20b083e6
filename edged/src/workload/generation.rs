//! Generations of modules as callers write them.
//!
//! A generation becomes part of a certificate's name and of what is authenticated with a secret. The hub gives numbers of some 18 digits.

use super::Error;

/// Bytes of a generation that can be the present one; with a module's name it has to fit into a file's.
const LONGEST: usize = 64;
/// Bytes of a generation that a secret was encrypted in: the public runtime took any.
const LONGEST_OLD: usize = 1024;

/// Refuses what no hub gives.
pub(super) fn check(generation_id: &str) -> Result<(), Error> {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_possible = (1..=LONGEST).contains(&generation_id.len()) && generation_id.bytes().all(is_usual);
    if is_possible { Ok(()) } else { Err(Error::Generation { longest: LONGEST }) }
}

/// As [`check`], for secrets that are there already.
pub(super) fn check_old(generation_id: &str) -> Result<(), Error> {
    if generation_id.len() <= LONGEST_OLD { Ok(()) } else { Err(Error::OldGeneration { longest: LONGEST_OLD }) }
}
