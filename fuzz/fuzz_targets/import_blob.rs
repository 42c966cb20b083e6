//! Import blobs of the TPM service: what is taken apart lies in the blob, in order, behind its own sizes, and is put together again as it was.

#![no_main]

use aziot_tpmd::blob::Parts;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(parts) = Parts::split(input) else { return };
    let Parts { credential, credential_seed, duplicate, duplicate_seed, public_area } = parts;
    let mut again = Vec::new();
    for part in [credential, credential_seed, duplicate, duplicate_seed, public_area] {
        assert!(!part.is_empty() && part.len() <= 2048);
        again.extend(u16::try_from(part.len()).expect("a size was read").to_be_bytes());
        again.extend(part);
    }
    assert!(input.starts_with(&again));
    // What follows does not count, and nothing that is there can be left out.
    let parts = Parts::split(&again).expect("it was taken apart before");
    assert_eq!(parts.public_area, public_area);
    assert!(Parts::split(&again[..again.len() - 1]).is_err());
});
