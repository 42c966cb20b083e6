//! The identity service byte for byte: the bodies of `identity.md` 1.5 with their order of members, its files (3.1) and its keys (4.1), and the
//! transcripts of `common.md` on all daemons.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use aziot_tests::{
    Daemon, Reply, World,
    calls::VERSION,
    device::{ID_SCOPE, REGISTRATION_ID},
    eventually, hex,
    module::Identity,
    openssl, raw,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

fn call(world: &World, request: &str, body: Option<&str>) -> Result<Reply> {
    let (method, target) = request.split_once(' ').context("no method")?;
    let joint = if target.contains('?') { '&' } else { '?' };
    raw::call(&world.socket(Daemon::Identity), method, &format!("{target}{joint}{VERSION}"), body)
}

fn text<'a>(body: &'a Value, pointer: &str) -> Result<&'a str> {
    body.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {body}"))
}

/// 1.5: compact JSON, members in this order, absent ones left out; 1.4: what the bodies of requests may be.
#[test]
fn replies_have_the_public_shape() -> Result<()> {
    let world = World::started()?;
    let hub = world.cloud()?;
    let device = |handle: &str| {
        format!(
            "{{\"type\":\"aziot\",\"spec\":{{\"hubName\":\"{hub}\",\"gatewayHost\":\"{hub}\",\"deviceId\":\"{REGISTRATION_ID}\",\
             \"auth\":{{\"type\":\"sas\",\"keyHandle\":\"{handle}\"}}}}}}"
        )
    };
    // The value of `type` is ignored: R2.
    for (request, body) in [
        ("GET /identities/identity", None),
        ("POST /identities/device", Some(r#"{"type":"aziot"}"#)),
        ("POST /identities/device", Some(r#"{"type":""}"#)),
    ] {
        let reply = call(&world, request, body)?.expect(200)?;
        assert_eq!(reply.body, device(text(&reply.json()?, "/spec/auth/keyHandle")?), "{request}");
    }
    let module = |reply: &Reply| -> Result<String> {
        let body = reply.json()?;
        let (generation, handle) = (text(&body, "/spec/genId")?, text(&body, "/spec/auth/keyHandle")?);
        Ok(format!(
            "{{\"type\":\"aziot\",\"spec\":{{\"hubName\":\"{hub}\",\"gatewayHost\":\"{hub}\",\"deviceId\":\"{REGISTRATION_ID}\",\
             \"moduleId\":\"m\",\"genId\":\"{generation}\",\"auth\":{{\"type\":\"sas\",\"keyHandle\":\"{handle}\"}}}}}}"
        ))
    };
    for (request, body) in [
        ("POST /identities/modules", Some(r#"{"type":"aziot","moduleId":"m"}"#)),
        ("GET /identities/modules/m?type=aziot", None),
        // Any valid JSON: R7. Of several types the first counts: 1.2.
        ("PUT /identities/modules/m?type=aziot", Some("7")),
        ("GET /identities/modules/m?type=aziot&type=local", None),
        // The id is percent-decoded.
        ("GET /identities/modules/%6D?type=aziot", None),
    ] {
        let reply = call(&world, request, body)?.expect(200)?;
        assert_eq!(reply.body, module(&reply)?, "{request}");
    }
    let list = call(&world, "GET /identities/modules?type=aziot", None)?.expect(200)?;
    let body = list.json()?;
    let modules = body["identities"].as_array().context("no list")?;
    let own = modules.iter().find(|module| module["spec"]["moduleId"] == "m").context("not in the list")?;
    let generation = text(own, "/spec/genId")?;
    let expected = format!(
        "{{\"type\":\"aziot\",\"spec\":{{\"hubName\":\"{hub}\",\"gatewayHost\":\"{hub}\",\"deviceId\":\"{REGISTRATION_ID}\",\
         \"moduleId\":\"m\",\"genId\":\"{generation}\"}}}}"
    );
    assert!(list.body.starts_with(r#"{"identities":[{"#) && list.body.contains(&expected), "{}", list.body);
    assert!(!list.body.contains("auth"), "{}", list.body);

    let target = "/identities/provisioning?api-version=2021-12-01";
    let how = world.call(Daemon::Identity, "GET", target, None)?.expect(200)?;
    let expected = format!(
        "{{\"source\":\"dps\",\"auth\":\"symmetric_key\",\"endpoint\":\"https://{hub}/\",\"scope_id\":\"{ID_SCOPE}\",\
         \"registration_id\":\"{REGISTRATION_ID}\",\"payload\":null}}"
    );
    assert_eq!(how.body, expected);
    assert_eq!(call(&world, "GET /trust-bundle", None)?.expect(200)?.body, r#"{"certificate":""}"#);
    assert_eq!(call(&world, "POST /identities/device/reprovision", Some(r#"{"type":"aziot"}"#))?.expect(204)?.body, "");
    assert_eq!(call(&world, "DELETE /identities/modules/m?type=aziot", None)?.expect(204)?.body, "");
    // Ours: `managedBy` is kept and told.
    let managed =
        call(&world, "POST /identities/modules", Some(r#"{"type":"aziot","moduleId":"n","managedBy":"somebody"}"#))?
            .expect(200)?;
    assert_eq!(text(&managed.json()?, "/spec/managedBy")?, "somebody");
    Ok(())
}

/// 3.1: the files that the public service would find after a change back to it.
#[test]
fn the_state_is_in_the_public_files() -> Result<()> {
    let world = World::started()?;
    let hub = world.cloud()?;
    let made = Identity::create(&world, "$test-module")?;
    let home = world.path("var/lib/aziot/identityd");
    let info = home.join("device_info");
    eventually("device_info", Duration::from_secs(10), || Ok(info.exists().then_some(())))?;
    let info = fs::read_to_string(info)?;
    let lines: Vec<&str> = info.lines().collect();
    let [hub_line, gateway_line] = ["hub_name", "local_gateway_hostname"].map(|name| format!("{name} = \"{hub}\""));
    assert_eq!(lines, [&hub_line, &gateway_line, &format!("device_id = \"{REGISTRATION_ID}\"")]);

    let folder = home.join(format!("modules/{}-{}", openssl::sha256(&hub)?, openssl::sha256(REGISTRATION_ID)?));
    let name = "testmodule-18a48f321c4afc2b6a644482b87a062f9e6ec7f05e4f2ced522437a8c3f0cb39";
    let backup: Value =
        serde_json::from_str(&fs::read_to_string(folder.join(name)).context("no backup of the module")?)?;
    assert_eq!(text(&backup, "/moduleId")?, "$test-module");
    assert_eq!(text(&backup, "/deviceId")?, REGISTRATION_ID);
    assert_eq!(text(&backup, "/generationId")?, made.generation);
    assert_eq!(backup.get("authentication"), None);
    // No key is anywhere in it, and what identityd accepted last is there for comparison.
    let before = fs::read_to_string(home.join("prev_state"))?;
    assert!(before.contains(REGISTRATION_ID) && !before.contains(&world.enrollment_key()?), "{before}");
    Ok(())
}

/// 4.1: the module's key is HMAC-SHA256(master key, `<moduleId>:<generationId>:primary`), so that it survives a change of services.
#[test]
fn module_keys_are_derived_as_the_public_service_does() -> Result<()> {
    let world = World::started()?;
    let made = Identity::create(&world, "testmodule")?;
    let body = json!({ "keyHandle": made.key_handle }).to_string();
    let exported = world
        .call(Daemon::Keys, "POST", &format!("/derivedkey/export?{VERSION}"), Some(&body))?
        .expect(200)?
        .text("/key")?;
    let folder = world.path("var/lib/aziot/keyd/keys");
    let master = fs::read(
        folder.join("aziotidentitydmasterid-91b92c2c06a5a5dda5fbc9c48b4d428d930b9c1b8b2956a1044ccbc7a266afc9.key"),
    )?;
    let expected = openssl::hmac_sha256(&master, &format!("testmodule:{}:primary", made.generation))?;
    assert_eq!(hex::encode(&STANDARD.decode(exported)?), expected);
    Ok(())
}

/// `common.md`, appendix: the raw bytes of common answers, `date` aside, on each of the daemons.
#[test]
fn heads_are_those_of_the_transcripts() -> Result<()> {
    let world = World::started()?;
    let not_found = "content-type: application/json\r\ncontent-length: 23\r\n";
    let cases = [
        (
            format!("GET /x?{VERSION} HTTP/1.1\r\nConnection: close\r\n\r\n"),
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 23\r\n"
                .to_owned(),
            r#"{"message":"not found"}"#,
        ),
        (
            format!("GET /x?{VERSION} HTTP/1.0\r\n\r\n"),
            format!("HTTP/1.0 404 Not Found\r\n{not_found}"),
            r#"{"message":"not found"}"#,
        ),
        (
            format!("GET http://anything/x?{VERSION} HTTP/1.0\r\n\r\n"),
            format!("HTTP/1.0 404 Not Found\r\n{not_found}"),
            r#"{"message":"not found"}"#,
        ),
        (
            "blah blah\r\n\r\n".to_owned(),
            "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n".to_owned(),
            "",
        ),
        (
            "GET /x HTTP/1.0\r\n\r\n".to_owned(),
            "HTTP/1.0 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 39\r\n".to_owned(),
            r#"{"message":"api-version not specified"}"#,
        ),
    ];
    for daemon in Daemon::ALL {
        for (request, head, body) in &cases {
            let answer = raw::exchange(&world.socket(daemon), request.as_bytes())?;
            let (found, rest) = answer.split_once("\r\n\r\n").with_context(|| format!("{request:?}: {answer:?}"))?;
            // The order of fields is nobody's business.
            let fields = |head: &str| {
                let mut lines: Vec<String> =
                    head.split("\r\n").filter(|line| !line.is_empty()).map(str::to_owned).collect();
                lines.retain(|line| !line.starts_with("date: "));
                lines.sort();
                lines
            };
            assert_eq!((fields(found), rest), (fields(head), *body), "{}: {request:?}", daemon.name());
        }
    }
    Ok(())
}
