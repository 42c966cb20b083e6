//! Identities as the agent sees them.

use super::*;
use crate::workload::tests::world::{SELF_SIGNED, World, aziot};
use aziot_identityd_api::identity::{LocalAuthentication, LocalIdentity, Pem};

fn told(identities: &[Identity]) -> Vec<(&str, &str, &str)> {
    identities.iter().map(|one| (&*one.module_id, &*one.managed_by, &*one.generation_id)).collect()
}

#[tokio::test]
async fn the_list_tells_owners_and_leaves_out_what_it_cannot_tell() {
    let world = World::new(SELF_SIGNED).await;
    let hub = &world.identityd;
    for (module, owner) in [
        ("$edgeAgent", None),
        ("$edgeHub", None),
        ("sensor", None),
        ("elsewhere", None),
        ("theirs", Some("somebody")),
        ("ours", Some("IotEdge")),
    ] {
        hub.put(module, "1", owner);
    }
    hub.put_strange(aziot(None, Some("1"), None));
    hub.put_strange(aziot(Some("without"), None, None));
    hub.put_strange(aziot(Some("empty"), Some(""), None));
    let auth = LocalAuthentication {
        private_key: Pem(aziot_http::SecretBytes::default()),
        certificate: String::new(),
        expiration: String::new(),
    };
    hub.put_strange(Answer::Local(LocalIdentity { module_id: "local".to_owned(), auth }));
    let identities = world.identities().list().await.unwrap().identities;
    assert_eq!(
        told(&identities),
        [
            ("$edgeAgent", "iotedge", "1"),
            ("$edgeHub", "iotedge", "1"),
            ("elsewhere", "unmanaged", "1"),
            ("ours", "IotEdge", "1"),
            ("sensor", "iotedge", "1"),
            ("theirs", "somebody", "1"),
        ]
    );
}

#[tokio::test]
async fn without_the_engine_nothing_looks_deletable() {
    struct Unknown;
    impl Containers for Unknown {
        fn module_names(&self) -> Finding<'_> {
            Box::pin(async { Err("the engine is not there".into()) })
        }
    }
    let defaults = owner::Defaults::find(&Unknown).await;
    assert_eq!(["$edgeHub", "sensor"].map(|module| defaults.owner(module)), ["iotedge", "unmanaged"]);
}

#[tokio::test]
async fn the_owner_that_is_asked_for_goes_to_the_hub() {
    let world = World::new(SELF_SIGNED).await;
    let identities = world.identities();
    for (asked, owner) in [(Some("IotEdge"), "IotEdge"), (None, "iotedge")] {
        let call = CreateIdentity { module_id: "m".to_owned(), managed_by: asked.map(str::to_owned) };
        let made = identities.create(call).await.unwrap();
        assert_eq!(told(&[made]), [("m", owner, "1")]);
        assert_eq!(told(&identities.list().await.unwrap().identities), [("m", owner, "1")]);
    }
    world.identityd.put("sensor", "7", None);
    assert_eq!(told(&[identities.update("sensor").await.unwrap()]), [("sensor", "iotedge", "7")]);
}

#[tokio::test]
async fn the_agent_gets_its_generation_by_an_update() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("$edgeAgent", "637", None);
    assert_eq!(world.identities().agent_generation().await.unwrap(), "637");
    assert_eq!(world.identityd.calls(), ["update $edgeAgent"]);
}

#[tokio::test]
async fn deleting_what_is_not_there_is_told_apart_from_a_hub_that_fails() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let identities = world.identities();
    identities.delete("m").await.unwrap();
    let outcome = identities.delete("m").await;
    assert!(matches!(outcome, Err(Error::Absent(_))), "{outcome:?}");
    let outcome = identities.update("m").await;
    assert!(matches!(outcome, Err(Error::Update { .. })), "{outcome:?}");
}
