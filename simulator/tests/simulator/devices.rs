//! A device's life: provisioning, modules, messages, and every way of not being let in.

use aziot_simulator::{SymmetricKey, sas};

use crate::world::{DPS, HUB, KEY, SCOPE, World, dps_token, key, mode, soon};

const DEVICE: &str = "Contoso-Device-01";

type Headers<'a> = &'a [(&'a str, &'a str)];

async fn provisioned(enrollments: &str) -> World {
    let mut world = World::start(enrollments).await;
    let answer = world.provision(DEVICE, &key()).await;
    assert_eq!(answer["status"], "assigned");
    world
}

#[tokio::test]
async fn a_device_is_assigned_after_a_pending_poll() {
    let mut world = World::start("").await;
    let (path, token) = (format!("/{SCOPE}/registrations/{DEVICE}"), dps_token(DEVICE, &key()));
    let body = format!(r#"{{"registrationId":"{DEVICE}","payload":{{"a":1}}}}"#);
    let lookup = world.request("POST", &format!("{path}?{DPS}"), &token, "").await;
    assert_eq!(lookup.status, 404);

    let registered = world.request("PUT", &format!("{path}/register?{DPS}"), &token, body).await;
    assert_eq!((registered.status, &registered.headers["retry-after"]), (202, &"7".parse().unwrap()));
    let registered = registered.json();
    assert_eq!(registered["status"], "assigning");
    let operation = registered["operationId"].as_str().unwrap();
    let poll = format!("{path}/operations/{operation}?{DPS}");

    let pending = world.request("GET", &poll, &token, "").await;
    assert_eq!((pending.status, &pending.headers["retry-after"]), (202, &"7".parse().unwrap()));
    assert_eq!(pending.json()["registrationState"]["registrationId"], DEVICE);
    for _ in 0..2 {
        let done = world.request("GET", &poll, &token, "").await;
        assert_eq!(done.status, 200);
        let state = &done.json()["registrationState"];
        assert_eq!((&state["deviceId"], &state["status"]), (&DEVICE.into(), &"assigned".into()));
        assert_eq!(state["assignedHub"], world.hub_name);
        assert_eq!(state["payload"]["request_payload"]["a"], 1);
    }
    let lookup = world.request("POST", &format!("{path}?{DPS}"), &token, "").await;
    assert_eq!((lookup.status, &lookup.json()["deviceId"]), (200, &DEVICE.into()));
    world.stop().await;
}

#[tokio::test]
async fn who_is_not_enrolled_or_signs_wrongly_is_unauthorized() {
    let mut world = World::start("").await;
    let resource = format!("{SCOPE}/registrations/{DEVICE}");
    let policy = Some("registration");
    let wrong = [
        (String::new(), "no authorization header"),
        ("Bearer x".to_owned(), "malformed"),
        (sas::sign(&resource, &SymmetricKey::random(), soon(), policy), "this identity's key"),
        (sas::sign(&resource, &key(), soon() - 400, policy), "expired"),
        (sas::sign(&resource, &key(), soon(), None), "policy name"),
        (sas::sign("other/registrations/x", &key(), soon(), policy), "for the resource"),
        (dps_token(DEVICE, &key()).replace("sig=", "sig=AA"), "malformed"),
    ];
    let path = format!("/{resource}/register?{DPS}");
    for (token, expected) in wrong {
        let reply = world.request("PUT", &path, &token, format!(r#"{{"registrationId":"{DEVICE}"}}"#)).await;
        assert_eq!(reply.status, 401, "{expected}");
        let body = reply.json();
        assert_eq!((&body["errorCode"], &body["message"]), (&401_002.into(), &"Unauthorized".into()));
        assert!(body["trackingId"].is_string() && body["timestampUtc"].is_string());
        let reason = world.last_request().await["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(expected), "{reason} / {expected}");
        assert!(!reason.contains("sig="));
    }
    for path in ["/0ne00other/registrations/Contoso-Device-01", &format!("/{SCOPE}/registrations/nobody")] {
        let token = sas::sign(&path[1..], &key(), soon(), policy);
        let reply = world.request("PUT", &format!("{path}/register?{DPS}"), &token, "{}").await;
        assert_eq!(reply.status, 401, "{path}");
    }
    world.stop().await;
}

#[tokio::test]
async fn bad_registrations_are_bad_requests() {
    let mut world = World::start("").await;
    let token = dps_token(DEVICE, &key());
    let path = format!("/{SCOPE}/registrations/{DEVICE}/register");
    let good = format!(r#"{{"registrationId":"{DEVICE}"}}"#);
    let version = format!("{path}?{DPS}");
    for (path, body) in [
        (path.as_str(), good.as_str()),
        (&format!("{path}?api-version=2000-01-01"), &good),
        (&version, ""),
        (&version, "no json"),
        (&version, "{}"),
        (&version, r#"{"registrationId":"other"}"#),
    ] {
        let reply = world.request("PUT", path, &token, body.to_owned()).await;
        assert_eq!((reply.status, &reply.json()["errorCode"]), (400, &400_004.into()), "{path} {body}");
    }
    let unknown = format!("/{SCOPE}/registrations/{DEVICE}/operations/x?{DPS}");
    assert_eq!(world.request("GET", &unknown, &token, "").await.status, 404);
    assert_eq!(world.request("GET", &version, &token, "").await.status, 405);
    assert_eq!(world.request("GET", "/nothing", &token, "").await.status, 404);
    world.stop().await;
}

#[tokio::test]
async fn enrollments_decide_what_becomes_of_a_registration() {
    let mut world = World::start(&format!(
        "[[enrollment]]\nregistration_id = 'off'\nsymmetric_key = '{KEY}'\ndisabled = true\n\
         [[enrollment]]\nregistration_id = 'bad'\nsymmetric_key = '{KEY}'\nfail_with = 'no hub left'\n\
         [[enrollment]]\nregistration_id = 'named'\nsymmetric_key = '{KEY}'\ndevice_id = 'Seven'\n\
         [[group]]\nname = 'factory'\nsymmetric_key = '{KEY}'\n"
    ))
    .await;
    assert_eq!(world.provision("off", &key()).await["status"], "disabled");
    let failed = world.provision("bad", &key()).await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["registrationState"]["errorMessage"], "no hub left");
    assert!(failed["registrationState"]["errorCode"].is_u64());
    assert_eq!(world.provision("named", &key()).await["registrationState"]["deviceId"], "Seven");
    let member = world.provision("unit-12", &key().derive("unit-12")).await;
    assert_eq!(member["registrationState"]["deviceId"], "unit-12");
    // The derived key is the device's key at the hub.
    let token = world.hub_token("unit-12", &key().derive("unit-12"));
    assert_eq!(world.request("GET", &format!("/devices/unit-12/modules?{HUB}"), &token, "").await.status, 200);
    world.stop().await;
}

#[tokio::test]
async fn a_module_signs_a_message_that_is_accepted() {
    let mut world = provisioned("").await;
    let device_token = world.hub_token(DEVICE, &key());
    let path = format!("/devices/{DEVICE}/modules/web");
    let ids = format!(r#""moduleId":"web","deviceId":"{DEVICE}""#);

    // As the identity service does it: create, derive keys from the generation, set them.
    let created = world.request("PUT", &format!("{path}?{HUB}"), &device_token, format!("{{{ids}}}")).await;
    assert_eq!(created.status, 200);
    let etag = created.headers["etag"].to_str().unwrap().to_owned();
    let created = created.json();
    assert_eq!(etag, format!("\"{}\"", created["etag"].as_str().unwrap()));
    assert!(created["authentication"]["symmetricKey"]["primaryKey"].is_string());
    let generation = created["generationId"].as_str().unwrap();
    let primary = key().derive(&format!("web:{generation}:primary"));
    let secondary = key().derive(&format!("web:{generation}:secondary"));
    let body = format!(
        r#"{{{ids},"managedBy":"me","authentication":{{"symmetricKey":{{"primaryKey":"{}","secondaryKey":"{}"}},"type":"sas"}}}}"#,
        *primary.to_base64(),
        *secondary.to_base64()
    );
    let mut connection = world.connect().await.unwrap();
    let version = format!("{path}?{HUB}");
    let headers = [("authorization", device_token.as_str()), ("if-match", "*")];
    let updated = connection.request("PUT", &version, &headers, body.clone()).await.unwrap();
    assert_eq!(updated.status, 200);
    assert_eq!((&updated.json()["generationId"], &updated.json()["managedBy"]), (&generation.into(), &"me".into()));
    let stale = [("authorization", device_token.as_str()), ("if-match", etag.as_str())];
    assert_eq!(connection.request("PUT", &version, &stale, body).await.unwrap().status, 412);

    let events = format!("{path}/messages/events?api-version=2020-03-13");
    for key in [&primary, &secondary] {
        let token = world.hub_token(&format!("{DEVICE}/modules/web"), key);
        let sent = world.request("POST", &events, &token, "{\"temperature\":21}").await;
        assert_eq!((sent.status, sent.body.len()), (204, 0));
    }
    let module_resource = format!("{DEVICE}/modules/web");
    for token in [
        world.hub_token(&module_resource, &SymmetricKey::random()),
        world.hub_token(&format!("{DEVICE}/modules/other"), &primary),
        device_token.clone(),
        String::new(),
    ] {
        let refused = world.request("POST", &events, &token, "x").await;
        assert_eq!(refused.status, 401);
        assert_eq!(refused.json()["Message"], "ErrorCode:IotHubUnauthorizedAccess;Unauthorized");
    }
    let device_events = format!("/devices/{DEVICE}/messages/events?api-version=2020-03-13");
    assert_eq!(world.request("POST", &device_events, &device_token, "x").await.status, 204);
    let messages = world.control("GET", "/messages", "").await.json();
    let modules: Vec<_> = messages.as_array().unwrap().iter().map(|message| message["moduleId"].clone()).collect();
    assert_eq!(modules, ["web".into(), "web".into(), serde_json::Value::Null]);
    assert_eq!(messages[0]["body"], "eyJ0ZW1wZXJhdHVyZSI6MjF9");
    world.stop().await;
}

#[tokio::test]
async fn the_registry_answers_as_the_hub_does() {
    let mut world = provisioned("").await;
    let token = world.hub_token(DEVICE, &key());
    let modules = format!("/devices/{DEVICE}/modules");
    let module = format!("{modules}/m?{HUB}");
    let body = format!(r#"{{"moduleId":"m","deviceId":"{DEVICE}","authentication":{{"type":"none"}}}}"#);
    let mut connection = world.connect().await.unwrap();
    let authorization = ("authorization", token.as_str());
    let any = [authorization, ("if-match", "*")];
    let steps: [(&str, &str, Headers<'_>, &str, u16); 14] = [
        ("GET", &module, &[authorization], "", 404),
        ("DELETE", &module, &any, "", 404),
        ("PUT", &module, &any, &body, 404),
        ("PUT", &module, &[authorization], "no json", 400),
        ("PUT", &module, &[authorization], r#"{"moduleId":"n","deviceId":"d"}"#, 400),
        ("PUT", &module, &[authorization], &body, 200),
        ("PUT", &module, &[authorization], &body, 409),
        ("PUT", &module, &any, &body, 200),
        ("GET", &module, &[authorization], "", 200),
        ("GET", &module, &[], "", 401),
        ("DELETE", &module, &[authorization, ("if-match", "\"AAAA\"")], "", 412),
        ("DELETE", &module, &any, "", 204),
        ("GET", &format!("{modules}/m"), &[authorization], "", 400),
        ("GET", &format!("/devices/nobody/modules?{HUB}"), &[authorization], "", 404),
    ];
    for (number, (method, path, headers, body, status)) in steps.into_iter().enumerate() {
        let reply = connection.request(method, path, headers, body.to_owned()).await.unwrap();
        assert_eq!(reply.status, status, "step {number}: {method} {path}");
        if status >= 400 {
            assert!(reply.json()["Message"].as_str().unwrap().starts_with("ErrorCode:"), "step {number}");
        }
    }
    let list = connection.request("GET", &format!("{modules}?{HUB}"), &[authorization], "").await.unwrap().json();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|module| module["moduleId"].clone()).collect();
    assert_eq!(names, ["$edgeAgent", "$edgeHub"]);
    assert_eq!(list[0]["authentication"]["type"], "none");
    drop(connection);
    world.stop().await;
}

#[tokio::test]
async fn a_disabled_or_forgotten_device_is_out() {
    let mut world = provisioned("").await;
    let token = world.hub_token(DEVICE, &key());
    let list = format!("/devices/{DEVICE}/modules?{HUB}");
    let control = format!("/devices/{DEVICE}");
    assert_eq!(world.control("PUT", &control, r#"{"disabled":true}"#).await.status, 204);
    assert_eq!(world.request("GET", &list, &token, "").await.status, 401);
    assert!(world.last_request().await["reason"].as_str().unwrap().contains("is disabled"));
    assert_eq!(world.control("PUT", &control, r#"{"disabled":false}"#).await.status, 204);
    assert_eq!(world.request("GET", &list, &token, "").await.status, 200);
    assert_eq!(world.control("DELETE", &control, "").await.status, 204);
    let gone = world.request("GET", &list, &token, "").await;
    assert_eq!(gone.status, 404);
    assert!(gone.json()["Message"].as_str().unwrap().starts_with("ErrorCode:DeviceNotFound;"));
    assert_eq!(world.control("PUT", &control, r#"{"disabled":true}"#).await.status, 404);
    world.stop().await;
}

#[tokio::test]
async fn a_token_for_a_name_that_nobody_knows_is_refused_whatever_the_host() {
    let mut world = World::start(&format!("[[device]]\ndevice_id = 'manual'\nsymmetric_key = '{KEY}'\n")).await;
    let own = world.hub_token("manual", &key());
    let foreign = sas::sign("gateway.test/devices/manual", &key(), soon(), None);
    assert_eq!(world.list("manual", &foreign).await, 401);
    for host in ["Gateway.test", "gateway.test:1", &format!("127.0.0.1:{}", world.port)] {
        world.hub_name = host.to_owned(); // what the client says in `Host`
        assert_eq!((world.list("manual", &own).await, world.list("manual", &foreign).await), (200, 401), "{host}");
        assert!(world.reason().await.contains("is for the resource"));
        let called = world.hub_token("manual", &key());
        assert_eq!(world.list("manual", &called).await, 401, "{host}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_module_without_authentication_is_one_that_says_nothing_of_it() {
    let mut world = provisioned("").await;
    let token = world.hub_token(DEVICE, &key());
    for (module, said) in [("silent", ""), ("null", r#","authentication":null"#)] {
        let path = format!("/devices/{DEVICE}/modules/{module}?{HUB}");
        let body = format!(r#"{{"moduleId":"{module}","deviceId":"{DEVICE}"{said}}}"#);
        let made = world.request("PUT", &path, &token, body).await;
        assert_eq!((made.status, &made.json()["authentication"]["type"]), (200, &"sas".into()), "{module}");
    }
    world.stop().await;
}

#[tokio::test]
async fn system_modules_are_deleted_and_made_anew_like_any_other() {
    let mut world = provisioned("").await;
    let token = world.hub_token(DEVICE, &key());
    let path = format!("/devices/{DEVICE}/modules/$edgeAgent?{HUB}");
    let preset = world.request("GET", &path, &token, "").await.json();
    assert_eq!(world.request("DELETE", &path, &token, "").await.status, 204);
    assert_eq!(world.request("GET", &path, &token, "").await.status, 404);
    let body = format!(r#"{{"moduleId":"$edgeAgent","deviceId":"{DEVICE}"}}"#);
    let made = world.request("PUT", &path, &token, body).await.json();
    assert_ne!(made["generationId"], preset["generationId"]);
    world.stop().await;
}

#[tokio::test]
async fn polls_that_change_nothing_write_nothing() {
    let mut world = provisioned("").await;
    let token = dps_token(DEVICE, &key());
    let operation = world.register(DEVICE, &token).await.json()["operationId"].as_str().unwrap().to_owned();
    let answer = world.finish(DEVICE, &operation, &token).await;
    let state = world.folder.path().join("state.json");
    aziot_files::remove(&state).unwrap();
    assert_eq!(world.finish(DEVICE, &operation, &token).await, answer);
    let poll = |operation: &str| format!("/{SCOPE}/registrations/{DEVICE}/operations/{operation}?{DPS}");
    assert_eq!(world.request("GET", &poll("nonsense"), &token, "").await.status, 404);
    let hub_token = world.hub_token(DEVICE, &key());
    let missing = format!("/devices/{DEVICE}/modules/missing?{HUB}");
    assert_eq!(world.request("DELETE", &missing, &hub_token, "").await.status, 404);
    assert!(!state.exists());

    let operation = world.register(DEVICE, &token).await.json()["operationId"].as_str().unwrap().to_owned();
    assert!(state.exists());
    let control = format!("/registrations/{DEVICE}");
    assert_eq!(world.control("PUT", &control, r#"{"answer":"assigning"}"#).await.status, 204);
    assert_eq!(world.request("GET", &poll(&operation), &token, "").await.status, 202);
    aziot_files::remove(&state).unwrap();
    // Without end, and there is nothing left to count.
    assert_eq!(world.request("GET", &poll(&operation), &token, "").await.status, 202);
    assert!(!state.exists());
    world.stop().await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let mut world = provisioned("").await;
    let (token, body) = (world.hub_token(DEVICE, &key()), format!(r#"{{"moduleId":"m","deviceId":"{DEVICE}"}}"#));
    let module = format!("/devices/{DEVICE}/modules/m?{HUB}");
    let created = world.request("PUT", &module, &token, body).await.json();
    let (authority, folder) = (world.authority(), world.stop().await);
    assert!(!folder.path().join("address").exists());
    for name in ["state.json", "ca.key.pem", "server.key.pem"] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }

    let mut world = World::start_in(folder, "").await;
    assert_eq!(mode(&world.folder.path().join("control.sock")), 0o600);
    assert_eq!(world.authority(), authority);
    let token = world.hub_token(DEVICE, &key());
    assert_eq!(world.request("GET", &module, &token, "").await.json(), created);
    let lookup = format!("/{SCOPE}/registrations/{DEVICE}?{DPS}");
    let state = world.request("POST", &lookup, &dps_token(DEVICE, &key()), "").await;
    assert_eq!((state.status, &state.json()["status"]), (200, &"assigned".into()));
    world.stop().await;
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken() {
    let mut world = provisioned("").await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut connection = world.connect_with(&[version]).await.unwrap();
        assert_eq!(connection.request("GET", "/", &[], "").await.unwrap().status, 404);
    }
    world.stop().await;
}
