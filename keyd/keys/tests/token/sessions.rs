//! Sessions of a token: lost, found again, and shared by many threads.

use std::sync::Barrier;
use std::{fs, thread};

use aziot_keys::{KeyUsage, TokenError};

use crate::softhsm::{self, LABEL, Operator, has_key_files};
use crate::test_vectors::k1;
use crate::{hmac, is_external, point, secret, token_failure, verifies};

#[test]
fn a_token_that_was_gone_is_used_again() {
    softhsm::run("sessions::a_token_that_was_gone_is_used_again", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key("k", KeyUsage::SIGN).unwrap();
        keys.create_key_pair("pair", None).unwrap();
        let signature = hmac(&keys, "k").unwrap();
        // All sessions lost, and the token still there: nobody notices.
        softhsm::stop();
        assert_eq!(hmac(&keys, "k").unwrap(), signature);
        softhsm::stop();
        keys.move_key_pair("pair", "moved").unwrap();
        softhsm::stop();
        keys.sign_ecdsa("moved", &[1; 32]).unwrap();

        device.move_tokens("tokens", "away");
        for _ in 0..3 {
            assert!(matches!(token_failure(hmac(&keys, "k")), TokenError::NoToken { .. }));
            assert!(matches!(token_failure(keys.create_key("k", KeyUsage::SIGN)), TokenError::NoToken { .. }));
            assert!(matches!(token_failure(keys.create_key_pair("pair", None)), TokenError::NoToken { .. }));
            let import = keys.import_key("k", KeyUsage::SIGN, &secret(&k1()));
            assert!(matches!(token_failure(import), TokenError::NoToken { .. }));
            assert!(matches!(token_failure(keys.delete_key("k")), TokenError::NoToken { .. }));
        }
        assert!(!has_key_files(&device.path("home/keys")), "no key goes to a file because its token is away");
        device.return_tokens("away");
        assert_eq!(hmac(&keys, "k").unwrap(), signature);
        keys.sign_ecdsa("moved", &[1; 32]).unwrap();
    });
}

#[test]
fn a_token_that_vanishes_under_its_sessions_fails_and_recovers() {
    softhsm::run("sessions::a_token_that_vanishes_under_its_sessions_fails_and_recovers", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key("k", KeyUsage::SIGN).unwrap();
        let signature = hmac(&keys, "k").unwrap();
        // SoftHSM goes on with what it has read, or fails, as it likes; making a key must fail.
        fs::rename(device.path("tokens"), device.path("away")).unwrap();
        assert!(is_external(keys.create_key("new", KeyUsage::SIGN)));
        let _ = hmac(&keys, "k");
        fs::rename(device.path("away"), device.path("tokens")).unwrap();
        softhsm::stop();
        assert_eq!(hmac(&keys, "k").unwrap(), signature);
        keys.create_key("new", KeyUsage::SIGN).unwrap();
        assert!(!has_key_files(&device.path("home/keys")));
    });
}

#[test]
fn many_threads_share_a_token() {
    softhsm::run("sessions::many_threads_share_a_token", 1, |device, _| {
        const THREADS: usize = 12;
        let keys = device.keys(&[]);
        keys.import_key("k", KeyUsage::SIGN, &secret(&k1())).unwrap();
        keys.create_key_pair("pair", None).unwrap();
        let public = point(&keys, "pair");
        let barrier = Barrier::new(THREADS);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (keys, public, barrier) = (&keys, &public, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    // All at once: one makes it.
                    keys.create_key("same", KeyUsage::SIGN).unwrap();
                    keys.create_key_pair("same", None).unwrap();
                    for round in 0..20_u8 {
                        let expected = "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433";
                        assert_eq!(hmac(keys, "k").unwrap(), expected);
                        let signature = keys.sign_ecdsa("pair", &[round; 32]).unwrap();
                        assert!(verifies(public, &[round; 32], &signature));
                        // Stopping it under calls of others is undefined, so all wait; then all find it stopped.
                        if round % 8 == 7 {
                            barrier.wait();
                            if thread == 0 {
                                softhsm::stop();
                            }
                            barrier.wait();
                        }
                    }
                });
            }
        });
        assert_eq!(Operator::at(LABEL).counts("same"), (1, 1, 1));
    });
}

#[test]
fn a_reader_never_misses_a_pair_that_is_being_replaced() {
    softhsm::run("sessions::a_reader_never_misses_a_pair_that_is_being_replaced", 1, |device, _| {
        let keys = device.keys(&[]);
        keys.create_key_pair("pair", None).unwrap();
        thread::scope(|scope| {
            let mover = scope.spawn(|| {
                for _ in 0..10 {
                    keys.create_key_pair("next", None).unwrap();
                    keys.move_key_pair("next", "pair").unwrap();
                }
            });
            while !mover.is_finished() {
                keys.sign_ecdsa("pair", &[1; 32]).unwrap();
            }
            mover.join().unwrap();
        });
        assert_eq!(Operator::at(LABEL).counts("pair"), (0, 1, 1));
    });
}

#[test]
fn keys_are_found_after_a_restart() {
    softhsm::run("sessions::keys_are_found_after_a_restart", 2, |device, phase| {
        let keys = device.keys(&[]);
        if phase == 0 {
            keys.create_key("k", KeyUsage::SIGN).unwrap();
            keys.create_key_pair("pair", None).unwrap();
            aziot_files::write(device.path("seen"), aziot_files::Mode::PRIVATE, hmac(&keys, "k").unwrap()).unwrap();
        } else {
            keys.load_key_pair("pair").unwrap();
            assert_eq!(fs::read_to_string(device.path("seen")).unwrap(), hmac(&keys, "k").unwrap());
        }
    });
}
