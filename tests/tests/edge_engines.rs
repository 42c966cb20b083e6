//! The engines that the other edge tests stand on: several at the same time, killed, hung, and pulling from a registry of the test.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aziot_tests::{
    Programs, at_once,
    docker::{
        Engine, Kind, Settings, image,
        registry::{Manner, Registry},
    },
    eventually, raw,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const IMAGE: &str = "edge.test/module:1";
const LIMIT: Duration = Duration::from_secs(120);
/// For so long a hung engine is listened to.
const SILENCE: Duration = Duration::from_secs(2);

fn folder() -> Result<TempDir> {
    tempfile::Builder::new().prefix("aziot-").tempdir().context("could not make a folder")
}

fn archive(folder: &TempDir) -> Result<PathBuf> {
    let archive = folder.path().join("image.tar");
    image::make(&Programs::of_this_build()?.path("aziot-test-module"), &archive, "1")?;
    Ok(archive)
}

fn engine(folder: &TempDir, settings: Settings) -> Result<Engine> {
    let engine = Engine::start_with(&folder.path().join("engine"), settings)?;
    engine.import(&archive(folder)?, IMAGE)?;
    Ok(engine)
}

fn command(words: &[&str]) -> Value {
    let words: Vec<&str> = [image::PROGRAM].iter().chain(words).copied().collect();
    json!({ "Image": IMAGE, "Cmd": words })
}

/// Two of each kind at the same time, with a container of the same name in a network of the same name.
#[test]
fn engines_do_not_meet_each_other() -> Result<()> {
    let kinds: Vec<Kind> = Kind::under_test()?.into_iter().flat_map(|kind| [kind, kind]).collect();
    at_once(kinds, |kind| {
        let folder = folder()?;
        let engine = engine(&folder, Settings::of(kind))?;
        let network = json!({ "Name": "azure-iot-edge" }).to_string();
        let _ = engine.call("POST", "/networks/create", Some(&network))?.expect(201)?;
        let mut options = command(&["echo", "--lines", "4", "--exit", "3"]);
        options["NetworkingConfig"] = json!({ "EndpointsConfig": { "azure-iot-edge": {} } });
        let exit = engine.run_to_end("edgeAgent", &options)?;
        assert_eq!(exit.code, 3, "{kind:?}: {exit:?}");
        assert_eq!(exit.output.lines().count(), 2, "{kind:?}: {exit:?}");
        engine.run("edgeAgent", &command(&["wait"]))?;
        let run = engine.execute("edgeAgent", &[image::PROGRAM, "echo", "--lines", "1", "--exit", "0"])?;
        assert!(run.code == 0 && run.output.starts_with("line 0"), "{kind:?}: {run:?}");
        assert_eq!(engine.containers()?.len(), 1);
        Ok(())
    })
    .map(|_| ())
}

/// What an engine's end means for its containers, and that it comes back with them.
#[test]
fn engines_come_back_after_kill_stop_and_hang() -> Result<()> {
    let cases = [(Kind::Docker, false), (Kind::Docker, true), (Kind::Podman, true)];
    let kinds = Kind::under_test()?;
    at_once(cases.into_iter().filter(|(kind, _)| kinds.contains(kind)), |(kind, live_restore)| {
        let folder = folder()?;
        let mut engine = engine(&folder, Settings { live_restore, ..Settings::of(kind) })?;
        engine.run("steady", &command(&["wait"]))?;
        engine.kill()?;
        engine.start_again()?;
        assert_eq!(engine.running()?.contains("steady"), live_restore, "{kind:?} killed, live restore {live_restore}");
        if !live_restore {
            let _ = engine.call("POST", "/containers/steady/start", None)?.expect(204)?;
        }
        engine.stop()?;
        engine.start_again()?;
        assert_eq!(engine.running()?.contains("steady"), live_restore, "{kind:?} stopped, live restore {live_restore}");
        engine.hang()?;
        let mut caller = raw::connect(&engine.socket())?;
        caller.write_all(raw::request("GET", "/_ping", None).as_bytes())?;
        caller.set_read_timeout(Some(SILENCE))?;
        let silent = caller.read(&mut [0]).map_err(|error| error.kind());
        assert!(matches!(silent, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{kind:?} hung: {silent:?}");
        engine.go_on()?;
        caller.set_read_timeout(Some(LIMIT))?;
        let answered = raw::reply(&raw::read_to_end(&mut caller)?)?;
        assert_eq!(answered.status, 200, "{kind:?}");
        Ok(())
    })
    .map(|_| ())
}

/// Served, refused, behind a password, broken off.
#[test]
fn engines_pull_from_the_registry_of_the_test() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        let folder = folder()?;
        let engine = Engine::start(&folder.path().join("engine"), kind)?;
        let registry = Registry::start(&engine, &archive(&folder)?)?;
        let pull = |tag: &str| -> Result<(u16, bool)> {
            let target = format!("/images/create?fromImage={}&tag={tag}", registry.image("sampler"));
            let reply = engine.call("POST", &target, None)?;
            Ok((reply.status, reply.body.contains("\"error\"")))
        };
        assert_eq!(pull("1")?, (200, false), "{kind:?}");
        let mut options = command(&["echo", "--lines", "1", "--exit", "0"]);
        options["Image"] = json!(format!("{}:1", registry.image("sampler")));
        assert_eq!(engine.run_to_end("pulled", &options)?.code, 0, "{kind:?}");
        let is_refused = |(status, error): (u16, bool)| status >= 400 || error;
        for manner in [Manner::Refuse(403), Manner::Password("u", "p")] {
            registry.behave(manner.clone());
            assert!(is_refused(pull("2")?), "{kind:?} {manner:?}");
        }
        assert!(registry.requests().len() > 4, "{:?}", registry.requests());
        Ok(())
    })
    .map(|_| ())
}

/// Command lines that name the folder.
fn processes_of(folder: &Path) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&*folder.to_string_lossy()) {
            own.push(line);
        }
    }
    Ok(own)
}

/// `Drop` leaves no process and no mount behind, not even of an engine that was killed or hung.
#[test]
fn engines_leave_nothing_behind() -> Result<()> {
    at_once(Kind::under_test()?, |kind| {
        for end in ["drop", "kill", "hang"] {
            let folder = folder()?;
            let mut engine = engine(&folder, Settings { live_restore: true, ..Settings::of(kind) })?;
            engine.run("left", &command(&["wait"]))?;
            let pid = engine.pid("left")?;
            // Whoever watches over a container's further processes goes as well.
            let _ = engine.execute("left", &[image::PROGRAM, "echo", "--lines", "1", "--exit", "0"])?;
            match end {
                "kill" => engine.kill()?,
                "hang" => engine.hang()?,
                _ => {}
            }
            drop(engine);
            eventually("the end of the container", LIMIT, || {
                let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                Ok((state.is_empty() || state.contains(") Z ")).then_some(()))
            })
            .with_context(|| format!("{kind:?} {end}"))?;
            let note = folder.path().join("engine/left-over.log");
            assert!(!note.exists(), "{kind:?} {end}: {}", std::fs::read_to_string(note)?);
            let processes = eventually("the end of all processes", LIMIT, || {
                let own = processes_of(folder.path())?;
                Ok(own.is_empty().then_some(()))
            });
            processes.with_context(|| format!("{kind:?} {end}: {:?}", processes_of(folder.path())))?;
            let mounts = std::fs::read_to_string("/proc/self/mounts")?;
            assert!(!mounts.contains(&*folder.path().to_string_lossy()), "{kind:?} {end}: {mounts}");
        }
        Ok(())
    })
    .map(|_| ())
}
