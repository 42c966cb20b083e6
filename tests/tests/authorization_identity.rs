//! Who may have which identity: `identity.md`, 1.7 as one table, every kind of caller on every route with every type, each a process of its own user.
//!
//! Run by root, all callers meet one device; run by anybody else, that user is each of them in turn, but for root, on devices of their own. How
//! changed principals take effect is in `authorization.rs`.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{Daemon, Reply, World, eventually};
use serde_json::Value;

const VERSION: &str = "api-version=2021-12-01";

/// A kind of caller, in the order of the table's columns. Its name is that of its principal.
#[derive(Clone, Copy)]
struct Caller {
    name: &'static str,
    /// The user's number where root runs the test.
    uid: u32,
    /// The rest of its principal; none if it has none.
    principal: Option<&'static str>,
}

const CALLERS: [Caller; 9] = [
    Caller { name: "root", uid: 0, principal: None },
    Caller { name: "daemon", uid: 61_001, principal: Some("") },
    Caller { name: "device", uid: 61_002, principal: Some("idtype = [\"device\"]") },
    Caller { name: "module", uid: 61_003, principal: Some("idtype = [\"module\"]") },
    Caller { name: "local", uid: 61_004, principal: Some("idtype = [\"local\"]") },
    Caller { name: "device-module", uid: 61_005, principal: Some("idtype = [\"device\", \"module\"]") },
    Caller { name: "module-local", uid: 61_006, principal: Some("idtype = [\"module\", \"local\"]") },
    Caller { name: "nothing", uid: 61_007, principal: Some("idtype = []") },
    Caller { name: "unknown", uid: 61_008, principal: None },
];

/// Requests, and what each caller of [`CALLERS`] gets. `{own}` stands for the caller's name.
///
/// `-` 401 before anything else is looked at · `d` the device's identity · `m` the caller's module identity · `l` its local identity ·
/// `s` another success · `x` 400: allowed, but not with this type · `n` 404: allowed, but the hub has no such module
const TABLE: [(&str, Option<&str>, &str); 22] = [
    // R1 and R2
    ("GET /identities/identity", None, "dddmndm--"),
    ("POST /identities/device", Some(r#"{"type":"aziot"}"#), "ddd--d---"),
    ("POST /identities/device", Some(r#"{"type":"local"}"#), "ddd--d---"),
    // R3
    ("GET /identities/provisioning", None, "sssssssss"),
    // R4
    ("GET /identities/modules?type=aziot", None, "ss-------"),
    ("GET /identities/modules?type=local", None, "xx-------"),
    ("GET /identities/modules", None, "xx-------"),
    // R5
    ("POST /identities/modules", Some(r#"{"type":"aziot","moduleId":"{own}"}"#), "mm-------"),
    ("POST /identities/modules", Some(r#"{"type":"local","moduleId":"free"}"#), "ss-------"),
    ("POST /identities/modules", Some(r#"{"type":"local","moduleId":"other"}"#), "xx-------"),
    ("POST /identities/modules", Some(r#"{"type":"x","moduleId":"{own}"}"#), "xx-------"),
    // R6
    ("GET /identities/modules/{own}?type=aziot", None, "mm-mnmm--"),
    ("GET /identities/modules/{own}?type=local", None, "xx-xlxl--"),
    ("GET /identities/modules/{own}", None, "xx-xxxx--"),
    ("GET /identities/modules/other?type=aziot", None, "ss-------"),
    ("GET /identities/modules/other?type=local", None, "ss-------"),
    // R7
    ("PUT /identities/modules/{own}?type=aziot", Some("{}"), "mm-------"),
    ("PUT /identities/modules/{own}?type=local", Some("{}"), "xx-------"),
    // R8
    ("DELETE /identities/modules/{own}?type=local", None, "xx-------"),
    ("DELETE /identities/modules/{own}?type=aziot", None, "ss-------"),
    // R9
    ("POST /identities/device/reprovision", None, "ss-------"),
    // R10
    ("GET /trust-bundle", None, "sssssssss"),
];

/// A device on which these callers have their principals, and somebody else has one as well.
fn device_of(callers: &[(usize, Caller)]) -> Result<World> {
    let mut world = World::configured()?;
    // It may take any number here: of the test's own users none has it.
    let mut identity = String::from(
        "localid = { domain = \"example.com\" }\n\n[[principal]]\nuid = 62000\nname = \"other\"\nidtype = [\"module\", \"local\"]\n",
    );
    for (_, Caller { name, uid, principal }) in callers {
        if let Some(principal) = principal {
            write!(identity, "\n[[principal]]\nuid = {uid}\nname = \"{name}\"\n{principal}\n")?;
        }
    }
    // In place of the one that lets the test's own user do everything.
    world.drop_in(Daemon::Identity, "20-test.toml", &identity)?;
    let mut issuance = String::new();
    for name in ["local", "module-local", "other", "free"] {
        write!(issuance, "[cert_issuance.{name}]\nmethod = \"local_ca\"\n\n")?;
    }
    world.drop_in(Daemon::Certificates, "30-local.toml", &issuance)?;
    world.start_all()?;
    // The principals' modules are there when the first attempt has ended: the line comes after it.
    eventually("the end of the first attempt", Duration::from_secs(30), || {
        Ok(world.log(Daemon::Identity)?.contains("Startup provisioning complete").then_some(()))
    })?;
    Ok(world)
}

fn call(world: &World, caller: Caller, request: &str, body: Option<&str>) -> Result<Reply> {
    let (method, target) = request.split_once(' ').context("no method")?;
    let target = target.replace("{own}", caller.name);
    let joint = if target.contains('?') { '&' } else { '?' };
    let body = body.map(|body| body.replace("{own}", caller.name));
    world.call_as(caller.uid, Daemon::Identity, method, &format!("{target}{joint}{VERSION}"), body.as_deref())
}

/// What a reply is in the table's letters.
fn letter(reply: &Reply, own: &str) -> char {
    let body: Value = reply.json().unwrap_or_default();
    let (spec, kind) = (&body["spec"], body["type"].as_str());
    match (reply.status, kind) {
        (401, _) if reply.message() == "authorization error" => '-',
        (400, _) => 'x',
        (404, _) if reply.message().starts_with("Hub client error") => 'n',
        (200, Some("aziot")) if spec.get("moduleId").is_none() && spec["auth"]["type"] == "sas" => 'd',
        (200, Some("aziot")) if spec["moduleId"] == own && spec["auth"]["type"] == "sas" => 'm',
        (200, Some("local")) if spec["moduleId"] == own && !spec["auth"]["privateKey"].is_null() => 'l',
        (200 | 204, _) => 's',
        _ => '?',
    }
}

fn check(world: &World, callers: &[(usize, Caller)]) -> Result<()> {
    for (request, body, expected) in TABLE {
        for (column, caller) in callers {
            let reply = call(world, *caller, request, body)?;
            let expected = expected.chars().nth(*column).context("the table is too narrow")?;
            let got = letter(&reply, caller.name);
            ensure!(got == expected, "{}: {request} {body:?}: expected {expected}, got {got}: {reply:?}", caller.name);
        }
    }
    Ok(())
}

#[test]
fn rights_are_those_of_the_specifications_table() -> Result<()> {
    assert!(TABLE.iter().all(|(_, _, expected)| expected.len() == CALLERS.len()));
    let own = World::empty()?.uid()?;
    let callers: Vec<(usize, Caller)> = CALLERS.into_iter().enumerate().collect();
    if own == 0 {
        let world = device_of(&callers)?;
        // The list, and two calls for each principal that has a module.
        let log = world.log(Daemon::Identity)?;
        ensure!(log.contains("hub_calls=9 made=4 taken_over=0 deleted=0 kept=0 left=0"), "{log}");
        check(&world, &callers)?;
        // "Listing uid 0 as a principal with `idtype` REPLACES root's full power": its column is then that of `nothing`.
        let root = [(7, Caller { uid: own, ..CALLERS[7] })];
        return check(&device_of(&root)?, &root);
    }
    for (column, caller) in callers.into_iter().filter(|(_, caller)| caller.uid != 0) {
        let caller = [(column, Caller { uid: own, ..caller })];
        check(&device_of(&caller)?, &caller)?;
    }
    Ok(())
}
