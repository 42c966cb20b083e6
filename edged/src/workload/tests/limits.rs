//! What one module can take from the others, and from the hub, by what it asks for.

use aziot_edged_api::workload::CreateServerCertificate;
use tokio::time::timeout;

use super::{world::PATIENCE, *};

#[tokio::test]
async fn a_module_whose_key_is_gone_while_the_hub_is_silent_keeps_no_other_from_signing() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    world.identityd.put("known", "1", None);
    let workload = world.workload().await;
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    workload.sign(sign("known", "1", b"x")).await.unwrap();
    world.identityd.lose_key("m", "1").await;
    world.identityd.silence(&["m"]);
    let mut waiting = JoinSet::new();
    for _ in 0..10 {
        let workload = Arc::clone(&workload);
        waiting.spawn(async move { workload.sign(sign("m", "1", b"x")).await.map(drop) });
    }
    eventually("the key is asked for anew", async || world.identityd.calls().len() == 3).await;
    let other = timeout(PATIENCE / 6, workload.sign(sign("known", "1", b"x"))).await;
    other.expect("the other module signs").unwrap();
    assert!(waiting.try_join_next().is_none(), "the hub is still silent");
    world.identityd.silence(&[]);
    for ended in waiting.join_all().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_module_has_one_identity_call_at_a_time_whatever_it_calls_itself() {
    let world = World::new(SELF_SIGNED).await;
    for module in ["m", "$m", "other"] {
        world.identityd.put(module, "1", None);
    }
    world.identityd.silence(&["m", "$m"]);
    let workload = world.workload().await;
    let mut waiting = JoinSet::new();
    for module in ["m", "$m"] {
        let workload = Arc::clone(&workload);
        waiting.spawn(async move { workload.sign(sign(module, "1", b"x")).await.map(drop) });
    }
    eventually("the hub is asked", async || !world.identityd.calls().is_empty()).await;
    workload.sign(sign("other", "1", b"x")).await.unwrap();
    let calls = world.identityd.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    world.identityd.silence(&[]);
    for ended in waiting.join_all().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_module_that_the_hub_does_not_have_costs_a_call_a_second_at_most() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    let begun = tokio::time::Instant::now();
    for _ in 0..50 {
        assert!(workload.sign(sign("m", "1", b"x")).await.is_err());
    }
    let most = usize::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    assert!(world.identityd.calls().len() <= most, "{:?}", world.identityd.calls());
    // One that this runtime makes is there at once.
    let create = aziot_edged_api::identity::CreateIdentity { module_id: "m".to_owned(), managed_by: None };
    workload.identities.create(create).await.unwrap();
    workload.sign(sign("m", "1", b"x")).await.unwrap();
}

#[tokio::test]
async fn generations_that_no_hub_gives_go_nowhere() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    for generation_id in ["", "a/b", "1 ", "é", &"7".repeat(65), &"a".repeat(200)] {
        let call = CreateServerCertificate {
            module_id: "m".to_owned(),
            generation_id: generation_id.to_owned(),
            common_name: "m".to_owned(),
        };
        let outcomes = [
            workload.server_certificate(call).await.map(drop),
            workload.sign(sign("m", generation_id, b"x")).await.map(drop),
            workload.encrypt(encrypt("m", generation_id, VECTOR, b"x")).await.map(drop),
        ];
        for outcome in outcomes {
            let error = outcome.unwrap_err().to_string();
            assert!(error.starts_with("invalid parameter: the generation "), "{generation_id:?}: {error}");
        }
    }
    assert_eq!(world.identityd.calls(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(world.certificates()).unwrap().count(), 1, "the Edge CA's");
}

#[tokio::test]
async fn a_key_service_that_fails_makes_the_next_signature_ask_for_the_key_anew() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let (keyd, _server, client) = faults::Faults::keyd(&world.services.keyd);
    let workload = world.workload_with(Services { keyd: client, ..world.services.clone() }).await;
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    keyd.fail(&["sign"]);
    let outcome = workload.sign(sign("m", "1", b"x")).await;
    assert!(matches!(outcome, Err(Error::Sign { .. })), "{outcome:?}");
    assert_eq!(world.identityd.calls(), ["get m"], "once: the failure is not the key's for sure");
    keyd.fail(&[]);
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    assert_eq!(world.identityd.calls(), ["get m", "get m"]);
}
