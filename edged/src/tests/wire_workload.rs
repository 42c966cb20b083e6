//! The workload API on the wire.

use aziot_http::testing::RawReply;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::world::{V, World, refusal, status_line};

/// The module `sensor` with its identity, which is the caller.
async fn sensor() -> World {
    let world = World::new().await;
    world.services.identityd.put("sensor", "7", None);
    world.be_sensor();
    world
}

fn body(reply: &RawReply) -> Value {
    assert!(reply.status < 300, "{}: {}", reply.status, reply.body);
    serde_json::from_str(&reply.body).unwrap()
}

fn guarded(module: &str) -> [String; 5] {
    let sign = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" });
    let encrypt = json!({ "plaintext": "c2VjcmV0", "initializationVector": "MTIz" });
    let decrypt = json!({ "ciphertext": "AgAA", "initializationVector": "MTIz" });
    [
        format!("POST /modules/{module}/genid/7/sign {sign}"),
        format!("POST /modules/{module}/genid/7/encrypt {encrypt}"),
        format!("POST /modules/{module}/genid/7/decrypt {decrypt}"),
        format!(r#"POST /modules/{module}/genid/7/certificate/server {{"commonName":"gw"}}"#),
        format!("POST /modules/{module}/certificate/identity"),
    ]
}

#[tokio::test]
async fn a_module_acts_for_itself_alone() {
    let world = sensor().await;
    for module in ["other", "%24edgeAgent", "edgeHub", "..%2Fsensor", "senso", "%24", "%24%24sensor"] {
        for call in guarded(module) {
            let reply = world.work(&call).await;
            assert_eq!(refusal(&reply), (403, "forbidden".to_owned()), "{call}");
            assert_eq!(status_line(&reply), "HTTP/1.1 403 Forbidden");
        }
    }
    world.be_nobody();
    for call in guarded("sensor") {
        assert_eq!(refusal(&world.work(&call).await), (403, "forbidden".to_owned()), "{call}");
    }
    // A container without the label, though it has the name.
    world.stage.module('e', "sensor");
    world.stage.change('e', |container| container["Config"]["Labels"] = json!({}));
    world.be('e');
    assert_eq!(world.work(&guarded("sensor")[0]).await.status, 403);
    assert_eq!(world.services.identityd.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn an_engine_that_fails_is_a_failure_that_clients_repeat() {
    let world = sensor().await;
    world.stage.refuse(503);
    let failed = world.work(&guarded("sensor")[0]).await;
    assert_eq!(refusal(&failed), (500, "container runtime error: could not ask who is calling".to_owned()));
    world.stage.refuse(200);
    assert_eq!(world.work(&guarded("sensor")[0]).await.status, 200);
}

#[tokio::test]
async fn sign_needs_no_content_type_and_says_what_is_missing() {
    let world = sensor().await;
    let target = format!("/modules/sensor/genid/7/sign?{V}");
    let ask = async |head: &str, body: &str| {
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\n{head}content-length: {}\r\n\r\n", body.len());
        world.workload().send_raw(&format!("{head}{body}")).await
    };
    let request = r#"{"keyId":"primary","algo":"HMACSHA256","data":"ZGF0YQ=="}"#;
    // The public Python SDK sends none.
    for head in ["", "content-type: application/json\r\n", "content-type: application/json; charset=utf-8\r\n"] {
        let digest = body(&ask(head, request).await)["digest"].as_str().unwrap().to_owned();
        assert_eq!(STANDARD.decode(digest).unwrap().len(), 32, "{head}");
    }
    for (head, sent, status, text) in [
        ("", "", 400, "missing parameter: request body"),
        ("content-type: application/json\r\n", "", 400, "missing parameter: request body"),
        ("content-type: text/plain\r\n", request, 400, "missing parameter: request body"),
        ("", "{}", 422, "missing field `data` at line 1 column 2"),
    ] {
        assert_eq!(refusal(&ask(head, sent).await), (status, text.to_owned()), "{head} {sent}");
    }
    let undecodable = refusal(&ask("", r#"{"data":"%"}"#).await);
    assert!(undecodable.0 == 400 && undecodable.1.starts_with("invalid parameter: "), "{undecodable:?}");
    let other_generation = format!("POST /modules/sensor/genid/8/sign {request}");
    assert_eq!(world.work(&other_generation).await.status, 403);
    let large = format!("POST {target} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 10 * 1024 * 1024);
    assert_eq!(world.workload().send_raw(&large).await.status, 413);
}

#[tokio::test]
async fn secrets_come_back_and_bodies_are_needed() {
    let world = sensor().await;
    let vector = STANDARD.encode("0123456789abcdef0123456789abcdef");
    let plaintext = json!({ "plaintext": "c2VjcmV0", "initializationVector": vector });
    let encrypted = world.work(&format!("POST /modules/sensor/genid/7/encrypt {plaintext}")).await;
    assert_eq!(status_line(&encrypted), "HTTP/1.1 200 OK");
    let ciphertext = json!({ "ciphertext": body(&encrypted)["ciphertext"], "initializationVector": vector });
    let decrypted = world.work(&format!("POST /modules/sensor/genid/7/decrypt {ciphertext}")).await;
    assert_eq!(decrypted.body, r#"{"plaintext":"c2VjcmV0"}"#);
    let foreign = json!({ "ciphertext": STANDARD.encode([2; 40]), "initializationVector": vector });
    let refused = refusal(&world.work(&format!("POST /modules/sensor/genid/7/decrypt {foreign}")).await);
    assert!(refused.0 == 400 && refused.1.starts_with("invalid parameter: ciphertext "), "{refused:?}");
    for call in ["encrypt", "decrypt", "certificate/server"] {
        let reply = world.work(&format!("POST /modules/sensor/genid/7/{call}")).await;
        assert_eq!(refusal(&reply), (400, "missing request body".to_owned()), "{call}");
    }
}

#[tokio::test]
async fn certificates_have_the_members_that_clients_read() {
    let world = sensor().await;
    for call in [
        r#"POST /modules/sensor/genid/7/certificate/server {"commonName":"gw","expiration":"x"}"#,
        "POST /modules/sensor/certificate/identity",
        "POST /modules/sensor/certificate/identity {}",
    ] {
        let reply = world.work(call).await;
        assert_eq!(status_line(&reply), "HTTP/1.1 201 Created", "{call}: {}", reply.body);
        let issued = body(&reply);
        assert_eq!(issued["privateKey"]["type"], "key");
        assert!(issued["privateKey"]["bytes"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert!(issued["certificate"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----\n"));
        assert!(issued["expiration"].as_str().unwrap().ends_with("+00:00"));
    }
    let missing = world.work("POST /modules/sensor/genid/7/certificate/server {}").await;
    assert_eq!(refusal(&missing), (422, "missing field `commonName` at line 1 column 2".to_owned()));
    let bad = world.work(r#"POST /modules/sensor/genid/7/certificate/server {"commonName":"a b"}"#).await;
    assert!(refusal(&bad).0 == 400 && refusal(&bad).1.starts_with("invalid parameter: commonName "), "{}", bad.body);
    // A variant that old client code has.
    let variant = world.work("POST /modules/sensor/genid/7/certificate/identity").await;
    assert_eq!(refusal(&variant), (404, "not found".to_owned()));
}

#[tokio::test]
async fn what_everybody_may_read_is_read_without_a_name() {
    let world = sensor().await;
    world.be_nobody();
    assert_eq!(world.work("GET /manifest-trust-bundle").await.body, r#"{"certificate":""}"#);
    let missing = world.work("GET /trust-bundle").await;
    assert_eq!(refusal(&missing), (404, r#"certificate "bundle" not found"#.to_owned()));
    for call in ["GET /modules", "GET /modules/"] {
        assert_eq!(status_line(&world.work(call).await), "HTTP/1.1 200 OK", "{call}");
    }
    for (call, status, text) in [
        ("GET /systeminfo", 404, "not found"),
        ("POST /modules", 400, "method not allowed"),
        ("GET /modules/sensor", 404, "not found"),
    ] {
        assert_eq!(refusal(&world.work(call).await), (status, text.to_owned()), "{call}");
    }
}

#[tokio::test]
async fn labels_are_for_the_agent() {
    let world = sensor().await;
    let labels = async || {
        body(&world.work("GET /modules").await)["modules"][0]["config"]["settings"]["createOptions"]["Labels"].clone()
    };
    let stranger = labels().await;
    assert_eq!(stranger["net.azure-devices.edge.env"], "");
    assert_eq!(stranger["net.azure-devices.edge.owner"], crate::docker::OWNER);
    world.be_agent();
    assert_eq!(labels().await["net.azure-devices.edge.env"], "SECRET");

    world.engine.fail("GET /containers/json", crate::docker::tests::engine::Fault::Refuse(404, "page not found"));
    let failed = refusal(&world.work("GET /modules").await);
    assert_eq!(failed, (500, "runtime operation error: list modules: page not found".to_owned()));
}
