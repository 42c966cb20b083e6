//! A device that proves itself by its TPM: its key is sent by DPS, and a challenge lies in the same place before.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::json;
use tokio::time::timeout;

use super::world::{World, eventually, tpm::Chip, x509::enroll};

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const M1: &str = "/identities/modules/m1?type=aziot";
const REPROVISION: &str = "/identities/device/reprovision";

#[tokio::test]
async fn a_device_registers_with_its_tpm_and_starts_again_without_dps() {
    let world = World::with_cloud(enroll).await;
    let chip = Chip::new();
    let _tpmd = world.start_tpmd(&chip);
    let config = world.dps_tpm(&world.daemon());
    let service = world.start(&config).await;
    let device = service.json("GET", "/identities/identity", "").await;
    assert_eq!((&device["spec"]["deviceId"], &device["spec"]["auth"]), (&json!("dev-t"), &json!({"type": "tpm"})));
    let made = service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!(made["spec"]["auth"]["type"], "sas");
    let info = service.json("GET", "/identities/provisioning", "").await;
    assert_eq!((&info["auth"], &info["registration_id"]), (&json!("tpm"), &json!("dev-t")));
    assert_eq!(chip.imports.load(Ordering::SeqCst), 2, "the challenge and the key");
    drop(service);

    let service = world.start(&config).await;
    service.json("PUT", M1, "{}").await;
    assert_eq!(chip.imports.load(Ordering::SeqCst), 2);
    assert_eq!(world.network.count("PUT", "/register"), 2, "as one registration takes them");
    assert_eq!(service.send("POST", REPROVISION, "").await.status, 204);
    service.json("PUT", M1, "{}").await;
    let text: String = std::fs::read_dir(world.home())
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .collect();
    assert!(!text.contains("authenticationKey") && !text.contains("SharedAccess"), "{text}");
    assert!(!world.home().join("tpm_import").exists());
}

/// W25: the challenge has taken the place of the hub's key, so what the state knows is not enough.
#[tokio::test]
async fn a_registration_that_ends_after_the_challenge_is_made_again() {
    let world = World::with_cloud(enroll).await;
    let chip = Chip::new();
    let _tpmd = world.start_tpmd(&chip);
    let config = world.dps_tpm(&world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    chip.imports_left.store(1, Ordering::SeqCst);
    let (status, message) = service.error("POST", REPROVISION, "").await;
    let expected = "TPM client error\ncaused by: the TPM service (tpmd) could not import a key";
    assert_eq!((status, message.as_str()), (404, expected));
    assert!(world.home().join("tpm_import").exists());
    drop(service);

    // Also when DPS is away at first: the modules have keys of their own.
    world.network.cut();
    let service = world.start(&config).await;
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-t");
    service.json("GET", M1, "").await;
    chip.imports_left.store(usize::MAX, Ordering::SeqCst);
    world.network.mend();
    eventually("it is registered", async || service.send("PUT", M1, "{}").await.status == 200).await;
    assert!(!world.home().join("tpm_import").exists());
}

#[tokio::test]
async fn a_registration_that_fails_while_running_is_made_good_without_a_hand() {
    let world = World::with_cloud(enroll).await;
    let chip = Chip::new();
    let _tpmd = world.start_tpmd(&chip);
    let service = world.start(&world.dps_tpm(&world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    chip.imports_left.store(1, Ordering::SeqCst);
    assert_eq!(service.error("POST", REPROVISION, "").await.0, 404);
    assert_eq!(service.error("PUT", M1, "{}").await.0, 404, "the hub does not know the challenge");
    chip.imports_left.store(usize::MAX, Ordering::SeqCst);
    eventually("it is registered", async || service.send("PUT", M1, "{}").await.status == 200).await;
}

/// The hub need not say that it does not know the key: the note does.
#[tokio::test]
async fn a_lost_key_is_replaced_while_the_hub_is_away() {
    let world = World::with_cloud(enroll).await;
    let chip = Chip::new();
    let _tpmd = world.start_tpmd(&chip);
    world.control("PUT", "/fault", r#"{"kind":"status","status":503,"matching":"/modules"}"#).await;
    let service = world.start(&world.dps_tpm(&world.daemon())).await;
    service.settled().await;
    chip.imports_left.store(1, Ordering::SeqCst);
    assert_eq!(service.error("POST", REPROVISION, "").await.0, 404);
    assert!(world.home().join("tpm_import").exists());
    chip.imports_left.store(usize::MAX, Ordering::SeqCst);
    eventually("it is registered", async || !world.home().join("tpm_import").exists()).await;
}

#[tokio::test]
async fn a_known_device_is_told_while_dps_is_asked_for_its_key() {
    let world = World::with_cloud(enroll).await;
    let chip = Chip::new();
    let _tpmd = world.start_tpmd(&chip);
    let config = world.dps_tpm(&world.daemon());
    world.start(&config).await.json("GET", "/identities/identity", "").await;
    aziot_files::write(world.home().join("tpm_import"), aziot_files::Mode::PRIVATE, "").unwrap();
    world.network.swallow("/register").await;
    let service = world.start(&config).await;
    let told = service.json("GET", "/identities/identity", "");
    let device = timeout(Duration::from_secs(5), told).await.expect("at once");
    assert_eq!(device["spec"]["deviceId"], "dev-t");
    world.network.mend();
}

#[tokio::test]
async fn without_the_tpm_service_that_is_what_is_told() {
    let world = World::with_cloud(enroll).await;
    let chip = Chip::new();
    let config = world.dps_tpm(&world.daemon());
    let service = world.start(&config).await;
    let (status, message) = service.error("POST", REPROVISION, "").await;
    let expected = "TPM client error\ncaused by: the TPM service (tpmd) could not tell its public keys";
    assert_eq!((status, message.as_str()), (404, expected));
    let error = service.identities.reprovision(world.uid()).await.unwrap_err();
    assert!(!error.is_offline() && aziot_log::chain(&error).to_string().contains("tpmd.sock"), "{error:?}");
    let tpmd = world.start_tpmd(&chip);
    eventually("the device is there", async || {
        service.send("POST", "/identities/modules", CREATE_M1).await.status == 200
    })
    .await;

    // A known device stays, and what cannot be signed is not taken for an outage of the hub.
    tpmd.stop().await;
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["auth"]["type"], "tpm");
    let (status, message) = service.error("PUT", M1, "{}").await;
    let expected = "TPM client error\ncaused by: the TPM service (tpmd) could not sign";
    assert_eq!((status, message.as_str()), (404, expected));
}

#[tokio::test]
async fn another_tpm_is_refused_by_dps() {
    let world = World::with_cloud(enroll).await;
    let tpmd = world.start_tpmd(&Chip::new());
    let config = world.dps_tpm(&world.daemon());
    world.start(&config).await.json("GET", "/identities/identity", "").await;
    tpmd.stop().await;
    let _tpmd = world.start_tpmd(&Chip::new());
    let service = world.start(&config).await;
    let (status, message) = service.error("POST", REPROVISION, "").await;
    assert_eq!(status, 404);
    let expected =
        "DPS client error\ncaused by: DPS has no enrollment of this TPM (of its endorsement key) as \"dev-t\": ";
    assert!(message.starts_with(expected) && message.contains("HTTP 401"), "{message}");
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-t", "its modules go on");
}
