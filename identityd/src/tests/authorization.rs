//! The order of checks, and the texts that callers of the public service know.

use super::world::World;

#[tokio::test]
async fn who_may_not_ask_learns_nothing_else() {
    let world = World::new().await;
    let principal = format!("[[principal]]\nuid = {}\nname = 'me'\nidtype = ['device']\n", world.uid());
    let service = world.start(&world.dps("dev-1", &principal)).await;
    for (method, path, body) in [
        ("GET", "/identities/modules", ""),
        ("GET", "/identities/modules?type=none", ""),
        ("POST", "/identities/modules", r#"{"type":"none","moduleId":""}"#),
        ("GET", "/identities/modules/me?type=none", ""),
        ("PUT", "/identities/modules/m", "{}"),
        ("DELETE", "/identities/modules/m", ""),
        ("POST", "/identities/device/reprovision", ""),
    ] {
        assert_eq!(service.error(method, path, body).await, (401, "authorization error".into()), "{method} {path}");
    }
    service.json("GET", "/identities/identity", "").await;
    assert_eq!(service.send("GET", "/trust-bundle", "").await.body, r#"{"certificate":""}"#);
}

#[tokio::test]
async fn bad_parameters_have_the_public_texts() {
    let world = World::new().await;
    let service = world.start(&world.unprovisioned(&world.daemon())).await;
    let missing = "parameter \"type\" has an invalid value\ncaused by: missing parameter";
    let unknown = "parameter \"type\" has an invalid value\ncaused by: invalid type: local";
    let empty = "parameter \"module_id\" has an invalid value\ncaused by: module name cannot be empty";
    for (method, path, body, text) in [
        ("GET", "/identities/modules", "", missing),
        ("GET", "/identities/modules/m", "", missing),
        ("PUT", "/identities/modules/m", "{}", missing),
        ("DELETE", "/identities/modules/m", "", missing),
        ("GET", "/identities/modules?type=local", "", unknown),
        ("PUT", "/identities/modules/m?type=local", "{}", unknown),
        ("DELETE", "/identities/modules/m?type=local", "", unknown),
        ("GET", "/identities/modules/%20?type=aziot", "", empty),
        ("POST", "/identities/modules", r#"{"type":"aziot","moduleId":""}"#, empty),
        (
            "GET",
            "/identities/modules/m?type=local",
            "",
            "parameter \"moduleId\" has an invalid value\ncaused by: local identity for m doesn't exist",
        ),
    ] {
        assert_eq!(service.error(method, path, body).await, (400, text.to_owned()), "{method} {path}");
    }
    for (method, path, body) in [
        ("GET", "/identities/modules/a%2Fb?type=aziot", ""),
        ("GET", "/identities/modules/%2E%2E?type=aziot", ""),
        ("DELETE", "/identities/modules/a%2F..%2F..?type=aziot", ""),
        ("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"a b"}"#),
    ] {
        let (status, message) = service.error(method, path, body).await;
        assert!(status == 400 && message.starts_with("parameter \"module_id\" has an invalid value\n"), "{message}");
    }
    // Nothing of this reached the cloud.
    assert_eq!(world.network.count("", "/"), 0);
}

#[tokio::test]
async fn bodies_and_versions_follow_the_public_rules() {
    let world = World::new().await;
    let service = world.start(&world.unprovisioned(&world.daemon())).await;
    let status = async |method: &str, target: &str, body: &str| service.server.send(method, target, body).await.status;
    assert_eq!(status("GET", "/identities/provisioning?api-version=2021-12-01", "").await, 200);
    assert_eq!(status("GET", "/identities/provisioning?api-version=2022-08-01", "").await, 200);
    assert_eq!(status("GET", "/identities/provisioning?api-version=2020-09-01", "").await, 404);
    assert_eq!(status("GET", "/identities/identity?api-version=2020-09-01-preview", "").await, 400);
    assert_eq!(status("PUT", "/identities/modules/m?type=aziot&api-version=2020-09-01", "").await, 422);
    assert_eq!(status("POST", "/identities/device?api-version=2020-09-01", "{}").await, 422);
    assert_eq!(service.error("POST", "/identities/device", "").await, (400, "missing request body".into()));
    assert_eq!(service.error("PATCH", "/identities/device", "").await, (400, "method not allowed".into()));
    assert_eq!(service.error("POST", "/identities/device/reprovision", "{").await.0, 422);
}

#[tokio::test]
async fn a_payload_that_cannot_be_read_is_the_callers_error() {
    let world = World::new().await;
    let payload = |uri: &str| {
        let attestation = "[provisioning.attestation]";
        world
            .dps("dev-1", &world.daemon())
            .replace(attestation, &format!("payload = {{ uri = '{uri}' }}\n{attestation}"))
    };
    let service = world.start(&payload("http://x/y")).await;
    let (status, message) = service.error("GET", "/identities/provisioning", "").await;
    assert_eq!(status, 400);
    assert!(message.starts_with("parameter \"provisioning.payload\" has an invalid value\ncaused by: "), "{message}");
    drop(service);

    let file = world.home().join("payload.json");
    aziot_files::write(&file, aziot_files::Mode::PRIVATE, r#"{"b":1,"a":[true]}"#).unwrap();
    let service = world.start(&payload(&format!("file://{}", file.display()))).await;
    let info = service.send("GET", "/identities/provisioning", "").await.body;
    assert!(info.ends_with(r#""payload":{"a":[true],"b":1}}"#), "{info}");
    service.json("GET", "/identities/identity", "").await;
}
