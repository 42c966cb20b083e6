//! Keys that DPS delivers: imported, signed with, replaced; and blobs that hold none.

use std::thread;

use anyhow::{Context as _, Result};
use aziot_tests::{device::write_private, hex};

use crate::world::{AUTH_KEY, ENDORSEMENT_KEY, SPARE, STORAGE_ROOT_KEY, TpmWorld, hmac};

/// The parts of a blob, with their sizes: `tpm.md`, section 7.
const PARTS: [usize; 5] = [54, 258, 144, 258, 50];

/// `tpm.md`, section 14: "import -> sign equals software HMAC for the length list in section 6".
#[test]
fn a_delivered_key_signs_data_of_any_length() -> Result<()> {
    let world = TpmWorld::started()?;
    assert_eq!(world.try_to_sign(b"data")?.status, 500);
    assert!(world.service_log()?.contains("there is no auth key at 0x81000100"));
    for key in [vec![7; 32], vec![1], (0..64).collect()] {
        world.import(&key)?;
        for length in [0, 1, 5, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 10_000, 65_537, 700_000] {
            let data: Vec<u8> = (0..length).map(|number: u32| number.to_le_bytes()[0]).collect();
            assert_eq!(world.sign(&data)?, hmac(&key, &data)?, "{length} bytes, key of {}", key.len());
        }
    }
    Ok(())
}

/// Section 14: "re-import replaces; restart keeps"; and the key is where the public service has it, for any program to use.
#[test]
fn the_key_is_replaced_kept_and_at_the_documented_handle() -> Result<()> {
    let mut world = TpmWorld::started()?;
    for key in [b"first", b"again", b"third"] {
        world.import(key)?;
        world.expect_key(key)?;
    }
    let log = world.service_log()?;
    assert!(!log.contains("[WARN]"), "nothing is wrong: {log}");
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    write_private(&world.path("tpm/data"), b"data")?;
    let signature = world.tpm.tool("tpm2_hmac", &["-c", AUTH_KEY, "--hex", "data"])?;
    assert_eq!(signature.trim(), hex::encode(&hmac(b"third", b"data")?));
    world.tpm.restart()?;
    world.start_service()?;
    world.expect_key(b"third")
}

/// Section 15: the quoted form that the public template shows; and an index of one's own.
#[test]
fn the_index_chooses_the_handle() -> Result<()> {
    let mut world = TpmWorld::configured("auth_key_index = \"0x00_02_03\"")?;
    world.start_service()?;
    world.import(b"key")?;
    world.expect_key(b"key")?;
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, "0x81000203", ENDORSEMENT_KEY]);
    Ok(())
}

/// Section 14: "corrupted, truncated and empty blobs give 500 and leak nothing over 20 repetitions". Section 15: the public service loses
/// the key by any of them.
#[test]
fn bad_blobs_leave_nothing_behind_and_the_old_key_in_place() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"old key")?;
    let good = world.challenge(&[7; 32])?;
    assert_eq!(good.len(), PARTS.iter().sum::<usize>());
    let mut bad = vec![Vec::new(), vec![0], vec![0; 100], vec![0xff; 2000]];
    let mut start = 0;
    for length in PARTS {
        // A part that is cut short, one that lacks, and one with a bit changed in its size, in its middle and at its end.
        bad.extend([good[..start].to_vec(), good[..=start + length / 2].to_vec()]);
        for at in [start + 1, start + length / 2, start + length - 1] {
            let mut changed = good.clone();
            changed[at] ^= 1;
            bad.push(changed);
        }
        start += length;
    }
    for repetition in 0..20 {
        for (number, blob) in bad.iter().enumerate().filter(|(number, _)| repetition == 0 || number % 20 == repetition)
        {
            let reply = world.import_blob(blob)?;
            assert_eq!((reply.status, reply.message().as_str()), (500, "internal error"), "blob {number}");
        }
        world.expect_key(b"old key")?;
    }
    // The same one often: what it left each time would add up.
    let damaged = &bad[bad.len() - 8];
    for _ in 0..20 {
        assert_eq!(world.import_blob(damaged)?.status, 500);
    }
    let log = world.service_log()?;
    for reason in ["it ends within its public area", "tpm:parameter(1):integrity check failed (0x1df)", "(0x3df)"] {
        assert!(log.contains(reason), "{reason:?} is not in the log");
    }
    assert!(!log.contains("was full"), "something was left in the TPM");
    world.expect_key(b"old key")?;
    assert_eq!(world.import_blob(&good)?.status, 200);
    world.expect_key(&[7; 32])?;
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}

/// Section 7: "Trailing bytes are ignored."
#[test]
fn what_follows_a_blob_is_ignored() -> Result<()> {
    let world = TpmWorld::started()?;
    let blob = [world.challenge(b"key")?, vec![0xff; 1000]].concat();
    assert_eq!(world.import_blob(&blob)?.status, 200);
    world.expect_key(b"key")
}

/// Section 15: "Whatever object already sits at the auth-key handle is taken for the auth key and deleted on import".
#[test]
fn an_object_of_somebody_else_is_left_alone() -> Result<()> {
    let mut world = TpmWorld::started()?;
    let blob = world.challenge(b"key")?;
    world.stop_service()?;
    world.put_foreign_object(AUTH_KEY)?;
    world.start_service()?;
    assert_eq!(world.import_blob(&blob)?.status, 500);
    assert_eq!(world.try_to_sign(b"data")?.status, 500);
    let log = world.service_log()?;
    assert_eq!(log.matches("the object at 0x81000100 is no HMAC key and is left alone").count(), 2, "{log}");
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    let kind = world.tpm.tool("tpm2_readpublic", &["-c", AUTH_KEY])?;
    assert!(kind.contains("ecc"), "{kind}");
    Ok(())
}

/// The spare handle belongs to somebody else: the key is replaced all the same, and the log tells what that risks.
#[test]
fn a_spare_handle_that_is_taken_is_left_alone() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"old key")?;
    world.stop_service()?;
    world.put_foreign_object(SPARE)?;
    world.start_service()?;
    world.import(b"new key")?;
    world.expect_key(b"new key")?;
    assert!(world.service_log()?.contains("the object at 0x81400100 is in the way"));
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY, SPARE]);
    Ok(())
}

/// Leaves no room in the TPM for one more persistent object.
fn fill(world: &TpmWorld) -> Result<()> {
    let mut taken = 0;
    while world.put_foreign_object(&format!("0x810000{:02x}", 0x10 + taken)).is_ok() {
        taken += 1;
        assert!(taken < 100, "the TPM takes any number of objects");
    }
    let _ = world.tpm.tool("tpm2_flushcontext", &["-t"])?;
    Ok(())
}

/// A TPM without room for two keys: the public service works on it, and so does ours.
#[test]
fn a_tpm_with_room_for_one_key_gets_the_new_one() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"old key")?;
    world.stop_service()?;
    fill(&world)?;
    world.start_service()?;
    world.import(b"new key")?;
    world.expect_key(b"new key")?;
    let log = world.service_log()?;
    assert!(log.contains("the TPM has no room for two keys"), "{log}");
    Ok(())
}

/// The spare alone, as a power cut leaves it, in a TPM without room for a second key.
#[test]
fn a_spare_in_a_tpm_with_room_for_one_key_is_replaced() -> Result<()> {
    let mut world = TpmWorld::configured("auth_key_index = 0x40_01_00")?;
    world.start_service()?;
    world.import(b"spare key")?;
    world.stop_service()?;
    fill(&world)?;
    world.configure(&world.tpm.tcti(), "")?;
    world.start_service()?;
    world.expect_key(b"spare key")?;
    world.import(b"new key")?;
    world.expect_key(b"new key")?;
    let log = world.service_log()?;
    assert!(log.contains("the TPM has no room for two keys"), "{log}");
    world.stop_service()?;
    let handles = world.persistent_handles()?;
    assert!(handles.contains(&AUTH_KEY.to_owned()) && !handles.contains(&SPARE.to_owned()), "{handles:?}");
    Ok(())
}

/// An HMAC key of somebody else at the spare handle does not lie below the storage root key, which all imported ones do.
#[test]
fn an_hmac_key_of_somebody_else_is_not_taken_for_a_spare() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"old key")?;
    world.stop_service()?;
    let _ = world.tpm.tool(
        "tpm2_createprimary",
        &[
            "-Q",
            "-C",
            "o",
            "-G",
            "hmac:sha256",
            "-a",
            "sign|userwithauth|fixedtpm|fixedparent|sensitivedataorigin",
            "-c",
            "hmac.ctx",
        ],
    )?;
    let _ = world.tpm.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "hmac.ctx", SPARE])?;
    let _ = world.tpm.tool("tpm2_flushcontext", &["-t"])?;
    let name = world.tpm.tool("tpm2_readpublic", &["-c", SPARE])?;
    world.start_service()?;
    world.import(b"new key")?;
    world.expect_key(b"new key")?;
    assert!(world.service_log()?.contains("the object at 0x81400100 is in the way"));
    world.stop_service()?;
    assert_eq!(world.tpm.tool("tpm2_readpublic", &["-c", SPARE])?, name);
    Ok(())
}

/// Many callers at once: each gets the signature of its own data.
#[test]
fn callers_are_not_mixed_up() -> Result<()> {
    let world = TpmWorld::started()?;
    world.import(b"key")?;
    thread::scope(|scope| {
        let callers: Vec<_> = (0..6_u8)
            .map(|caller| {
                let world = &world;
                scope.spawn(move || -> Result<()> {
                    for round in 0..10 {
                        let data = vec![caller; if round % 3 == 0 { 1500 } else { 20 }];
                        assert_eq!(world.sign(&data)?, hmac(b"key", &data)?);
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| caller.join().ok().context("a caller panicked")?)
    })
}
