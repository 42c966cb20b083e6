//! Remote keys: public halves are read once, signatures are what others verify.

use aziot_keyd_api::key::KeyHandle;
use aziot_pki::key::{self, KeyError, KnownKeys};
use openssl::{hash::MessageDigest, nid::Nid, sign::Verifier};

use crate::support::{CA_SCALAR, Keyd, new_ec, new_rsa, p256};

#[tokio::test]
async fn a_pair_is_read_once_and_signs_what_openssl_verifies() {
    let short_curve = new_ec(Nid::SECP224R1);
    let keyd = Keyd::start([("ec", p256(CA_SCALAR)), ("rsa", new_rsa(2048)), ("short", short_curve)]);
    for name in ["ec", "rsa", "short"] {
        let before = keyd.calls();
        let key = keyd.key(name).await;
        assert_eq!(keyd.calls() - before, 3, "{name}: algorithm and two parameters");
        let signature = key.sign_sha256(b"message").await.unwrap();
        assert_eq!(keyd.calls() - before, 4, "{name}: and one signature");
        let mut verifier = Verifier::new(MessageDigest::sha256(), key.public_key()).unwrap();
        assert!(verifier.verify_oneshot(&signature, b"message").unwrap(), "{name}");
        assert!(key.is_public_key(key.public_key_info()));
    }
    assert!(!keyd.key("ec").await.is_public_key(keyd.key("rsa").await.public_key_info()));
}

#[tokio::test]
async fn unusable_pairs_are_told_apart() {
    let keyd = Keyd::start([("odd", new_ec(Nid::BRAINPOOL_P256R1))]);
    assert!(matches!(keyd.try_key("none").await, Err(KeyError::Parameter { name: "algorithm", .. })));
    assert!(matches!(keyd.try_key("odd").await, Err(KeyError::Unusable { name: "ec-curve-oid", .. })));
    let text = format!("{:?}", keyd.try_key("none").await);
    assert!(!text.contains("none"), "handles are secret: {text}");
}

#[tokio::test]
async fn what_is_known_shows_no_handle() {
    let keyd = Keyd::start([("bearer", p256(CA_SCALAR))]);
    let known = KnownKeys::new(keyd.client());
    let name = key::Name::Handle(KeyHandle("bearer".to_owned()));
    assert!(!known.get(&name).await.unwrap().1 && known.get(&name).await.unwrap().1);
    let text = format!("{name:?} {known:?}");
    assert!(!text.contains("bearer"), "handles are secret: {text}");
}
