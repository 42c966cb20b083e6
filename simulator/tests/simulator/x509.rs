//! Devices that prove themselves by certificate: at DPS and at the hub, by thumbprint and by authority.

use std::path::Path;

use aziot_simulator::est;
use openssl::hash::MessageDigest;
use tempfile::TempDir;

use crate::certificates::{AUTHORITY, Certified, EXPIRED, Kind, LEAF};
use crate::world::{HUB, World, key};

const YEAR: i64 = 365 * 24 * 60 * 60;

fn by_thumbprint(registration_id: &str, thumbprint: &str) -> String {
    format!("[[enrollment]]\nregistration_id = '{registration_id}'\ncertificate_thumbprint = '{thumbprint}'\n")
}

fn folder_with(name: &str, pem: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    aziot_files::write(folder.path().join(name), aziot_files::Mode::SHARED, pem).unwrap();
    folder
}

/// Registers and expects to be refused for this reason.
async fn refused(world: &mut World, registration_id: &str, certificate: Option<&Certified>, reason: &str) {
    world.certificate = certificate.cloned();
    let reply = world.register(registration_id, "").await;
    assert_eq!((reply.status, &reply.json()["errorCode"]), (401, &401_002.into()), "{reason}");
    let found = world.reason().await;
    assert!(found.contains(reason), "{found} / {reason}");
}

#[tokio::test]
async fn a_device_is_known_by_its_thumbprint() {
    let itself = |name| Certified::itself(name, &LEAF);
    // Registration ids have no case.
    let (device, second, stranger) = (itself("First"), itself("second"), itself("first"));
    let (third, spare) = (itself("third"), itself("third"));
    let late = Certified::itself("late", &EXPIRED);
    let sha1 = second.thumbprint(MessageDigest::sha1()).to_lowercase();
    let secondary = format!("secondary_thumbprint = '{}'\n", spare.sha256());
    let enrollments = [
        by_thumbprint("first", &device.sha256()),
        by_thumbprint("second", &sha1),
        by_thumbprint("third", &third.sha256()) + &secondary,
        by_thumbprint("other-name", &device.sha256()),
        by_thumbprint("late", &late.sha256()),
    ];
    let mut world = World::start(&enrollments.concat()).await;
    for (registration_id, certificate) in
        [("first", &device), ("second", &second), ("third", &third), ("third", &spare)]
    {
        world.certificate = Some(certificate.clone());
        let answer = world.provision_by(registration_id, "").await;
        assert_eq!(answer["registrationState"]["deviceId"], registration_id);
        assert_eq!(world.list(registration_id, "").await, 200);
    }
    refused(&mut world, "other-name", Some(&device), "does not have the common name \"other-name\"").await;
    refused(&mut world, "first", Some(&stranger), "which is not this identity's").await;
    assert_eq!(world.list("first", "").await, 401);
    assert!(world.reason().await.contains("which is not this identity's"));
    refused(&mut world, "first", None, "the client showed no certificate").await;
    assert_eq!(world.list("first", "").await, 401);
    refused(&mut world, "late", Some(&late), "it has expired").await;

    world.certificate = Some(device);
    let token = crate::world::dps_token("first", &key());
    assert_eq!(world.register("first", &token).await.status, 401);
    assert!(world.reason().await.contains("proves itself by certificate"));
    let token = world.hub_token("first", &key());
    assert_eq!(world.list("first", &token).await, 401);
    // Who proves itself by key may show a certificate as well.
    assert_eq!(world.provision("Contoso-Device-01", &key()).await["status"], "assigned");
    world.stop().await;
}

#[tokio::test]
async fn certificates_are_judged_by_the_clouds_clock() {
    let device = Certified::itself("device", &LEAF);
    let mut world = World::start(&by_thumbprint("device", &device.sha256())).await;
    for (offset, reason) in [(YEAR, "it has expired"), (-YEAR, "it is not yet valid")] {
        let change = format!(r#"{{"clockOffsetSeconds":{offset}}}"#);
        assert_eq!(world.control("PUT", "/settings", &change).await.status, 204);
        refused(&mut world, "device", Some(&device), reason).await;
    }
    assert_eq!(world.control("PUT", "/settings", r#"{"clockOffsetSeconds":0}"#).await.status, 204);
    assert_eq!(world.provision_by("device", "").await["status"], "assigned");
    world.stop().await;
}

#[tokio::test]
async fn a_group_is_known_by_its_authority() {
    let root = Certified::itself("root", &AUTHORITY);
    let middle = root.issue("middle", &AUTHORITY);
    let device = middle.issue("pump-7", &LEAF);
    let folder = folder_with("root.pem", &root.pem());
    let group = "[[group]]\nname = 'factory'\ncertificate_authority = 'root.pem'\n";
    let mut world = World::start_in(folder, group).await;

    for certificate in [&device, &device.cut(2)] {
        world.certificate = Some(certificate.clone());
        // Registration ids have no case, and the device is called as it calls itself.
        let answer = world.provision_by("Pump-7", "").await;
        assert_eq!(answer["registrationState"]["deviceId"], "Pump-7");
        assert_eq!(world.list("Pump-7", "").await, 200);
    }
    let other_root = Certified::itself("root", &AUTHORITY);
    let no_authority = middle.issue("no authority", &LEAF);
    let expired_middle = root.issue("middle", &Kind { is_authority: true, valid: (-30, -1) });
    for (certificate, reason) in [
        (device.cut(1), "unable to get local issuer certificate"),
        (middle.issue("pump-8", &LEAF), "does not have the common name"),
        (middle.issue("pump-7", &EXPIRED), "has expired"),
        (middle.issue("pump-7", &Kind { is_authority: false, valid: (1, 2) }), "not yet valid"),
        (expired_middle.issue("pump-7", &LEAF), "has expired"),
        (no_authority.issue("pump-7", &LEAF), "invalid CA certificate"),
        (other_root.issue("pump-7", &LEAF), "signature failure"),
        (Certified::itself("pump-7", &LEAF), "self-signed certificate"),
    ] {
        refused(&mut world, "pump-7", Some(&certificate), reason).await;
    }
    refused(&mut world, "root", Some(&root), "the enrolled authority's own certificate").await;
    refused(&mut world, "pump-7", None, "the client showed no certificate").await;
    world.stop().await;
}

#[tokio::test]
async fn an_enrolled_authority_may_be_in_the_middle() {
    let root = Certified::itself("root", &AUTHORITY);
    let (middle, other) = (root.issue("middle", &AUTHORITY), root.issue("other", &AUTHORITY));
    let entry =
        "[[enrollment]]\nregistration_id = 'pump-7'\ndevice_id = 'Seven'\ncertificate_authority = 'middle.pem'\n";
    let mut world = World::start_in(folder_with("middle.pem", &middle.pem()), entry).await;
    world.certificate = Some(middle.issue("pump-7", &LEAF).cut(1));
    assert_eq!(world.provision_by("pump-7", "").await["registrationState"]["deviceId"], "Seven");
    assert_eq!(world.list("Seven", "").await, 200);
    refused(&mut world, "pump-7", Some(&other.issue("pump-7", &LEAF)), "certificate").await;
    world.stop().await;
}

#[tokio::test]
async fn a_new_certificate_takes_the_place_of_the_old_one() {
    let root = Certified::itself("root", &AUTHORITY);
    let (old, new) = (root.issue("pump-7", &LEAF), root.issue("pump-7", &LEAF));
    let group = "[[group]]\nname = 'factory'\ncertificate_authority = 'root.pem'\n";
    let mut world = World::start_in(folder_with("root.pem", &root.pem()), group).await;
    world.certificate = Some(old.clone());
    world.provision_by("pump-7", "").await;
    let module = format!("/devices/pump-7/modules/m?{HUB}");
    let created = world.request("PUT", &module, "", r#"{"moduleId":"m","deviceId":"pump-7"}"#).await;
    assert_eq!(created.status, 200);

    world.certificate = Some(new.clone());
    assert_eq!(world.list("pump-7", "").await, 401);
    let operation = world.register("pump-7", "").await.json()["operationId"].as_str().unwrap().to_owned();
    world.certificate = Some(old);
    // Not yet assigned, so the old one still counts; and the certificate that registered is the one that will.
    assert_eq!(world.list("pump-7", "").await, 200);
    assert_eq!(world.finish("pump-7", &operation, "").await["status"], "assigned");
    assert_eq!(world.list("pump-7", "").await, 401);
    assert!(world.reason().await.contains("which is not this identity's"));
    world.certificate = Some(new.clone());
    let kept = world.request("GET", &module, "", "").await;
    assert_eq!((kept.status, kept.json()), (200, created.json()));

    let devices = world.control("GET", "/devices", "").await.json();
    assert_eq!(devices[0]["authentication"], "selfSigned");
    assert_eq!(devices[0]["x509Thumbprint"]["primaryThumbprint"], new.sha256());
    let folder = world.stop().await;
    let mut world = World::start_in(folder, group).await;
    world.certificate = Some(new);
    assert_eq!(world.list("pump-7", "").await, 200);
    world.stop().await;
}

#[tokio::test]
async fn manual_devices_show_certificates_too() {
    let root = Certified::itself("root", &AUTHORITY);
    let device = Certified::itself("anything", &LEAF);
    let entries = format!(
        "[[device]]\ndevice_id = 'printed'\ncertificate_thumbprint = '{}'\n\
         [[device]]\ndevice_id = 'Issued'\ncertificate_authority = 'root.pem'\n",
        device.sha256()
    );
    let folder = folder_with("root.pem", &root.pem());
    let mut world = World::start_in(folder, &entries).await;
    for (certificate, device_id, status) in [
        (device, "printed", 200),
        (root.issue("Issued", &LEAF), "Issued", 200),
        (root.issue("issued", &LEAF), "Issued", 401),
        (root.issue("Issued", &EXPIRED), "Issued", 401),
        (root.issue("printed", &LEAF), "printed", 401),
    ] {
        world.certificate = Some(certificate);
        assert_eq!(world.list(device_id, "").await, status, "{device_id}");
    }
    // The authority is kept with the device, so the device is known without its entry.
    let folder = world.stop().await;
    aziot_files::remove(folder.path().join("root.pem")).unwrap();
    let mut world = World::start_in(folder, "").await;
    world.certificate = Some(root.issue("Issued", &LEAF));
    assert_eq!(world.list("Issued", "").await, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_module_of_such_a_device_signs_its_messages_with_a_key() {
    let device = Certified::itself("device", &LEAF);
    let mut world = World::start(&by_thumbprint("device", &device.sha256())).await;
    world.certificate = Some(device);
    world.provision_by("device", "").await;
    let body = r#"{"moduleId":"m","deviceId":"device","authentication":{"type":"sas","symmetricKey":{"primaryKey":"KEY","secondaryKey":"KEY"}}}"#;
    let body = body.replace("KEY", crate::world::KEY);
    assert_eq!(world.request("PUT", &format!("/devices/device/modules/m?{HUB}"), "", body).await.status, 200);
    let token = world.hub_token("device/modules/m", &key());
    let path = format!("/devices/device/modules/m/messages/events?{HUB}");
    assert_eq!(world.request("POST", &path, &token, "hello").await.status, 204);
    world.stop().await;
}

#[tokio::test]
async fn what_the_est_server_issues_can_be_enrolled_before_its_first_start() {
    let group = "[[group]]\nname = 'est'\ncertificate_authority = 'est/issuing-ca.pem'\n";
    let settings = |settings: &mut aziot_simulator::Settings| settings.est = Some(est::Settings::default());
    let mut world = World::start_with(tempfile::tempdir().unwrap(), group, settings).await;
    let read = |folder: &Path, name: &str| std::fs::read(folder.join("est").join(name)).unwrap();
    let folder = world.folder.path();
    let issuing = Certified::from_pem(&read(folder, "issuing-ca.pem"), &read(folder, "issuing-ca.key.pem"));
    world.certificate = Some(issuing.issue("pump-7", &LEAF).cut(1));
    assert_eq!(world.provision_by("pump-7", "").await["status"], "assigned");
    world.stop().await;
}
