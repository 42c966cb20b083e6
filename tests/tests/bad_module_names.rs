//! Names of modules that are none, or that mean something else in a path: nothing of them may reach the hub's URL but as one whole segment.
//!
//! `identity.md`, 1.4, 4.4 and W36. Other wrong requests are in `bad_input.rs`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Reply, World,
    calls::{VERSION, is_serving, module_ids},
    eventually, raw,
};
use serde_json::{Value, json};

const LONGEST: usize = 128;

/// Names that the hub cannot have, as they are and as they stand in a path. axum's router and the specification want a segment that is not empty.
fn bad_names() -> Vec<(String, String)> {
    let same = |name: &str| (name.to_owned(), name.to_owned());
    let coded = |name: &str, path: &str| (name.to_owned(), path.to_owned());
    let (long, much_too_long) = ("x".repeat(LONGEST + 1), "x".repeat(20_000));
    vec![
        same(&long),
        same(&much_too_long),
        coded(".", "%2E"),
        coded("..", "%2E%2E"),
        coded("..", "%2e."),
        coded("../m", "..%2Fm"),
        coded("m/..", "m%2F.."),
        coded("a/b", "a%2Fb"),
        coded("/", "%2F"),
        coded("\\", "%5C"),
        coded("..\\..", "..%5C.."),
        coded(" ", "%20"),
        coded("\t\n", "%09%0A"),
        coded(" m", "%20m"),
        coded("m ", "m%20"),
        coded("a\u{a0}b", "a%C2%A0b"),
        coded("ä", "%C3%A4"),
        coded("模块", "%E6%A8%A1%E5%9D%97"),
        coded("m\0", "m%00"),
        coded("m\r\nhost: x", "m%0D%0Ahost:%20x"),
        coded("a&b", "a&b"),
        coded("a<b>", "a%3Cb%3E"),
        coded("\"", "%22"),
        coded("a|b", "a%7Cb"),
        coded("a^b", "a%5Eb"),
        coded("a~b", "a~b"),
        coded("{a}", "%7Ba%7D"),
    ]
}

fn call(world: &World, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
    let joint = if path.contains('?') { '&' } else { '?' };
    let body = body.map(Value::to_string);
    raw::call(&world.socket(Daemon::Identity), method, &format!("{path}{joint}{VERSION}"), body.as_deref())
}

/// Paths of the requests that reached the hub about modules.
fn asked(world: &World) -> Result<BTreeSet<String>> {
    let journal = world.control("GET", "/journal", None)?.expect(200)?.json()?;
    let requests = journal.as_array().context("no journal")?.iter();
    let paths = requests.filter_map(|request| request["path"].as_str().map(str::to_owned));
    Ok(paths.filter(|path| path.starts_with("/devices/")).collect())
}

fn started() -> Result<World> {
    let world = World::started()?;
    eventually("the end of the first attempt", std::time::Duration::from_secs(30), || {
        Ok(world.log(Daemon::Identity)?.contains("Startup provisioning complete").then_some(()))
    })?;
    Ok(world)
}

#[test]
fn a_name_that_is_none_is_refused_and_nobody_else_hears_of_it() -> Result<()> {
    let world = started()?;
    let before = asked(&world)?;
    let start = "parameter \"module_id\" has an invalid value\ncaused by: module name ";
    let refused = |what: String, reply: &Reply| {
        ensure!(reply.status == 400 && reply.message().starts_with(start), "{what}: {reply:?}");
        Ok(())
    };
    for (name, path) in bad_names() {
        for method in ["GET", "PUT", "DELETE"] {
            let body = (method == "PUT").then(|| json!({}));
            let target = format!("/identities/modules/{path}?type=aziot");
            let reply = call(&world, method, &target, body.as_ref())?;
            refused(format!("{method} {target}"), &reply)?;
        }
        let reply = call(&world, "POST", "/identities/modules", Some(&json!({ "type": "aziot", "moduleId": name })))?;
        refused(format!("POST {name:?}"), &reply)?;
    }
    let reply = call(&world, "POST", "/identities/modules", Some(&json!({ "type": "aziot", "moduleId": "" })))?;
    refused("POST of no name".to_owned(), &reply)?;
    assert_eq!(asked(&world)?, before);
    is_serving(&world, Daemon::Identity)
}

#[test]
fn a_path_that_is_no_name_is_no_route() -> Result<()> {
    let world = started()?;
    let before = asked(&world)?;
    for path in ["", "/", "a/b", "../modules", "../../devices/x", "m/..", "%FF", "a%C3", "m/%2E%2E"] {
        for method in ["GET", "DELETE"] {
            let target = format!("/identities/modules/{path}?type=aziot");
            let reply = call(&world, method, &target, None)?;
            ensure!((reply.status, reply.message().as_str()) == (404, "not found"), "{method} {target}: {reply:?}");
        }
    }
    assert_eq!(asked(&world)?, before);
    Ok(())
}

#[test]
fn an_odd_name_is_one_segment_of_the_hubs_path() -> Result<()> {
    let world = started()?;
    let longest = "x".repeat(LONGEST);
    for (name, path, at_the_hub) in [
        ("$edgeAgent", "$edgeAgent", "%24edgeAgent"),
        ("$odd", "%24odd", "%24odd"),
        ("a%2Fb", "a%252Fb", "a%252Fb"),
        ("%", "%25", "%25"),
        ("a+b", "a+b", "a%2Bb"),
        ("a#b?c=d", "a%23b%3Fc=d", "a%23b%3Fc%3Dd"),
        ("...", "...", "..."),
        ("..a", "..a", "..a"),
        ("a:b@c;d,e", "a:b@c;d,e", "a%3Ab%40c%3Bd%2Ce"),
        ("(it's)*!", "(it's)*!", "%28it%27s%29%2A%21"),
        (&longest, &longest, &longest),
    ] {
        let made = call(&world, "POST", "/identities/modules", Some(&json!({ "type": "aziot", "moduleId": name })))?;
        assert_eq!(made.expect(200)?.text("/spec/moduleId")?, name);
        let read = call(&world, "GET", &format!("/identities/modules/{path}?type=aziot"), None)?.expect(200)?;
        assert_eq!(read.text("/spec/moduleId")?, name);
        ensure!(module_ids(&world)?.iter().any(|one| one == name), "{name} is not in the list");
        let asked = asked(&world)?;
        ensure!(asked.iter().any(|one| one.ends_with(&format!("/modules/{at_the_hub}"))), "{name}: {asked:?}");
        let _ = call(&world, "DELETE", &format!("/identities/modules/{path}?type=aziot"), None)?.expect(204)?;
        ensure!(!module_ids(&world)?.iter().any(|one| one == name), "{name} is still there");
    }
    Ok(())
}
