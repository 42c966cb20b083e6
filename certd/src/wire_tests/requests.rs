//! Importing, reading, deleting, and the rules for requests (certs.md, 1.2 to 1.6).

use aziot_certd_api::certificate::{DeleteCertificate, GetCertificate, ImportCertificate};
use aziot_http::{ClientError, Retry, Status as _, StatusCode};
use openssl::x509::X509;
use serde_json::json;

use super::device::{Device, member, settings};
use crate::{
    certificates::Error,
    test_vectors::{CA, REQUEST},
};

const NOT_FOUND: &str = "parameter \"id\" has an invalid value\ncaused by: not found";

#[tokio::test]
async fn requests_are_answered_as_the_table_says() {
    let device = Device::start("", &[]).await;
    let version = "?api-version=2020-09-01";
    for (method, target, body, status, message) in [
        ("GET", "/nope", "", 400, "api-version not specified"),
        ("GET", "/nope?api-version=2021-05-01", "", 400, "invalid api-version \"2021-05-01\""),
        ("GET", &format!("/nope{version}"), "", 404, "not found"),
        ("GET", &format!("/certificates/{version}"), "", 404, "not found"),
        ("GET", &format!("/certificates/x/{version}"), "", 404, "not found"),
        ("GET", &format!("/certificates/a/b{version}"), "", 404, "not found"),
        ("GET", &format!("/certificates/%ff{version}"), "", 404, "not found"),
        ("GET", &format!("/certificates{version}"), "", 400, "method not allowed"),
        ("POST", &format!("/certificates/x{version}"), "{}", 400, "method not allowed"),
        ("PATCH", &format!("/certificates/x{version}"), "", 400, "method not allowed"),
        ("OPTIONS", &format!("/certificates{version}"), "", 400, "method not allowed"),
        ("POST", &format!("/certificates{version}"), "", 400, "missing request body"),
    ] {
        let reply = device.server.send(method, target, body).await;
        assert_eq!((reply.status, member(&reply, "message").as_str()), (status, message), "{method} {target}");
    }
    let head = device.send("HEAD", "/certificates/x", "").await;
    assert_eq!((head.status, head.body.as_str()), (400, ""));
    let last_counts = "/certificates/x?api-version=1&api-version=2020-09-01&more=1";
    assert_eq!(member(&device.server.send("GET", last_counts, "").await, "message"), NOT_FOUND);
    for body in ["{", r#"{"certId":"x"}"#, r#"{"certId":"x","csr":5}"#, r#"{"certId":"x","csr":"y","issuer":{}}"#] {
        assert_eq!(device.send("POST", "/certificates", body).await.status, 422, "{body}");
    }
    for body in ["", "{", "{}", r#"{"pem":5}"#] {
        assert_eq!(device.send("PUT", "/certificates/x", body).await.status, 422, "{body}");
    }
}

#[tokio::test]
async fn content_types_count_as_the_table_says() {
    let device = Device::start("", &[]).await;
    let raw = async |method: &str, path: &str, kind: &str, body: &str| {
        let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
        let head = format!("{method} {path}?api-version=2020-09-01 HTTP/1.1\r\n{kind}content-length: {}", body.len());
        device.server.send_raw(&format!("{head}\r\n\r\n{body}")).await
    };
    let pem = r#"{"pem":"hi"}"#;
    for kind in ["text/plain", "Application/JSON"] {
        let reply = raw("PUT", "/certificates/x", kind, pem).await;
        assert_eq!((reply.status, member(&reply, "message").as_str()), (415, "request body must be application/json"));
    }
    for kind in ["", "application/json; charset=utf-8"] {
        let reply = raw("PUT", "/certificates/x", kind, pem).await;
        assert_eq!((reply.status, reply.body.as_str()), (201, pem));
    }
    let reply = raw("POST", "/certificates", "text/plain", pem).await;
    assert_eq!((reply.status, member(&reply, "message").as_str()), (400, "missing request body"));
    assert_eq!(raw("DELETE", "/certificates/x", "application/json", "{").await.status, 422);
    assert_eq!(raw("GET", "/certificates/x", "", "").await.body, pem);
    assert_eq!(raw("DELETE", "/certificates/x", "text/plain", "{").await.status, 204);
    assert_eq!(member(&raw("GET", "/certificates/x", "", "").await, "message"), NOT_FOUND);
}

#[tokio::test]
async fn any_text_is_stored_read_and_deleted() {
    let device = Device::start("", &[]).await;
    for (path, text) in [("a", CA), ("b", ""), ("c", "no certificate"), ("d", "ü\r\n\"\\")] {
        let target = format!("/certificates/{path}");
        let body = json!({ "pem": text }).to_string();
        let (imported, read) = (device.send("PUT", &target, &body).await, device.send("GET", &target, "").await);
        assert_eq!((imported.status, member(&imported, "pem").as_str()), (201, text));
        assert_eq!((read.status, member(&read, "pem").as_str()), (200, text));
        for _ in 0..2 {
            assert_eq!(device.send("DELETE", &target, "").await.status, 204);
        }
        let gone = device.send("GET", &target, "").await;
        assert_eq!((gone.status, member(&gone, "message").as_str()), (400, NOT_FOUND));
        let (status, message) = (StatusCode::BAD_REQUEST, member(&gone, "message"));
        assert!(aziot_certd_api::is_absent(&ClientError::Refused { status, message }), "as its clients tell it");
    }
}

#[tokio::test]
async fn ids_are_decoded_once_and_told_apart() {
    let device = Device::start("", &[]).await;
    let put = async |path: &str, text: &str| {
        let body = json!({ "pem": text }).to_string();
        device.send("PUT", &format!("/certificates/{path}"), &body).await.status
    };
    let paths = ["a%2fb%20c", "a%00b", "%C3%9C%c3%b1%C3%AD-%e4%b8%ad%E6%96%87", "..%2f", "a+b", "100%25", "%zz", "x%2"];
    for path in paths {
        assert_eq!(put(path, path).await, 201, "{path}");
    }
    let client = aziot_certd_api::client(&device.server.endpoint(), Retry::local(0)).unwrap();
    for (id, path) in ["a/b c", "a\0b", "Üñí-中文", "../", "a+b", "100%", "%zz", "x%2"].iter().zip(paths) {
        let cert_id = (*id).to_owned();
        assert_eq!(client.send(&GetCertificate { cert_id: cert_id.clone() }).await.unwrap().pem, path, "{id:?}");
        let pem = "other".to_owned();
        client.send(&ImportCertificate { cert_id: cert_id.clone(), pem }).await.unwrap();
        client.send(&DeleteCertificate { cert_id }).await.unwrap();
        assert_eq!(device.send("GET", &format!("/certificates/{path}"), "").await.status, 400, "{id:?}");
    }
    assert_eq!(put(&"x".repeat(186), "").await, 201);
    let long = format!("/certificates/{}", "x".repeat(187));
    for (method, body) in [("GET", ""), ("DELETE", ""), ("PUT", r#"{"pem":""}"#)] {
        let reply = device.send(method, &long, body).await;
        assert_eq!((reply.status, reply.body.as_str()), (500, r#"{"message":"internal error"}"#), "{method}");
    }
}

#[tokio::test]
async fn lists_and_foreign_places_can_be_read_at_most() {
    let config = r#"
[preloaded_certs]
der = "file://@/der"
junk = "file://@/junk"
web = "https://example.com/x.pem"
bundle = ["der", "absent", "user"]
spoilt = ["der", "junk"]
empty = ["absent"]
"#;
    let device = Device::start(config, &[]).await;
    device.put_file("der", X509::from_pem(CA.as_bytes()).unwrap().to_der().unwrap());
    device.put_file("junk", [0xff; 10]);
    let import = json!({ "pem": "user" }).to_string();
    assert_eq!(device.send("PUT", "/certificates/user", &import).await.status, 201);
    assert_eq!(member(&device.send("GET", "/certificates/der", "").await, "pem"), CA);
    assert_eq!(member(&device.send("GET", "/certificates/bundle", "").await, "pem"), format!("{CA}user"));
    assert_eq!(member(&device.send("GET", "/certificates/empty", "").await, "message"), NOT_FOUND);
    for (method, id, body) in [
        ("GET", "junk", ""),
        ("GET", "spoilt", ""),
        ("GET", "web", ""),
        ("PUT", "web", import.as_str()),
        ("DELETE", "web", ""),
        ("PUT", "bundle", &import),
        ("DELETE", "bundle", ""),
    ] {
        let reply = device.send(method, &format!("/certificates/{id}"), body).await;
        assert_eq!((reply.status, reply.body.as_str()), (500, r#"{"message":"internal error"}"#), "{method} {id}");
    }
    assert_eq!(device.send("PUT", "/certificates/junk", &import).await.status, 201);
    assert_eq!(member(&device.send("GET", "/certificates/spoilt", "").await, "pem"), format!("{CA}user"));
    assert_eq!(device.send("DELETE", "/certificates/junk", "").await.status, 204);
    assert!(!device.folder.path().join("junk").exists());
}

/// The socket's caller is whoever runs the tests, so other users ask the domain itself.
#[tokio::test]
async fn others_change_only_what_their_principals_name() {
    let device = Device::start("[[principal]]\nuid = 4000000\ncerts = [\"leaf-*\", \"a?c\"]\n", &[]).await;
    let certificates = &device.certificates;
    let import = async |uid, id: &str| certificates.import(uid, id.to_owned(), "x".to_owned()).await;
    for id in ["leaf-lca", "leaf-", "abc", "a/c"] {
        assert!(import(4_000_000, id).await.is_ok(), "{id}");
    }
    for (uid, id) in [(4_000_000, "LEAF-x"), (4_000_000, "ac"), (4_000_001, "leaf-x"), (4_000_000, "")] {
        let call = serde_json::from_value(json!({ "certId": id, "csr": "not looked at" })).unwrap();
        for error in [
            import(uid, id).await.unwrap_err(),
            certificates.delete(uid, id.to_owned()).await.unwrap_err(),
            certificates.create(uid, call).await.unwrap_err(),
        ] {
            assert_eq!(error.status(), StatusCode::UNAUTHORIZED);
            assert_eq!(error.message(), format!("user {uid} is not authorized to modify the cert {id}"));
        }
    }
    assert!(import(0, "anything").await.is_ok(), "root may always");
    assert!(certificates.get("leaf-lca".to_owned()).await.is_ok(), "everybody may read");

    certificates.replace_settings(settings(device.folder.path(), "", &device.surroundings)).await;
    assert!(matches!(import(4_000_000, "leaf-lca").await, Err(Error::Unauthorized { .. })));
}

#[tokio::test]
async fn a_reader_never_sees_half_a_certificate() {
    let device = Device::start("", &[]).await;
    let texts = ["a".repeat(200_000), "b".repeat(100_000), REQUEST.to_owned()];
    let bodies: Vec<_> = texts.iter().map(|text| json!({ "pem": text }).to_string()).collect();
    assert_eq!(device.send("PUT", "/certificates/x", &bodies[0]).await.status, 201);
    let write = async {
        for round in 0..30 {
            assert_eq!(device.send("PUT", "/certificates/x", &bodies[round % 3]).await.status, 201);
        }
    };
    let read = async {
        for _ in 0..60 {
            let seen = member(&device.send("GET", "/certificates/x", "").await, "pem");
            assert!(texts.contains(&seen), "{} bytes", seen.len());
        }
    };
    futures_util::future::join3(write, read, async {
        for _ in 0..30 {
            assert_eq!(device.send("PUT", "/certificates/x", &bodies[1]).await.status, 201);
        }
    })
    .await;
}
