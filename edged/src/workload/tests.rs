//! The workload calls against real services: signatures and secrets here, certificates beside.

mod certificates;
pub(crate) mod faults;
mod limits;
pub(crate) mod world;

use aziot_http::SecretText;
use openssl::{
    hash::MessageDigest,
    pkey::PKey,
    sign::Signer,
    symm::{Cipher, encrypt_aead},
};
use tokio::task::JoinSet;

use super::*;
use crate::identities;
use world::{SELF_SIGNED, World, eventually, module_key};

/// What stock modules send: the text of a GUID, 32 bytes.
const VECTOR: &[u8; 32] = b"0f8fad5bd9cb469fa16570867728950e";

fn sign(module_id: &str, generation_id: &str, data: &[u8]) -> Sign {
    Sign { module_id: module_id.to_owned(), generation_id: generation_id.to_owned(), data: STANDARD.encode(data) }
}

fn encrypt(module_id: &str, generation_id: &str, vector: &[u8], plaintext: &[u8]) -> Encrypt {
    Encrypt {
        module_id: module_id.to_owned(),
        generation_id: generation_id.to_owned(),
        plaintext: SecretText::new(STANDARD.encode(plaintext)),
        initialization_vector: STANDARD.encode(vector),
    }
}

fn decrypt(module_id: &str, generation_id: &str, vector: &[u8], ciphertext: &[u8]) -> Decrypt {
    Decrypt {
        module_id: module_id.to_owned(),
        generation_id: generation_id.to_owned(),
        ciphertext: STANDARD.encode(ciphertext),
        initialization_vector: STANDARD.encode(vector),
    }
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(message).unwrap()
}

fn is_other_generation<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Identity(identities::Error::OtherGeneration { .. })))
}

#[tokio::test]
async fn a_signature_is_made_with_the_modules_key_and_asks_for_the_identity_once() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("$edgeHub", "637", None);
    let workload = world.workload().await;
    for message in [Vec::new(), b"h.example.net%2Fdevices%2Fdev-1\n1700000000".to_vec(), vec![0xff; 100_000]] {
        let message = message.as_slice();
        let digest = workload.sign(sign("$edgeHub", "637", message)).await.unwrap().digest.0;
        assert_eq!(digest, hmac(&module_key("$edgeHub", "637"), message));
    }
    assert_eq!(world.identityd.calls(), ["get $edgeHub"]);
    let call = Sign { data: "no base64!".to_owned(), ..sign("$edgeHub", "637", b"") };
    assert!(matches!(workload.sign(call).await, Err(Error::NotBase64("data"))));
}

#[tokio::test]
async fn only_the_present_generation_signs_and_encrypts() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let workload = world.workload().await;
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    assert!(is_other_generation(&workload.sign(sign("m", "2", b"x")).await));
    assert!(is_other_generation(&workload.encrypt(encrypt("m", "0", VECTOR, b"x")).await));

    // Deleted and made again, and nobody told the runtime.
    world.identityd.put("m", "2", None);
    eventually("the new generation signs", async || workload.sign(sign("m", "2", b"x")).await.is_ok()).await;
    let digest = workload.sign(sign("m", "2", b"x")).await.unwrap().digest.0;
    assert_eq!(digest, hmac(&module_key("m", "2"), b"x"));
    assert!(is_other_generation(&workload.sign(sign("m", "1", b"x")).await));

    // A module that asks in wrong generations all the time costs the identity service a call a second at most.
    let calls = world.identityd.calls().len();
    for _ in 0..50 {
        assert!(is_other_generation(&workload.sign(sign("m", "1", b"x")).await));
    }
    assert!(world.identityd.calls().len() <= calls + 1, "{:?}", world.identityd.calls());
}

#[tokio::test]
async fn many_signatures_of_one_module_share_one_identity_call() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    world.identityd.silence(&["m"]);
    let workload = world.workload().await;
    let mut signing = JoinSet::new();
    for number in 0..40_u8 {
        let workload = Arc::clone(&workload);
        signing.spawn(async move { workload.sign(sign("m", "1", &[number])).await.map(|signed| (number, signed)) });
    }
    eventually("somebody asks", async || !world.identityd.calls().is_empty()).await;
    world.identityd.silence(&[]);
    for signed in signing.join_all().await {
        let (number, signed) = signed.unwrap();
        assert_eq!(signed.digest.0, hmac(&module_key("m", "1"), &[number]));
    }
    assert_eq!(world.identityd.calls(), ["get m"]);
}

#[tokio::test]
async fn a_module_whose_hub_is_silent_keeps_no_other_from_signing() {
    let world = World::new(SELF_SIGNED).await;
    let slow: Vec<String> = (0..5).map(|number| format!("slow-{number}")).collect();
    for module in slow.iter().map(String::as_str).chain(["known", "unknown", "being changed"]) {
        world.identityd.put(module, "1", None);
    }
    let workload = world.workload().await;
    workload.sign(sign("known", "1", b"x")).await.unwrap();
    world.identityd.silence(&slow.iter().map(String::as_str).chain(["being changed"]).collect::<Vec<_>>());
    let mut waiting = JoinSet::new();
    for module in slow.clone() {
        let workload = Arc::clone(&workload);
        waiting.spawn(async move { workload.sign(sign(&module, "1", b"x")).await.map(drop) });
    }
    let identities = Arc::clone(&workload.identities);
    waiting.spawn(async move {
        identities.update("being changed").await?;
        Ok(())
    });
    eventually("six calls hang", async || world.identityd.calls().len() == 7).await;
    workload.sign(sign("known", "1", b"x")).await.unwrap();
    workload.sign(sign("unknown", "1", b"x")).await.unwrap();
    assert_eq!(waiting.len(), 6);
    assert!(waiting.try_join_next().is_none());
    world.identityd.silence(&[]);
    for ended in waiting.join_all().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_the_key_service_refuses_is_asked_for_anew() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let workload = world.workload().await;
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    world.identityd.lose_key("m", "1").await;
    let digest = workload.sign(sign("m", "1", b"x")).await.unwrap().digest.0;
    assert_eq!(digest, hmac(&module_key("m", "1"), b"x"));
    assert_eq!(world.identityd.calls(), ["get m", "get m"]);
}

#[tokio::test]
async fn a_change_makes_the_next_signature_ask_again_and_an_answer_from_before_it_is_not_kept() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let workload = world.workload().await;
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    workload.identities.update("m").await.unwrap();
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    assert_eq!(world.identityd.calls(), ["get m", "update m", "get m"]);

    // A read that begins before the deletion, and ends after the module is there again.
    world.identityd.put("n", "1", None);
    world.identityd.silence(&["n"]);
    let (mut early, mut deletion) = (JoinSet::new(), JoinSet::new());
    early.spawn({
        let workload = Arc::clone(&workload);
        async move { workload.sign(sign("n", "1", b"x")).await.map(drop) }
    });
    eventually("the read is under way", async || world.identityd.calls().len() == 4).await;
    let identities = Arc::clone(&workload.identities);
    deletion.spawn(async move { identities.delete("n").await });
    eventually("the deletion is under way", async || world.identityd.calls().len() == 5).await;
    world.identityd.silence(&[]);
    for ended in deletion.join_all().await {
        ended.unwrap();
    }
    for ended in early.join_all().await {
        ended.unwrap();
    }
    world.identityd.put("n", "2", None);
    let digest = workload.sign(sign("n", "2", b"x")).await.unwrap().digest.0;
    assert_eq!(digest, hmac(&module_key("n", "2"), b"x"), "at once: nothing of the old module is known");
}

#[tokio::test]
async fn what_keeps_a_module_from_its_key_is_told_and_not_kept() {
    let mut world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    let error = workload.sign(sign("m", "1", b"x")).await.unwrap_err();
    let text = aziot_log::chain(&error).to_string();
    assert_eq!(text, "failed to get module identity for m: Hub client error\ncaused by: not found");
    world.identityd.put("m", "1", None);
    eventually("it is there", async || workload.sign(sign("m", "1", b"x")).await.is_ok()).await;
    world.keyd.stop().await;
    assert!(matches!(workload.sign(sign("m", "1", b"x")).await, Err(Error::Sign { .. })));
}

#[tokio::test]
async fn a_secret_is_bound_to_its_module_and_its_generation() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("$edgeAgent", "1", None);
    world.identityd.put("other", "1", None);
    let workload = world.workload().await;
    for vector in [&b"v"[..], &[7; 12], VECTOR, &[9; 128]] {
        let encrypted = workload.encrypt(encrypt("$edgeAgent", "1", vector, b"secret")).await.unwrap().ciphertext.0;
        assert_eq!((encrypted[0], encrypted.len()), (2, 1 + 6 + 16));
        let call = decrypt("$edgeAgent", "1", vector, &encrypted);
        assert_eq!(workload.decrypt(call).await.unwrap().plaintext.expose(), b"secret");
    }
    let empty = workload.encrypt(encrypt("other", "1", VECTOR, b"")).await.unwrap().ciphertext.0;
    assert_eq!(workload.decrypt(decrypt("other", "1", VECTOR, &empty)).await.unwrap().plaintext.expose(), b"");

    let encrypted = workload.encrypt(encrypt("$edgeAgent", "1", VECTOR, b"secret")).await.unwrap().ciphertext.0;
    let mut damaged = encrypted.clone();
    damaged[3] ^= 1;
    let mut of_the_future = encrypted.clone();
    of_the_future[0] = 3;
    for call in [
        decrypt("other", "1", VECTOR, &encrypted),
        decrypt("$edgeAgent", "2", VECTOR, &encrypted),
        decrypt("$edgeAgent", "1", &VECTOR[..31], &encrypted),
        decrypt("$edgeAgent", "1", VECTOR, &damaged),
        decrypt("$edgeAgent", "1", VECTOR, &of_the_future),
        decrypt("$edgeAgent", "1", VECTOR, &encrypted[..16]),
        decrypt("$edgeAgent", "1", VECTOR, b""),
    ] {
        let outcome = workload.decrypt(call).await;
        assert!(matches!(outcome, Err(Error::Ciphertext)), "{outcome:?}");
    }

    // The module was deleted and made again: what it has stored stays readable, and nothing new is encrypted for the old one.
    world.identityd.put("$edgeAgent", "2", None);
    eventually("the new generation", async || workload.sign(sign("$edgeAgent", "2", b"x")).await.is_ok()).await;
    let call = decrypt("$edgeAgent", "1", VECTOR, &encrypted);
    assert_eq!(workload.decrypt(call).await.unwrap().plaintext.expose(), b"secret");
    assert!(is_other_generation(&workload.encrypt(encrypt("$edgeAgent", "1", VECTOR, b"x")).await));
}

#[tokio::test]
async fn vectors_that_no_cipher_takes_and_bad_base64_are_the_callers_fault() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let workload = world.workload().await;
    for length in [0, 129] {
        let outcome = workload.encrypt(encrypt("m", "1", &vec![1; length], b"x")).await;
        assert!(matches!(outcome, Err(Error::VectorLength(_))), "{outcome:?}");
        let outcome = workload.decrypt(decrypt("m", "1", &vec![1; length], b"x")).await;
        assert!(matches!(outcome, Err(Error::VectorLength(_))), "{outcome:?}");
    }
    let call = Encrypt { plaintext: SecretText::new("c2VjcmV0=".to_owned()), ..encrypt("m", "1", VECTOR, b"") };
    let error = workload.encrypt(call).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid parameter: plaintext is not base64");
    let call = Decrypt { ciphertext: "*".to_owned(), ..decrypt("m", "1", VECTOR, b"") };
    assert!(matches!(workload.decrypt(call).await, Err(Error::NotBase64("ciphertext"))));
    let call = Decrypt { initialization_vector: "a".to_owned(), ..decrypt("m", "1", VECTOR, b"") };
    assert!(matches!(workload.decrypt(call).await, Err(Error::NotBase64("initializationVector"))));
    assert!(world.identityd.calls().is_empty());
}

/// What releases up to 1.1 wrote: a byte of 1, the tag, and the encrypted bytes.
fn encrypted_by_1_1(key: &[u8], module_id: &str, generation_id: &str, plaintext: &[u8]) -> Vec<u8> {
    let (mut tag, aad) = ([0; 16], format!("{module_id}{generation_id}"));
    let encrypted =
        encrypt_aead(Cipher::aes_256_gcm(), key, Some(VECTOR), aad.as_bytes(), plaintext, &mut tag).unwrap();
    [&[1][..], &tag, &encrypted].concat()
}

#[tokio::test]
async fn secrets_of_1_1_are_read_with_the_imported_master_key() {
    let key: Vec<u8> = (0..32).collect();
    let world = World::with_master_key(SELF_SIGNED, Some(&key)).await;
    world.identityd.put("$edgeAgent", "638", None);
    let workload = world.workload().await;
    let old = encrypted_by_1_1(&key, "$edgeAgent", "637", b"registry password");
    let read = workload.decrypt(decrypt("$edgeAgent", "637", VECTOR, &old)).await.unwrap();
    assert_eq!(read.plaintext.expose(), b"registry password");
    let outcome = workload.decrypt(decrypt("$edgeAgent", "638", VECTOR, &old)).await;
    assert!(matches!(outcome, Err(Error::Ciphertext)), "{outcome:?}");

    // What is encrypted anew has the layout of today, with the same key.
    let new = workload.encrypt(encrypt("$edgeAgent", "638", VECTOR, b"registry password")).await.unwrap().ciphertext.0;
    let by_hand = encrypted_by_1_1(&key, "$edgeAgent", "638", b"registry password");
    assert_eq!(new, [&[2][..], &by_hand[17..], &by_hand[1..17]].concat());
}

#[tokio::test]
async fn a_key_that_cannot_be_used_is_no_fault_of_the_secret() {
    let world = World::with_master_key(SELF_SIGNED, Some(&[1; 16])).await;
    let workload = world.workload().await;
    let outcome = workload.decrypt(decrypt("m", "1", VECTOR, &[2; 40])).await;
    assert!(matches!(outcome, Err(Error::Decrypt(_))), "{outcome:?}");

    let mut world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    let outcome = workload.decrypt(decrypt("m", "1", VECTOR, &[2; 40])).await;
    assert!(matches!(outcome, Err(Error::Ciphertext)), "no key, so nothing that it has encrypted: {outcome:?}");
    let load = aziot_keyd_api::key::LoadKey { key_id: aziot_edged_api::config::MASTER_ENCRYPTION_KEY.to_owned() };
    assert!(world.services.keyd.send(&load).await.is_err(), "no key is made to decrypt");
    world.keyd.stop().await;
    let outcome = workload.decrypt(decrypt("m", "1", VECTOR, &[2; 40])).await;
    assert!(matches!(outcome, Err(Error::MasterKey(_))), "{outcome:?}");
}
