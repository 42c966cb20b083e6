//! What happens at the same time: answers that come after their question was overtaken.

use tokio::task::JoinSet;

use super::world::World;

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const M1: &str = "/identities/modules/m1?type=aziot";

#[tokio::test]
async fn a_late_answer_does_not_bring_back_the_copy_of_a_deleted_module() {
    for (line, kind) in [("GET /devices/dev-1/modules/m1", Some("m1")), ("GET /devices/dev-1/modules", None)] {
        let world = World::new().await;
        let service = world.start(&world.dps("dev-1", &world.daemon())).await;
        service.json("POST", "/identities/modules", CREATE_M1).await;
        let held = world.network.hold(line);
        let (identities, uid) = (service.identities.clone(), world.uid());
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            match kind {
                Some(module_id) => identities.module(uid, Some("aziot"), module_id).await.map(drop),
                None => identities.list_modules(uid, Some("aziot")).await.map(drop),
            }
        });
        held.arrived().await;
        assert_eq!(service.send("DELETE", M1, "").await.status, 204);
        held.release();
        reading.join_next().await.unwrap().unwrap().unwrap();
        world.network.cut();
        let gone = (404, "Hub client error\ncaused by: module m1 not found".to_owned());
        assert_eq!(service.error("GET", M1, "").await, gone, "{line}");
    }
}

#[tokio::test]
async fn a_late_no_does_not_remove_the_copy_of_a_new_module() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!(service.send("DELETE", M1, "").await.status, 204);
    let held = world.network.hold("GET /devices/dev-1/modules/m1");
    let (identities, uid) = (service.identities.clone(), world.uid());
    let mut reading = JoinSet::new();
    reading.spawn(async move { identities.module(uid, Some("aziot"), "m1").await.map(drop) });
    held.arrived().await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    held.release();
    reading.join_next().await.unwrap().unwrap().unwrap_err();
    world.network.cut();
    service.json("GET", M1, "").await;
}

#[tokio::test]
async fn a_reprovisioning_is_not_answered_by_an_attempt_with_former_settings() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    service.settled().await;
    let held = world.network.hold("PUT /0ne1/registrations/dev-1/register");
    let (identities, uid) = (service.identities.clone(), world.uid());
    let mut asking = JoinSet::new();
    for _ in 0..2 {
        let identities = identities.clone();
        asking.spawn(async move { identities.reprovision(uid).await });
    }
    held.arrived().await;
    service.reload(&world.dps("dev-2", &world.daemon())).await;
    held.release();
    for answer in asking.join_all().await {
        answer.unwrap();
    }
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-2");
}
