//! Renewal of the device's certificate while everything goes on, and what a crash in the middle of it leaves.

use super::world::{
    World, eventually,
    gate::Way,
    x509::{enroll, now},
};

const CREATE_M1: &str = r#"{"type":"aziot","moduleId":"m1"}"#;
const M1: &str = "/identities/modules/m1?type=aziot";
const RENEW: &str = "identity_auto_renew = { rotate_key = true, threshold = '50%', retry = '10%' }\n";
/// What decides the registration, and with it which certificate the hub takes.
const POLL: &str = "GET /0ne1/registrations/dev-x/operations/*";

fn dps(world: &World) -> String {
    world.dps_x509(&format!("registration_id = 'dev-x'\n{RENEW}"), &world.daemon())
}

fn manual(world: &World) -> String {
    let authentication = format!("method = 'x509'\nidentity_cert = 'identity'\nidentity_pk = 'identity'\n{RENEW}");
    world.manual("manual-x", &authentication, &world.daemon())
}

/// Stores a certificate that is due in so many seconds; it ends half a minute later. Returns its fingerprint.
async fn store_due_in(world: &World, key_id: &str, common_name: &str, seconds: i64) -> [u8; 32] {
    let key = world.make_key_pair(key_id).await;
    let (begin, end) = (now() - 30 + seconds, now() + 30 + seconds);
    world.store("identity", world.certificate(&key, common_name, begin, end)).await;
    fingerprint(world).await
}

async fn fingerprint(world: &World) -> [u8; 32] {
    world.stored("identity").await.unwrap().fingerprint().unwrap()
}

/// Waits until another certificate than `old` is stored, with its key in its place.
async fn renewed(world: &World, old: [u8; 32]) {
    eventually("the certificate is renewed", async || {
        let (chain, key) = (world.stored("identity").await.unwrap(), world.public_key("identity").await);
        let leaf_key = chain.leaf().unwrap().public_key().unwrap();
        chain.fingerprint() != Some(old) && key.is_some_and(|key| key.public_eq(&leaf_key))
    })
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_is_accepted_and_the_modules_stay() {
    for kind in ["dps", "manual"] {
        let world = World::with_certificates().await;
        let (config, name) = if kind == "dps" { (dps(&world), "dev-x") } else { (manual(&world), "manual-x") };
        let old = store_due_in(&world, "identity", name, 4).await;
        let old_key = world.public_key("identity").await.unwrap();
        let service = world.start(&config).await;
        let made = service.json("POST", "/identities/modules", CREATE_M1).await;
        let registrations = world.network.count("PUT", "/register");
        assert_eq!(fingerprint(&world).await, old, "not yet due");

        renewed(&world, old).await;
        assert!(!world.public_key("identity").await.unwrap().public_eq(&old_key), "with a new key");
        assert_eq!(world.network.count("PUT", "/register") - registrations, usize::from(kind == "dps"));
        let read = service.json("PUT", M1, "{}").await;
        assert_eq!(read["spec"]["genId"], made["spec"]["genId"]);
        assert_eq!(service.send("POST", "/identities/device/reprovision", "").await.status, 204);
        eventually("nothing is left over", async || world.public_key("identity-temp").await.is_none()).await;
    }
}

/// W4: between registration and replacement the hub takes the new certificate only.
#[tokio::test]
async fn requests_during_the_replacement_wait_for_the_new_certificate() {
    let world = World::with_certificates().await;
    let old = store_due_in(&world, "identity", "dev-x", 4).await;
    let service = world.start(&dps(&world)).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let held = world.network.hold(POLL);
    held.arrived().await;
    let (updates, refused) = (world.network.count("GET", "/modules/m1"), async {
        eventually("the request is made", async || world.network.count("GET", "/modules/m1") > 0).await;
        assert_eq!(fingerprint(&world).await, old, "the old certificate is still shown");
        held.release();
    });
    let (answer, ()) = tokio::join!(service.send("PUT", M1, "{}"), refused);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(updates, 0);
    assert_eq!(world.network.count("GET", "/modules/m1"), 2, "refused once, and made again");
    renewed(&world, old).await;
}

#[tokio::test]
async fn a_crash_between_registration_and_replacement_mends_itself() {
    let world = World::with_certificates().await;
    let config = dps(&world);
    let old = store_due_in(&world, "identity", "dev-x", 4).await;
    let service = world.start(&config).await;
    let made = service.json("POST", "/identities/modules", CREATE_M1).await;
    let held = world.network.hold(POLL);
    held.arrived().await;
    drop(service);
    drop(held);
    assert_eq!(fingerprint(&world).await, old);

    let registrations = world.network.count("PUT", "/register");
    let service = world.start(&config).await;
    let read = service.json("PUT", M1, "{}").await;
    assert_eq!(read["spec"]["genId"], made["spec"]["genId"]);
    assert!(world.network.count("PUT", "/register") > registrations, "the hub had to learn of the certificate");
    renewed(&world, old).await;
    service.json("PUT", M1, "{}").await;
}

#[tokio::test]
async fn a_crash_before_the_key_moved_is_finished_before_the_first_use() {
    let world = World::with_certificates().await;
    world.make_key_pair("identity").await;
    let new_key = world.make_key_pair("identity-temp").await;
    let stored = store_due_in(&world, "identity-temp", "dev-x", 25).await;
    let service = world.start(&dps(&world)).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    assert!(world.public_key("identity").await.unwrap().public_eq(&new_key));
    assert_eq!(fingerprint(&world).await, stored, "it was not renewed for that");
}

/// W3 and W4: an outage of DPS costs nothing, and the renewal is tried again.
#[tokio::test]
async fn while_dps_is_away_the_old_certificate_stays() {
    let world = World::with_certificates().await;
    let old = store_due_in(&world, "identity", "dev-x", 4).await;
    let service = world.start(&dps(&world)).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let registrations = world.network.count("PUT", "/register");
    world.network.cut();
    eventually("it is tried", async || world.network.count("PUT", "/register") > registrations).await;
    service.json("POST", "/identities/device", r#"{"type":"aziot"}"#).await;
    service.json("GET", M1, "").await;
    assert_eq!(fingerprint(&world).await, old);
    assert!(world.home().join("device_info").exists());
    world.network.mend();
    renewed(&world, old).await;
    service.json("PUT", M1, "{}").await;
}

/// The certificate was over before the device came up again: it is renewed first.
#[tokio::test]
async fn a_certificate_that_is_over_is_renewed_at_the_start() {
    let world = World::with_certificates().await;
    let old = store_due_in(&world, "identity", "dev-x", -40).await;
    let service = world.start(&dps(&world)).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_ne!(fingerprint(&world).await, old);
}

/// DPS may decide anew on that occasion.
#[tokio::test]
async fn a_device_that_dps_moves_meanwhile_follows() {
    let cloud = |settings: &mut aziot_simulator::Settings| {
        enroll(settings);
        settings.further_hub_names = vec!["127.0.0.1".to_owned()];
    };
    let world = World::with_cloud(cloud).await.start_certd().await;
    let old = store_due_in(&world, "identity", "dev-x", 5).await;
    let service = world.start(&dps(&world)).await;
    let made = service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!(made["spec"]["hubName"], world.hub());
    let other = format!("127.0.0.1:{}", world.port);
    world.control("PUT", "/registrations/dev-x", &format!(r#"{{"assignedHub":"{other}","migrate":true}}"#)).await;
    renewed(&world, old).await;
    eventually("the device is at the other hub", async || {
        let reply = service.send("PUT", M1, "{}").await;
        reply.status == 200 && reply.body.contains(&other)
    })
    .await;
    assert!(std::fs::read_to_string(world.home().join("device_info")).unwrap().contains(&other));
}

#[tokio::test]
async fn a_policy_that_comes_later_acts_without_a_restart() {
    let world = World::with_certificates().await;
    let old = store_due_in(&world, "identity", "dev-x", -5).await;
    let service = world.start(&world.dps_x509("registration_id = 'dev-x'", &world.daemon())).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!(fingerprint(&world).await, old);
    service.reload(&dps(&world)).await;
    renewed(&world, old).await;
    service.json("PUT", M1, "{}").await;
}

/// Settings that never came into force leave nothing behind.
#[tokio::test]
async fn a_certificate_of_settings_that_were_taken_back_is_not_renewed() {
    let world = World::with_certificates().await;
    let by_key = world.dps("dev-1", &world.daemon());
    let service = world.start(&by_key).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    store_due_in(&world, "identity", "dev-x", 3600).await;
    let registrations = world.network.count("PUT", "/dev-x/register");
    world.network.cut();
    service.reload(&dps(&world)).await;
    eventually("it is tried", async || world.network.count("PUT", "/dev-x/register") > registrations).await;
    assert_eq!(service.identities.credentials.renewed(), ["identity"]);
    service.reload(&by_key).await;
    eventually("it is left alone", async || service.identities.credentials.renewed().is_empty()).await;
    world.network.mend();
    service.json("PUT", M1, "{}").await;
}

#[tokio::test]
async fn a_policy_that_is_taken_away_ends_the_renewal() {
    let world = World::with_certificates().await;
    store_due_in(&world, "identity", "dev-x", 25).await;
    let service = world.start(&dps(&world)).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    assert_eq!(service.identities.credentials.renewed(), ["identity"]);
    service.reload(&world.dps_x509("registration_id = 'dev-x'", &world.daemon())).await;
    eventually("it is left alone", async || service.identities.credentials.renewed().is_empty()).await;
    service.json("PUT", M1, "{}").await;
}

/// What is renewed is renewed as the settings in force say until others have given the device its identity.
#[tokio::test]
async fn other_settings_for_the_same_certificate_wait_for_their_turn() {
    let world = World::with_certificates().await;
    let old = store_due_in(&world, "identity", "dev-x", 8).await;
    let service = world.start(&dps(&world)).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let elsewhere = dps(&world).replace("'0ne1'", "'0neElsewhere'").replace(
        &format!("global_endpoint = 'https://localhost:{}'", world.port),
        // Nobody is there.
        "global_endpoint = 'https://localhost:1'",
    );
    service.reload(&elsewhere).await;
    eventually("the other one is tried", async || world.network.count("PUT", "/0neElsewhere/") > 0).await;
    let registrations = world.network.count("PUT", "/0ne1/");
    renewed(&world, old).await;
    assert_eq!(world.network.count("PUT", "/0ne1/"), registrations + 1, "where the device is");
    service.json("PUT", M1, "{}").await;
}

/// DPS knows a certificate that nobody has: the device registers with the one that it has.
#[tokio::test]
async fn a_registered_certificate_that_cannot_be_stored_is_taken_back() {
    let world = World::with_certificates().await;
    let gate = world.gate("certd-gate.sock", "certd.sock");
    let config = dps(&world).replace("/certd.sock", "/certd-gate.sock");
    let old = store_due_in(&world, "identity", "dev-x", 6).await;
    let service = world.start(&config).await;
    service.json("POST", "/identities/modules", CREATE_M1).await;
    let held = world.network.hold(POLL);
    held.arrived().await;
    gate.close();
    let registrations = world.network.count("PUT", "/register");
    held.release();
    eventually("it is registered again", async || world.network.count("PUT", "/register") > registrations).await;
    eventually("the hub accepts it", async || service.send("PUT", M1, "{}").await.status == 200).await;
    assert_eq!(fingerprint(&world).await, old);
}

/// Wherever it is cut off, the next start succeeds without a hand.
#[tokio::test]
async fn a_renewal_may_be_cut_off_anywhere() {
    const KEYD: &str = "keyd-gate.sock";
    const CERTD: &str = "certd-gate.sock";
    let world = World::with_certificates().await;
    let (keyd, certd) = (world.gate(KEYD, "keyd.sock"), world.gate(CERTD, "certd.sock"));
    let config = dps(&world).replace("/keyd.sock", &format!("/{KEYD}")).replace("/certd.sock", &format!("/{CERTD}"));
    for way in [Way::There, Way::Back] {
        for (gate, line) in [
            (Some(&keyd), "POST /keypair?"),
            (Some(&certd), "POST /certificates?"),
            (None, "PUT /0ne1/registrations/dev-x/register"),
            (None, POLL),
            (Some(&certd), "PUT /certificates/identity?"),
            (Some(&keyd), "POST /keypair/identity?"),
        ] {
            let old = store_due_in(&world, "identity", "dev-x", -5).await;
            let held = gate.map_or_else(|| world.network.hold(line), |gate| gate.hold(line, way));
            let service = world.start(&config).await;
            held.arrived().await;
            drop(service);
            drop(held);
            let service = world.start(&config).await;
            eventually("the device is at work", async || {
                service.send("POST", "/identities/modules", CREATE_M1).await.status == 200
            })
            .await;
            renewed(&world, old).await;
            drop(service);
        }
    }
}
