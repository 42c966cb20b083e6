//! Every way in which a device can prove who it is, from its super-config to a module's accepted token, and again after a restart with the
//! cloud cut off.
//!
//! Hub moves, power cuts, renewals and bad answers have files of their own.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon,
    calls::{VERSION, create_module, device_identity, module_ids},
    eventually,
    module::Identity,
    provisioned::{Certificate, Kind, Provisioned, Setup, thumbprint},
    world::SERVER_CERTIFICATE,
};
use serde_json::{Value, json};

const LIFETIME: Duration = Duration::from_secs(300);
/// How long a device may take to notice that the cloud is back: a backoff with a cap.
const RECOVERY: Duration = Duration::from_secs(90);

fn without_handle(mut spec: Value) -> Value {
    // Handles have a nonce.
    if let Some(auth) = spec["auth"].as_object_mut() {
        let _ = auth.remove("keyHandle");
    }
    spec
}

fn certificate(device: &Provisioned, id: &str) -> Result<String> {
    let target = format!("/certificates/{id}?{VERSION}");
    device.call(Daemon::Certificates, "GET", &target, None)?.expect(200)?.text("/pem")
}

/// `identity.md`, 1.5: hub, gateway and device, and by what others can use the device's credentials.
fn check_identity(device: &Provisioned, kind: Kind) -> Result<()> {
    let spec = device.identity().with_context(|| format!("{kind:?}"))?;
    let cloud = device.cloud()?;
    assert_eq!(spec["deviceId"].as_str(), kind.device_id(), "{kind:?}: {spec}");
    assert_eq!(spec["hubName"], cloud.as_str(), "{kind:?}: {spec}");
    let gateway = if kind == Kind::Nested { cloud.replace("localhost", "127.0.0.1") } else { cloud };
    assert_eq!(spec["gatewayHost"], gateway.as_str(), "{kind:?}: {spec}");
    let auth = &spec["auth"];
    assert_eq!(auth["type"], kind.authentication(), "{kind:?}: {spec}");
    assert_eq!(auth["keyHandle"].is_string(), kind.authentication() != "tpm", "{kind:?}: {spec}");
    if kind.authentication() == "x509" {
        assert_eq!(auth["certId"], "device-id", "{kind:?}: {spec}");
        // The handle is that of the certificate's key, for whoever may use it.
        let body = json!({ "keyHandle": auth["keyHandle"] }).to_string();
        let target = format!("/parameters/algorithm?{VERSION}");
        let algorithm = device.call(Daemon::Keys, "POST", &target, Some(&body))?.expect(200)?.text("/value")?;
        ensure!(["RSA", "ECDSA"].contains(&algorithm.as_str()), "{kind:?}: {algorithm}");
        let _ = thumbprint(certificate(device, "device-id")?.as_bytes())?;
    } else {
        assert_eq!(auth["certId"], Value::Null, "{kind:?}: {spec}");
    }
    Ok(())
}

fn token_works(device: &Provisioned, module: &Identity) -> Result<()> {
    let sent = module.send_message(device, &module.token(device, LIFETIME)?, "{}")?;
    ensure!(sent.status == 204, "{sent:?}");
    Ok(())
}

/// Everything once with the cloud, and what needs no cloud once more without it.
fn lives_with_and_without_the_cloud(kind: Kind) -> Result<()> {
    let mut device = Setup::of(kind).configure()?;
    device.be_impatient()?;
    device.start_all()?;
    check_identity(&device, kind)?;
    let made = Identity::create(&device, "sampler").with_context(|| format!("{kind:?}"))?;
    token_works(&device, &made)?;
    let before = without_handle(device.identity()?);

    device.stop_cloud()?;
    device.restart_all()?;
    check_identity(&device, kind).context("without the cloud")?;
    assert_eq!(without_handle(device.identity()?), before, "{kind:?}");
    let read = Identity::load(&device, "sampler").with_context(|| format!("{kind:?}, without the cloud"))?;
    assert_eq!(read.generation, made.generation, "{kind:?}");
    let token = read.token(&device, LIFETIME)?;
    ensure!(module_ids(&device)?.contains(&"sampler".to_owned()), "{kind:?}");
    let refused = create_module(&device, "new")?.expect(404)?;
    ensure!(refused.message().starts_with("Hub client error"), "{kind:?}: {refused:?}");
    // A power cut is no other than a restart.
    device.kill_all()?;
    assert_eq!(without_handle(device.identity()?), before, "{kind:?}");
    assert_eq!(Identity::load(&device, "sampler")?.generation, made.generation, "{kind:?}");

    device.start_cloud()?;
    assert_eq!(made.send_message(&device, &token, "{}")?.status, 204, "{kind:?}: a token signed without the cloud");
    eventually("a new module", RECOVERY, || Ok((create_module(&device, "new")?.status == 200).then_some(())))?;
    token_works(&device, &Identity::load(&device, "new")?)?;
    device.stop_all()
}

fn provisioning_info(device: &Provisioned) -> Result<Value> {
    let target = "/identities/provisioning?api-version=2021-12-01";
    device.call(Daemon::Identity, "GET", target, None)?.expect(200)?.json()
}

#[test]
fn dps_with_a_symmetric_key() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsKey)
}

/// The device's key is derived from the group's by its maker: `identity.md`, 2.2.
#[test]
fn dps_with_a_key_of_an_enrolment_group() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsGroupKey)
}

#[test]
fn dps_with_a_certificate_from_the_factory() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsCertificate(Certificate::Preloaded))
}

#[test]
fn dps_with_a_certificate_from_the_factory_and_its_key_on_a_token() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsCertificate(Certificate::PreloadedOnToken))
}

#[test]
fn dps_with_a_certificate_of_the_local_ca() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsCertificate(Certificate::LocalCa))
}

#[test]
fn dps_with_a_certificate_of_the_local_ca_and_its_key_on_a_token() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsCertificate(Certificate::LocalCaOnToken))
}

#[test]
fn dps_with_a_certificate_from_an_est_server() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsCertificate(Certificate::Est))
}

#[test]
fn dps_with_a_certificate_from_an_est_server_and_its_key_on_a_token() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsCertificate(Certificate::EstOnToken))
}

#[test]
fn dps_with_the_tpm() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::DpsTpm)
}

#[test]
fn by_hand_with_a_connection_string() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::ConnectionString)
}

#[test]
fn by_hand_with_a_symmetric_key() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::ManualKey)
}

#[test]
fn by_hand_with_a_certificate_from_the_factory() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::ManualCertificate(Certificate::Preloaded))
}

#[test]
fn by_hand_with_a_certificate_from_the_factory_and_its_key_on_a_token() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::ManualCertificate(Certificate::PreloadedOnToken))
}

#[test]
fn by_hand_with_a_certificate_of_the_local_ca() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::ManualCertificate(Certificate::LocalCa))
}

#[test]
fn by_hand_with_a_certificate_from_an_est_server_and_its_key_on_a_token() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::ManualCertificate(Certificate::EstOnToken))
}

/// `identity.md`, 6.7: the parent is called in the hub's name.
#[test]
fn by_hand_behind_a_parent() -> Result<()> {
    lives_with_and_without_the_cloud(Kind::Nested)
}

/// `identity.md`, 3.3: "stay without device"; 1.6: the routes of hub identities answer 400. Local identities need no cloud.
#[test]
fn none_has_local_identities_alone() -> Result<()> {
    let mut device = Setup::of(Kind::None).start()?;
    device.stop_cloud()?;
    for round in 0..2 {
        let refused = device_identity(&device)?.expect(400)?;
        assert_eq!(refused.message(), "device identity not found", "round {round}");
        assert_eq!(create_module(&device, "sampler")?.status, 400);
        assert_eq!(provisioning_info(&device)?, json!({ "source": "none" }));
        let body = json!({ "type": "local", "moduleId": SERVER_CERTIFICATE }).to_string();
        let target = format!("/identities/modules?{VERSION}");
        let local = device.call(Daemon::Identity, "POST", &target, Some(&body))?.expect(200)?.json()?;
        let auth = &local["spec"]["auth"];
        ensure!(local["type"] == "local" && auth["privateKey"].is_string(), "a local identity has its key");
        let pem = auth["certificate"].as_str().context("no certificate")?;
        let subject = aziot_tests::openssl::run(["x509", "-noout", "-subject"], pem)?;
        assert_eq!(subject.trim(), format!("subject=CN = {SERVER_CERTIFICATE}.pump.plant.example"));
        device.restart_all()?;
    }
    device.stop_all()
}

/// `identity.md`, 1.5 and 2.2: what DPS was told about the device is told to callers, the payload with it; and DPS has seen it.
#[test]
fn provisioning_info_says_how_and_dps_got_the_payload() -> Result<()> {
    let payload = r#"{"site":"Delft","line":7}"#;
    for (kind, auth) in
        [(Kind::DpsKey, "symmetric_key"), (Kind::DpsCertificate(Certificate::Preloaded), "x509"), (Kind::DpsTpm, "tpm")]
    {
        let device = Setup::of(kind).payload(payload).start()?;
        let _ = device.identity().with_context(|| format!("{kind:?}"))?;
        let info = provisioning_info(&device)?;
        let expected = json!({
            "source": "dps",
            "auth": auth,
            "endpoint": format!("https://{}/", device.cloud()?),
            "scope_id": aziot_tests::device::ID_SCOPE,
            "registration_id": kind.device_id(),
            "payload": serde_json::from_str::<Value>(payload)?,
        });
        assert_eq!(info, expected, "{kind:?}");
    }
    let device = Setup::of(Kind::ManualCertificate(Certificate::Preloaded)).start()?;
    let _ = device.identity()?;
    assert_eq!(provisioning_info(&device)?, json!({ "source": "manual", "auth": "x509" }));
    Ok(())
}

/// `tpm.md`, 10: the key that signs never leaves the TPM, and a service that starts anew signs with it at once.
#[test]
fn a_tpm_device_goes_on_after_its_tpm_service_was_killed() -> Result<()> {
    let mut device = Setup::of(Kind::DpsTpm).start()?;
    let made = Identity::create(&device, "sampler")?;
    for _ in 0..3 {
        device.kill(Daemon::Tpm)?;
        // Without it nothing can be signed for the hub, and callers learn why; who the device is, is known.
        assert_eq!(device.identity()?["deviceId"].as_str(), Kind::DpsTpm.device_id());
        let refused = create_module(&device, "new")?.expect(404)?;
        ensure!(refused.message().contains("TPM"), "{refused:?}");
        device.start(Daemon::Tpm)?;
        eventually("a new module", RECOVERY, || Ok((create_module(&device, "new")?.status == 200).then_some(())))?;
        let target = format!("/identities/modules/new?{VERSION}&type=aziot");
        let _ = device.call(Daemon::Identity, "DELETE", &target, None)?.expect(204)?;
    }
    token_works(&device, &made)
}
