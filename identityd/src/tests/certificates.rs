//! Devices that prove themselves by a certificate: issued or put there before, configured by hand or registered.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::world::{
    Service, World, eventually,
    x509::{enroll, now},
};

/// Why the device is not registered, as the log has it.
async fn reason(world: &World, service: &Service) -> String {
    aziot_log::chain(&service.identities.reprovision(world.uid()).await.unwrap_err()).to_string()
}

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const MANUAL: &str = "method = 'x509'\nidentity_cert = 'identity'\nidentity_pk = 'identity'";

#[tokio::test]
async fn a_device_has_a_certificate_issued_and_registers_with_it() {
    let world = World::with_certificates().await;
    let config = world.dps_x509("registration_id = { CN = 'dev-x', O = 'Acme', C = 'AQ' }", &world.daemon());
    let service = world.start(&config).await;
    let device = service.json("POST", "/identities/device", r#"{"type":"aziot"}"#).await;
    let spec = &device["spec"];
    assert_eq!((&spec["deviceId"], &spec["hubName"]), (&json!("dev-x"), &json!(world.hub())));
    assert_eq!((&spec["auth"]["type"], &spec["auth"]["certId"]), (&json!("x509"), &json!("identity")));
    assert!(spec["auth"]["keyHandle"].is_string());

    let made = service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!(made["spec"]["auth"]["type"], "sas");
    let info = service.json("GET", "/identities/provisioning", "").await;
    assert_eq!((&info["auth"], &info["registration_id"]), (&json!("x509"), &json!("dev-x")));

    let chain = world.stored("identity").await.unwrap();
    let subject: Vec<_> =
        chain.leaf().unwrap().subject_name().entries().map(|entry| entry.data().to_string()).collect();
    assert_eq!(subject.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), ["dev-x", "AQ", "Acme"]);
    let key = world.public_key("identity").await.unwrap();
    assert!(chain.leaf().unwrap().public_key().unwrap().public_eq(&key));
    assert_eq!(key.bits(), 2048);
    drop(service);

    // Again, and without a cloud.
    let registrations = world.network.count("PUT", "/register");
    world.network.cut();
    let service = world.start(&config).await;
    let again = service.json("POST", "/identities/device", r#"{"type":"aziot"}"#).await;
    assert_eq!(again["spec"]["deviceId"], "dev-x");
    service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    assert_eq!(world.network.count("PUT", "/register"), registrations);
    assert_eq!(world.stored("identity").await.unwrap().fingerprint(), chain.fingerprint());
}

#[tokio::test]
async fn the_certificate_names_the_registration_where_nothing_else_does() {
    let world = World::with_certificates().await;
    let config = world.dps_x509("", &world.daemon());
    let service = world.start(&config).await;
    let expected = "could not use the device's certificate: there is no certificate identity, and \
                    provisioning.attestation.registration_id does not say whom to request one for";
    assert_eq!(reason(&world, &service).await, expected);
    assert!(world.public_key("identity").await.is_none(), "nothing was made");
    drop(service);

    let key = world.make_key_pair("identity").await;
    world.store("identity", world.certificate(&key, "dev-x", now() - 10, now() + 3600)).await;
    let service = world.start(&config).await;
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-x");
    assert_eq!(service.json("GET", "/identities/provisioning", "").await["registration_id"], "dev-x");
}

#[tokio::test]
async fn a_device_by_hand_needs_no_dps() {
    let world = World::with_certificates().await;
    let service = world.start(&world.manual("manual-x", MANUAL, &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let info = service.json("GET", "/identities/provisioning", "").await;
    assert_eq!(info, json!({"source":"manual","auth":"x509"}));
    assert_eq!(world.network.count("PUT", "/register"), 0);
}

/// W21: an outage is not an absence, and what is there is used.
#[tokio::test]
async fn no_key_is_lost_while_the_certificate_service_is_away() {
    let world = World::with_cloud(enroll).await;
    let key = world.make_key_pair("identity").await;
    let service = world.start(&world.dps_x509("registration_id = 'dev-x'", &world.daemon())).await;
    let expected = "could not use the device's certificate: the certificate service (certd) could not read the \
                    certificate identity: could not connect to ";
    let text = reason(&world, &service).await;
    assert!(text.starts_with(expected), "{text}");
    assert!(world.public_key("identity").await.unwrap().public_eq(&key));

    let world = world.start_certd().await;
    eventually("the device is there", async || service.send("GET", "/identities/identity", "").await.status == 200)
        .await;
    assert!(
        world.public_key("identity").await.unwrap().public_eq(&key),
        "the certificate is for the key that was there"
    );
}

#[tokio::test]
async fn a_name_that_no_certificate_can_have_is_told_by_its_setting() {
    let world = World::with_certificates().await;
    let long = "x".repeat(65);
    for config in [
        world.dps_x509(&format!("registration_id = '{long}'"), &world.daemon()),
        world.manual(&long, MANUAL, &world.daemon()),
    ] {
        let service = world.start(&config).await;
        service.settled().await;
        let text = reason(&world, &service).await;
        let expected = "has 65 characters, and the common name of a certificate has at most 64";
        assert!(text.contains("provisioning.") && text.contains(expected), "{text}");
        assert!(world.public_key("identity").await.is_none() && world.stored("identity").await.is_none());
    }
}

#[tokio::test]
async fn a_certificate_for_another_key_is_never_shown() {
    let world = World::with_certificates().await;
    let other = openssl::rsa::Rsa::generate(2048).unwrap();
    let other = openssl::pkey::PKey::from_rsa(
        openssl::rsa::Rsa::from_public_components(other.n().to_owned().unwrap(), other.e().to_owned().unwrap())
            .unwrap(),
    )
    .unwrap();
    world.make_key_pair("identity").await;
    world.store("identity", world.certificate(&other, "dev-x", now() - 10, now() + 3600)).await;
    let service = world.start(&world.dps_x509("", &world.daemon())).await;
    let text = reason(&world, &service).await;
    assert!(text.contains("the certificate identity cannot be shown with the key pair identity"), "{text}");
    assert_eq!(world.network.count("", "/"), 0);
}

#[tokio::test]
async fn dps_says_why_it_does_not_want_a_certificate() {
    let world = World::with_certificates().await;
    let service = world.start(&world.dps_x509("registration_id = 'stranger'", &world.daemon())).await;
    let (status, message) = service.error("POST", "/identities/device/reprovision", "").await;
    assert_eq!(status, 404);
    assert!(message.starts_with("DPS client error\ncaused by: ") && message.contains("HTTP 40"), "{message}");
}

/// Somebody, or their tool, has put another certificate in the place of the one that the cloud does not accept any more.
#[tokio::test]
async fn a_certificate_that_was_replaced_from_outside_is_taken_at_the_first_refusal() {
    let world = World::with_certificates().await;
    let key = world.make_key_pair("identity").await;
    world.store("identity", world.certificate(&key, "manual-x", now() - 100, now() + 2)).await;
    let service = world.start(&world.manual("manual-x", MANUAL, &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    eventually("the hub refuses the certificate", async || {
        service.send("PUT", "/identities/modules/m1?type=aziot", "{}").await.status == 404
    })
    .await;
    world.store("identity", world.certificate(&key, "manual-x", now() - 100, now() + 3600)).await;
    service.json("PUT", "/identities/modules/m1?type=aziot", "{}").await;
}

/// The same for DPS, which the device asks with the certificate that it has shown before.
#[tokio::test]
async fn a_certificate_that_was_replaced_from_outside_is_taken_when_dps_refuses() {
    let world = World::with_certificates().await;
    let key = world.make_key_pair("identity").await;
    world.store("identity", world.certificate(&key, "dev-x", now() - 100, now() + 3)).await;
    let service = world.start(&world.dps_x509("registration_id = 'dev-x'", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    eventually("DPS refuses the certificate", async || {
        service.send("POST", "/identities/device/reprovision", "").await.status == 404
    })
    .await;
    world.store("identity", world.certificate(&key, "dev-x", now() - 100, now() + 3600)).await;
    assert_eq!(service.send("POST", "/identities/device/reprovision", "").await.status, 204);
}

/// W3: its modules have keys of their own.
#[tokio::test]
async fn a_known_device_whose_certificate_is_over_is_told_while_dps_is_asked() {
    let world = World::with_certificates().await;
    let key = world.make_key_pair("identity").await;
    world.store("identity", world.certificate(&key, "dev-x", now() - 100, now() + 3600)).await;
    let renew = "identity_auto_renew = { rotate_key = true, threshold = '50%', retry = '10%' }\n";
    let config = world.dps_x509(&format!("registration_id = 'dev-x'\n{renew}"), &world.daemon());
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    drop(service);
    world.store("identity", world.certificate(&key, "dev-x", now() - 100, now() - 1)).await;
    world.network.swallow("/register").await;
    let service = world.start(&config).await;
    let told = service.json("GET", "/identities/identity", "");
    let device = timeout(Duration::from_secs(5), told).await.expect("at once");
    assert_eq!(device["spec"]["deviceId"], "dev-x");
    world.network.mend();
}
