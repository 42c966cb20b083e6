//! Certificates of modules, issued by a real certificate service with a real Edge CA.

use aziot_certd_api::certificate::GetCertificate;
use aziot_edged_api::workload::{CreateIdentityCertificate, CreateServerCertificate, IssuedCertificate, PrivateKey};
use aziot_pki::certificate::Chain;
use jiff::{SignedDuration, Timestamp};
use openssl::{
    asn1::Asn1Time,
    stack::Stack,
    x509::{X509, X509StoreContext, X509StoreContextRef, store::X509StoreBuilder},
};

use super::{
    super::{
        Error,
        certificates::examine,
        request::{Request, Subject},
    },
    faults::Faults,
    world::*,
    *,
};

const EDGE_CA: &str = "aziot-edged-ca";

fn server(module_id: &str, generation_id: &str, common_name: &str) -> CreateServerCertificate {
    CreateServerCertificate {
        module_id: module_id.to_owned(),
        generation_id: generation_id.to_owned(),
        common_name: common_name.to_owned(),
    }
}

async fn stored(world: &World, id: &str) -> Option<String> {
    Some(world.services.certd.send(&GetCertificate { cert_id: id.to_owned() }).await.ok()?.pem)
}

/// The leaf, after it has been verified against the Edge CA as it is now, and with its key.
async fn verified(world: &World, issued: &IssuedCertificate) -> X509 {
    let chain = Chain::from_pem(&issued.certificate).unwrap();
    let [leaf, ca] = chain.certificates() else { panic!("the leaf, then the Edge CA: {issued:?}") };
    let stored_ca = stored(world, EDGE_CA).await.unwrap();
    assert_eq!(ca.to_der().unwrap(), X509::from_pem(stored_ca.as_bytes()).unwrap().to_der().unwrap());
    assert!(issued.certificate.ends_with(&stored_ca), "the chain is the Edge CA's file as it is");
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(ca.clone()).unwrap();
    let (store, mut context) = (store.build(), X509StoreContext::new().unwrap());
    assert!(context.init(&store, leaf, &Stack::new().unwrap(), X509StoreContextRef::verify_cert).unwrap());

    let PrivateKey::Key { bytes } = &issued.private_key;
    assert!(bytes.expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    let key = PKey::private_key_from_pem(bytes.expose().as_bytes()).unwrap();
    assert!(key.public_eq(&leaf.public_key().unwrap()));
    assert_eq!(key.bits(), 2048);

    let end: Timestamp = issued.expiration.parse().unwrap();
    assert_eq!(end.as_second(), chain.validity().unwrap().not_after);
    assert!(issued.expiration.ends_with("+00:00"), "{}", issued.expiration);
    leaf.clone()
}

fn text(leaf: &X509) -> String {
    let text = String::from_utf8(leaf.to_text().unwrap()).unwrap().replace(" = ", "=");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn server_certificates_are_those_of_the_specification() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    let issued = workload.server_certificate(server("$edgeHub", "637", "gateway.local")).await.unwrap();
    let leaf = verified(&world, &issued).await;
    let shown = text(&leaf);
    for part in [
        "Issuer: CN=aziot-edge CA dev-1 ",
        "Subject: CN=gateway.local ",
        "X509v3 Subject Alternative Name: DNS:gateway.local, DNS:edgeHub X509v3 Extended Key Usage: TLS Web Server Authentication X509v3",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let end: Timestamp = issued.expiration.parse().unwrap();
    let left = end.duration_since(Timestamp::now());
    assert!(left > SignedDuration::from_hours(24 * 29) && left <= SignedDuration::from_hours(24 * 30), "{left:?}");
    assert_eq!(stored(&world, "aziot-edged/module/edgeHub:637:server").await.unwrap(), issued.certificate);

    let again = workload.server_certificate(server("$edgeHub", "637", "10.0.0.1")).await.unwrap();
    assert_ne!(again.private_key, issued.private_key, "a fresh key each time");
    assert!(text(&verified(&world, &again).await).contains("Alternative Name: IP Address:10.0.0.1, DNS:edgeHub "));
}

#[tokio::test]
async fn names_over_64_characters_are_whole_in_the_alternative_name() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    let (name, module) = (format!("{}.example.com", "g".repeat(60)), "m".repeat(128));
    let issued = workload.server_certificate(server(&module, "1", &name)).await.unwrap();
    let shown = text(&verified(&world, &issued).await);
    assert!(shown.contains(&format!("Subject: CN={}.exa ", "g".repeat(60))), "{shown}");
    assert!(shown.contains(&format!("Alternative Name: DNS:{name}, DNS:{module} ")), "{shown}");
    let outcome = workload.server_certificate(server("m", "1", "")).await;
    assert!(matches!(outcome, Err(Error::CommonName)), "{outcome:?}");
}

#[tokio::test]
async fn identity_certificates_are_those_of_the_specification() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    let call = CreateIdentityCertificate { module_id: "$edgeAgent".to_owned() };
    let issued = workload.identity_certificate(call).await.unwrap();
    let shown = text(&verified(&world, &issued).await);
    for part in [
        "Subject: CN=$edgeAgent ",
        "X509v3 Subject Alternative Name: DNS:URI: azureiot://h.example.net/devices/dev-1/modules/$edgeAgent, \
         URI:azureiot://h.example.net/devices/dev-1/modules/$edgeAgent \
         X509v3 Extended Key Usage: TLS Web Client Authentication X509v3",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    assert_eq!(stored(&world, "aziot-edged/module/$edgeAgent:identity").await.unwrap(), issued.certificate);
}

#[tokio::test]
async fn a_module_that_names_ever_new_generations_does_not_fill_the_disk() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    for generation in ["1", "2", "3"] {
        workload.server_certificate(server("m", generation, "m")).await.unwrap();
    }
    workload.server_certificate(server("other", "1", "other")).await.unwrap();
    let there = async |id: &str| stored(&world, id).await.is_some();
    assert!(!there("aziot-edged/module/m:1:server").await && !there("aziot-edged/module/m:2:server").await);
    assert!(there("aziot-edged/module/m:3:server").await && there("aziot-edged/module/other:1:server").await);
    assert_eq!(std::fs::read_dir(world.certificates()).unwrap().count(), 3, "with the Edge CA's");
}

#[tokio::test]
async fn without_a_certificate_service_there_is_an_error_and_nothing_hangs() {
    let mut world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    world.certd.stop().await;
    let outcome = workload.server_certificate(server("m", "1", "m")).await;
    let Err(error @ Error::EdgeCa(_)) = outcome else { panic!("{outcome:?}") };
    let text = aziot_log::chain(&error).to_string();
    assert!(text.starts_with("failed to get edge CA key: the Edge CA cannot be used: "), "{text}");
}

#[tokio::test]
async fn of_each_module_one_identity_certificate_stays() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    for module_id in ["m", "$m"] {
        let call = CreateIdentityCertificate { module_id: module_id.to_owned() };
        workload.identity_certificate(call).await.unwrap();
    }
    workload.server_certificate(server("m", "1", "m")).await.unwrap();
    let there = async |id: &str| stored(&world, id).await.is_some();
    assert!(!there("aziot-edged/module/m:identity").await && there("aziot-edged/module/$m:identity").await);
    assert!(there("aziot-edged/module/m:1:server").await, "of each kind");
}

#[tokio::test]
async fn a_ca_that_lost_its_key_while_running_is_mended() {
    let world = World::new(SELF_SIGNED).await;
    let workload = world.workload().await;
    workload.server_certificate(server("m", "1", "m")).await.unwrap();
    let call = aziot_keyd_api::key_pair::MoveKeyPair { key_id: format!("{EDGE_CA}-temp"), from: EDGE_CA.to_owned() };
    world.services.keyd.send(&call).await.unwrap();
    let outcome = workload.server_certificate(server("m", "1", "m")).await;
    assert!(matches!(outcome, Err(Error::Issue { .. })), "{outcome:?}");
    eventually("issues again", async || workload.server_certificate(server("m", "1", "m")).await.is_ok()).await;
}

#[tokio::test]
async fn a_module_whose_certificate_hangs_keeps_no_other_from_having_one() {
    let world = World::new(SELF_SIGNED).await;
    let (certd, _server, client) = Faults::certd(&world.services.certd);
    let workload = world.workload_with(Services { certd: client, ..world.services.clone() }).await;
    certd.silence(&["aziot-edged/module/slow:1:server"]);
    let mut waiting = JoinSet::new();
    waiting.spawn({
        let workload = Arc::clone(&workload);
        async move { workload.server_certificate(server("slow", "1", "slow")).await.map(drop) }
    });
    eventually("it hangs", async || !certd.calls().is_empty()).await;
    for module_id in ["m", "n"] {
        workload.server_certificate(server(module_id, "1", "x")).await.unwrap();
        let call = CreateIdentityCertificate { module_id: module_id.to_owned() };
        workload.identity_certificate(call).await.unwrap();
    }
    assert!(waiting.try_join_next().is_none());
    certd.silence(&[]);
    waiting.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_was_asked_for_in_vain_is_deleted_too() {
    let world = World::new(SELF_SIGNED).await;
    let (certd, _server, client) = Faults::certd(&world.services.certd);
    let workload = world.workload_with(Services { certd: client, ..world.services.clone() }).await;
    certd.fail(&["create aziot-edged/module/m:1:server"]);
    assert!(workload.server_certificate(server("m", "1", "m")).await.is_err());
    workload.server_certificate(server("m", "2", "m")).await.unwrap();
    assert!(certd.calls().contains(&"delete aziot-edged/module/m:1:server".to_owned()), "{:?}", certd.calls());
}

#[tokio::test]
async fn a_generation_that_is_known_to_be_another_gets_no_certificate() {
    let world = World::new(SELF_SIGNED).await;
    world.identityd.put("m", "1", None);
    let workload = world.workload().await;
    workload.sign(sign("m", "1", b"x")).await.unwrap();
    assert!(is_other_generation(&workload.server_certificate(server("m", "2", "m")).await));
    workload.server_certificate(server("m", "1", "m")).await.unwrap();
}

#[test]
fn certificates_that_are_unreadable_or_for_another_key_are_not_given_out() {
    let request = || Request::new(&Subject::server("m", "m").unwrap()).unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let outcome = examine("id", request(), broken.to_owned());
    assert!(matches!(outcome, Err(Error::Certificate { .. })), "{outcome:?}");
    let mut builder = X509::builder().unwrap();
    let other = request();
    builder.set_pubkey(&other.key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.sign(&other.key, MessageDigest::sha256()).unwrap();
    let pem = String::from_utf8(builder.build().to_pem().unwrap()).unwrap();
    for useless in [String::new(), pem.clone()] {
        let outcome = examine("id", request(), useless);
        assert!(matches!(outcome, Err(Error::Useless(_))), "{outcome:?}");
    }
    examine("id", other, pem).unwrap();
}
