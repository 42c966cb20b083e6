//! Certificate requests: as text from a caller, and as the signed part alone, under a signature that fits the key of the seeds. So mutations of
//! names, attributes and extensions get past the check of the signature.

#![no_main]

use std::sync::LazyLock;

use aziot_pki::request::Request;
use libfuzzer_sys::fuzz_target;
use openssl::{
    hash::MessageDigest,
    pkey::{PKey, Private},
    sign::Signer,
    x509::X509Req,
};
use spki::der::{Any, Encode as _, Tag, asn1::BitString};

/// The EC pair of the worked examples; requests among the seeds are for it.
static KEY: LazyLock<PKey<Private>> =
    LazyLock::new(|| PKey::private_key_from_pem(include_bytes!("../seeds/key_file/ec_pkcs8")).expect("a key"));
/// `ecdsa-with-SHA256`, as it stands in a request.
const ALGORITHM: [u8; 12] = *b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = Request::from_pem(&String::from_utf8_lossy(input)) {
        check(&request);
    }
    if let Some(Ok(request)) = signed(input).map(|bytes| Request::from_der(&bytes)) {
        check(&request);
    }
});

fn signed(info: &[u8]) -> Option<Vec<u8>> {
    let signature = Signer::new(MessageDigest::sha256(), &KEY).and_then(|mut signer| signer.sign_oneshot_to_vec(info));
    let signature = BitString::from_bytes(&signature.ok()?).ok()?.to_der().ok()?;
    Any::new(Tag::Sequence, [info, &ALGORITHM, &signature].concat()).ok()?.to_der().ok()
}

fn check(request: &Request) {
    let _ = (request.subject().to_string(), request.extensions().len());
    let again = Request::from_der(request.der()).expect("what was taken is taken again");
    assert!(again.asks_the_same_as(request));
    // Another reader sees the same signature, or no request at all.
    if let Ok(seen) = X509Req::from_der(request.der())
        && let Ok(key) = seen.public_key()
    {
        assert!(seen.verify(&key).is_ok_and(|holds| holds), "not signed");
    }
}
