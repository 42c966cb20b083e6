//! What callers and deployments get wrong: names that are paths, bodies without end, create options that nobody knows, images that cannot be had.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aziot_test_module::Wanted;
use aziot_tests::{
    Daemon, Edge, at_once,
    docker::{Kind, Settings, registry::Manner},
    edge::{IMAGE, PATIENCE, Plan},
    eventually, raw,
};
use serde_json::{Value, json};

const MODULE: &str = "sampler";
/// Longer than all else in a test.
const LATE: Duration = Duration::from_secs(600);

/// `edged-api.md`, 11 (1, 2): "names with `/`, `..`, `$`, 255 characters" are names of nothing, and nothing happens because of them.
#[test]
fn names_are_names_and_no_paths() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        let sockets = edge.module_socket("x").parent().context("no folder")?.to_owned();
        let outside = edge.path("var/lib/aziot/edged/outside.sock");
        fs::create_dir(&outside)?;
        let long = "n".repeat(255);
        let longer = "n".repeat(4000);
        let names = [
            "..%2Foutside",
            "%2E%2E%2Foutside",
            "..",
            ".",
            "%2F",
            "a%2Fb",
            "a%2F..%2F..%2Foutside",
            "%24",
            "%24edgeAgent%2F",
            "a%3Fall%3Dtrue",
            "-a",
            "_a",
            "a%00b",
            "a%0Ab",
            "a%20b",
            "%C3%A4",
            "%FF",
            &long,
            &longer,
        ];
        let before = fs::read_dir(&sockets)?.count();
        for name in names {
            for (method, action) in [
                ("GET", ""),
                ("POST", "/start"),
                ("POST", "/stop"),
                ("POST", "/restart"),
                ("GET", "/logs"),
                ("DELETE", ""),
            ] {
                let reply =
                    edge.call_as("edgeAgent", "management", method, &format!("/modules/{name}{action}"), None)?;
                assert!((400..=404).contains(&reply.status), "{kind:?}: {method} {name}{action}: {reply:?}");
            }
        }
        // In bodies as well.
        let agent = edge.agent()?;
        for name in ["", " ", "../outside", "a/b", "a b", "$edgeAgent", "a\u{0}b"] {
            let body = json!({ "name": name, "type": "docker", "config": { "settings": { "image": IMAGE } } });
            let status = agent.call("POST", "/modules", Some(&body))?.status;
            assert_eq!(status, 400, "{kind:?}: a module named {name:?}");
        }
        // A name of which the engine decides: only Docker says whose fault it is.
        let body = json!({ "name": long, "type": "docker", "imagePullPolicy": "never", "config": { "settings": { "image": IMAGE } } });
        let status = agent.call("POST", "/modules", Some(&body))?.status;
        assert!(status == 400 || status == 500 && kind == Kind::Podman, "{kind:?}: a long name: {status}");
        assert!(outside.is_dir(), "{kind:?}: a path outside was removed");
        assert_eq!(fs::read_dir(&sockets)?.count(), before, "{kind:?}: sockets were made");
        assert_eq!(edge.engine.containers()?.len(), 1, "{kind:?}");
        Ok(())
    })
    .map(|_| ())
}

/// `edged-api.md`, 11 (11): a body of 10 MB is refused before anybody reads it, wrong ones are told apart, and the runtime goes on.
#[test]
fn bodies_have_a_limit() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let edge = Edge::start(Kind::Docker)?;
    edge.run_waiting(MODULE)?;
    let (_, resident) = (edge.workload(MODULE)?.sign(b"data")?, edge.process(Daemon::Edge)?.memory()?.0);
    let huge = json!({ "name": "a".repeat(10 << 20), "type": "docker" }).to_string();
    for (container, door, target) in
        [("edgeAgent", "management", "/modules"), (MODULE, "workload", "/modules/sampler/genid/1/sign")]
    {
        let request = raw::request("POST", &format!("{target}?api-version=2020-07-07"), Some(&huge));
        let answer = raw::exchange(&edge.door(container, door), request.as_bytes())?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{target}: {answer}");
        // Chunks without end, and no length to tell.
        let head =
            format!("POST {target}?api-version=2020-07-07 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
        let answer = raw::exchange_and_end(&edge.door(container, door), [head, chunk.repeat(10)].concat().as_bytes())?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413 "), "{target}: {answer}");
    }
    for (body, expected) in [
        ("{", 422),
        ("[]", 422),
        (r#"{"name":"a"}"#, 422),
        (r#"{"name":"a","type":"docker","config":{"settings":{"image":"i","createOptions":"text"}}}"#, 400),
        (r#"{"name":"a","type":"docker","config":{"settings":{"image":"i","createOptions":{"Env":"text"}}}}"#, 400),
        (r#"{"name":"a","type":"docker","imagePullPolicy":"sometimes","config":{"settings":{"image":"i"}}}"#, 400),
    ] {
        let reply =
            raw::call(&edge.door("edgeAgent", "management"), "POST", "/modules?api-version=2022-08-03", Some(body))?;
        assert_eq!(reply.status, expected, "{body}: {reply:?}");
    }
    edge.workload(MODULE)?.sign(b"data")?;
    let after = edge.process(Daemon::Edge)?.memory()?.0;
    assert!(after < resident + (8 << 10), "from {resident} to {after} KiB");
    Ok(())
}

/// `edged-api.md`, 5.1: members that the runtime does not know reach the engine as they are, wherever they stand.
#[test]
fn unknown_create_options_reach_the_engine() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        let mut wanted = edge.module(MODULE, &["wait"])?;
        let options = &mut wanted.create_options;
        options["StopSignal"] = json!("SIGINT");
        options["Healthcheck"] = json!({ "Test": ["NONE"] });
        options["Domainname"] = json!("plant.test");
        options["NeverHeardOf"] = json!({ "deep": [1, { "deeper": null }] });
        options["HostConfig"]["ShmSize"] = json!(33_554_432);
        options["HostConfig"]["OomScoreAdj"] = json!(321);
        options["HostConfig"]["Tmpfs"] = json!({ "/scratch": "size=1m" });
        options["HostConfig"]["NeverHeardOf"] = json!("either");
        options["HostConfig"]["LogConfig"] = json!({ "Type": "json-file", "Config": { "max-size": "1m" } });
        options["Labels"] = json!({ "a": "b" });
        edge.run(&wanted)?;
        let made = edge.engine.inspect(MODULE)?.context("no container")?;
        let found = [
            ("/Config/StopSignal", json!("SIGINT"), false),
            ("/Config/Domainname", json!("plant.test"), true),
            ("/HostConfig/ShmSize", json!(33_554_432), false),
            ("/HostConfig/OomScoreAdj", json!(321), false),
            ("/HostConfig/Tmpfs/~1scratch", json!("size=1m"), true),
            ("/HostConfig/LogConfig/Config/max-size", json!("1m"), true),
            ("/Config/Labels/a", json!("b"), false),
        ];
        for (pointer, expected, docker_only) in found {
            let seen = made.pointer(pointer).cloned().unwrap_or(Value::Null);
            // Podman tells signals as numbers, and some of these not at all.
            ensure!(
                seen == expected || kind == Kind::Podman && (docker_only || pointer.ends_with("StopSignal")),
                "{kind:?} {pointer}: {seen}"
            );
        }
        Ok(())
    })
    .map(|_| ())
}

fn pulled(edge: &Edge, image: String) -> Result<Wanted> {
    Ok(Wanted { image, pull: "on-create".to_owned(), ..edge.module(MODULE, &["wait"])? })
}

/// "a module update whose new image cannot be pulled (the old module must go on running)", and every other way in which an image is missing.
#[test]
fn an_update_without_its_image_leaves_the_old_module_running() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        let registry = edge.registry()?;
        edge.run_waiting(MODULE)?;
        let (agent, pid) = (edge.agent()?, edge.engine.pid(MODULE)?);
        let generation = edge.environment(MODULE)?.generation()?.to_owned();
        let update = |image: String| -> Result<(u16, String)> {
            let body = agent.specification(&pulled(&edge, image)?, &generation)?;
            let answer = agent.call("PUT", "/modules/sampler?start=true", Some(&body))?;
            Ok((answer.status, answer.text()))
        };
        for (number, manner) in
            [Manner::Refuse(404), Manner::Refuse(403), Manner::Refuse(500), Manner::Password("u", "p"), Manner::Break]
                .into_iter()
                .enumerate()
        {
            registry.behave(manner.clone());
            let (status, text) = update(registry.image(&format!("gone{number}:1")))?;
            assert!(status >= 400 && status != 403, "{kind:?} {manner:?}: {status} {text}");
            assert!(text.contains("registry operation error: pull image"), "{kind:?} {manner:?}: {text}");
            assert_eq!(edge.engine.pid(MODULE)?, pid, "{kind:?} {manner:?}: the old module was stopped");
        }
        // Nobody there, and no image of that name.
        for image in ["127.0.0.1:1/nobody:1", "edge.test/never-imported:1"] {
            let (status, text) = update(image.to_owned())?;
            assert!(status >= 400, "{kind:?} {image}: {status} {text}");
            assert_eq!(edge.engine.pid(MODULE)?, pid, "{kind:?} {image}: the old module was stopped");
        }
        let body = agent.specification(&Wanted::new("absent", "edge.test/never-imported:1"), &generation)?;
        assert_eq!(agent.call("POST", "/modules", Some(&body))?.status, 404, "{kind:?}: never pulled, not there");
        edge.workload(MODULE)?.sign(b"data")?;

        // With the password, the pull succeeds and the update too.
        registry.behave(Manner::Password("u", "p"));
        let mut body = agent.specification(&pulled(&edge, registry.image("there:1"))?, &generation)?;
        body["config"]["settings"]["auth"] =
            json!({ "username": "u", "password": "p", "serveraddress": registry.address() });
        let updated = agent.call("PUT", "/modules/sampler?start=true", Some(&body))?.expect(&[201])?;
        assert!(!updated.text().contains("\"p\""), "{kind:?}: the password is told: {}", updated.text());
        edge.wait_for_door(MODULE, "workload")?;
        edge.eventually_signs(MODULE)?;
        assert_ne!(edge.engine.pid(MODULE)?, pid);
        assert!(!edge.log(Daemon::Edge)?.contains("\"p\""));
        Ok(())
    })
    .map(|_| ())
}

/// `edged-api.md`, 11 (36): while one module's image comes slowly, the others are listed, started and served as always.
#[test]
fn a_slow_pull_delays_nobody() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        let registry = edge.registry()?;
        edge.run_waiting("steady")?;
        let agent = edge.agent()?;
        let generation = agent.identity(MODULE)?;
        let body = agent.specification(&pulled(&edge, registry.image("slow:1"))?, &generation)?;
        // As long as it takes: the test ends it.
        registry.behave(Manner::Late(LATE));
        let slow = std::thread::spawn({
            let agent = agent.clone();
            move || agent.call("POST", "/modules", Some(&body))
        });
        eventually("the request for the layer", PATIENCE, || {
            Ok(registry.requests().iter().any(|request| request.contains("/blobs/")).then_some(()))
        })?;
        let mut workload = edge.workload("steady")?;
        for _ in 0..20 {
            workload.sign(b"data")?;
        }
        agent.modules()?;
        let _ = agent.call("GET", "/systeminfo", None)?.expect(&[200])?;
        edge.run_waiting("second")?;
        assert!(!slow.is_finished(), "{kind:?}: the pull was over before the others");
        registry.behave(Manner::Serve);
        let _ = slow.join().ok().context("the caller panicked")??.expect(&[201])?;
        Ok(())
    })
    .map(|_| ())
}

/// "dockerd … out of disk in the middle of an operation": told with the engine's reason, and the modules that are there go on.
#[test]
fn a_full_disk_of_the_engine_costs_nobody_else() -> Result<()> {
    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let settings = Settings { disk: Some("96m"), ..Settings::of(Kind::Docker) };
    let edge = Plan::of(Kind::Docker).engine(settings).start()?;
    let registry = edge.registry()?;
    edge.run_waiting(MODULE)?;
    let agent = edge.agent()?;
    // What is left of the disk is taken by a file of another container.
    let fill = json!({
        "Image": IMAGE, "Cmd": ["/module", "echo", "--lines", "100000", "--length", "2000", "--exit", "0"],
        "HostConfig": { "NetworkMode": "host" },
    });
    let filled = edge.engine.run("filler", &fill);
    let _ = filled.and_then(|()| edge.engine.wait("filler"));
    let generation = agent.identity("late")?;
    let body = agent
        .specification(&Wanted { name: "late".to_owned(), ..pulled(&edge, registry.image("late:1"))? }, &generation)?;
    let answer = agent.call("POST", "/modules", Some(&body))?;
    assert!(answer.status >= 500 && answer.text().contains("no space left"), "{} {}", answer.status, answer.text());
    edge.workload(MODULE)?.sign(b"data")?;
    assert_eq!(agent.modules()?[MODULE], "running");
    // With room again the same call succeeds.
    edge.engine.remove("filler")?;
    let _ = agent.call("POST", "/modules", Some(&body))?.expect(&[201])?;
    Ok(())
}
