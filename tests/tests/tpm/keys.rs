//! The TPM's own keys, and the passwords that guard them.

use anyhow::{Result, ensure};
use aziot_tests::hex;

use crate::world::{AUTH_KEY, ENDORSEMENT_KEY, STORAGE_ROOT_KEY, TpmWorld};

/// `tpm.md`, section 14: "Fresh TPM creates both keys at the right handles with byte-exact templates (section 5); second start creates
/// nothing and returns identical keys".
#[test]
fn a_fresh_tpm_gets_its_keys_once_and_from_the_documented_templates() -> Result<()> {
    let mut world = TpmWorld::started()?;
    let keys = world.public_keys()?;
    let policy = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";
    let parameters = "00060080004300100800000000000100";
    let templates =
        [format!("013a0001000b000300b20020{policy}{parameters}"), format!("011a0001000b000304720000{parameters}")];
    for ((key, template), length) in keys.iter().zip(&templates).zip([316, 284]) {
        assert_eq!(key.len(), length);
        assert_eq!(hex::encode(&key[..template.len() / 2]), *template);
    }
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, ENDORSEMENT_KEY]);
    let first_log = world.service_log()?;
    assert_eq!(first_log.matches("making one").count(), 2, "{first_log}");
    assert!(
        !first_log.contains("[ERR!]") && !first_log.contains("[WARN]"),
        "a first start is nothing wrong: {first_log}"
    );

    world.start_service()?;
    assert_eq!(world.public_keys()?, keys);
    let log = world.service_log()?;
    assert!(!log[first_log.len()..].contains("making one"), "{log}");
    Ok(())
}

/// Section 5 again: after its keys are lost the TPM makes the same ones, which is what the exact templates are for.
#[test]
fn lost_keys_come_back_as_they_were() -> Result<()> {
    let mut world = TpmWorld::started()?;
    let keys = world.public_keys()?;
    world.stop_service()?;
    for handle in [STORAGE_ROOT_KEY, ENDORSEMENT_KEY] {
        let _ = world.tpm.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", handle])?;
    }
    world.start_service()?;
    assert_eq!(world.public_keys()?, keys);
    Ok(())
}

/// Section 15: "warn when a present key does not match the template".
#[test]
fn a_key_of_another_template_is_used_with_a_warning() -> Result<()> {
    let mut world = TpmWorld::configured("")?;
    let _ = world.tpm.tool("tpm2_createprimary", &["-Q", "-C", "o", "-G", "rsa2048:aes256cfb", "-c", "other.ctx"])?;
    let _ = world.tpm.tool("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", "other.ctx", STORAGE_ROOT_KEY])?;
    let _ = world.tpm.tool("tpm2_flushcontext", &["-t"])?;
    world.start_service()?;
    let _ = world.public_keys()?;
    let _ = world.public_keys()?;
    let log = world.service_log()?;
    assert_eq!(log.matches("the storage root key at 0x81000001 was not made from the template").count(), 1, "{log}");
    assert!(!log.contains("the endorsement key at 0x81010001 was not"), "{log}");
    Ok(())
}

const PASSWORDS: &str =
    "[hierarchy_authorization]\nendorsement = \"hello-endorsement\"\nowner = { hex = \"776f726c642d6f776e657200\" }\n";

fn set_passwords(world: &TpmWorld) -> Result<()> {
    let _ = world.tpm.tool("tpm2_changeauth", &["-Q", "-c", "endorsement", "hello-endorsement"])?;
    let _ = world.tpm.tool("tpm2_changeauth", &["-Q", "-c", "owner", "world-owner"])?;
    Ok(())
}

/// Section 14: "non-empty hierarchy auths".
#[test]
fn passwords_of_the_hierarchies_open_them() -> Result<()> {
    let mut world = TpmWorld::configured(PASSWORDS)?;
    set_passwords(&world)?;
    world.start_service()?;
    for key in [b"first", b"other"] {
        world.import(key)?;
        world.expect_key(key)?;
    }
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    Ok(())
}

/// Section 14: "wrong auths". The reason is in the log, the password is not.
#[test]
fn wrong_passwords_are_told_and_cost_no_key() -> Result<()> {
    let mut world = TpmWorld::configured("")?;
    set_passwords(&world)?;
    world.start_service()?;
    assert!(world.public_keys().is_err());
    let log = world.service_log()?;
    assert!(log.contains("could not get the TPM's keys") && log.contains("the password is wrong"), "{log}");
    world.stop_service()?;
    assert!(world.persistent_handles()?.is_empty());

    world.configure(&world.tpm.tcti(), PASSWORDS)?;
    world.start_service()?;
    world.import(b"old key")?;
    let blob = world.challenge(b"new key")?;
    for wrong in ["owner = \"hello-endorsement\"", "owner = \"world-owner\"", "endorsement = \"hello-endorsement\""] {
        world.stop_service()?;
        world.configure(&world.tpm.tcti(), &format!("[hierarchy_authorization]\n{wrong}\n"))?;
        world.start_service()?;
        assert_eq!(world.import_blob(&blob)?.status, 500, "{wrong}");
        world.expect_key(b"old key")?;
    }
    world.stop_service()?;
    assert_eq!(world.persistent_handles()?, [STORAGE_ROOT_KEY, AUTH_KEY, ENDORSEMENT_KEY]);
    let log = world.service_log()?;
    ensure!(!log.contains("hello-endorsement") && !log.contains("world-owner"), "a password is in the log");
    Ok(())
}
