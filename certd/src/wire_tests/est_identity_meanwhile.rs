//! EST identities that others touch as well: who imports, deletes, enrolls or reloads meanwhile, loses or shares their keys; and what
//! outlasts a reload.

use std::{sync::Arc, time::Duration};

use aziot_http::{Endpoint, Retry};
use aziot_keyd_api::key_pair::{DeleteKeyPair, LoadKeyPair};
use aziot_pki::renewal::{Credential as _, Failure};
use openssl::{
    pkey::{PKey, Public},
    x509::X509,
};
use serde_json::Value;
use tokio::{sync::Notify, time::timeout};

use super::{
    device::{Device, p256, settings, until},
    est_identity::{
        KEYS, NOTE, assert_whole, config, device, identity, import, key, make_key, put_authority, renewals,
        settings_of, stored,
    },
    est_server::{Authority, EstServer, Reply, name, public},
};
use crate::{
    est::{Surroundings, identity::Identity},
    test_vectors::{LEAF_SCALAR, REQUEST},
};

#[tokio::test]
async fn a_key_that_is_lost_or_replaced_while_it_is_used_is_mended_at_once() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    for is_replaced in [false, true] {
        let lost = stored(&device, "est-id").await.unwrap();
        delete_key(&device, "est-key").await;
        if is_replaced {
            make_key(&device, "est-key").await;
        }
        let reply = device.post("device-id", REQUEST, None).await;
        assert_eq!(reply.status, 201, "{} {:?}", reply.body, renewals(&device).await);
        assert!(stored(&device, "est-id").await.unwrap() != lost);
        assert_whole(&device).await;
    }
}

async fn delete_key(device: &Device, id: &str) {
    let key_handle = device.keyd.send(&LoadKeyPair { key_id: id.to_owned() }).await.unwrap().key_handle;
    device.keyd.send(&DeleteKeyPair { key_handle }).await.unwrap();
}

/// A device whose identity is there, and one that is renewed by hand.
async fn imported(server: &EstServer) -> (Device, Arc<Identity>, X509) {
    let device = device(server, "").await;
    let key = make_key(&device, "est-key").await;
    let old = server.authority.issue(&name("old"), &key, (-60, 3600), &[]);
    import(&device, "est-id", &[&old, &server.authority.intermediate]).await;
    let identity = identity(&settings_of(&device, &config(&server.url, "")), "est-key");
    (device, identity, old)
}

#[tokio::test]
async fn a_renewal_undoes_neither_an_import_nor_a_deletion() {
    let server = EstServer::start_tls().await;
    let (device, identity, old) = imported(&server).await;
    let renew = async || {
        let old = identity.current().await.unwrap();
        (old.clone(), identity.renew(old).await.unwrap())
    };

    let (before, new) = renew().await;
    let turn = device.certificates.turns.take("est-id").await;
    let committing = identity.commit(before.clone(), new.clone());
    assert!(timeout(Duration::from_millis(500), committing).await.is_err(), "others are at it");
    drop(turn);

    let newer = server.authority.issue(&name("newer"), &old.public_key().unwrap(), (-60, 3600), &[]);
    import(&device, "est-id", &[&newer, &server.authority.intermediate]).await;
    assert!(matches!(identity.commit(before, new).await, Err(Failure::AtOnce(_))));
    assert!(stored(&device, "est-id").await.unwrap() == newer);
    assert_whole(&device).await;

    let (before, new) = renew().await;
    assert_eq!(device.send("DELETE", "/certificates/est-id", "").await.status, 204);
    assert!(matches!(identity.commit(before, new).await, Err(Failure::AtOnce(_))));
    assert!(!identity.is_begun().await.unwrap());
}

#[tokio::test]
async fn what_was_begun_before_an_import_or_a_deletion_is_not_finished_after_it() {
    let server = EstServer::start_tls().await;
    let (device, identity, old) = imported(&server).await;
    let next = make_key(&device, "est-key-temp").await;
    let noted = server.authority.issue(&name("noted"), &next, (-60, 3600), &[]);
    import(&device, NOTE, &[&noted]).await;
    import(&device, "est-id", &[&old]).await;
    identity.repair().await.unwrap();
    assert!(stored(&device, "est-id").await.unwrap() == old);
    import(&device, NOTE, &[&noted]).await;
    assert_eq!(device.send("DELETE", "/certificates/est-id", "").await.status, 204);
    identity.repair().await.unwrap();
    assert!(stored(&device, "est-id").await.is_none());
}

#[tokio::test]
async fn a_key_in_the_place_of_the_next_one_is_not_taken_for_it() {
    let server = EstServer::start_tls().await;
    let (device, identity, old) = imported(&server).await;
    let before = identity.current().await.unwrap();
    let new = identity.renew(before.clone()).await.unwrap();
    delete_key(&device, "est-key-temp").await;
    make_key(&device, "est-key-temp").await;
    assert!(identity.commit(before, new).await.is_err());
    assert!(stored(&device, "est-id").await.unwrap() == old);
    assert_whole(&device).await;
}

#[tokio::test]
async fn it_is_obtained_while_nobody_else_works_on_it() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    let release = Notify::new();
    let somebody = device.certificates.enrolments().engine().alone("est-id", "est-key", release.notified());
    let post = async {
        let post = device.post("device-id", REQUEST, None);
        tokio::pin!(post);
        assert!(timeout(Duration::from_secs(1), &mut post).await.is_err());
        assert!(server.operations().is_empty());
        release.notify_one();
        post.await
    };
    let (worked, reply) = futures_util::future::join(somebody, post).await;
    worked.unwrap();
    assert_eq!(reply.status, 201);
}

#[tokio::test]
async fn an_enrolment_of_old_settings_brings_no_identity_back() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    assert_eq!(renewals(&device).await.len(), 1);
    server.seen();
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 1\r\n", Vec::new())]);
    let reload = async {
        until(async || server.operations().len() == 2).await;
        let text = "[cert_issuance]\nother = { method = \"local_ca\" }\n";
        device.certificates.replace_settings(settings_of(&device, text)).await;
    };
    let post = device.post("device-id", REQUEST, None);
    let (reply, ()) = futures_util::future::join(post, reload).await;
    assert_eq!(reply.status, 500);
    assert_eq!(renewals(&device).await, Vec::<Value>::new());
}

#[tokio::test]
async fn an_identity_that_is_obtained_during_a_reload_is_looked_after() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 1\r\n", Vec::new())]);
    let reload = async {
        until(async || server.operations().len() == 2).await;
        device.certificates.replace_settings(settings_of(&device, &config(&server.url, ""))).await;
        assert!(renewals(&device).await.is_empty());
    };
    let post = device.post("device-id", REQUEST, None);
    let (reply, ()) = futures_util::future::join(post, reload).await;
    assert_eq!((reply.status, renewals(&device).await.len()), (201, 1));
}

#[tokio::test]
async fn one_that_appears_while_others_are_looked_for_is_not_forgotten() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    let key = make_key(&device, "est-key").await;
    let new = server.authority.issue(&name("new"), &key, (-60, 3600), &[]);
    let pem = String::from_utf8(new.to_pem().unwrap()).unwrap();
    let settings = settings_of(&device, &config(&server.url, ""));
    let appear = || settings.store.write("est-id", &pem).unwrap();
    settings.est.look_after(device.certificates.enrolments().engine(), appear).await;
    assert_eq!(renewals(&device).await.len(), 1);
}

fn asked_for(server: &EstServer) -> Vec<String> {
    let seen = server.seen().into_iter().filter(|seen| seen.operation == "simpleenroll");
    seen.map(|seen| seen.body).collect()
}

#[tokio::test]
async fn a_request_that_the_server_has_taken_outlives_a_reload_and_a_key_service_that_is_away() {
    let server = EstServer::start_tls().await;
    let (device, first, _) = imported(&server).await;
    let text = config(&server.url, "");
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 7\r\n", Vec::new())]);
    let old = first.current().await.unwrap();
    let pause = first.renew(old.clone()).await.unwrap_err().asked_pause();
    assert_eq!(pause, Some(Duration::from_secs(7)));

    let nobody = Endpoint::Unix(device.folder.path().join("nobody.sock"));
    let keyd = aziot_keyd_api::client(&nobody, Retry::local(0)).unwrap();
    let away = Surroundings { keyd, ..device.surroundings.clone() };
    let second = identity(&settings(device.folder.path(), &text, &away), "est-key");
    drop(first);
    second.renew(old.clone()).await.unwrap_err();

    let third = identity(&settings_of(&device, &text), "est-key");
    server.script("simpleenroll", [Reply::Raw(503, "retry-after: 9\r\n", Vec::new())]);
    let pause = third.renew(old.clone()).await.unwrap_err().asked_pause();
    assert_eq!(pause, Some(Duration::from_secs(9)));
    server.script("simpleenroll", [Reply::Raw(403, "", Vec::new())]);
    assert!(third.renew(old.clone()).await.unwrap_err().asked_pause().is_none());
    third.renew(old).await.unwrap();
    let asked = asked_for(&server);
    assert!(asked.len() == 4 && asked[0] == asked[1] && asked[1] == asked[2], "the same request");
    assert!(asked[2] != asked[3], "that one was refused");
}

const HOURLY: &str = "identity_auto_renew = { rotate_key = true, threshold = \"50%\", retry = \"60min\" }";

/// Half of its life is over in two seconds.
async fn import_one_that_is_soon_due(device: &Device, authority: &Authority, key: &PKey<Public>) -> X509 {
    let old = authority.issue(&name("old"), key, (-18, 22), &[]);
    import(device, "est-id", &[&old, &authority.intermediate]).await;
    old
}

#[tokio::test]
async fn a_decision_is_come_back_for_when_the_server_says() {
    let server = EstServer::start_tls().await;
    let device = device(&server, HOURLY).await;
    let key = make_key(&device, "est-key").await;
    let old = import_one_that_is_soon_due(&device, &server.authority, &key).await;
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 1\r\n", Vec::new())]);
    device.certificates.replace_settings(settings_of(&device, &config(&server.url, HOURLY))).await;
    until(async || stored(&device, "est-id").await.unwrap() != old).await;
    let asked = asked_for(&server);
    assert!(asked.len() == 2 && asked[0] == asked[1], "{}", asked.len());
}

/// A key of the operator's is not replaced: the key service says 403, and the certificate is renewed all the same.
#[tokio::test]
async fn one_with_a_fixed_key_is_renewed_with_it() {
    let server = EstServer::start_tls().await;
    let authority = Arc::clone(&server.authority);
    let config = config(&server.url, "").replace("identity_pk = \"est-key\"", "identity_pk = \"fixed\"");
    let device = Device::start(&config, KEYS).await;
    put_authority(&device, &authority);
    let identity = identity(&settings_of(&device, &config), "fixed");
    let old = authority.issue(&name("old"), &public(&p256(LEAF_SCALAR)), (-60, 3600), &[]);
    import(&device, "est-id", &[&old, &authority.intermediate]).await;
    let chain = || async { identity.current().await.unwrap() };
    let renewed = identity.renew(chain().await).await.unwrap();
    assert_eq!(renewed.key_id, "fixed-temp");
    let refused = identity.commit(chain().await, renewed).await.unwrap_err();
    assert!(matches!(refused, Failure::AtOnce(_)));
    assert!(stored(&device, "est-id").await.unwrap() == old, "nothing was lost");
    assert!(key(&device, "fixed-temp").await.is_none());

    let renewed = identity.renew(chain().await).await.unwrap();
    assert_eq!(renewed.key_id, "fixed");
    identity.commit(chain().await, renewed).await.unwrap();
    identity.repair().await.unwrap();
    let new = stored(&device, "est-id").await.unwrap();
    assert!(new != old && new.public_key().unwrap().public_eq(&p256(LEAF_SCALAR)));
}

#[tokio::test]
async fn one_whose_key_may_not_be_moved_is_renewed_without_a_wait_and_that_is_remembered() {
    let server = EstServer::start_tls().await;
    let text = config(&server.url, HOURLY).replace("identity_pk = \"est-key\"", "identity_pk = \"fixed\"");
    let device = Device::start(&text, KEYS).await;
    put_authority(&device, &server.authority);
    let old = import_one_that_is_soon_due(&device, &server.authority, &public(&p256(LEAF_SCALAR))).await;
    device.certificates.replace_settings(settings_of(&device, &text)).await;
    until(async || stored(&device, "est-id").await.unwrap() != old).await;
    assert!(key(&device, "fixed-temp").await.is_none());
    let reloaded = identity(&settings_of(&device, &text), "fixed");
    let renewed = reloaded.renew(reloaded.current().await.unwrap()).await.unwrap();
    assert_eq!(renewed.key_id, "fixed");
}

#[tokio::test]
async fn nothing_is_overwritten_that_was_not_noted() {
    let server = EstServer::start_tls().await;
    let policy = "identity_auto_renew = { rotate_key = false, threshold = \"80%\", retry = \"4%\" }";
    let device = device(&server, policy).await;
    let key = make_key(&device, "est-key").await;
    let old = server.authority.issue(&name("old"), &key, (-60, 3600), &[]);
    import(&device, "est-id", &[&old, &server.authority.intermediate]).await;
    let identity = identity(&settings_of(&device, &config(&server.url, policy)), "est-key");
    let before = identity.current().await.unwrap();
    let new = identity.renew(before.clone()).await.unwrap();
    assert_eq!(new.key_id, "est-key");

    // A folder where the note belongs.
    let digest = openssl::sha::sha256(b"\0/est-id").map(|byte| format!("{byte:02x}")).concat();
    let place = device.folder.path().join(format!("certs/estid-{digest}.cer"));
    std::fs::create_dir(&place).unwrap();
    assert!(identity.commit(before.clone(), new.clone()).await.is_err());
    assert!(stored(&device, "est-id").await.unwrap() == old);
    std::fs::remove_dir(&place).unwrap();
    identity.commit(before, new).await.unwrap();
    assert!(stored(&device, "est-id").await.unwrap() != old && !place.exists());
}

#[tokio::test]
async fn an_import_and_a_deletion_show_among_the_renewals() {
    let server = EstServer::start_tls().await;
    let (device, _identity, old) = imported(&server).await;
    device.certificates.replace_settings(settings_of(&device, &config(&server.url, ""))).await;
    let end =
        async || renewals(&device).await.first().and_then(|renewal| renewal["notAfter"].as_str().map(str::to_owned));
    until(async || end().await.is_some()).await;
    let before = end().await;
    let longer = server.authority.issue(&name("old"), &old.public_key().unwrap(), (-60, 7200), &[]);
    import(&device, "est-id", &[&longer]).await;
    until(async || end().await != before).await;
    assert_eq!(device.send("DELETE", "/certificates/est-id", "").await.status, 204);
    until(async || renewals(&device).await[0]["lastError"].is_string()).await;
}

#[tokio::test]
async fn identities_that_share_a_key_leave_it_alone() {
    let server = EstServer::start_tls().await;
    let more = "[cert_issuance.other]\nmethod = \"est\"\nidentity_cert = \"other-id\"\nidentity_pk = \"est-key\"\n\
                bootstrap_identity_cert = \"bootstrap\"\nbootstrap_identity_pk = \"bootstrap\"\n";
    let device = device(&server, more).await;
    for id in ["device-id", "other"] {
        let reply = device.post(id, REQUEST, None).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
    }
    let [one, other] = [stored(&device, "est-id").await.unwrap(), stored(&device, "other-id").await.unwrap()];
    assert!(one.public_key().unwrap().public_eq(&*other.public_key().unwrap()));
    let one = identity(&settings_of(&device, &config(&server.url, more)), "est-key");
    assert_eq!(one.renew(one.current().await.unwrap()).await.unwrap().key_id, "est-key");
}
