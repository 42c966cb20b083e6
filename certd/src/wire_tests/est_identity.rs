//! EST identities: obtained with a bootstrap identity, renewed with a new key, and whole after a crash at any point (certs.md, 5.4,
//! 6.6 and W26 to W31).

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use aziot_certd_api::config::KeyPair;
use aziot_http::{Endpoint, Retry};
use aziot_keyd_api::{
    is_absent,
    key_pair::{CreateKeyPair, LoadKeyPair, MoveKeyPair},
};
use aziot_pki::{
    key::RemoteKey,
    renewal::{Credential as _, Failure},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{
    pkey::{PKey, Public},
    x509::{X509, X509Req},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
};

use super::{
    device::{Device, member, p256, settings, until},
    est_server::{Authority, EstServer, Reply, name, public, read_message},
};
use crate::{
    est::{
        Surroundings,
        identity::{Identity, Wish},
    },
    settings::Settings,
    test_vectors::{CA_SCALAR, LEAF_SCALAR, REQUEST},
};

/// Where a certificate is noted whose key is being moved; the id as it stands in a path.
pub(super) const NOTE: &str = "%00%2Fest-id";
pub(super) const KEYS: &[(&str, &str)] = &[("bootstrap", CA_SCALAR), ("fixed", LEAF_SCALAR)];

pub(super) fn config(url: &str, more: &str) -> String {
    format!(
        "[cert_issuance]\ndevice-id = {{ method = \"est\" }}\n[cert_issuance.est]\ntrusted_certs = [\"root\"]\n\
         identity_cert = \"est-id\"\nidentity_pk = \"est-key\"\nbootstrap_identity_cert = \"bootstrap\"\n\
         bootstrap_identity_pk = \"bootstrap\"\nurls = {{ default = \"{url}\" }}\n{more}\n\
         [preloaded_certs]\nbootstrap = \"file://@/bootstrap.pem\"\nroot = \"file://@/root.pem\"\n"
    )
}

pub(super) async fn device(server: &EstServer, more: &str) -> Device {
    let device = Device::start(&config(&server.url, more), KEYS).await;
    put_authority(&device, &server.authority);
    device
}

pub(super) fn put_authority(device: &Device, authority: &Authority) {
    let bootstrap = authority.issue(&name("bootstrap"), &public(&p256(CA_SCALAR)), (-60, 86_400), &[]);
    let chain = [&bootstrap, &authority.intermediate].map(|one| one.to_pem().unwrap()).concat();
    device.put_file("bootstrap.pem", chain);
    device.put_file("root.pem", authority.root.to_pem().unwrap());
}

pub(super) async fn import(device: &Device, id: &str, chain: &[&X509]) {
    let pem = chain.iter().map(|one| String::from_utf8(one.to_pem().unwrap()).unwrap()).collect::<String>();
    let target = format!("/certificates/{id}");
    assert_eq!(device.send("PUT", &target, &json!({ "pem": pem }).to_string()).await.status, 201);
}

/// The public half of a key pair, if it is there.
pub(super) async fn key(device: &Device, id: &str) -> Option<PKey<Public>> {
    match device.keyd.send(&LoadKeyPair { key_id: id.to_owned() }).await {
        Ok(handle) => {
            let key = RemoteKey::load(&device.keyd, handle.key_handle).await.unwrap();
            Some(PKey::public_key_from_der(&key.public_key().public_key_to_der().unwrap()).unwrap())
        }
        Err(error) => {
            assert!(is_absent(&error), "{error}");
            None
        }
    }
}

pub(super) async fn make_key(device: &Device, id: &str) -> PKey<Public> {
    let call = CreateKeyPair { key_id: id.to_owned(), preferred_algorithms: Some("ec-p256".to_owned()) };
    device.keyd.send(&call).await.unwrap();
    key(device, id).await.unwrap()
}

pub(super) async fn stored(device: &Device, id: &str) -> Option<X509> {
    let reply = device.send("GET", &format!("/certificates/{id}"), "").await;
    (reply.status == 200).then(|| X509::from_pem(member(&reply, "pem").as_bytes()).unwrap())
}

fn common_name(certificate: &X509) -> String {
    let entry = certificate.subject_name().entries().next().unwrap();
    String::from_utf8(entry.data().as_slice().to_vec()).unwrap()
}

/// Who was shown to the server, and what it was asked, as `identity operation`.
pub(super) fn shown(server: &EstServer) -> Vec<String> {
    let seen = server.seen().into_iter();
    seen.map(|seen| {
        let client = seen.client.first().map_or_else(|| "-".to_owned(), common_name);
        assert!(seen.client.is_empty() || seen.client.len() >= 2, "the whole chain is shown");
        format!("{client} {}", seen.operation)
    })
    .collect()
}

pub(super) async fn renewals(device: &Device) -> Vec<Value> {
    let reply = device.send("GET", "/renewals", "").await;
    assert_eq!(reply.status, 200);
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    body["renewals"].as_array().unwrap().clone()
}

pub(super) async fn assert_whole(device: &Device) {
    let (certificate, key) = (stored(device, "est-id").await.unwrap(), key(device, "est-key").await.unwrap());
    assert!(certificate.public_key().unwrap().public_eq(&key), "certificate and key fit");
}

#[tokio::test]
async fn the_first_certificate_brings_an_identity_and_the_next_ones_use_it() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    assert_eq!(renewals(&device).await, Vec::<Value>::new());
    let reply = device.post("device-id", REQUEST, None).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    assert_eq!(
        shown(&server),
        ["bootstrap cacerts", "bootstrap simpleenroll", "vector-leaf cacerts", "vector-leaf simpleenroll"],
        "the identity is called like the certificate that it is first needed for"
    );
    assert_whole(&device).await;
    assert!(key(&device, "est-key-temp").await.is_none());
    let usage = stored(&device, "est-id").await.unwrap();
    assert_eq!(common_name(&usage), "vector-leaf");

    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    assert_eq!(shown(&server), ["vector-leaf cacerts", "vector-leaf simpleenroll"]);
    let [renewal] = &*renewals(&device).await else { panic!("one renewal") };
    assert_eq!((&renewal["certId"], &renewal["keyId"]), (&json!("est-id"), &json!("est-key")));
    assert_eq!((&renewal["failedAttempts"], &renewal["lastError"]), (&json!(0), &Value::Null));
    let (next, end) = (renewal["nextAttempt"].as_str().unwrap(), renewal["notAfter"].as_str().unwrap());
    assert!(next.ends_with('Z') && end.ends_with('Z') && next < end, "{next} {end}");
    assert_eq!(device.send("POST", "/renewals", "{}").await.status, 400);
}

#[tokio::test]
async fn faults_that_pass_never_cost_the_identity() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    let before = stored(&device, "est-id").await.unwrap();
    server.seen();
    for reply in [Reply::Raw(401, "", Vec::new()), Reply::Raw(400, "", Vec::new()), Reply::Raw(500, "", Vec::new())] {
        server.script("simpleenroll", [reply]);
        assert_eq!(device.post("device-id", REQUEST, None).await.status, 500);
    }
    assert!(shown(&server).iter().all(|line| line.starts_with("vector-leaf ")), "no bootstrap");
    assert!(stored(&device, "est-id").await.unwrap() == before);
    assert_whole(&device).await;
}

#[tokio::test]
async fn a_key_service_that_is_away_is_no_reason_to_obtain_another_identity() {
    let server = EstServer::start_tls().await;
    let device =
        Device::start_with(&config(&server.url, ""), KEYS, |socket| socket.with_file_name("nobody.sock")).await;
    put_authority(&device, &server.authority);
    let key = make_key(&device, "est-key").await;
    let identity = server.authority.issue(&name("identity"), &key, (-60, 3600), &[]);
    import(&device, "est-id", &[&identity, &server.authority.intermediate]).await;
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 500);
    assert!(server.operations().is_empty());
    assert!(stored(&device, "est-id").await.unwrap() == identity);
    assert_whole(&device).await;
}

#[tokio::test]
async fn a_server_that_is_down_and_an_identity_that_is_over_hold_up_nothing() {
    let server = EstServer::start_tls().await;
    let text = config("https://localhost:1/", "");
    let device = Device::start(&text, KEYS).await;
    put_authority(&device, &server.authority);
    let key = make_key(&device, "est-key").await;
    let over = server.authority.issue(&name("over"), &key, (-60, -1), &[]);
    import(&device, "est-id", &[&over, &server.authority.intermediate]).await;
    device.certificates.replace_settings(settings_of(&device, &text)).await;
    until(async || renewals(&device).await.first().is_some_and(|renewal| renewal["failedAttempts"] != 0)).await;
    let renewal = renewals(&device).await.remove(0);
    assert!(renewal["lastError"].as_str().unwrap().contains("could not connect to localhost"), "{renewal}");
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 500);
    assert!(stored(&device, "est-id").await.unwrap() == over);
    assert_whole(&device).await;
}

#[tokio::test]
async fn an_identity_that_was_imported_or_deleted_is_used_or_obtained_anew() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "identity_subject = { O = \"Example\", CN = \"identity\" }").await;
    let (authority, key) = (&server.authority, make_key(&device, "est-key").await);
    let imported = authority.issue(&name("imported"), &key, (-60, 3600), &[]);
    import(&device, "est-id", &[&imported, &authority.intermediate]).await;
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    assert_eq!(shown(&server), ["imported cacerts", "imported simpleenroll"], "one that appears later is used");

    assert_eq!(device.send("DELETE", "/certificates/est-id", "").await.status, 204);
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    assert_eq!(shown(&server)[..2], ["bootstrap cacerts", "bootstrap simpleenroll"]);
    assert_eq!(common_name(&stored(&device, "est-id").await.unwrap()), "identity");
    assert_whole(&device).await;
}

#[tokio::test]
async fn one_that_is_over_or_another_keys_is_obtained_anew() {
    let server = EstServer::start_tls().await;
    for (is_own_key, dates) in [(true, (-60, -1)), (false, (-60, 3600))] {
        let device = device(&server, "").await;
        let own = make_key(&device, "est-key").await;
        let key = if is_own_key { own } else { public(&p256(CA_SCALAR)) };
        let old = server.authority.issue(&name("old"), &key, dates, &[]);
        import(&device, "est-id", &[&old, &server.authority.intermediate]).await;
        assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
        let shown = shown(&server);
        assert_eq!(shown, ["bootstrap cacerts", "bootstrap simpleenroll", "old cacerts", "old simpleenroll"]);
        assert_whole(&device).await;
    }
}

#[tokio::test]
async fn it_is_renewed_with_a_new_key_while_others_use_it() {
    let server = EstServer::start_tls().await;
    let policy = "identity_auto_renew = { rotate_key = true, threshold = \"50%\", retry = \"4%\" }";
    let device = device(&server, policy).await;
    server.set_lifetime(4);
    let (mut certificates, mut keys) = (Vec::new(), Vec::new());
    while certificates.len() < 4 {
        assert_eq!(device.post("device-id", REQUEST, None).await.status, 201, "no gap");
        let leaf = stored(&device, "est-id").await.unwrap();
        let public = leaf.public_key().unwrap().public_key_to_der().unwrap();
        if certificates.last() != Some(&leaf) {
            assert!(!keys.contains(&public), "a new key each time");
            certificates.push(leaf);
            keys.push(public);
        }
    }
    let shown = shown(&server);
    assert_eq!(shown.iter().filter(|line| line.starts_with("bootstrap")).count(), 2, "once: {shown:?}");
    assert!(renewals(&device).await.iter().all(|renewal| renewal["failedAttempts"] == 0));
}

#[tokio::test]
async fn a_decision_about_the_identity_is_waited_for_with_the_same_request() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    server.script("simpleenroll", [Reply::Raw(202, "retry-after: 1\r\n", Vec::new())]);
    assert_eq!(device.post("device-id", REQUEST, None).await.status, 201);
    let asked: Vec<_> = server.seen().into_iter().filter(|seen| seen.operation == "simpleenroll").collect();
    assert!(asked.len() == 3 && asked[0].body == asked[1].body && asked[1].body != asked[2].body);
    assert_whole(&device).await;
}

#[tokio::test]
async fn servers_that_renew_elsewhere_get_subject_and_names_as_they_were() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "simplereenroll = true").await;
    let key = make_key(&device, "est-key").await;
    let old = server.authority.issue(&name("identity"), &key, (-60, 3600), &["device.example"]);
    import(&device, "est-id", &[&old, &server.authority.intermediate]).await;
    let text = config(&server.url, "simplereenroll = true");
    let identity = identity(&settings_of(&device, &text), "est-key");
    let new = identity.renew(identity.current().await.unwrap()).await.unwrap();
    assert_eq!(new.key_id, "est-key-temp");
    let asked = server.seen().pop().unwrap();
    assert_eq!(asked.operation, "simplereenroll");
    let request = STANDARD.decode(asked.body.split_whitespace().collect::<String>()).unwrap();
    let request = X509Req::from_der(&request).unwrap();
    assert_eq!(request.version(), 0);
    assert_eq!(request.subject_name().to_der().unwrap(), old.subject_name().to_der().unwrap());
    let text = String::from_utf8(request.to_text().unwrap()).unwrap();
    assert!(text.contains("DNS:device.example") && text.contains("TLS Web Client Authentication"), "{text}");
    assert!(stored(&device, "est-id").await.unwrap() == old, "nothing is touched before the commit");
    assert_whole(&device).await;
}

/// The device's own surroundings, with the key service where it is.
fn straight(device: &Device) -> Surroundings {
    Surroundings { keyd: device.keyd.clone(), ..device.surroundings.clone() }
}

pub(super) fn settings_of(device: &Device, config: &str) -> Settings {
    settings(device.folder.path(), config, &straight(device))
}

pub(super) fn identity(settings: &Settings, key: &str) -> Arc<Identity> {
    let pair = KeyPair { cert: "est-id".to_owned(), pk: key.to_owned() };
    Arc::clone(settings.est.identity(&pair).unwrap())
}

/// A way to the key service on which work is cut off at one of its calls: before it, or when it is done and not yet answered.
struct Cutter {
    shared: Arc<(Mutex<Cut>, Notify)>,
    socket: PathBuf,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy, Default)]
struct Cut {
    calls: usize,
    at: usize,
    is_before: bool,
}

impl Cutter {
    fn start(device: &Device) -> Self {
        let (socket, keyd) = (device.folder.path().join("cut.sock"), device.folder.path().join("keyd/keyd.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new((Mutex::new(Cut::default()), Notify::new()));
        let (state, mut tasks) = (Arc::clone(&shared), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(forward(stream, keyd.clone(), Arc::clone(&state)));
            }
        });
        Self { shared, socket, _tasks: tasks }
    }

    /// Does the work to its end, or until that call of it.
    async fn run<F: Future>(&self, at: usize, is_before: bool, work: F) -> Option<F::Output> {
        *self.shared.0.lock().unwrap() = Cut { calls: 0, at, is_before };
        tokio::select! {
            outcome = work => Some(outcome),
            () = self.shared.1.notified() => None,
        }
    }

    fn identity(&self, device: &Device, text: &str) -> (Settings, Arc<Identity>) {
        let keyd = aziot_keyd_api::client(&Endpoint::Unix(self.socket.clone()), Retry::local(0)).unwrap();
        let surroundings = Surroundings { keyd, ..device.surroundings.clone() };
        let settings = settings(device.folder.path(), text, &surroundings);
        let identity = identity(&settings, "est-key");
        (settings, identity)
    }
}

async fn forward(mut caller: UnixStream, keyd: PathBuf, shared: Arc<(Mutex<Cut>, Notify)>) {
    let mut service = UnixStream::connect(keyd).await.unwrap();
    while let Some((head, body)) = read_message(&mut caller).await {
        let cut = {
            let mut cut = shared.0.lock().unwrap();
            cut.calls += 1;
            *cut
        };
        let is_last = cut.calls == cut.at;
        if is_last && cut.is_before {
            return shared.1.notify_one();
        }
        service.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
        let (head, body) = read_message(&mut service).await.unwrap();
        if is_last {
            return shared.1.notify_one();
        }
        let is_end = head.contains("connection: close");
        if caller.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.is_err() || is_end {
            return;
        }
    }
}

#[tokio::test]
async fn obtaining_it_can_be_cut_off_at_any_call_of_the_key_service() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    let (text, cutter) = (config(&server.url, ""), Cutter::start(&device));
    let mut calls = 0;
    let is_done = async |at, is_before| {
        let (settings, begun) = cutter.identity(&device, &text);
        let wish = Wish {
            access: settings.est.target("device-id").unwrap().access.clone(),
            subject: aziot_pki::name::from_entries([("CN", "identity")]).unwrap(),
        };
        let outcome = cutter.run(at, is_before, begun.bootstrap(&wish)).await;
        // A new process.
        let after = identity(&settings_of(&device, &text), "est-key");
        after.repair().await.unwrap();
        if after.is_there().await.unwrap() {
            assert_whole(&device).await;
        }
        assert!(!after.is_begun().await.unwrap() || after.is_there().await.unwrap(), "nothing is left half done");
        assert_eq!(device.send("DELETE", "/certificates/est-id", "").await.status, 204);
        outcome.map(Result::unwrap).is_some()
    };
    while !(is_done(calls + 1, true).await & is_done(calls + 1, false).await) {
        calls += 1;
    }
    assert!(calls > 10, "{calls}");
}

#[tokio::test]
async fn a_renewal_can_be_cut_off_at_any_call_of_the_key_service() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    let key = make_key(&device, "est-key").await;
    let first = server.authority.issue(&name("identity"), &key, (-60, 3600), &[]);
    import(&device, "est-id", &[&first, &server.authority.intermediate]).await;
    let (text, cutter) = (config(&server.url, ""), Cutter::start(&device));
    let mut calls = 0;
    let is_done = async |at, is_before| {
        let (_settings, begun) = cutter.identity(&device, &text);
        let renewal = async {
            let old = begun.current().await.unwrap();
            let new = begun.renew(old.clone()).await.unwrap();
            begun.commit(old, new).await.unwrap();
        };
        let outcome = cutter.run(at, is_before, renewal).await;
        identity(&settings_of(&device, &text), "est-key").repair().await.unwrap();
        assert_whole(&device).await;
        assert!(stored(&device, NOTE).await.is_none());
        outcome.is_some()
    };
    while !(is_done(calls + 1, true).await & is_done(calls + 1, false).await) {
        calls += 1;
    }
    assert!(calls > 10, "{calls}");
    assert!(shown(&server).iter().all(|line| line.starts_with("identity")), "no bootstrap was needed");
}

#[tokio::test]
async fn what_other_programs_left_half_done_is_finished() {
    let server = EstServer::start_tls().await;
    let device = device(&server, "").await;
    let authority = &server.authority;
    let identity = identity(&settings_of(&device, &config(&server.url, "")), "est-key");
    let old = make_key(&device, "est-key").await;
    let next = make_key(&device, "est-key-temp").await;
    let certificate = |key: &PKey<Public>, end| authority.issue(&name("identity"), key, (-60, end), &[]);

    // The public service: the certificate is there, its key is not in its place.
    import(&device, "est-id", &[&certificate(&next, 3600)]).await;
    identity.repair().await.unwrap();
    assert_whole(&device).await;
    assert!(key(&device, "est-key").await.unwrap().public_eq(&next) && !old.public_eq(&next));

    // A note without its key, and one that is over, change nothing.
    for (noted, end) in [(&old, 3600), (&make_key(&device, "est-key-temp").await, -1)] {
        import(&device, NOTE, &[&certificate(noted, end)]).await;
        identity.repair().await.unwrap();
        assert_whole(&device).await;
        assert!(key(&device, "est-key").await.unwrap().public_eq(&next));
        assert!(stored(&device, NOTE).await.is_none());
    }

    // One whose key is in its place already.
    let moved = certificate(&next, 1800);
    import(&device, NOTE, &[&moved]).await;
    identity.repair().await.unwrap();
    assert!(stored(&device, "est-id").await.unwrap() == moved && stored(&device, NOTE).await.is_none());

    // A key that belongs to nothing is no failure that passes.
    device.keyd.send(&MoveKeyPair { key_id: "est-key".into(), from: "est-key-temp".into() }).await.unwrap();
    assert!(matches!(identity.repair().await, Err(Failure::Fatal(_))));

    // An absent certificate is nothing to repair.
    assert_eq!(device.send("DELETE", "/certificates/est-id", "").await.status, 204);
    identity.repair().await.unwrap();
    assert!(matches!(identity.current().await, Err(Failure::Fatal(_))));
}
