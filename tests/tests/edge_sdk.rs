//! The public Python SDK for modules, as it comes from its package index, in a container of the runtime: it finds its identity in its environment, and its token and
//! trust bundle by its workload socket, and a gateway with a certificate of the runtime and the hub both take it.
//!
//! The SDK and what it needs go into a virtual environment that is kept below the build folder; without that index and without one this fails.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{Edge, curl, device::write_private, docker::Kind, eventually};
use serde_json::{Value, json};

const SDK: &str = "azure-iot-device==2.14.0";
const MODULE: &str = "sdk";
const GATEWAY: &str = "edgeHub";
const LIMIT: Duration = Duration::from_secs(180);

/// What a module's author writes.
const PROGRAM: &str = r#"
from azure.iot.device import IoTHubModuleClient, Message
client = IoTHubModuleClient.create_from_edge_environment()
client.connect()
client.send_message_to_output(Message('{"temperature":21.5}'), "readings")
client.shutdown()
print("sent", flush=True)
"#;

fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("could not run {name}"))?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{name} failed: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The virtual environment with the SDK, made where it is not there yet.
fn virtual_environment() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-sdk");
    let (python, complete) = (folder.join("bin/python3"), folder.join("complete"));
    let is_usable = fs::read_to_string(&complete).is_ok_and(|made| made == SDK)
        && Command::new(&python)
            .args(["-c", "import azure.iot.device"])
            .output()
            .is_ok_and(|output| output.status.success());
    if !is_usable {
        let _ = fs::remove_dir_all(&folder);
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK];
        run(Command::new(&python).args(pip)).context("PyPI is needed once for the SDK")?;
        write_private(&complete, SDK)?;
    }
    Ok(folder)
}

/// What the gateway printed: lines of JSON.
fn told(edge: &Edge) -> Result<Vec<Value>> {
    let frames = edge.engine.logs(GATEWAY)?;
    let text: Vec<u8> = frames.into_iter().flat_map(|frame| frame.text).collect();
    Ok(String::from_utf8_lossy(&text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[test]
fn the_public_python_sdk_is_a_module() -> Result<()> {
    let environment = virtual_environment()?;
    let python = environment.join("bin/python3");
    let installation = run(Command::new(&python).args(["-c", "import sys; print(sys.base_prefix)"]))?;

    if !Kind::Docker.is_under_test()? {
        return Ok(());
    }
    let edge = Edge::start(Kind::Docker)?;
    // Named after the device in its own network, as edgeHub is. It leads to itself, for the SDK is in its network.
    let mut gateway = edge.module(GATEWAY, &["gateway"])?;
    gateway.create_options["HostConfig"]["ExtraHosts"] = json!(["pump:127.0.0.1"]);
    edge.run(&gateway)?;
    eventually("the gateway", LIMIT, || Ok((!told(&edge)?.is_empty()).then_some(())))?;

    let program = edge.doors(MODULE)?.join("program.py");
    write_private(&program, PROGRAM)?;
    let mut module = edge.module(MODULE, &[])?;
    let read_only = |path: &str| format!("{path}:{path}:ro");
    let mut binds: Vec<String> =
        ["/usr", "/lib", "/lib64", &installation, &environment.display().to_string()].map(read_only).into();
    binds.retain(|bind| bind.split(':').next().is_some_and(|path| Path::new(path).exists()));
    binds.dedup();
    // Inside of /usr already where Python is the system's own.
    binds.retain(|bind| !bind.starts_with("/usr:") || bind == &read_only("/usr"));
    binds.push(format!("{}:/program.py:ro", program.display()));
    module.create_options = json!({
        "Cmd": [python.display().to_string(), "/program.py"],
        "HostConfig": { "NetworkMode": format!("container:{GATEWAY}"), "Binds": binds },
    });
    edge.run(&module)?;
    let exit = edge.engine.wait(MODULE)?;
    let errors: Vec<u8> =
        edge.engine.logs(MODULE)?.into_iter().filter(|frame| frame.stream == 2).flat_map(|frame| frame.text).collect();
    assert!(exit.code == 0 && exit.output.contains("sent"), "{exit:?}\n{}", String::from_utf8_lossy(&errors));

    // The gateway's certificate was trusted, and it got name, token and message.
    let told = told(&edge)?;
    let connected = told.iter().find(|line| line["client"].is_string()).with_context(|| format!("{told:?}"))?;
    let own = edge.environment(MODULE)?;
    let (hub, device) = (own.hub()?, own.device()?);
    assert_eq!(connected["client"], format!("{device}/{MODULE}"));
    assert!(
        connected["user"].as_str().is_some_and(|user| user.starts_with(&format!("{hub}/{device}/{MODULE}/"))),
        "{connected}"
    );
    let sent = told.iter().find(|line| line["payload"] == r#"{"temperature":21.5}"#);
    assert!(
        sent.is_some_and(|line| line["topic"].as_str().is_some_and(|topic| topic.contains("readings"))),
        "{told:?}"
    );

    // And the hub takes the same token.
    let token = connected["password"].as_str().context("no password")?;
    let url = format!("https://{hub}/devices/{device}/modules/{MODULE}/messages/events?api-version=2020-03-13");
    let reply = curl::over_tls(&edge.roots(), token, "POST", &url, "{}")?;
    assert_eq!(reply.status, 204, "{reply:?}");
    Ok(())
}
