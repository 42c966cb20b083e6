//! Several hubs in one simulator, gateways in front of them, and a device that DPS moves.

use aziot_simulator::{Settings, SymmetricKey, sas};

use crate::world::{HUB, KEY, World, key, soon};

const DEVICE: &str = "Contoso-Device-01";

/// The first hub is `localhost:PORT`, the second one `127.0.0.1:PORT`.
async fn two_hubs(enrollments: &str) -> World {
    World::start_with(tempfile::tempdir().unwrap(), enrollments, with_two_hubs).await
}

fn with_two_hubs(settings: &mut Settings) {
    settings.further_hub_names = vec!["127.0.0.1".to_owned()];
    settings.gateway_names = vec!["parent.test".to_owned(), "edge.test:1=127.0.0.1".to_owned()];
}

/// Lists modules at `host` with a token for `audience`.
async fn list_at(world: &mut World, host: &str, audience: &str, device_id: &str, key: &SymmetricKey) -> u16 {
    let own = std::mem::replace(&mut world.hub_name, host.to_owned());
    let token = sas::sign(&format!("{audience}/devices/{device_id}"), key, soon(), None);
    let status = world.list(device_id, &token).await;
    world.hub_name = own;
    status
}

/// The same at a hub under its own name.
async fn list(world: &mut World, hub: &str) -> u16 {
    list_at(world, hub, hub, DEVICE, &key()).await
}

async fn assigned_hub(world: &mut World) -> (String, String) {
    let state = world.provision(DEVICE, &key()).await["registrationState"].clone();
    assert_eq!(state["deviceId"], DEVICE);
    (state["assignedHub"].as_str().unwrap().to_owned(), state["substatus"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn each_hub_has_its_own_devices() {
    let entries = format!(
        "[[enrollment]]\nregistration_id = 'far'\nsymmetric_key = '{KEY}'\nassigned_hub = '127.0.0.1'\n\
         [[group]]\nname = 'g'\nsymmetric_key = '{KEY}'\nassigned_hub = '127.0.0.1'\n\
         [[device]]\ndevice_id = 'manual'\nsymmetric_key = '{KEY}'\nhub = '127.0.0.1'\n"
    );
    let mut world = two_hubs(&entries).await;
    let (first, second) = (world.hub_name.clone(), format!("127.0.0.1:{}", world.port));
    assert_eq!(world.provision("far", &key()).await["registrationState"]["assignedHub"], second);
    let member = key().derive("member");
    assert_eq!(world.provision("member", &member).await["registrationState"]["assignedHub"], second);
    for (device_id, key) in [("far", key()), ("member", member), ("manual", key())] {
        assert_eq!(list_at(&mut world, &second, &second, device_id, &key).await, 200, "{device_id}");
        assert_eq!(list_at(&mut world, &second, &first, device_id, &key).await, 401, "{device_id}");
        assert_eq!(list_at(&mut world, &first, &first, device_id, &key).await, 404, "{device_id}");
    }
    let devices = world.control("GET", "/devices", "").await.json();
    assert!(devices.as_array().unwrap().iter().all(|device| device["hub"] == second.as_str()), "{devices}");
    let disable = |hub: &str| format!("/devices/far?hub={hub}");
    assert_eq!(world.control("PUT", &disable("localhost"), r#"{"disabled":true}"#).await.status, 404);
    assert_eq!(world.control("PUT", &disable("nowhere"), r#"{"disabled":true}"#).await.status, 404);
    assert_eq!(world.control("PUT", &disable("127.0.0.1"), r#"{"disabled":true}"#).await.status, 204);
    assert_eq!(list_at(&mut world, &second, &second, "far", &key()).await, 401);
    world.stop().await;
}

#[tokio::test]
async fn a_device_moves_with_its_modules() {
    let mut world = two_hubs("").await;
    let (first, second) = (world.hub_name.clone(), format!("127.0.0.1:{}", world.port));
    assert_eq!(assigned_hub(&mut world).await, (first.clone(), "initialAssignment".to_owned()));
    let token = world.hub_token(DEVICE, &key());
    let module = format!("/devices/{DEVICE}/modules/m?{HUB}");
    let created = world.request("PUT", &module, &token, format!(r#"{{"moduleId":"m","deviceId":"{DEVICE}"}}"#)).await;
    let created = created.json();

    let control = format!("/registrations/{DEVICE}");
    let change = format!(r#"{{"assignedHub":"{second}","migrate":true}}"#);
    assert_eq!(world.control("PUT", &control, &change).await.status, 204);
    let gone = world.request("GET", &module, &token, "").await;
    assert_eq!(gone.status, 404);
    assert!(gone.json()["Message"].as_str().unwrap().starts_with("ErrorCode:DeviceNotFound;"));
    assert_eq!(assigned_hub(&mut world).await, (second.clone(), "deviceDataMigrated".to_owned()));
    assert_eq!(assigned_hub(&mut world).await, (second.clone(), "initialAssignment".to_owned()));
    assert_eq!(list(&mut world, &first).await, 404);

    // After a restart it is still there, on whatever port.
    let mut world = World::start_with(world.stop().await, "", with_two_hubs).await;
    world.hub_name = format!("127.0.0.1:{}", world.port);
    let token = world.hub_token(DEVICE, &key());
    assert_eq!(world.request("GET", &module, &token, "").await.json(), created);
    assert_eq!(assigned_hub(&mut world).await.0, world.hub_name);
    world.stop().await;
}

#[tokio::test]
async fn a_device_moves_and_leaves_its_modules_behind() {
    let mut world = two_hubs("").await;
    let (first, second) = (world.hub_name.clone(), format!("127.0.0.1:{}", world.port));
    let control = format!("/registrations/{DEVICE}");
    assert_eq!(world.control("PUT", &control, r#"{"assignedHub":"127.0.0.1"}"#).await.status, 404);
    assigned_hub(&mut world).await;
    for slip in ["{}", r#"{"migrate":true}"#, r#"{"answer":"perhaps"}"#, "no json"] {
        assert_eq!(world.control("PUT", &control, slip).await.status, 400, "{slip}");
    }
    assert_eq!(world.control("PUT", &control, r#"{"assignedHub":"127.0.0.1"}"#).await.status, 204);
    assert_eq!((list(&mut world, &first).await, list(&mut world, &second).await), (404, 404));
    let registrations = world.control("GET", "/registrations", "").await.json();
    assert_eq!((&registrations[0]["assignedHub"], &registrations[0]["hub"]), (&first.as_str().into(), &().into()));
    assert_eq!(assigned_hub(&mut world).await, (second.clone(), "deviceDataReset".to_owned()));
    assert_eq!((list(&mut world, &first).await, list(&mut world, &second).await), (404, 200));
    world.stop().await;
}

#[tokio::test]
async fn a_move_to_a_full_hub_changes_nothing() {
    const MAX_DEVICES: usize = 10_000;
    let filler = |number| format!("[[device]]\ndevice_id = 'd{number}'\nsymmetric_key = '{KEY}'\nhub = '127.0.0.1'\n");
    let mut world = two_hubs(&(0..MAX_DEVICES).map(filler).collect::<String>()).await;
    let first = world.hub_name.clone();
    assigned_hub(&mut world).await;
    let change = r#"{"assignedHub":"127.0.0.1","migrate":true,"answer":"disabled"}"#;
    let refused = world.control("PUT", &format!("/registrations/{DEVICE}"), change).await;
    assert_eq!(refused.status, 500);
    assert!(refused.json()["message"].as_str().unwrap().contains("10000 devices already"));
    assert_eq!(list(&mut world, &first).await, 200);
    assert_eq!(assigned_hub(&mut world).await, (first, "initialAssignment".to_owned()));
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_passes_on_what_is_for_its_hub() {
    let entries = format!(
        "[[device]]\ndevice_id = 'leaf'\nsymmetric_key = '{KEY}'\n\
         [[device]]\ndevice_id = 'far'\nsymmetric_key = '{KEY}'\nhub = '127.0.0.1'\n"
    );
    let mut world = two_hubs(&entries).await;
    let (first, second) = (world.hub_name.clone(), format!("127.0.0.1:{}", world.port));
    let parent = format!("Parent.test:{}", world.port);
    for (host, audience, device_id, status) in [
        (parent.as_str(), first.as_str(), "leaf", 200),
        ("parent.test", &first, "leaf", 200),
        // A token is for the hub, whoever carries it.
        (&parent, &parent, "leaf", 401),
        (&parent, &second, "leaf", 401),
        (&parent, &second, "far", 404),
        ("edge.test:1", &second, "far", 200),
        ("edge.test:1", &first, "far", 401),
    ] {
        assert_eq!(
            list_at(&mut world, host, audience, device_id, &key()).await,
            status,
            "{host} {audience} {device_id}"
        );
    }
    assert_eq!(world.last_request().await["host"], "edge.test:1");
    let fault = r#"{"kind":"status","status":502,"networkError":true,"method":"GET","count":1}"#;
    assert_eq!(world.control("PUT", "/fault", fault).await.status, 204);
    assert_eq!(list_at(&mut world, &parent, &first, "leaf", &key()).await, 502);
    world.stop().await;
}

#[tokio::test]
async fn hubs_and_gateways_are_in_the_certificate() {
    let mut world = two_hubs("").await;
    let pem = std::fs::read(world.folder.path().join("server.pem")).unwrap();
    let names = openssl::x509::X509::from_pem(&pem).unwrap().subject_alt_names().unwrap();
    let names: Vec<_> = names.iter().filter_map(|name| name.dnsname()).collect();
    assert_eq!(names, ["localhost", "parent.test", "edge.test"]);
    assert!(world.connect().await.is_ok());
    world.stop().await;
}

#[tokio::test]
async fn somebody_at_the_control_socket_decides_otherwise() {
    let entry = format!("[[enrollment]]\nregistration_id = 'waits'\nsymmetric_key = '{KEY}'\nunassigned = true\n");
    let mut world = two_hubs(&entry).await;
    assert_eq!(world.provision("waits", &key()).await["status"], "unassigned");
    assigned_hub(&mut world).await;
    let control = format!("/registrations/{DEVICE}");
    for answer in ["disabled", "failed", "unassigned"] {
        let change = format!(r#"{{"answer":"{answer}"}}"#);
        assert_eq!(world.control("PUT", &control, &change).await.status, 204);
        assert_eq!(world.provision(DEVICE, &key()).await["status"], answer);
    }
    assert_eq!(world.control("PUT", &control, r#"{"answer":"assign"}"#).await.status, 204);
    assigned_hub(&mut world).await;
    world.stop().await;
}
