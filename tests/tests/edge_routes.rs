//! Every route of the module runtime on real containers, with callers that may and callers that may not: the agent, another module, the host.

use anyhow::{Context as _, Result};
use aziot_test_module::Wanted;
use aziot_tests::{
    Edge, at_once,
    docker::Kind,
    edge::{self, OWNER},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// Who calls a route of the management API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// A process of the agent's container.
    Agent,
    /// A module into whose container the management socket was bound.
    Module,
    /// Root on the host.
    Host,
}

const MODULE: &str = "sampler";
const STRANGER: &str = "stranger";

fn manage(edge: &Edge, caller: Caller, method: &str, target: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let reply = match caller {
        Caller::Agent => edge.call_as("edgeAgent", "management", method, target, body)?,
        Caller::Module => edge.call_as(STRANGER, "management", method, target, body)?,
        Caller::Host => edge.manage(method, target, body)?,
    };
    let value = if reply.body.is_empty() { Value::Null } else { reply.json()? };
    Ok((reply.status, value))
}

/// A module that has the management socket, as any module may by its create options.
fn stranger(edge: &Edge) -> Result<Wanted> {
    let mut wanted = edge.module(STRANGER, &["wait", "--door", "management=/management.sock"])?;
    let binds = wanted.create_options.pointer_mut("/HostConfig/Binds").and_then(Value::as_array_mut);
    let socket = edge.socket(aziot_tests::Daemon::Edge);
    binds.context("no binds")?.push(json!(format!("{}:/management.sock", socket.display())));
    Ok(wanted)
}

/// `edged-api.md`, 4.3 and 11 (7): routes, and whether the agent alone may use them.
#[test]
fn management_routes_know_who_calls() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(MODULE)?;
        edge.run(&stranger(&edge)?)?;
        edge.wait_for_door(STRANGER, "management")?;
        let agent = edge.agent()?;
        let body = agent.specification(&edge.module("never-made", &["wait"])?, "1")?;
        let guarded = [
            ("POST", "/modules", Some(body.clone())),
            ("PUT", "/modules/sampler", Some(body.clone())),
            ("PUT", "/modules/edgeAgent?start=true", Some(body.clone())),
            ("DELETE", "/modules/sampler", None),
            ("POST", "/modules/sampler/prepareupdate", Some(body)),
            ("GET", "/identities", None),
            ("GET", "/identities/", None),
            ("POST", "/identities", Some(json!({ "moduleId": "thief" }))),
            ("PUT", "/identities/sampler", Some(json!({}))),
            ("DELETE", "/identities/sampler", None),
            ("POST", "/device/reprovision", Some(json!({}))),
        ];
        for (method, target, body) in guarded {
            for caller in [Caller::Module, Caller::Host] {
                let (status, answer) = manage(&edge, caller, method, target, body.as_ref())?;
                assert_eq!((status, &answer["message"]), (403, &json!("forbidden")), "{caller:?} {method} {target}");
            }
        }
        let before = manage(&edge, Caller::Agent, "GET", "/identities", None)?;
        assert_eq!(before.0, 200);
        assert!(
            before.1["identities"].as_array().is_some_and(|list| list.iter().all(|one| one["moduleId"] != "thief"))
        );

        let open = [
            ("GET", "/modules", 200),
            ("GET", "/modules/", 200),
            ("GET", "/modules/sampler", 200),
            ("GET", "/modules/sampler/logs", 200),
            ("GET", "/systeminfo", 200),
            ("GET", "/systeminfo/resources", 200),
            ("POST", "/modules/sampler/stop", 204),
            ("POST", "/modules/sampler/stop", 204),
            ("POST", "/modules/sampler/START", 204),
            ("POST", "/modules/sampler/start", 204),
            ("POST", "/modules/sampler/restart", 204),
        ];
        for (method, target, expected) in open {
            for caller in [Caller::Agent, Caller::Module, Caller::Host] {
                let reply = match caller {
                    Caller::Agent => edge.call_as("edgeAgent", "management", method, target, None)?,
                    Caller::Module => edge.call_as(STRANGER, "management", method, target, None)?,
                    Caller::Host => edge.manage(method, target, None)?,
                };
                assert_eq!(reply.status, expected, "{kind:?}: {caller:?} {method} {target}: {}", reply.body);
            }
        }
        Ok(())
    })
    .map(|_| ())
}

/// `edged-api.md`, 5: a module from its creation to its end, with all that its answers must have.
#[test]
fn a_module_lives_by_the_agents_calls() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        let agent = edge.agent()?;
        let identity =
            agent.call("POST", "/identities", Some(&json!({ "moduleId": MODULE, "managedBy": "IotEdge" })))?;
        let identity = identity.expect(&[200])?.json()?;
        assert_eq!((&identity["moduleId"], &identity["authType"]), (&json!(MODULE), &json!("sas")), "{identity}");
        let generation = identity["generationId"].as_str().context("no generation")?.to_owned();

        let wanted = edge.module(MODULE, &["wait"])?;
        let mut body = agent.specification(&wanted, &generation)?;
        body["config"]["settings"]["auth"] = json!({ "username": "u", "password": "not to be told" });
        body["config"]["settings"]["createOptions"]["Labels"] = json!({ "own": "label" });
        let made = agent.call("POST", "/modules", Some(&body))?.expect(&[201])?;
        assert!(!made.text().contains("not to be told"), "{}", made.text());
        assert_eq!(made.json()?["status"]["runtimeStatus"]["status"], "stopped");
        assert_eq!(agent.call("POST", "/modules", Some(&body))?.status, 409, "made twice");

        let container = edge.engine.inspect(MODULE)?.context("no container")?;
        assert_eq!(container["Config"]["Labels"][OWNER.0], OWNER.1);
        assert_eq!(container["Config"]["Labels"]["own"], "label");
        agent.start(MODULE)?;
        edge.wait_for_door(MODULE, "workload")?;
        let details = agent.call("GET", "/modules/sampler", None)?.expect(&[200])?.json()?;
        assert_eq!(details["status"]["runtimeStatus"]["status"], "running", "{details}");
        assert_eq!(details["config"]["settings"]["image"], edge::IMAGE, "{details}");
        assert!(details["status"]["startTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{details}");
        assert!(details["id"].is_string() && details["type"] == "docker", "{details}");

        // Replaced by one with another environment, at once running.
        let other = Wanted { environment: [("COLOUR".to_owned(), "red".to_owned())].into(), ..wanted };
        let body = agent.specification(&other, &generation)?;
        let _ = agent.call("POST", "/modules/sampler/prepareupdate", Some(&body))?.expect(&[204])?;
        let updated = agent.call("PUT", "/modules/sampler?start=true", Some(&body))?.expect(&[201])?.json()?;
        assert_eq!(updated["status"]["runtimeStatus"]["status"], "running", "{updated}");
        assert_eq!(edge.environment(MODULE)?.find("COLOUR"), Some("red"));
        edge.wait_for_door(MODULE, "workload")?;
        edge.eventually_signs(MODULE)?;

        // An update without start leaves it stopped.
        let _ = agent.call("PUT", "/modules/sampler", Some(&body))?.expect(&[201])?;
        assert_eq!(agent.modules()?[MODULE], "stopped");
        let body = json!({ "name": "another", "type": "docker", "config": { "settings": { "image": edge::IMAGE } } });
        assert_eq!(agent.call("PUT", "/modules/sampler", Some(&body))?.status, 400, "another name in the body");

        let resources = agent.call("GET", "/systeminfo/resources", None)?.expect(&[200])?.json()?;
        let statistics: Value = serde_json::from_str(resources["docker_stats"].as_str().context("no text")?)?;
        let statistics = statistics.as_array().context("no array")?;
        let own = statistics.iter().find(|one| one["name"] == "/edgeAgent" || one["name"] == "edgeAgent");
        let own = own.with_context(|| format!("{kind:?}: {statistics:?}"))?;
        assert!(own["cpu_stats"]["cpu_usage"]["total_usage"].is_u64(), "{own}");

        agent.remove(MODULE)?;
        assert!(edge.engine.inspect(MODULE)?.is_none());
        assert!(!edge.module_socket(MODULE).exists(), "the socket of a module that is gone");
        assert_eq!(agent.call("DELETE", "/modules/sampler", None)?.status, 404);
        assert_eq!(agent.call("DELETE", "/identities/sampler", None)?.status, 204);
        assert!(!agent.identities()?.contains_key(MODULE));
        Ok(())
    })
    .map(|_| ())
}

/// `edged-api.md`, 8: each workload route for the module itself, and for nobody else by whatever socket.
#[test]
fn workload_routes_serve_their_module_alone() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(MODULE)?;
        // It reaches the sockets of all.
        let mut wanted = edge
            .module(STRANGER, &["wait", "--door", "foreign=/sockets/sampler.sock", "--door", "legacy=/legacy.sock"])?;
        let binds =
            wanted.create_options.pointer_mut("/HostConfig/Binds").and_then(Value::as_array_mut).context("no binds")?;
        let sockets = edge.module_socket(MODULE);
        binds.push(json!(format!("{}:/sockets", sockets.parent().context("no folder")?.display())));
        binds.push(json!(format!("{}:/legacy.sock", edge.workload_socket().display())));
        edge.run(&wanted)?;
        edge.wait_for_door(STRANGER, "legacy")?;

        let (own, other) = (edge.environment(MODULE)?, edge.environment(STRANGER)?);
        let (generation, foreign) = (own.generation()?, other.generation()?);
        let vector = STANDARD.encode([7; 32]);
        let secret = edge.workload(MODULE)?.encrypt(b"secret", &[7; 32])?;
        let calls = |module: &str, generation: &str| {
            let place = format!("/modules/{module}/genid/{generation}");
            [
                (format!("{place}/sign"), json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" }), 200),
                (format!("{place}/encrypt"), json!({ "plaintext": "ZGF0YQ==", "initializationVector": vector }), 200),
                (
                    format!("{place}/decrypt"),
                    json!({ "ciphertext": STANDARD.encode(&secret), "initializationVector": vector }),
                    200,
                ),
                (format!("{place}/certificate/server"), json!({ "commonName": "sampler.test" }), 201),
                (format!("/modules/{module}/certificate/identity"), json!({}), 201),
            ]
        };
        for (target, body, expected) in calls(MODULE, generation) {
            let reply = edge.call_as(MODULE, "workload", "POST", &target, Some(&body))?;
            assert_eq!(reply.status, expected, "{kind:?} {target}: {}", reply.body);
            // The same words from another module, by its own socket, by the first one's, by the one for all; and from the host.
            for door in ["workload", "foreign", "legacy"] {
                let reply = edge.call_as(STRANGER, door, "POST", &target, Some(&body))?;
                assert_eq!((reply.status, reply.message().as_str()), (403, "forbidden"), "{door} {target}");
            }
            for socket in [edge.module_socket(MODULE), edge.workload_socket()] {
                let reply = edge::call(&socket, "POST", &target, Some(&body))?;
                assert_eq!((reply.status, reply.message().as_str()), (403, "forbidden"), "host {target}");
            }
        }
        // In its own name by the socket for all, but not by another module's.
        let (target, body, _) = &calls(STRANGER, foreign)[0];
        assert_eq!(edge.call_as(STRANGER, "legacy", "POST", target, Some(body))?.status, 200);
        assert_eq!(edge.call_as(STRANGER, "foreign", "POST", target, Some(body))?.status, 403);
        // An earlier generation neither signs nor encrypts.
        let (target, body, _) = &calls(MODULE, "0")[0];
        assert_eq!(edge.call_as(MODULE, "workload", "POST", target, Some(body))?.status, 403, "another generation");

        for target in ["/trust-bundle", "/manifest-trust-bundle", "/modules"] {
            for door in ["workload", "legacy"] {
                assert_eq!(edge.call_as(STRANGER, door, "GET", target, None)?.status, 200, "{door} {target}");
            }
            assert_eq!(edge::call(&edge.workload_socket(), "GET", target, None)?.status, 200, "host {target}");
        }
        Ok(())
    })
    .map(|_| ())
}

/// The whole way: an identity from the environment, a token, a certificate, and a message that the hub takes.
#[test]
fn a_module_sends_a_message_that_the_hub_accepts() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run(&edge.module_on_host(MODULE, &["module"])?)?;
        let exit = edge.engine.wait(MODULE)?;
        let told: Value = serde_json::from_str(exit.output.trim()).with_context(|| format!("{exit:?}"))?;
        assert_eq!((exit.code, &told["message"]), (0, &json!(204)), "{told}");
        let messages = edge.control("GET", "/messages", None)?.expect(200)?.json()?;
        assert_eq!(messages.as_array().map(Vec::len), Some(1), "{messages}");
        Ok(())
    })
    .map(|_| ())
}
