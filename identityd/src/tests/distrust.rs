//! A hub, or a parent gateway in its place, that answers something else than it was asked.

use super::world::World;

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;

#[tokio::test]
async fn an_answer_about_another_module_gives_nobody_its_handle() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    for lie in [
        r#"{"moduleId":"$edgeAgent","deviceId":"dev-1","generationId":"9"}"#,
        r#"{"moduleId":"m1","deviceId":"dev-2","generationId":"9"}"#,
        r#"{"moduleId":"M1","deviceId":"dev-1","generationId":"9"}"#,
    ] {
        world.network.lie("GET /devices/dev-1/modules/m1", lie);
        for (method, path) in
            [("GET", "/identities/modules/m1?type=aziot"), ("PUT", "/identities/modules/m1?type=aziot")]
        {
            let (status, message) = service.error(method, path, "{}").await;
            let expected = format!("Hub client error\ncaused by: malformed answer from {}", world.hub());
            assert_eq!((status, message), (404, expected), "{method} {lie}");
        }
    }
    assert_eq!(world.network.count("PUT", "/modules/"), 2, "no key went to another module");
    world
        .network
        .lie("PUT /devices/dev-1/modules/m2", r#"{"moduleId":"$edgeHub","deviceId":"dev-1","generationId":"9"}"#);
    assert_eq!(service.error("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"m2"}"#).await.0, 404);
    assert_eq!(world.network.count("PUT", "edgeHub"), 0);
}

#[tokio::test]
async fn names_that_cannot_be_are_left_out_of_the_list() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    world.network.lie(
        "GET /devices/dev-1/modules",
        r#"[{"moduleId":"\u0000/../zzz","deviceId":"dev-1"},{"moduleId":"","deviceId":"dev-1"},{"moduleId":"m2","deviceId":"dev-1"}]"#,
    );
    let list = service.json("GET", "/identities/modules?type=aziot", "").await;
    assert_eq!(list["identities"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["identities"][0]["spec"]["moduleId"], "m2");
    world.network.cut();
    let list = service.json("GET", "/identities/modules?type=aziot", "").await;
    assert_eq!(list["identities"].as_array().unwrap().len(), 1, "the copies follow: {list}");

    world.network.mend();
    world.network.lie("GET /devices/dev-1/modules", r#"[{"moduleId":"m1","deviceId":"dev-2"}]"#);
    assert_eq!(service.error("GET", "/identities/modules?type=aziot", "").await.0, 404);
}
