//! A TPM that is not there, comes late, restarts, is exchanged, or hangs.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aziot_tests::{Daemon, calls::is_serving, eventually};

use crate::world::{AUTH_KEY, ENDORSEMENT_KEY, STORAGE_ROOT_KEY, TpmWorld, hmac};

/// `tpm.md`, section 14: "no TPM -> exit 1".
#[test]
fn without_a_tpm_the_service_ends_and_says_why() -> Result<()> {
    let world = TpmWorld::configured("")?;
    world.configure("device:/nowhere/tpmrm0", "")?;
    let begun = Instant::now();
    assert_eq!(world.run_to_end(Daemon::Tpm, |_| {})?.code(), Some(1));
    // A TPM that may come is waited for for longer.
    assert!(begun.elapsed() < Duration::from_secs(15), "there is nothing to wait for");
    let log = world.service_log()?;
    assert!(log.contains("could not initialize TPM: there is no /nowhere/tpmrm0"), "{log}");
    Ok(())
}

/// The same where there is nobody at the address of a TPM: it may come up, so it is waited for, for a while.
#[test]
fn a_tpm_that_does_not_come_is_given_up() -> Result<()> {
    let mut world = TpmWorld::configured("")?;
    world.tpm.kill()?;
    let begun = Instant::now();
    assert_eq!(world.run_to_end(Daemon::Tpm, |_| {})?.code(), Some(1));
    assert!((10..120).contains(&begun.elapsed().as_secs()), "after {:?}", begun.elapsed());
    let log = world.service_log()?;
    assert!(log.contains("trying again for 20 s"), "{log}");
    assert!(log.contains("could not initialize TPM at swtpm:") && log.contains("tcti:IO failure (0xa000a)"), "{log}");
    Ok(())
}

#[test]
fn a_tpm_that_comes_late_is_waited_for() -> Result<()> {
    let mut world = TpmWorld::configured("")?;
    world.tpm.kill()?;
    let log = world.log_path(Daemon::Tpm);
    let mut tpm = world.tpm;
    let power = thread::spawn(move || {
        eventually("the wait", Duration::from_secs(10), || {
            Ok(std::fs::read_to_string(&log).is_ok_and(|log| log.contains("trying again")).then_some(()))
        })?;
        tpm.resume_power().map(|()| tpm)
    });
    // Returns when the service is ready.
    world.world.start(Daemon::Tpm)?;
    world.tpm = power.join().ok().context("a panic")??;
    world.import(b"key")?;
    world.expect_key(b"key")
}

/// Section 15: "Re-initialize the context after a TCTI-layer error and retry once."
#[test]
fn a_tpm_that_restarts_is_used_again_without_a_failed_call() -> Result<()> {
    let mut world = TpmWorld::with_power_cuts()?;
    world.import(b"key")?;
    let keys = world.public_keys()?;
    for round in 0..3 {
        world.tpm.restart()?;
        let data = vec![7; [10, 5000, 1024][round]];
        assert_eq!(world.sign(&data)?, hmac(b"key", &data)?);
        world.tpm.restart()?;
        assert_eq!(world.public_keys()?, keys);
        let blob = world.challenge(b"key")?;
        world.tpm.restart()?;
        assert_eq!(world.import_blob(&blob)?.status, 200);
    }
    Ok(())
}

/// Lost power counts as a wrong password (TPM 2.0 Library, Part 1, "Dictionary Attack Protection"): after three of them swtpm refuses the key.
/// The log says so, the service does not insist, and once an operator has cleared the lockout the key is as good as before.
#[test]
fn a_lockout_is_told_and_costs_no_key() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"key")?;
    for _ in 0..3 {
        world.tpm.restart()?;
        let _ = world.try_to_sign(b"data")?;
    }
    world.tpm.restart()?;
    assert_eq!(world.try_to_sign(b"data")?.status, 500);
    assert!(world.service_log()?.contains("TPM is in lockout: too many wrong passwords, or power cuts (0x921)"));
    let blob = world.challenge(b"other")?;
    assert_eq!(world.import_blob(&blob)?.status, 500, "a key that cannot be tried is not taken");
    world.stop_service()?;
    let _ = world.tpm.tool("tpm2_dictionarylockout", &["--clear-lockout"])?;
    world.start_service()?;
    world.expect_key(b"key")
}

/// A TPM that is away fails calls and ends nothing.
#[test]
fn while_the_tpm_is_away_calls_fail_at_once() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"key")?;
    world.tpm.kill()?;
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(world.try_to_sign(b"data")?.status, 500);
        // A call that waits ends after 20 s.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
    assert!(world.service_log()?.contains("could not sign with auth key: could not initialize TPM at swtpm:"));
    world.tpm.resume_power()?;
    world.expect_key(b"key")
}

/// Section 9, "After a TPM clear": here another TPM is put in, while the service runs.
#[test]
fn an_exchanged_tpm_gets_new_keys() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"key")?;
    let keys = world.public_keys()?;
    world.tpm.replace()?;
    assert_eq!(world.try_to_sign(b"data")?.status, 500, "its key went with it");
    assert_ne!(world.public_keys()?, keys);
    world.import(b"key")?;
    world.expect_key(b"key")?;
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}

/// Sessions that another program has stored outside the TPM take a handle each until they are removed; without a resource manager a program
/// that ends leaves them for ever.
#[test]
fn sessions_that_others_have_stored_give_way() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.stop_service()?;
    let mut sessions = 0;
    while world.tpm.tool("tpm2_startauthsession", &["-S", "session.ctx"]).is_ok() {
        sessions += 1;
        assert!(sessions < 1000, "the TPM takes any number of sessions");
    }
    world.start_service()?;
    world.import(b"key")?;
    world.expect_key(b"key")?;
    let log = world.service_log()?;
    assert!(log.contains("the TPM was full: removed"), "{log}");
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}

/// Section 15: "A slow or hung TPM blocks a worker and everyone behind the mutex."
#[test]
fn a_tpm_that_hangs_blocks_nobody_for_long() -> Result<()> {
    let mut world = TpmWorld::started()?;
    world.import(b"key")?;
    world.tpm.hang()?;
    let begun = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> = (0..5).map(|_| scope.spawn(|| world.try_to_sign(b"data"))).collect();
        is_serving(&world, Daemon::Tpm)?;
        assert!(
            callers.iter().all(|caller| !caller.is_finished()),
            "the service itself answers, before any of them is told"
        );
        for caller in callers {
            let reply = caller.join().ok().context("a panic")??;
            assert_eq!((reply.status, reply.message().as_str()), (500, "internal error"));
        }
        Ok(())
    })?;
    assert!((19..120).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let log = world.service_log()?;
    assert!(log.contains("could not sign with auth key within 20 s"), "{log}");
    world.tpm.go_on()?;
    world.expect_key(b"key")?;
    // Nor does it keep the service from ending.
    world.tpm.hang()?;
    world.stop_service()
}
