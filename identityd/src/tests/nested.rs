//! Devices below a parent gateway, which is called in the hub's stead.

use serde_json::json;

use super::world::{World, x509::enroll};

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const GATEWAY: &str = "127.0.0.1";

async fn nested_world() -> World {
    let cloud = |settings: &mut aziot_simulator::Settings| {
        enroll(settings);
        settings.gateway_names = vec![GATEWAY.to_owned()];
    };
    World::with_cloud(cloud).await.start_certd().await
}

#[tokio::test]
async fn hub_calls_go_to_the_parent_and_tokens_are_for_the_hub() {
    for (device_id, authentication, kind) in [
        ("manual-k", "method = 'sas'\ndevice_id_pk = 'device-id'", "sas"),
        ("manual-x", "method = 'x509'\nidentity_cert = 'identity'\nidentity_pk = 'identity'", "x509"),
    ] {
        let world = nested_world().await;
        let parent = format!("{GATEWAY}:{}", world.port);
        let config = world.manual(device_id, authentication, &world.daemon());
        let config =
            config.replace("source = 'manual'", &format!("source = 'manual'\nlocal_gateway_hostname = '{parent}'"));
        let service = world.start(&config).await;
        let made = service.json("POST", "/identities/modules", CREATE_M1).await;
        let device = service.json("GET", "/identities/identity", "").await;
        for spec in [&made["spec"], &device["spec"]] {
            assert_eq!((&spec["hubName"], &spec["gatewayHost"]), (&json!(world.hub()), &json!(parent)));
        }
        assert_eq!(device["spec"]["auth"]["type"], kind);
        let journal = world.control("GET", "/journal", "").await;
        let hosts: Vec<_> = journal.as_array().unwrap().iter().map(|one| one["host"].as_str().unwrap()).collect();
        assert!(!hosts.is_empty() && hosts.iter().all(|host| *host == parent), "{hosts:?}");

        // The parent itself is cut off, and says so in its own way.
        let cut_off = r#"{"kind":"status","status":404,"body":"{\"errorMessage\":\"no upstream\",\"networkError\":true}","matching":"/devices/"}"#;
        world.control("PUT", "/fault", cut_off).await;
        let read = service.json("GET", "/identities/modules/m1?type=aziot", "").await;
        assert_eq!(read["spec"]["moduleId"], "m1", "the copy is not forgotten");
        let error = service.error("PUT", "/identities/modules/m1?type=aziot", "{}").await;
        assert!(error.1.contains("no upstream"), "{error:?}");
        service.json("GET", "/identities/modules/m1?type=aziot", "").await;
    }
}
