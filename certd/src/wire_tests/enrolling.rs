//! Certificates over EST as their callers, and the server, see it (certs.md, section 5).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aziot_certd_api::certificate::CreateCertificate;
use aziot_http::testing::RawReply;
use aziot_pki::tls::Proxy;
use openssl::{hash::MessageDigest, x509::X509, x509::X509ReqBuilder};
use serde_json::json;
use tokio::time::timeout;

use super::{
    device::{Device, member, openssl, patience, settings, until},
    est_server::{EstServer, Reply, name, new_key, public},
};
use crate::{
    est::Surroundings,
    test_vectors::{CA, CA_SCALAR, REQUEST},
};

const PKCS7: &str = "content-type: application/pkcs7-mime\r\n";

/// `enrolled` comes from this server with a password.
fn config(server: &EstServer) -> String {
    format!(
        "[cert_issuance]\nenrolled = {{ method = \"est\" }}\n[cert_issuance.est]\nusername = \"user\"\npassword = \"p\\u0040ss:word\"\n\
         urls = {{ default = \"{}\" }}\n",
        server.url
    )
}

async fn get(device: &Device, id: &str) -> RawReply {
    device.send("GET", &format!("/certificates/{id}"), "").await
}

fn pem(certificate: &X509) -> String {
    String::from_utf8(certificate.to_pem().unwrap()).unwrap()
}

#[tokio::test]
async fn requests_are_written_as_servers_know_them() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    let reply = device.post("enrolled", REQUEST, None).await;
    assert_eq!(reply.status, 201, "{}", reply.body);

    let seen = server.seen();
    let host = server.url.trim_start_matches("http://").split('/').next().unwrap();
    let lines = |head: &str| {
        let mut lines: Vec<_> = head.lines().map(str::to_owned).collect();
        lines[1..].sort_unstable();
        lines
    };
    let authorization = "authorization: Basic dXNlcjpwQHNzOndvcmQ=".to_owned();
    assert_eq!(
        lines(&seen[0].head),
        ["GET /.well-known/est/cacerts HTTP/1.1".to_owned(), authorization.clone(), format!("host: {host}")]
    );
    let csr = REQUEST.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().join(
        "
",
    ) + "
";
    assert_eq!(
        lines(&seen[1].head),
        [
            "POST /.well-known/est/simpleenroll HTTP/1.1".to_owned(),
            authorization,
            format!("content-length: {}", csr.len()),
            "content-transfer-encoding: base64".to_owned(),
            "content-type: application/pkcs10".to_owned(),
            format!("host: {host}"),
        ]
    );
    assert_eq!(seen[1].body, csr, "the caller's request, unchanged");
    assert_eq!(seen.len(), 2);

    let chain = member(&reply, "pem");
    let (root, issuing) = (pem(&server.authority.root), pem(&server.authority.intermediate));
    assert!(chain.ends_with(&format!("{issuing}{root}")), "leaf, issuer, root");
    let leaf = chain.strip_suffix(&format!("{issuing}{root}")).unwrap();
    assert_eq!(
        openssl(
            &[("root", &root), ("issuing", &issuing), ("leaf", leaf)],
            &["verify", "-CAfile", "root", "-untrusted", "issuing", "leaf"]
        ),
        "leaf: OK\n"
    );
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), chain, "stored as returned");
}

#[tokio::test]
async fn answers_in_any_order_make_a_chain() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    let expected = |reply: &RawReply| {
        assert_eq!(reply.status, 201, "{}", reply.body);
        let chain = X509::stack_from_pem(member(reply, "pem").as_bytes()).unwrap();
        assert_eq!(chain.len(), 3);
        assert!(chain[1] == server.authority.intermediate && chain[2] == server.authority.root);
    };
    let replies: [Reply; 3] = [
        Reply::Certificates(|leaf, authority| vec![authority.root.clone(), authority.intermediate.clone(), leaf]),
        Reply::Certificates(|leaf, authority| vec![leaf.clone(), leaf, authority.intermediate.clone()]),
        Reply::Certificates(|leaf, _| vec![X509::from_pem(CA.as_bytes()).unwrap(), leaf]),
    ];
    for reply in replies {
        server.script("simpleenroll", [reply]);
        expected(&device.post("enrolled", REQUEST, None).await);
    }
    // The CA certificates failing alone: known ones serve.
    for failure in [Reply::Raw(404, "", Vec::new()), Reply::Raw(200, PKCS7, b"<html>".to_vec()), Reply::Hang] {
        server.script("cacerts", [failure]);
        expected(&device.post("enrolled", REQUEST, None).await);
    }
}

#[tokio::test]
async fn a_chain_in_the_answer_makes_up_for_missing_ca_certificates_and_a_leaf_alone_does_not() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    let missing = || Reply::Raw(404, "", Vec::new());
    server.script("cacerts", [missing()]);
    server.script("simpleenroll", [Reply::Certificates(|leaf, authority| vec![leaf, authority.intermediate.clone()])]);
    let reply = device.post("enrolled", REQUEST, None).await;
    assert_eq!(X509::stack_from_pem(member(&reply, "pem").as_bytes()).unwrap().len(), 2);

    server.script("cacerts", [missing(), missing()]);
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 500);
    server.script("cacerts", [missing()]);
    let reply = device.post("enrolled", REQUEST, None).await;
    assert_eq!(X509::stack_from_pem(member(&reply, "pem").as_bytes()).unwrap().len(), 3, "asked for again");
}

#[tokio::test]
async fn what_is_no_certificate_for_the_request_is_refused_and_not_stored() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    for reply in [
        Reply::Certificates(|_, _| Vec::new()),
        Reply::Certificates(|_, authority| vec![authority.intermediate.clone()]),
        Reply::Certificates(|leaf, authority| {
            vec![authority.issue(leaf.subject_name(), &public(&new_key()), (0, 60), &[])]
        }),
        Reply::Certificates(|leaf, _| vec![leaf; 101]),
        Reply::Raw(200, PKCS7, b"!!! not base64 !!!".to_vec()),
        Reply::Raw(200, PKCS7, CA.as_bytes().to_vec()),
        Reply::Raw(200, PKCS7, Vec::new()),
        Reply::Raw(200, PKCS7, vec![b'A'; 2 * 1024 * 1024]),
        Reply::Raw(200, "content-type: application/json\r\n", b"{}".to_vec()),
        Reply::Raw(201, PKCS7, Vec::new()),
        Reply::Raw(302, "location: https://elsewhere.example/\r\n", Vec::new()),
        Reply::Raw(401, "www-authenticate: Basic\r\n", vec![b'x'; 100_000]),
        Reply::Raw(404, "", Vec::new()),
    ] {
        server.script("simpleenroll", [reply]);
        let reply = device.post("enrolled", REQUEST, None).await;
        assert_eq!((reply.status, reply.body.as_str()), (500, r#"{"message":"internal error"}"#));
        let asked = server.seen().iter().filter(|seen| seen.operation == "simpleenroll").count();
        assert!((1..=3).contains(&asked), "asked {asked} times");
    }
    assert_eq!(get(&device, "enrolled").await.status, 400);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_one_that_says_no_is_not() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    server.script("simpleenroll", [Reply::Raw(503, "retry-after: 1\r\n", Vec::new())]);
    let begun = Instant::now();
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    server.seen();
    server.script("simpleenroll", [Reply::Raw(401, "", Vec::new())]);
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 500);
    assert_eq!(server.operations(), ["cacerts", "simpleenroll"]);
}

#[tokio::test]
async fn a_decision_that_is_put_off_is_waited_for() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    let later = || Reply::Raw(202, "retry-after: 1\r\n", Vec::new());
    server.script("simpleenroll", [later()]);
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201, "within the caller's time");
    let asked: Vec<_> = server.seen().into_iter().filter(|seen| seen.operation == "simpleenroll").collect();
    assert!(asked.len() == 2 && asked[0].body == asked[1].body, "the same request");

    assert_eq!(device.send("DELETE", "/certificates/enrolled", "").await.status, 204);
    server.script("simpleenroll", std::iter::repeat_with(later).take(5));
    let begun = Instant::now();
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 500);
    assert!(begun.elapsed() < Duration::from_secs(6), "the caller is told in time");
    assert_eq!(get(&device, "enrolled").await.status, 400);
    // Who asks again joins what is under way.
    let again = device.post("enrolled", REQUEST, None).await;
    assert_eq!(again.status, 201);
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), member(&again, "pem"));
    let asked = server.seen().iter().filter(|seen| seen.operation == "simpleenroll").count();
    assert_eq!(asked, 6);
}

#[tokio::test]
async fn a_caller_who_hangs_up_stops_nothing_and_what_is_done_after_it_is_not_undone() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    let hang_up = async || {
        server.seen();
        server.script("simpleenroll", [Reply::Raw(202, "retry-after: 2\r\n", Vec::new())]);
        // Another one each time: the same would join one that has not quite ended.
        let request = other_request();
        tokio::select! {
            _ = device.post("enrolled", &request, None) => panic!("answered too early"),
            () = until(async || server.operations().len() == 2) => {}
        }
    };
    let finish = async || device.certificates.enrolments().finish(Duration::from_secs(10)).await;
    hang_up().await;
    until(async || get(&device, "enrolled").await.status == 200).await;

    hang_up().await;
    assert_eq!(device.send("PUT", "/certificates/enrolled", &import_of(CA)).await.status, 201);
    finish().await;
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), CA);
    assert_eq!(server.operations(), ["cacerts", "simpleenroll"], "given up");

    hang_up().await;
    assert_eq!(device.send("DELETE", "/certificates/enrolled", "").await.status, 204);
    finish().await;
    assert_eq!(get(&device, "enrolled").await.status, 400);
}

#[tokio::test]
async fn who_waits_for_what_is_overtaken_is_told_so() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 30\r\n", Vec::new())]);
    let import = async {
        until(async || server.operations().len() == 2).await;
        device.send("PUT", "/certificates/enrolled", &import_of(CA)).await
    };
    let begun = Instant::now();
    let (waiting, import) = futures_util::future::join(device.post("enrolled", REQUEST, None), import).await;
    assert_eq!((waiting.status, import.status), (500, 201));
    assert!(begun.elapsed() < patience().caller, "at once");
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), CA);
}

#[tokio::test]
async fn what_is_issued_here_is_not_undone_by_a_server_that_took_its_time() {
    let server = EstServer::start().await;
    let config = format!("{}[preloaded_certs]\nca = \"file://@/ca.pem\"\n", config(&server));
    let device = Device::start(&config, &[("ca", CA_SCALAR)]).await;
    device.put_file("ca.pem", CA);
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 2\r\n", Vec::new())]);
    tokio::select! {
        _ = device.post("enrolled", REQUEST, None) => panic!("answered too early"),
        () = until(async || server.operations().len() == 2) => {}
    }
    let local = device.post("enrolled", REQUEST, Some(("ca", &device.handle("ca").await))).await;
    assert_eq!(local.status, 201, "{}", local.body);
    device.certificates.enrolments().finish(Duration::from_secs(10)).await;
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), member(&local, "pem"));
}

#[tokio::test]
async fn of_two_that_are_issued_at_the_same_time_the_newer_stays() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 1\r\n", Vec::new())]);
    let turn = device.certificates.turns.take("enrolled").await;
    let older = device.post("enrolled", REQUEST, None);
    let newer = async {
        until(async || server.operations().len() == 2).await;
        device.post("enrolled", &other_request(), None).await
    };
    let release = async {
        until(async || server.operations().iter().filter(|one| *one == "simpleenroll").count() == 3).await;
        // For the older one to be next in line. Too short a time would hide a fault, not make one.
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(turn);
    };
    let posts = futures_util::future::join(older, newer);
    let ((older, newer), ()) = futures_util::future::join(posts, release).await;
    assert_eq!((older.status, newer.status), (500, 201));
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), member(&newer, "pem"));
}

#[tokio::test]
async fn an_empty_list_of_ca_certificates_is_none() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    let empty = || Reply::Raw(200, PKCS7, b"MAsGCSqGSIb3DQEHAg==".to_vec());
    server.script("cacerts", [empty(), empty()]);
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 500, "a leaf alone");
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
    server.script("cacerts", [empty()]);
    let reply = device.post("enrolled", REQUEST, None).await;
    assert_eq!(X509::stack_from_pem(member(&reply, "pem").as_bytes()).unwrap().len(), 3, "known ones serve");
}

/// The server plays the proxy too: it looks at no more of a target than its last part.
#[tokio::test]
async fn a_proxy_behind_tls_passes_on_what_goes_to_a_server_in_clear() {
    let proxy = EstServer::start_tls().await;
    let text = "[cert_issuance.enrolled]\nmethod = \"est\"\nurl = \"http://est.example/\"\nusername = \"u\"\n\
                password = \"p\"\n[cert_issuance.est]\ntrusted_certs = [\"root\"]\n[preloaded_certs]\n\
                root = \"file://@/root.pem\"\n";
    let device = Device::start(text, &[]).await;
    device.put_file("root.pem", pem(&proxy.authority.root));
    let uri = proxy.url.strip_suffix("/.well-known/est").unwrap();
    let through = Some(Arc::new(Proxy::new(uri, "").unwrap()));
    let surroundings = Surroundings { proxy: through, ..device.surroundings.clone() };
    device.certificates.replace_settings(settings(device.folder.path(), text, &surroundings)).await;
    let reply = device.post("enrolled", REQUEST, None).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    assert!(proxy.seen()[0].head.starts_with("GET http://est.example/cacerts "));
}

fn import_of(pem: &str) -> String {
    json!({ "pem": pem }).to_string()
}

#[tokio::test]
async fn a_hung_server_holds_up_its_own_callers_only() {
    let (hung, well) = (EstServer::start().await, EstServer::start().await);
    let config = format!("{}\n[cert_issuance.other]\nmethod = \"est\"\nurl = \"{}\"\n", config(&hung), well.url);
    let device = Device::start(&config, &[]).await;
    hung.script("cacerts", [Reply::Hang]);
    hung.script("simpleenroll", [Reply::Hang]);
    let begun = Instant::now();
    let waiting = async {
        assert_eq!(device.post("enrolled", REQUEST, None).await.status, 500);
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    };
    let others = async {
        until(async || hung.operations() == ["cacerts"]).await;
        for _ in 0..20 {
            assert_eq!(device.post("other", REQUEST, None).await.status, 201);
            assert_eq!(get(&device, "other").await.status, 200);
            assert_eq!(get(&device, "enrolled").await.status, 400);
        }
    };
    let others = timeout(Duration::from_secs(2), others);
    let ((), in_time) = futures_util::future::join(waiting, others).await;
    in_time.expect("others do not wait for the hung server");
}

fn other_request() -> String {
    let (key, mut request) = (new_key(), X509ReqBuilder::new().unwrap());
    request.set_subject_name(&name("newer")).unwrap();
    request.set_pubkey(&key).unwrap();
    request.sign(&key, MessageDigest::sha256()).unwrap();
    String::from_utf8(request.build().to_pem().unwrap()).unwrap()
}

#[tokio::test]
async fn a_newer_request_wins_over_an_older_one() {
    let server = EstServer::start().await;
    let device = Device::start(&config(&server), &[]).await;
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 3\r\n", Vec::new())]);
    let older = device.post("enrolled", REQUEST, None);
    let newer = async {
        until(async || server.operations().len() == 2).await;
        device.post("enrolled", &other_request(), None).await
    };
    let (older, newer) = futures_util::future::join(older, newer).await;
    assert_eq!((older.status, newer.status), (500, 201));
    assert_eq!(member(&get(&device, "enrolled").await, "pem"), member(&newer, "pem"));

    // One that nobody waits for makes room at once.
    server.seen();
    let later = || Reply::Raw(202, "retry-after: 30\r\n", Vec::new());
    server.script("simpleenroll", [later(), later()]);
    for request in [other_request(), other_request()] {
        let call = CreateCertificate { cert_id: "enrolled".into(), csr: request, issuer: None };
        let asked = server.operations().len();
        tokio::select! {
            _ = device.certificates.create(0, call) => panic!("answered too early"),
            () = until(async || server.operations().len() == asked + 2) => {}
        }
    }
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
    timeout(Duration::from_secs(5), device.certificates.enrolments().finish(Duration::from_secs(60))).await.unwrap();
}

#[tokio::test]
async fn servers_that_renew_elsewhere_are_asked_there_where_configured() {
    let server = EstServer::start().await;
    let device = Device::start(&format!("{}simplereenroll = true\n", config(&server)), &[]).await;
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
    assert_eq!(server.operations(), ["cacerts", "simpleenroll"], "nothing to renew yet");
    server.seen();
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
    assert_eq!(server.operations(), ["cacerts", "simplereenroll"]);
    server.seen();
    server.script("simplereenroll", [Reply::Raw(404, "", Vec::new())]);
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
    assert_eq!(server.operations(), ["cacerts", "simplereenroll", "simpleenroll"]);
}

#[tokio::test]
async fn only_trusted_servers_get_a_request() {
    let server = EstServer::start_tls().await;
    let trusting =
        format!("{}trusted_certs = [\"root\"]\n[preloaded_certs]\nroot = \"file://@/root.pem\"\n", config(&server));
    let device = Device::start(&trusting, &[]).await;
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 500, "the trusted certificate is not there yet");
    let other = Device::start(&trusting, &[]).await;
    other.put_file("root.pem", CA);
    assert_eq!(other.post("enrolled", REQUEST, None).await.status, 500);
    assert!(server.operations().is_empty());
    device.put_file("root.pem", pem(&server.authority.root));
    assert_eq!(device.post("enrolled", REQUEST, None).await.status, 201);
}
