//! Local identities: certificates with their keys for names of the local network.

use aziot_http::testing::RawReply;
use aziot_identityd_api::identity::Identity;
use aziot_pki::certificate::Chain;
use openssl::pkey::PKey;
use serde_json::Value;

use super::world::{Service, World};

const POST: &str = "/identities/modules";

/// Settings of a device whose users may have local identities.
fn config(world: &World, more: &str) -> String {
    let config = world.unprovisioned(&format!("{}{more}", world.daemon()));
    config.replacen("hostname = 'edge'\n", "hostname = 'edge'\nlocalid = { domain = 'example.com' }\n", 1)
}

const WORKER: &str = "[[principal]]\nuid = 1000001\nname = 'worker'\nidtype = ['local']\n";
const SERVER: &str = "[[principal]]\nuid = 1000002\nname = 'server'\nidtype = ['local']\nlocalid = { type = 'x509', attributes = 'server' }\n";

async fn started() -> (World, Service) {
    let world = World::new().await.start_certd().await;
    let service = world.start(&config(&world, &format!("{WORKER}{SERVER}"))).await;
    (world, service)
}

async fn create(service: &Service, body: &str) -> Value {
    service.json("POST", POST, body).await
}

fn text<'a>(identity: &'a Value, name: &str) -> &'a str {
    identity["spec"]["auth"][name].as_str().unwrap()
}

/// What OpenSSL reads of the certificate, whose key is beside it.
fn shown(identity: &Value) -> String {
    let chain = Chain::from_pem(text(identity, "certificate")).unwrap();
    let key = PKey::private_key_from_pem(text(identity, "privateKey").as_bytes()).unwrap();
    let leaf = chain.leaf().unwrap();
    assert!(leaf.public_key().unwrap().public_eq(&key));
    assert_eq!(chain.certificates().len(), 2, "the leaf and its issuer");
    String::from_utf8(leaf.to_text().unwrap()).unwrap().replace(" = ", "=")
}

#[tokio::test]
async fn principals_get_theirs_by_name_and_keep_it() {
    let (world, service) = started().await;
    let worker = service.json("GET", "/identities/modules/worker?type=local", "").await;
    assert_eq!((&worker["type"], &worker["spec"]["moduleId"]), (&"local".into(), &"worker".into()));
    let certificate = shown(&worker);
    assert!(certificate.contains("Subject: CN=worker.edge.example.com\n"), "{certificate}");
    assert!(certificate.contains("TLS Web Client Authentication\n"), "{certificate}");
    let expiration = text(&worker, "expiration");
    assert!(expiration.ends_with("+00:00") && expiration.len() == "2031-02-03T04:05:06+00:00".len(), "{expiration}");
    assert!(text(&worker, "privateKey").starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert_eq!(service.json("GET", "/identities/modules/worker?type=local", "").await, worker, "issued once");
    let server = service.json("GET", "/identities/modules/server?type=local", "").await;
    assert!(shown(&server).contains("TLS Web Client Authentication, TLS Web Server Authentication\n"));
    // The name's own user, and nobody else's.
    service.identities.module(1_000_001, Some("local"), "worker").await.unwrap();
    service.identities.module(1_000_002, Some("local"), "worker").await.unwrap_err();
    assert_eq!(world.network.count("", "/"), 0, "the hub has nothing to do with it");
}

async fn private_key(service: &Service, uid: u32, name: &str) -> Vec<u8> {
    let identity = service.identities.module(uid, Some("local"), name).await.unwrap();
    let Identity::Local(identity) = identity else { panic!("{identity:?}") };
    identity.auth.private_key.0.expose().to_vec()
}

#[tokio::test]
async fn nobody_gets_the_private_key_that_another_user_has() {
    let (world, service) = started().await;
    let (daemon, worker, server) = (world.uid(), 1_000_001, 1_000_002);
    let first = private_key(&service, worker, "worker").await;
    assert_ne!(private_key(&service, daemon, "worker").await, first, "the principal came first");
    let first = private_key(&service, daemon, "server").await;
    assert_ne!(private_key(&service, server, "server").await, first, "the daemon came first");
    assert_eq!(private_key(&service, daemon, "server").await, first, "it keeps its own");
}

#[tokio::test]
async fn many_who_ask_at_once_get_one() {
    let (_world, service) = started().await;
    let get = || service.json("GET", "/identities/modules/worker?type=local", "");
    let (one, other, third) = tokio::join!(get(), get(), get());
    assert!(one == other && other == third);
}

#[tokio::test]
async fn daemons_get_any_that_is_free() {
    let (world, service) = started().await;
    let free = create(&service, r#"{"type":"local","moduleId":"free"}"#).await;
    assert!(shown(&free).contains("TLS Web Client Authentication\n"));
    let server = r#"{"type":"local","moduleId":"free","localIdOpts":{"type":"x509","attributes":"server"}}"#;
    let server = create(&service, server).await;
    assert!(shown(&server).contains("TLS Web Server Authentication\n"));
    assert_ne!(text(&server, "privateKey"), text(&free, "privateKey"));
    let by_default = r#"{"type":"local","moduleId":"free","localIdOpts":{"type":"x509"}}"#;
    assert!(!shown(&create(&service, by_default).await).contains("TLS Web Server"));
    let taken = "parameter \"moduleId\" has an invalid value\ncaused by: local identity for worker already exists";
    let body = r#"{"type":"local","moduleId":"worker"}"#;
    assert_eq!(service.error("POST", POST, body).await, (400, taken.into()));
    assert_eq!(service.error("GET", "/identities/modules/free?type=local", "").await.0, 400);

    // A name that becomes a principal's gets a key that the daemons have never had.
    let principal = "[[principal]]\nuid = 1000003\nname = 'free'\nidtype = ['local']\n";
    let daemons = create(&service, r#"{"type":"local","moduleId":"free"}"#).await;
    service.reload(&config(&world, principal)).await;
    let principals = private_key(&service, 1_000_003, "free").await;
    assert_ne!(principals, text(&daemons, "privateKey").as_bytes());
}

#[tokio::test]
async fn what_cannot_be_issued_is_refused_by_name() {
    let (_world, service) = started().await;
    let module = "parameter \"moduleId\" has an invalid value\ncaused by: ";
    let options = "parameter \"localIdOpts\" has an invalid value\ncaused by: ";
    let long = format!("{}-{}", "m".repeat(60), "m".repeat(60));
    for (body, start) in [
        (r#"{"type":"local","moduleId":"  "}"#.to_owned(), module),
        (r#"{"type":"local","moduleId":"a\u0000b"}"#.to_owned(), module),
        (format!(r#"{{"type":"local","moduleId":"{long}"}}"#), module),
        (r#"{"type":"local","moduleId":"x","localIdOpts":{"type":"psk"}}"#.to_owned(), options),
        (r#"{"type":"local","moduleId":"x","localIdOpts":{"type":"x509","attributes":"both"}}"#.to_owned(), options),
        (r#"{"type":"local","moduleId":"x","localIdOpts":{"attributes":"server"}}"#.to_owned(), options),
        (r#"{"type":"local","moduleId":"x","localIdOpts":"x509"}"#.to_owned(), options),
        (r#"{"type":"local","moduleId":"x","localIdOpts":[]}"#.to_owned(), options),
    ] {
        let (status, message) = service.error("POST", POST, &body).await;
        assert!(status == 400 && message.starts_with(start), "{body}: {status} {message}");
    }
    // Labels that DNS has: the whole name beside its beginning.
    let name = format!("{}.{}", "m".repeat(40), "n".repeat(40));
    let long = create(&service, &format!(r#"{{"type":"local","moduleId":"{name}"}}"#)).await;
    let certificate = shown(&long);
    assert!(certificate.contains(&format!("DNS:{name}.edge.example.com\n")), "{certificate}");
    assert!(certificate.contains(&format!("Subject: CN={}\n", &name[..64])), "{certificate}");
    // Of no concern to modules of the hub.
    let (status, message) =
        service.error("POST", POST, r#"{"type":"aziot","moduleId":"x","localIdOpts":{"type":"psk"}}"#).await;
    assert_eq!((status, message.as_str()), (400, "device identity not found"));
}

#[tokio::test]
async fn without_a_domain_an_issuer_or_certd_it_is_an_internal_error() {
    let (world, service) = started().await;
    let refused: RawReply = service.send("POST", POST, r#"{"type":"local","moduleId":"unissued"}"#).await;
    assert_eq!((refused.status, refused.body.as_str()), (500, r#"{"message":"internal error"}"#));
    drop(service);
    let body = r#"{"type":"local","moduleId":"free"}"#;
    let service = world.start(&world.unprovisioned(&world.daemon())).await;
    assert_eq!(service.error("POST", POST, body).await, (500, "internal error".into()));
    drop(service);
    let world = World::new().await;
    let service = world.start(&config(&world, "")).await;
    assert_eq!(service.error("POST", POST, body).await, (500, "internal error".into()), "certd is down");
}

#[tokio::test]
async fn the_devices_own_certificate_is_not_replaced() {
    let (world, service) = started().await;
    let x509 = "source = 'dps'\nglobal_endpoint = 'https://localhost:9'\nscope_id = 's'\n[provisioning.attestation]\n\
                method = 'x509'\nregistration_id = 'd'\nidentity_cert = 'device-id'\nidentity_pk = 'device-id'\n";
    service.reload(&config(&world, "").replace("source = 'none'\n", x509)).await;
    for id in ["device-id", "device-id-temp"] {
        let body = format!(r#"{{"type":"local","moduleId":"{id}"}}"#);
        let text = format!(
            "parameter \"moduleId\" has an invalid value\ncaused by: {id} is the id of the device's own certificate"
        );
        assert_eq!(service.error("POST", POST, &body).await, (400, text));
    }
    create(&service, r#"{"type":"local","moduleId":"free"}"#).await;
}
