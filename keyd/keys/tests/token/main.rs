//! The library on real tokens of `SoftHSM2`: keys made, imported, used, moved and deleted, and what happens when the token is not there.
//!
//! `SoftHSM2` locks no token after wrong PINs, knows all algorithms used here, and has as many sessions as one wants.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

mod key_pairs;
mod pins;
mod places;
mod sessions;
mod softhsm;
mod start;
mod symmetric_keys;
#[path = "../../src/test_vectors.rs"]
mod test_vectors;

use aziot_keys::{Error, Failure, Invalid, Keys, PublicParameter, Secret, SymmetricUse, TokenError};
use openssl::bn::BigNumContext;
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;

use test_vectors::hex;

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

fn stored(id: &str) -> SymmetricUse<'_> {
    SymmetricUse::Stored(id)
}

fn hmac(keys: &Keys, id: &str) -> Result<String, Error> {
    keys.sign_hmac(stored(id), b"hello").map(|signature| hex(&signature))
}

fn software_hmac(key: &[u8], message: &[u8]) -> String {
    let key = PKey::hmac(key).unwrap();
    let mut signer = openssl::sign::Signer::new(MessageDigest::sha256(), &key).unwrap();
    hex(&signer.sign_oneshot_to_vec(message).unwrap())
}

fn invalid(outcome: Result<impl Sized, Error>) -> Invalid {
    match outcome.map(|_| ()) {
        Err(Error::InvalidParameter { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn token_failure(outcome: Result<impl Sized, Error>) -> TokenError {
    match outcome.map(|_| ()) {
        Err(Error::External { source: Failure::Token(error), .. }) => error,
        other => panic!("{other:?}"),
    }
}

fn is_preloaded(outcome: Result<impl Sized, Error>) -> bool {
    outcome.is_err_and(|error| matches!(error, Error::Preloaded { .. }))
}

fn is_external(outcome: Result<impl Sized, Error>) -> bool {
    outcome.is_err_and(|error| matches!(error, Error::External { .. }))
}

fn point(keys: &Keys, id: &str) -> Vec<u8> {
    keys.public_parameter(id, PublicParameter::EcPoint).unwrap()
}

fn verifies(point: &[u8], digest: &[u8], signature: &[u8]) -> bool {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let mut context = BigNumContext::new().unwrap();
    let point = EcPoint::from_bytes(&group, point, &mut context).unwrap();
    let key = EcKey::from_public_key(&group, &point).unwrap();
    EcdsaSig::from_der(signature).unwrap().verify(digest, &key).unwrap()
}

/// The whole chain of an error, as a log would show it.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}
