//! The Edge CA with real services: made, mended after a crash at each step, renewed, and told about when it is of no use.

mod faults;

use std::{pin::Pin, time::SystemTime};

use aziot_certd_api::{
    certificate::{CreateCertificate, GetCertificate, ImportCertificate},
    renewal::AutoRenew,
};
use aziot_keyd_api::key_pair::{CreateKeyPair, DeleteKeyPair, MoveKeyPair};
use aziot_pki::key::RemoteKey;
use openssl::{
    asn1::Asn1Time,
    bn::BigNum,
    hash::MessageDigest,
    pkey::{PKey, Public},
    rsa::Rsa,
    x509::{X509, X509NameBuilder},
};

use super::*;
use crate::workload::tests::world::{PATIENCE, SELF_SIGNED, World, eventually};

const ID: &str = config::EDGE_CA;
const TEMPORARY: &str = "aziot-edged-ca-temp";
const DAY: i64 = 86_400;

fn renewed() -> config::EdgeCa {
    config::EdgeCa { auto_renew: Some(AutoRenew::default()), ..config::EdgeCa::default() }
}

fn not_renewed() -> config::EdgeCa {
    config::EdgeCa::default()
}

async fn start(world: &World, config: &config::EdgeCa) -> Result<Arc<EdgeCa>, Error> {
    EdgeCa::start_with(world.services.clone(), config, "dev-1", SystemClock::new()).await
}

async fn stored(world: &World) -> String {
    world.services.certd.send(&GetCertificate { cert_id: ID.to_owned() }).await.unwrap().pem
}

async fn store(world: &World, pem: String) {
    world.services.certd.send(&ImportCertificate { cert_id: ID.to_owned(), pem }).await.unwrap();
}

fn leaf(pem: &str) -> X509 {
    X509::from_pem(pem.as_bytes()).unwrap()
}

/// The public half of a pair, which is made if it is not there.
async fn public_key(world: &World, key_id: &str) -> PKey<Public> {
    let preferred_algorithms = Some(PREFERRED_ALGORITHMS.to_owned());
    let made = world.services.keyd.send(&CreateKeyPair { key_id: key_id.to_owned(), preferred_algorithms }).await;
    let key = RemoteKey::load(&world.services.keyd, made.unwrap().key_handle).await.unwrap();
    PKey::public_key_from_der(&key.public_key().public_key_to_der().unwrap()).unwrap()
}

async fn delete_key(world: &World, key_id: &str) {
    let loaded = world.services.keyd.send(&LoadKeyPair { key_id: key_id.to_owned() }).await.unwrap();
    world.services.keyd.send(&DeleteKeyPair { key_handle: loaded.key_handle }).await.unwrap();
}

/// Whether certificate and key belong together.
async fn is_a_pair(world: &World) -> bool {
    leaf(&stored(world).await).public_key().unwrap().public_eq(&*public_key(world, ID).await)
}

/// A certificate for this key, from and until so many days from now.
fn certificate(key: &PKey<Public>, from: i64, until: i64) -> String {
    let now = Timestamp::now().as_second();
    let issuer = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "an older CA").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(now + from * DAY).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(now + until * DAY).unwrap()).unwrap();
    builder.sign(&issuer, MessageDigest::sha256()).unwrap();
    String::from_utf8(builder.build().to_pem().unwrap()).unwrap()
}

/// Whether a certificate is issued, and by the CA as it is stored.
async fn issues(world: &World, edge_ca: &EdgeCa) -> bool {
    issues_as(world, &edge_ca.issuer().await.unwrap()).await
}

async fn issues_as(world: &World, issuing: &Issuing) -> bool {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut request = openssl::x509::X509Req::builder().unwrap();
    request.set_pubkey(&key).unwrap();
    request.sign(&key, MessageDigest::sha256()).unwrap();
    let csr = String::from_utf8(request.build().to_pem().unwrap()).unwrap();
    let cert_id = "aziot-edged/module/m:1:server".to_owned();
    let call = CreateCertificate { cert_id, csr, issuer: Some(issuing.issuer.clone()) };
    let issued = world.services.certd.send(&call).await.unwrap().pem;
    leaf(&issued).verify(&leaf(&stored(world).await).public_key().unwrap()).unwrap()
}

#[tokio::test]
async fn a_quickstart_ca_is_made_once() {
    for config in [renewed(), not_renewed()] {
        let world = World::new(SELF_SIGNED).await;
        let edge_ca = start(&world, &config).await.unwrap();
        let first = stored(&world).await;
        assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await);
        assert_eq!(edge_ca.problem().await, None);
        assert_eq!(*edge_ca.renewals().borrow(), 0);
        let text = String::from_utf8(leaf(&first).to_text().unwrap()).unwrap().replace(" = ", "=");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "Issuer: CN=aziot-edge CA dev-1 ",
            "Subject: CN=aziot-edge CA dev-1 ",
            "X509v3 Key Usage: critical Digital Signature, Certificate Sign X509v3 Basic Constraints: critical CA:TRUE, pathlen:0 ",
            "Public-Key: (2048 bit)",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }

        let again = start(&world, &config).await.unwrap();
        assert_eq!(stored(&world).await, first);
        assert!(issues(&world, &again).await);
    }
}

#[tokio::test]
async fn a_crash_between_certificate_and_key_is_mended() {
    for config in [renewed(), not_renewed()] {
        let world = World::new(SELF_SIGNED).await;
        start(&world, &config).await.unwrap();
        let new = certificate(&public_key(&world, TEMPORARY).await, -1, 89);
        store(&world, new.clone()).await;
        assert!(!is_a_pair(&world).await);
        let edge_ca = start(&world, &config).await.unwrap();
        assert_eq!(stored(&world).await, new, "the new certificate stays");
        assert!(is_a_pair(&world).await);
        assert_eq!(edge_ca.problem().await, None);
        assert_eq!(*edge_ca.renewals().borrow(), 1, "modules have certificates of the old one");
    }
}

#[tokio::test]
async fn a_pair_that_does_not_belong_together_is_issued_anew() {
    for config in [renewed(), not_renewed()] {
        let world = World::new(SELF_SIGNED).await;
        start(&world, &config).await.unwrap();
        let foreign = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let foreign = PKey::public_key_from_der(&foreign.public_key_to_der().unwrap()).unwrap();
        store(&world, certificate(&foreign, -1, 89)).await;
        let edge_ca = start(&world, &config).await.unwrap();
        assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await);
        assert_eq!(edge_ca.problem().await, None);

        store(&world, "no certificate".to_owned()).await;
        let edge_ca = start(&world, &config).await.unwrap();
        assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await, "the certificate was lost");
    }
}

#[tokio::test]
async fn a_ca_that_has_ended_is_issued_anew() {
    for config in [renewed(), not_renewed()] {
        let world = World::new(SELF_SIGNED).await;
        let ended = certificate(&public_key(&world, ID).await, -90, -1);
        store(&world, ended.clone()).await;
        let edge_ca = start(&world, &config).await.unwrap();
        assert_ne!(stored(&world).await, ended);
        assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await);
        assert_eq!(edge_ca.problem().await, None);
    }
}

/// A clock that the test sets, days from now.
struct TestClock(watch::Receiver<u64>);

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        SystemClock::new().now() + Duration::from_secs(*self.0.borrow() * 86_400)
    }

    fn wait_until_set(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut set = self.0.clone();
        Box::pin(async move { set.changed().await.unwrap() })
    }

    fn jitter(&self) -> f64 {
        0.0
    }
}

#[tokio::test]
async fn a_ca_is_renewed_when_it_is_time_with_a_new_key_and_issues_on() {
    let world = World::new(SELF_SIGNED).await;
    let (set, clock) = watch::channel(0);
    let services = world.services.clone();
    let edge_ca = EdgeCa::start_with(services, &renewed(), "dev-1", TestClock(clock)).await.unwrap();
    let (old, old_key) = (stored(&world).await, public_key(&world, ID).await);
    let mut renewals = edge_ca.renewals();
    let mut running = tokio::task::JoinSet::new();
    running.spawn({
        let edge_ca = Arc::clone(&edge_ca);
        async move { edge_ca.run().await }
    });
    assert!(issues(&world, &edge_ca).await);
    // 80 % of 90 days, in the middle of an issuance.
    let issuing = edge_ca.issuer().await.unwrap();
    set.send_replace(73);
    let load = LoadKeyPair { key_id: TEMPORARY.to_owned() };
    eventually("the renewal has a new key", async || world.services.keyd.send(&load).await.is_ok()).await;
    assert!(issues_as(&world, &issuing).await);
    assert_eq!((stored(&world).await, *renewals.borrow()), (old.clone(), 0), "nothing is exchanged meanwhile");
    drop(issuing);
    let counted = tokio::time::timeout(PATIENCE, renewals.wait_for(|count| *count > 0)).await;
    assert_eq!(*counted.expect("is renewed").unwrap(), 1);
    let new = stored(&world).await;
    assert_ne!(new, old);
    assert!(is_a_pair(&world).await && !public_key(&world, ID).await.public_eq(&*old_key));
    assert!(issues(&world, &edge_ca).await);
    let name = |pem| leaf(pem).subject_name().to_der().unwrap();
    assert_eq!(name(&new), name(&old), "the subject stays");
    let gone = world.services.keyd.send(&load).await;
    assert!(gone.is_err(), "the temporary key has moved");
    assert_eq!(edge_ca.problem().await, None);
}

#[tokio::test]
async fn a_certificate_that_somebody_has_put_there_is_taken() {
    let world = World::new(SELF_SIGNED).await;
    let edge_ca = start(&world, &renewed()).await.unwrap();
    let other = certificate(&public_key(&world, ID).await, -1, 364);
    store(&world, other.clone()).await;
    edge_ca.doubt();
    assert!(issues(&world, &edge_ca).await);
    assert_eq!(stored(&world).await, other);
    let next = edge_ca.engine.status().remove(0);
    let end = leaf(&other).not_after().to_string();
    let known = Timestamp::from_second(next.not_after.unwrap()).unwrap();
    assert_eq!(known.strftime("%b %e %H:%M:%S %Y GMT").to_string(), end);
}

#[tokio::test]
async fn a_ca_that_nobody_can_issue_is_told_about_and_stops_nothing() {
    let world = World::new("").await;
    let ended = certificate(&public_key(&world, ID).await, -90, -1);
    store(&world, ended.clone()).await;
    let edge_ca = start(&world, &not_renewed()).await.unwrap();
    let problem = edge_ca.problem().await.unwrap();
    assert!(problem.starts_with("the Edge CA is of no use: it ended on "), "{problem}");
    assert_eq!(stored(&world).await, ended);

    // With renewal it is an error, as it is where there is no certificate at all.
    let outcome = start(&world, &renewed()).await.map(drop);
    assert!(matches!(outcome, Err(Error::NotAvailable(_))), "{outcome:?}");
    let world = World::new("").await;
    let outcome = start(&world, &not_renewed()).await.map(drop);
    assert!(matches!(outcome, Err(Error::Certificate { action: "issue", .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_key_that_was_moved_by_hand_is_found() {
    let world = World::new(SELF_SIGNED).await;
    let edge_ca = start(&world, &renewed()).await.unwrap();
    let call = MoveKeyPair { key_id: TEMPORARY.to_owned(), from: ID.to_owned() };
    world.services.keyd.send(&call).await.unwrap();
    assert!(edge_ca.issuer().await.is_err());
    edge_ca.doubt();
    eventually("the key is moved back", async || edge_ca.issuer().await.is_ok()).await;
    assert!(is_a_pair(&world).await && issues(&world, &edge_ca).await);
}
