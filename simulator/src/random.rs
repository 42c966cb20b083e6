//! Random bytes, and the identifiers made of them that nobody can guess: tracking ids, operation ids, etags.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Fills `bytes` from OpenSSL's generator.
pub(crate) fn fill(bytes: &mut [u8]) {
    openssl::rand::rand_bytes(bytes).expect("OpenSSL's generator is seeded by the kernel");
}

/// A random UUID (version 4) in its usual lower-case form.
pub(crate) fn uuid() -> String {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &number[..8], &number[8..12], &number[12..16], &number[16..20], &number[20..])
}

/// An etag as a hub makes it: base64 of eight bytes, without quotes.
pub(crate) fn etag() -> String {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_of_version_4_and_differ() {
        let (one, other) = (uuid(), uuid());
        assert_eq!((one.len(), &one[14..15]), (36, "4"));
        assert_ne!(one, other);
    }
}
