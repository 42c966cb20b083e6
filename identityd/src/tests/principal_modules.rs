//! Modules of principals: made when configured, taken over when there, deleted when no longer configured.

use serde_json::Value;

use super::world::{World, eventually};

fn module(uid: u32, name: &str) -> String {
    format!("[[principal]]\nuid = {uid}\nname = '{name}'\nidtype = ['module']\n")
}

async fn generation(world: &World, name: &str) -> Option<Value> {
    let modules = world.modules_at_hub("dev-1").await;
    modules.into_iter().find(|(module_id, _)| module_id == name).map(|(_, module)| module["generationId"].clone())
}

#[tokio::test]
async fn the_hubs_modules_follow_the_configuration() {
    let world = World::new().await;
    let with = |principals: &[&str]| {
        let modules: String = (1_000_001..).zip(principals).map(|(uid, name)| module(uid, name)).collect();
        world.dps("dev-1", &format!("{}{modules}", world.daemon()))
    };
    let service = world.start(&with(&["a", "b"])).await;
    let own = service.identities.own(1_000_001).await.unwrap();
    let own = serde_json::to_value(own).unwrap();
    assert_eq!(own["spec"]["moduleId"], "a");
    assert!(service.identities.own(1_000_003).await.is_err());
    let a = generation(&world, "a").await.unwrap();

    service.reload(&with(&["a", "c"])).await;
    eventually("b is gone and c is there", async || {
        generation(&world, "b").await.is_none() && generation(&world, "c").await.is_some()
    })
    .await;
    assert_eq!(generation(&world, "a").await, Some(a));
    assert!(generation(&world, "$edgeAgent").await.is_some(), "the modules of others are left alone");
}

#[tokio::test]
async fn a_module_of_a_principals_name_is_taken_over_and_not_made_anew() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &world.daemon())).await;
    let made = r#"{"type":"aziot","moduleId":"m1","managedBy":"somebody"}"#;
    let made = service.json("POST", "/identities/modules", made).await;
    let again = service.json("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"m1"}"#).await;
    assert_eq!(again["spec"]["genId"], made["spec"]["genId"], "creating takes over what is there");
    service.reload(&world.dps("dev-1", &format!("{}{}", world.daemon(), module(1_000_001, "m1")))).await;
    // Two for making it, two for making it again, and the one that takes it over for its principal.
    eventually("m1 was given keys", async || world.network.count("PUT", "/modules/m1") == 5).await;
    let own = serde_json::to_value(service.identities.own(1_000_001).await.unwrap()).unwrap();
    assert_eq!(
        (&own["spec"]["genId"], &own["spec"]["managedBy"]),
        (&made["spec"]["genId"], &made["spec"]["managedBy"])
    );
    assert_eq!(world.network.count("DELETE", "/modules/"), 0);
}

#[tokio::test]
async fn bad_settings_change_nothing() {
    let world = World::new().await;
    let service = world.start(&world.dps("dev-1", &format!("{}{}", world.daemon(), module(1_000_001, "a")))).await;
    service.identities.own(1_000_001).await.unwrap();
    let double = module(1_000_002, "a");
    service.reload(&world.dps("dev-1", &format!("{}{}{double}", world.daemon(), module(1_000_001, "a")))).await;
    service.reload("hostname = 1").await;
    service.identities.own(1_000_001).await.unwrap();
    assert!(service.identities.own(1_000_002).await.is_err());
}

fn with(world: &World, registration_id: &str, principals: &[&str]) -> String {
    let modules: String = (1_000_001..).zip(principals).map(|(uid, name)| module(uid, name)).collect();
    world.dps(registration_id, &format!("{}{modules}", world.daemon()))
}

const FORBIDDEN_B: &str = r#"{"kind":"status","status":403,"matching":"/modules/b"}"#;

#[tokio::test]
async fn what_was_done_before_a_module_failed_is_not_lost_by_a_kill() {
    let world = World::new().await;
    world.control("PUT", "/fault", FORBIDDEN_B).await;
    let service = world.start(&with(&world, "dev-1", &["a", "b"])).await;
    service.settled().await;
    service.json("GET", "/identities/identity", "").await;
    drop(service);

    world.network.cut();
    let service = world.start(&with(&world, "dev-1", &["a", "b"])).await;
    assert_eq!(service.json("GET", "/identities/identity", "").await["spec"]["deviceId"], "dev-1");
    service.identities.own(1_000_001).await.unwrap();
    drop(service);

    world.network.mend();
    assert!(generation(&world, "a").await.is_some());
    // Still no run has come to its end; yet the module is known to be ours when its principal goes.
    let service = world.start(&with(&world, "dev-1", &["b"])).await;
    service.settled().await;
    assert_eq!(generation(&world, "a").await, None);
    assert!(generation(&world, "$edgeAgent").await.is_some());
}

#[tokio::test]
async fn another_device_does_not_inherit_what_was_ours() {
    let world = World::new().await;
    let elsewhere = world.start(&world.dps("dev-2", &world.daemon()).replace("/identityd'", "/elsewhere'")).await;
    elsewhere.json("POST", "/identities/modules", r#"{"type":"aziot","moduleId":"a"}"#).await;
    drop(elsewhere);
    let service = world.start(&with(&world, "dev-1", &["a"])).await;
    service.settled().await;
    drop(service);
    // The other device has a module of that name, and it is somebody else's.
    world.control("PUT", "/fault", FORBIDDEN_B).await;
    for _ in 0..2 {
        let service = world.start(&with(&world, "dev-2", &["b"])).await;
        service.settled().await;
        assert!(world.modules_at_hub("dev-2").await.iter().any(|(name, _)| name == "a"));
    }
    assert_eq!(world.network.count("DELETE", "/modules/"), 0);
}

#[tokio::test]
async fn a_module_that_the_hub_refuses_is_no_reason_to_register_anew() {
    let world = World::new().await;
    world.start(&with(&world, "dev-1", &["a"])).await.settled().await;
    world.control("PUT", "/fault", FORBIDDEN_B).await;
    let service = world.start(&with(&world, "dev-1", &["a", "b"])).await;
    service.settled().await;
    assert_eq!(world.network.count("PUT", "/modules/b"), 1);
    assert_eq!(world.network.count("PUT", "/register"), 1);
}
