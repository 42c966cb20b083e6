//! Containers that claim to be another module: by name, by label, by namespace, by a connection that was handed over.

use std::{
    fs,
    io::{IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Edge, at_once,
    docker::{Kind, cgroups::Cgroups, image},
    edge::{IMAGE, OWNER, VERSION},
    eventually, raw,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

const VICTIM: &str = "victim";
const LIMIT: Duration = Duration::from_secs(120);

/// Asks for a signature of `module` by a door.
fn sign(edge: &Edge, container: &str, door: &str, module: &str) -> Result<u16> {
    sign_with(edge, container, door, module, edge.environment(VICTIM)?.generation()?)
}

/// The same where nobody is called like the victim any more, or somebody else is.
fn sign_with(edge: &Edge, container: &str, door: &str, module: &str, generation: &str) -> Result<u16> {
    let target = format!("/modules/{module}/genid/{generation}/sign");
    Ok(edge.call_as(container, door, "POST", &target, Some(&signature()))?.status)
}

fn signature() -> Value {
    json!({ "keyId": "primary", "algo": "HMACSHA256", "data": "ZGF0YQ==" })
}

/// Starts a container behind the runtime's back that reaches the sockets of all modules, and says in its environment that it is the victim.
fn intruder(edge: &Edge, name: &str, change: impl Fn(&mut Value)) -> Result<()> {
    let doors = edge.doors(name)?;
    let sockets = edge.module_socket(VICTIM);
    let sockets = sockets.parent().context("no folder")?;
    let mut options = json!({
        "Image": IMAGE,
        "Cmd": [
            image::PROGRAM, "wait", "--doors", "/doors",
            "--door", "own=/sockets/victim.sock", "--door", "legacy=/run/workload.sock", "--door", "agent=/sockets/edgeAgent.sock",
            "--door", "management=/run/mgmt.sock",
        ],
        "Hostname": VICTIM,
        "Env": ["IOTEDGE_MODULEID=victim"],
        "HostConfig": { "Binds": [
            format!("{}:/doors", doors.display()), format!("{}:/sockets", sockets.display()),
            format!("{}:/run/workload.sock", edge.workload_socket().display()),
            format!("{}:/run/mgmt.sock", edge.socket(Daemon::Edge).display()),
        ] },
    });
    change(&mut options);
    edge.engine.run(name, &options)?;
    edge.wait_for_door(name, "management")
}

/// `edged-api.md`, 11 (4, 9): what a container is called, what its labels say and what its environment says makes it nobody.
#[test]
fn liars_get_nothing() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(VICTIM)?;
        assert_eq!(sign(&edge, VICTIM, "workload", VICTIM)?, 200);
        let id = edge.engine.inspect(VICTIM)?.context("no container")?["Id"].as_str().context("no id")?.to_owned();

        // Without the label, a module's name in environment and host name.
        intruder(&edge, "liar", |_| {})?;
        // With the label, under its own name.
        intruder(&edge, "labelled", |options| options["Labels"] = json!({ (OWNER.0): OWNER.1 }))?;
        // Called like the beginning of the victim's id, by which engines find containers too.
        intruder(&edge, &id[..12], |_| {})?;
        // Called almost like the agent.
        intruder(&edge, "edgeagent", |options| options["Labels"] = json!({ (OWNER.0): OWNER.1 }))?;
        for name in ["liar", "labelled", &id[..12], "edgeagent"] {
            for door in ["own", "legacy", "agent"] {
                for module in [VICTIM, "%24edgeAgent", "edgeAgent", &id[..12], &id] {
                    let status = sign(&edge, name, door, module)?;
                    assert_eq!(status, 403, "{kind:?}: {name} as {module} by {door}");
                }
            }
            let body = json!({ "moduleId": "thief" });
            let status = edge.call_as(name, "management", "POST", "/identities", Some(&body))?.status;
            assert_eq!(status, 403, "{kind:?}: {name} as the agent");
        }
        // The victim's name does not help a container without the label. The runtime is not told, so that the victim's socket stays open.
        let generation = edge.environment(VICTIM)?.generation()?.to_owned();
        edge.engine.remove(VICTIM)?;
        intruder(&edge, VICTIM, |_| {})?;
        for door in ["own", "legacy", "agent"] {
            let status = sign_with(&edge, VICTIM, door, VICTIM, &generation)?;
            assert_eq!(status, 403, "{kind:?}: without the label by {door}");
        }
        let body = json!({ "moduleId": "thief" });
        let status = edge.call_as(VICTIM, "management", "POST", "/identities", Some(&body))?.status;
        assert_eq!(status, 403, "{kind:?}: without the label as the agent");
        Ok(())
    })
    .map(|_| ())
}

/// Root on the host may give a cgroup any name; a process in one that is called like the victim's is not in the victim.
#[test]
fn a_cgroup_of_the_same_name_is_not_the_container() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(VICTIM)?;
        let id = edge.engine.inspect(VICTIM)?.context("no container")?["Id"].as_str().context("no id")?.to_owned();
        let part = if kind == Kind::Docker { format!("docker/{id}") } else { format!("libpod_parent/libpod-{id}") };
        let forged = Cgroups::make(&format!("{kind:?}-{}", std::process::id()), &part)?;
        let generation = edge.environment(VICTIM)?.generation()?.to_owned();
        let target = format!("http://edged/modules/{VICTIM}/genid/{generation}/sign?{VERSION}");
        for socket in [edge.module_socket(VICTIM), edge.workload_socket()] {
            let status = forged.run(&mut curl(&socket, &target))?;
            assert_eq!(status, "403", "{kind:?}: by {}", socket.display());
        }
        // For that reason and for no other: the container was found, and the process is elsewhere.
        let log = edge.log(Daemon::Edge)?;
        assert!(log.lines().any(|line| line.contains("status=403") && line.contains(VICTIM)), "{kind:?}: {log}");
        assert_eq!(sign(&edge, VICTIM, "workload", VICTIM)?, 200, "{kind:?}");
        Ok(())
    })
    .map(|_| ())
}

/// Posts the request for a signature and prints the status.
fn curl(socket: &Path, target: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--disable", "--silent", "--show-error", "--max-time", "120", "--output", "/dev/null"]);
    curl.args(["--write-out", "%{http_code}", "--header", "content-type: application/json"]);
    curl.args(["--data-binary", &signature().to_string(), "--unix-socket"]).arg(socket).arg(target);
    curl
}

/// A module's container that an operator renames while it runs: its living processes stay who they were, and are nobody new.
#[test]
fn a_renamed_container_does_not_become_another_module() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(VICTIM)?;
        edge.run_waiting("other")?;
        let generation = edge.environment(VICTIM)?.generation()?.to_owned();
        let others = edge.environment("other")?.generation()?.to_owned();
        let as_victim = || sign_with(&edge, VICTIM, "workload", VICTIM, &generation);
        assert_eq!(as_victim()?, 200, "{kind:?}");
        edge.engine.remove("other")?;
        let reply = edge.engine.call("POST", &format!("/containers/{VICTIM}/rename?name=other"), None)?;
        ensure!(reply.status == 204, "{kind:?}: not renamed: {reply:?}");
        assert_eq!(as_victim()?, 200, "{kind:?}: a process that was known before");
        let status = sign_with(&edge, VICTIM, "workload", "other", &others)?;
        assert_eq!(status, 403, "{kind:?}: by the name that it got");
        Ok(())
    })
    .map(|_| ())
}

/// "shares the pid namespace of another": it sees the other's processes, and stays who it is.
#[test]
fn a_shared_pid_namespace_lends_no_name() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(VICTIM)?;
        for (name, mode) in [("sharer", "container:victim"), ("overseer", "host")] {
            let mut wanted = edge.module(name, &["wait", "--door", "own=/sockets/victim.sock"])?;
            wanted.create_options["HostConfig"]["PidMode"] = json!(mode);
            let sockets = edge.module_socket(VICTIM).parent().context("no folder")?.display().to_string();
            let binds = wanted.create_options.pointer_mut("/HostConfig/Binds").and_then(Value::as_array_mut);
            binds.context("no binds")?.push(json!(format!("{sockets}:/sockets")));
            edge.run(&wanted)?;
            edge.wait_for_door(name, "own")?;
            for door in ["own", "workload"] {
                assert_eq!(sign(&edge, name, door, VICTIM)?, 403, "{kind:?}: {name} as the victim by {door}");
            }
            // It is somebody itself.
            edge.eventually_signs(name).with_context(|| format!("{kind:?}: {name}"))?;
        }
        // And the victim is not disturbed.
        assert_eq!(sign(&edge, VICTIM, "workload", VICTIM)?, 200, "{kind:?}");
        Ok(())
    })
    .map(|_| ())
}

/// All processes of a module are the module, those that an operator starts in it too.
#[test]
fn further_processes_of_a_module_are_the_module() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(VICTIM)?;
        let words = [image::PROGRAM, "sign", "--connections", "2", "--seconds", "0.2"];
        let exit = edge.engine.execute(VICTIM, &words)?;
        let told: Value = serde_json::from_str(exit.output.trim()).with_context(|| format!("{kind:?}: {exit:?}"))?;
        assert!(exit.code == 0 && told["signatures"].as_u64().is_some_and(|count| count >= 2), "{kind:?}: {told}");
        Ok(())
    })
    .map(|_| ())
}

/// "has exited while its request is under way": the connection of a process that is gone is nobody's, in whoever's hands it is.
#[test]
fn a_connection_outlives_its_process_and_is_refused() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        let wanted = edge.module(VICTIM, &["wait"])?;
        edge.run(&wanted)?;
        edge.wait_for_door(VICTIM, "workload")?;
        let place = edge.door(VICTIM, "taker");
        let taker = UnixListener::bind(&place)?;
        let exit = edge.engine.execute(VICTIM, &[image::PROGRAM, "leave", "--to", "/doors/taker"])?;
        assert_eq!(exit.code, 0, "{kind:?}: {exit:?}");
        let mut connection = take(&taker)?;
        connection.set_read_timeout(Some(LIMIT))?;
        let generation = edge.environment(VICTIM)?.generation()?.to_owned();
        let target = format!("/modules/{VICTIM}/genid/{generation}/sign?api-version=2020-07-07");
        connection.write_all(raw::request("POST", &target, Some(r#"{"data":"ZGF0YQ=="}"#)).as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{kind:?}: {answer}");
        // For that reason and for no other.
        let log = edge.log(Daemon::Edge)?;
        assert!(log.lines().any(|line| line.contains("status=403") && line.contains("has ended")), "{kind:?}: {log}");
        fs::remove_file(place)?;
        Ok(())
    })
    .map(|_| ())
}

/// The descriptor that somebody hands over.
fn take(taker: &UnixListener) -> Result<UnixStream> {
    let (giver, _) = taker.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&giver, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::empty())?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(UnixStream::from(descriptor.context("no descriptor came")?))
}

/// A module's own container, ended and followed by another of its name: the new one is the module, and the old one's connection is dead.
#[test]
fn a_successor_is_the_module_and_its_predecessor_is_not() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let edge = Edge::start(kind)?;
        edge.run_waiting(VICTIM)?;
        let agent = edge.agent()?;
        let generation = edge.environment(VICTIM)?.generation()?.to_owned();
        let mut old = edge.workload(VICTIM)?;
        old.sign(b"data")?;
        let body = agent.specification(&edge.module(VICTIM, &["wait"])?, &generation)?;
        let _ = agent.call("PUT", "/modules/victim?start=true", Some(&body))?.expect(&[201])?;
        assert!(old.sign(b"data").is_err(), "{kind:?}: the connection of a container that is gone");
        eventually("the successor's signature", LIMIT, || {
            Ok(edge.workload(VICTIM).and_then(|mut workload| workload.sign(b"data")).ok())
        })?;
        Ok(())
    })
    .map(|_| ())
}
