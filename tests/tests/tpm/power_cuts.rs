//! The service, or the TPM, ends at any moment of an import: afterwards a key signs, the old one or the new.

use std::{
    cell::Cell,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aziot_tests::Daemon;

use crate::world::{AUTH_KEY, ENDORSEMENT_KEY, SPARE, STORAGE_ROOT_KEY, TpmWorld, hmac};

const ROUNDS: u32 = 40;

/// Begins an import, cuts at a moment of it that moves with the round, and tells the key that is to sign besides the old one.
fn cut_import(
    world: &mut TpmWorld,
    round: u32,
    usual: Duration,
    cut: impl FnOnce(&mut TpmWorld) -> Result<()>,
) -> Result<Vec<u8>> {
    let key = format!("key of round {round}").into_bytes();
    let blob = world.challenge(&key)?;
    let (socket, body) = (world.socket(Daemon::Tpm), import_body(&blob));
    let begun = Instant::now();
    let caller = thread::spawn(move || {
        // Its connection may break.
        let _ = aziot_tests::raw::call(
            &socket,
            "POST",
            &format!("/import_auth_key?{}", aziot_tests::calls::VERSION),
            Some(&body),
        );
    });
    // A moment within the import is what is wanted; which one it is nobody announces.
    let moment = usual * round / (ROUNDS - 5);
    while begun.elapsed() < moment {
        std::hint::spin_loop();
    }
    cut(world)?;
    caller.join().ok().context("a panic")?;
    Ok(key)
}

fn import_body(blob: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    serde_json::json!({ "key": STANDARD.encode(blob) }).to_string()
}

/// Time that an import takes here.
fn usual_time(world: &TpmWorld) -> Result<Duration> {
    world.import(b"first")?;
    let begun = Instant::now();
    world.import(b"old")?;
    Ok(begun.elapsed())
}

/// The key that signs is one of these two.
pub(crate) fn which(world: &TpmWorld, old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let signature = world.sign(b"data")?;
    for key in [old, new] {
        if signature == hmac(key, b"data")? {
            return Ok(key.to_vec());
        }
    }
    bail!("neither the old nor the new key signs")
}

/// An import never loses the old key before the new one is safe. The TPM has no resource manager: what a killed service leaves in it
/// stays, and must not fill it.
#[test]
fn a_service_that_is_killed_within_an_import_has_a_key_afterwards() -> Result<()> {
    let mut world = TpmWorld::with_power_cuts()?;
    let usual = usual_time(&world)?;
    let mut old = b"old".to_vec();
    let replaced = Cell::new(0);
    // The machine may be slower now than it was when it was measured: on until an import gets to its end.
    for round in (0..10 * ROUNDS).take_while(|round| *round < ROUNDS || replaced.get() == 0) {
        let new = cut_import(&mut world, round, usual, |world| world.kill(Daemon::Tpm))?;
        world.start_service()?;
        let now = which(&world, &old, &new).with_context(|| format!("round {round}"))?;
        replaced.set(replaced.get() + u32::from(now == new));
        old = now;
    }
    assert!((1..ROUNDS).contains(&replaced.get()), "{} of {ROUNDS} imports were done", replaced.get());
    // Whatever state the last cut left, a whole import ends in the documented one.
    world.import(b"last")?;
    world.expect_key(b"last")?;
    world.stop_service()?;
    let mut handles = world.tpm.handles("persistent")?;
    handles.sort();
    assert_eq!(handles, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}

/// The same when the power of the whole device fails.
#[test]
fn a_tpm_that_loses_power_within_an_import_has_a_key_afterwards() -> Result<()> {
    let mut world = TpmWorld::with_power_cuts()?;
    let usual = usual_time(&world)?;
    let mut old = b"old".to_vec();
    let replaced = Cell::new(0);
    // As above.
    for round in (0..10 * ROUNDS).take_while(|round| *round < ROUNDS || replaced.get() == 0) {
        let new = cut_import(&mut world, round, usual, |world| {
            world.tpm.kill()?;
            world.kill(Daemon::Tpm)
        })?;
        world.tpm.resume_power()?;
        world.start_service()?;
        let now = which(&world, &old, &new).with_context(|| format!("round {round}"))?;
        replaced.set(replaced.get() + u32::from(now == new));
        old = now;
    }
    // The first rounds cut before the new key is there, the last ones after: some cut fell between.
    assert!((1..ROUNDS).contains(&replaced.get()), "{} of {ROUNDS} imports were done", replaced.get());
    Ok(())
}

/// The state that a cut leaves between the old key's end and the new one's place: the spare alone. It signs, and the next import tidies up.
#[test]
fn the_spare_signs_until_the_next_import() -> Result<()> {
    let mut world = TpmWorld::configured("auth_key_index = 0x40_01_00")?;
    world.start_service()?;
    world.import(b"key")?;
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, ENDORSEMENT_KEY, SPARE]);
    world.configure(&world.tpm.tcti(), "")?;
    world.start_service()?;
    for length in [4, 4000] {
        assert_eq!(world.sign(&vec![1; length])?, hmac(b"key", &vec![1; length])?);
    }
    assert!(world.service_log()?.contains("an import was interrupted: its key signs from 0x81400100"));
    world.import(b"next")?;
    world.expect_key(b"next")?;
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}
