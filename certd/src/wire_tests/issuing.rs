//! Certificates issued on request, with the signature made by the key service (certs.md, 1.4, 4 and 7.3).

use aziot_http::testing::RawReply;
use openssl::{
    hash::MessageDigest,
    pkey::PKey,
    rsa::Rsa,
    x509::{X509, X509Name, X509ReqBuilder},
};
use serde_json::json;

use aziot_keyd_api::key_pair::{CreateKeyPair, DeleteKeyPair};
use aziot_pki::{key::RemoteKey, request};

use super::device::{Device, member, openssl, p256};
use crate::test_vectors::{CA, CA_SCALAR, LEAF_SCALAR, REQUEST};

const KEYS: &[(&str, &str)] = &[
    ("local-ca", CA_SCALAR),
    ("leaf", LEAF_SCALAR),
    ("other", CA_SCALAR),
    ("next", LEAF_SCALAR),
    ("next-temp", CA_SCALAR),
];

const CONFIG: &str = r#"
[cert_issuance]
by-ca = { method = "local_ca", expiry_days = 90 }
renamed = { method = "local_ca", subject = { L = "AQ", ST = "Antarctica", CN = "my-device" } }
misnamed = { method = "local_ca", subject = { cn = "x" } }
leaf = { method = "self_signed" }
leaf-temp = { method = "self_signed" }
other = { method = "self_signed" }
next-temp = { method = "self_signed" }
keyless = { method = "self_signed" }
enrolled = { method = "est", url = "https://est.example/", expiry_days = 5 }
bundle = { method = "local_ca" }
limited = { method = "local_ca", policy = { ca = false, names = ["*.elsewhere"] } }
[cert_issuance.local_ca]
cert = "ca"
pk = "local-ca"
[preloaded_certs]
ca = "file://@/ca.pem"
bundle = ["ca"]
"#;

async fn device() -> Device {
    let device = Device::start(CONFIG, KEYS).await;
    device.put_file("ca.pem", CA);
    device
}

fn leaf(reply: &RawReply) -> X509 {
    assert_eq!(reply.status, 201, "{}", reply.body);
    X509::from_pem(member(reply, "pem").as_bytes()).unwrap()
}

/// Days between the certificate's dates, the back-dating aside.
fn days(certificate: &X509) -> i32 {
    certificate.not_before().diff(certificate.not_after()).unwrap().days
}

#[tokio::test]
async fn the_local_ca_issues_what_openssl_verifies() {
    let device = device().await;
    let reply = device.post("by-ca", REQUEST, None).await;
    let pem = member(&reply, "pem");
    assert_eq!(days(&leaf(&reply)), 90);
    let own = pem.strip_suffix(CA).expect("the leaf, then its issuer");
    assert_eq!(openssl(&[("ca", CA), ("leaf", own)], &["verify", "-CAfile", "ca", "leaf"]), "leaf: OK\n");
    let text = openssl(&[("leaf", own)], &["x509", "-in", "leaf", "-noout", "-text"]);
    for part in ["Version: 3", "ecdsa-with-SHA256", "vector-leaf", "DNS:leaf.example", "TLS Web Client Authentication"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(member(&device.send("GET", "/certificates/by-ca", "").await, "pem"), pem, "stored as returned");

    let renamed = leaf(&device.post("renamed", REQUEST, None).await);
    let names: Vec<_> = renamed.subject_name().entries().map(|entry| entry.object().to_string()).collect();
    assert_eq!(names, ["commonName", "localityName", "stateOrProvinceName"]);
}

#[tokio::test]
async fn a_self_signed_certificate_takes_the_key_pair_that_fits_the_request() {
    let device = device().await;
    // `leaf-temp` has no key pair and `next-temp` another one: a renewal that keeps the key signs with that of the base.
    for id in ["leaf", "leaf-temp", "next-temp"] {
        let certificate = leaf(&device.post(id, REQUEST, None).await);
        assert!(certificate.verify(&p256(LEAF_SCALAR)).unwrap(), "{id}");
        assert_eq!((days(&certificate), certificate.issuer_name().entries().count()), (30, 1));
        let pem = String::from_utf8(certificate.to_pem().unwrap()).unwrap();
        assert_eq!(openssl(&[("c", &pem)], &["verify", "-CAfile", "c", "c"]), "c: OK\n");
    }
    // None fits: as the public service has it.
    assert!(leaf(&device.post("other", REQUEST, None).await).verify(&p256(CA_SCALAR)).unwrap());
    assert_eq!(device.post("keyless", REQUEST, None).await.status, 500);
}

#[tokio::test]
async fn an_issuer_in_the_request_overrides_the_configured_method() {
    let device = device().await;
    let handle = device.handle("local-ca").await;
    for (id, lifetime) in [("enrolled", 5), ("not-configured", 30), ("a/b:server", 30), ("", 30)] {
        let reply = device.post(id, REQUEST, Some(("ca", &handle))).await;
        assert_eq!(days(&leaf(&reply)), lifetime, "{id}");
        assert!(member(&reply, "pem").ends_with(CA));
    }
    let without = json!({ "certId": "by-ca", "csr": REQUEST, "issuer": null }).to_string();
    assert_eq!(device.send("POST", "/certificates", &without).await.status, 201);
}

#[tokio::test]
async fn unfit_parameters_are_told_to_the_caller() {
    let device = device().await;
    let import = json!({ "pem": "no certificate" }).to_string();
    assert_eq!(device.send("PUT", "/certificates/text", &import).await.status, 201);
    let broken = json!({ "pem": &CA[..200] }).to_string();
    assert_eq!(device.send("PUT", "/certificates/broken", &broken).await.status, 201);
    let handle = device.handle("local-ca").await;
    let forged = REQUEST.replace("9PSsqQ==", "9PSsqA==");
    let base64: String = REQUEST.lines().filter(|line| !line.starts_with('-')).collect();
    for (csr, issuer, name, cause) in [
        ("", None, "csr", "there is no PEM block"),
        (base64.as_str(), None, "csr", "there is no PEM block"),
        (&forged, None, "csr", "CSR failed to be verified with its public key"),
        (REQUEST, Some(("absent", handle.as_str())), "issuer.certId", "not found"),
        (REQUEST, Some(("text", &handle)), "issuer.certId", "invalid issuer"),
        (REQUEST, Some(("broken", &handle)), "issuer.certId", "invalid issuer"),
        (REQUEST, Some(("ca", "a\0b")), "issuer.privateKeyHandle", "a key handle has no NUL character"),
    ] {
        let reply = device.post("by-ca", csr, issuer).await;
        let message = member(&reply, "message");
        let expected = format!("parameter \"{name}\" has an invalid value\ncaused by: {cause}");
        assert!(reply.status == 400 && message.starts_with(&expected), "{} {message}", reply.status);
    }

    let reply = device.post("limited", REQUEST, None).await;
    assert!(reply.status == 400 && member(&reply, "message").contains("leaf.example"), "{}", reply.body);

    let weak = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
    let mut request = X509ReqBuilder::new().unwrap();
    request.set_subject_name(&X509Name::builder().unwrap().build()).unwrap();
    request.set_pubkey(&weak).unwrap();
    request.sign(&weak, MessageDigest::sha256()).unwrap();
    let weak = String::from_utf8(request.build().to_pem().unwrap()).unwrap();
    let reply = device.post("by-ca", &weak, None).await;
    assert!(reply.status == 400 && reply.body.contains("1024 bits"), "{}", reply.body);
    assert_eq!(device.send("GET", "/certificates/by-ca", "").await.status, 400, "nothing was stored");
}

#[tokio::test]
async fn all_else_is_an_internal_error_and_stores_nothing() {
    let device = device().await;
    let (handle, other) = (device.handle("local-ca").await, device.handle("leaf").await);
    let tampered = format!("x{handle}");
    for (id, issuer) in [
        ("not-configured", None),
        ("enrolled", None),
        ("misnamed", None),
        ("bundle", None),
        ("x", Some(("ca", other.as_str()))),
        ("x", Some(("ca", &tampered))),
        ("x", Some(("ca", ""))),
    ] {
        let reply = device.post(id, REQUEST, issuer).await;
        assert_eq!((reply.status, reply.body.as_str()), (500, r#"{"message":"internal error"}"#), "{id} {issuer:?}");
    }
    device.put_file("ca.pem", "not PEM at all");
    assert_eq!(device.post("by-ca", REQUEST, None).await.status, 500, "an empty chain");
    std::fs::remove_file(device.folder.path().join("ca.pem")).unwrap();
    assert_eq!(device.post("by-ca", REQUEST, None).await.status, 500, "no file");
    assert!(!device.folder.path().join("certs").exists(), "nothing was stored");
}

/// What is remembered of a key does not outlive it.
#[tokio::test]
async fn an_authority_may_get_a_new_key_and_certificate_at_any_time() {
    let config = "[cert_issuance]\nca = { method = \"self_signed\" }\nleaf = { method = \"local_ca\" }\n\
                  [cert_issuance.local_ca]\ncert = \"ca\"\npk = \"ca\"\n";
    let device = Device::start(config, &[]).await;
    let mut authorities = Vec::new();
    for _ in 0..3 {
        let create = CreateKeyPair { key_id: "ca".into(), preferred_algorithms: Some("ec-p256".into()) };
        let key_handle = device.keyd.send(&create).await.unwrap().key_handle;
        let key = RemoteKey::load(&device.keyd, key_handle.clone()).await.unwrap();
        let subject = aziot_pki::name::from_entries([("CN", "CA")]).unwrap();
        let csr = request::create(subject, &[], &key).await.unwrap();
        let authority = leaf(&device.post("ca", &csr, None).await);
        for issuer in [None, Some(("ca", key_handle.0.as_str()))] {
            for _ in 0..2 {
                let issued = leaf(&device.post("leaf", REQUEST, issuer).await);
                assert!(issued.verify(&authority.public_key().unwrap()).unwrap());
            }
        }
        assert!(!authorities.contains(&authority));
        authorities.push(authority);
        device.keyd.send(&DeleteKeyPair { key_handle }).await.unwrap();
        assert_eq!(device.post("leaf", REQUEST, None).await.status, 500, "without its key");
    }
}
