//! What is found when certificate or key are not as the runtime has left them.

use super::*;
use crate::workload::tests::faults::Faults;

#[tokio::test]
async fn a_crash_between_certificate_and_key_is_mended_though_the_certificate_has_ended() {
    let world = World::new(SELF_SIGNED).await;
    start(&world, &not_renewed()).await.unwrap();
    let ended = certificate(&public_key(&world, TEMPORARY).await, -90, -1);
    store(&world, ended.clone()).await;
    let edge_ca = start(&world, &not_renewed()).await.unwrap();
    assert_eq!(edge_ca.problem().await, None);
    assert_ne!(stored(&world).await, ended);
    assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await);
}

#[tokio::test]
async fn no_key_is_made_in_the_place_of_one_that_is_missing() {
    let world = World::new("").await;
    let valid = certificate(&public_key(&world, ID).await, -1, 89);
    store(&world, valid.clone()).await;
    delete_key(&world, ID).await;
    let edge_ca = start(&world, &not_renewed()).await.unwrap();
    let problem = edge_ca.problem().await.unwrap();
    assert_eq!(problem, format!("the Edge CA is of no use: there is no key pair {ID}"));
    let load = LoadKeyPair { key_id: ID.to_owned() };
    let loaded = world.services.keyd.send(&load).await;
    assert!(loaded.as_ref().is_err_and(aziot_keyd_api::is_absent), "{loaded:?}");
    assert_eq!(stored(&world).await, valid);
}

#[tokio::test]
async fn a_ca_that_the_operator_replaces_is_good_without_a_restart() {
    let world = World::new("").await;
    store(&world, certificate(&public_key(&world, ID).await, -90, -1)).await;
    let edge_ca = start(&world, &not_renewed()).await.unwrap();
    assert!(edge_ca.problem().await.is_some());
    store(&world, certificate(&public_key(&world, ID).await, -1, 89)).await;
    assert_eq!(edge_ca.problem().await, None);
    assert!(issues(&world, &edge_ca).await);

    let foreign = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let foreign = PKey::public_key_from_der(&foreign.public_key_to_der().unwrap()).unwrap();
    store(&world, certificate(&foreign, -1, 89)).await;
    assert!(edge_ca.problem().await.is_some(), "and the other way round");
}

#[tokio::test]
async fn a_key_that_is_lost_is_made_anew_where_the_certificate_is_renewed() {
    let keeps = AutoRenew { rotate_key: false, ..AutoRenew::default() };
    for policy in [AutoRenew::default(), keeps] {
        let world = World::new(SELF_SIGNED).await;
        let config = config::EdgeCa { auto_renew: Some(policy), ..config::EdgeCa::default() };
        start(&world, &config).await.unwrap();
        delete_key(&world, ID).await;
        let edge_ca = start(&world, &config).await.unwrap();
        assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await, "{policy:?}");
    }
}

#[tokio::test]
async fn services_that_do_not_answer_cost_no_certificate_and_no_key() {
    for config in [renewed(), not_renewed()] {
        let mut world = World::new(SELF_SIGNED).await;
        start(&world, &config).await.unwrap();
        let (before, key) = (stored(&world).await, public_key(&world, ID).await);

        let (certd, _server, client) = Faults::certd(&world.services.certd);
        let services = Services { certd: client, ..world.services.clone() };
        certd.fail(&["get"]);
        let outcome = EdgeCa::start_with(services, &config, "dev-1", SystemClock::new()).await.map(drop);
        assert!(outcome.is_err());
        assert!(certd.calls().iter().all(|call| call.starts_with("get ")), "{:?}", certd.calls());

        let (keyd, _server, client) = Faults::keyd(&world.services.keyd);
        let services = Services { keyd: client, ..world.services.clone() };
        keyd.fail(&["load"]);
        let outcome = EdgeCa::start_with(services, &config, "dev-1", SystemClock::new()).await.map(drop);
        assert!(outcome.is_err());
        assert!(keyd.calls().iter().all(|call| call.starts_with("load ")), "{:?}", keyd.calls());
        assert!(stored(&world).await == before && public_key(&world, ID).await.public_eq(&*key));

        // Without a key service there is nothing to compare with, and the certificate stays.
        world.keyd.stop().await;
        let error = start(&world, &config).await.map(drop).unwrap_err();
        assert!(error.is_passing(), "{error:?}");
        assert_eq!(stored(&world).await, before);

        world.certd.stop().await;
        let error = start(&world, &config).await.map(drop).unwrap_err();
        assert!(error.is_passing(), "{error:?}");
    }
}
