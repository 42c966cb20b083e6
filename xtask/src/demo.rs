//! `cargo xtask demo`: from a fresh clone to a module's accepted token, in one command.

mod container;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aziot_tests::{Daemon, Device, Programs, module::Identity, openssl, process::Restart};
use serde_json::json;

use crate::{packages, report};
use container::Containers;

const MODULE: &str = "sampler";
const CERTIFICATE: &str = "sampler-server";
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);

/// Builds, runs the device through all it can do, and goes on running it if `keep`.
pub(crate) fn run(folder: Option<PathBuf>, keep: bool) -> Result<()> {
    let (sender, interrupted) = channel();
    // Children live in process groups of their own; they are stopped on the way out.
    ctrlc::set_handler(move || {
        let _ = sender.send(());
    })
    .context("could not listen for Ctrl-C")?;
    packages::ensure_for_build()?;
    let temporary = match folder {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("aziot-demo-").tempdir().context("could not make a folder")?),
    };
    let folder = folder.or_else(|| Some(temporary.as_ref()?.path().to_owned())).context("no folder")?;

    report::line("building (release profile; the first time takes some minutes)")?;
    let programs = build()?;
    let begun = Instant::now();
    report::line(format_args!("a device in {}", folder.display()))?;
    // Before the device, and so dropped after it: its runtime would make its agent anew.
    let containers = Containers::find();
    let mut device = Device::new(&folder, programs.clone(), Restart::Always)?;
    show(&mut device, &interrupted, &programs, &containers)?;
    report::line("")?;
    footprint(&device, &programs)?;
    report::line(format_args!("\neverything shown in {}", report::seconds(begun.elapsed())))?;
    if keep {
        invite(&device)?;
        // An error would mean that nobody can interrupt any more.
        interrupted.recv().context("the interrupt handler is gone")?;
        report::line("\nstopping")?;
    }
    device.stop_all()
}

fn build() -> Result<Programs> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args([
        "build",
        "--release",
        "--locked",
        "--bin",
        "aziotd",
        "--bin",
        "aziotctl",
        "--bin",
        "aziot-simulator",
        "--bin",
        "iotedge",
        "--bin",
        "aziot-edged",
        "--bin",
        "aziot-test-module",
    ]);
    let status = command.current_dir(crate::root()).status().context("could not run cargo")?;
    if !status.success() {
        bail!("the build failed");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(Programs::in_folder(crate::root().join(target).join("release")))
}

/// The steps, each with its outcome and time.
fn show(
    device: &mut Device,
    interrupted: &Receiver<()>,
    programs: &Programs,
    containers: &Result<Containers, String>,
) -> Result<()> {
    let check = || match interrupted.try_recv() {
        Err(TryRecvError::Empty) => Ok(()),
        _ => bail!("interrupted"),
    };
    report::step("cloud", || device.start_cloud(), |()| "DPS and IoT Hub up, over TLS".to_owned())?;
    let settings = containers.as_ref().ok().map(|containers| containers.settings(device)).transpose()?;
    let tool = if settings.is_some() { "iotedge" } else { "aziotctl" };
    if settings.is_some() {
        device.have_modules();
    }
    let (keys, tables) = settings.unwrap_or_default();
    report::step("configuration", || configure(device, &keys, &tables), |()| format!("{tool} config apply"))?;
    for daemon in Daemon::ALL {
        check()?;
        let socket = relative(&device.socket(daemon), device);
        report::step(daemon.name(), || device.start(daemon), |()| format!("up on {socket}"))?;
    }
    check()?;
    report::step("device", || provisioned(device), |(hub, id)| format!("{id} at hub {hub}"))?;
    check()?;
    let module = report::step(
        "module identity",
        || identity(device),
        |module| format!("{}, generation {}", module.module, module.generation),
    )?;
    check()?;
    report::step("token", || message(device, &module), |status| format!("accepted by the hub: HTTP {status}"))?;
    check()?;
    report::step("certificate", || certificate(device), |verdict| format!("openssl verify: {verdict}"))?;
    check()?;
    match containers {
        Ok(containers) => containers.show(device, programs),
        Err(reason) => report::line(format_args!("  - no container: {reason}")),
    }
}

fn relative(path: &Path, device: &Device) -> String {
    path.strip_prefix(device.folder()).unwrap_or(path).display().to_string()
}

/// The super-config: how the device proves who it is, and a local CA for the certificates of its modules.
fn configure(device: &Device, keys: &str, tables: &str) -> Result<()> {
    let (ca_key, ca) = (device.path("var/secrets/local-ca.key.pem"), device.path("var/secrets/local-ca.pem"));
    if !ca.exists() {
        openssl::make_ca(&ca_key, &ca, "demo local CA")?;
    }
    let local_ca = format!(
        "\n[cert_issuance.local_ca]\ncert = \"file://{}\"\npk = \"file://{}\"\n",
        ca.display(),
        ca_key.display()
    );
    device.configure(&format!("{keys}hostname = \"demo\"\n\n{}{local_ca}{tables}", device.dps_provisioning()?))?;
    // What the package of a host agent would bring: its user is a principal, and its certificate has an issuer.
    let uid = fs::metadata(device.folder()).map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata))?;
    device.drop_in(Daemon::Identity, "10-agent.toml", &format!("[[principal]]\nuid = {uid}\nname = \"agent\"\n"))?;
    let issuance = format!(
        "[cert_issuance.{CERTIFICATE}]\nmethod = \"local_ca\"\nexpiry_days = 7\n\n\
         [[principal]]\nuid = {uid}\ncerts = [\"{CERTIFICATE}\"]\n"
    );
    device.drop_in(Daemon::Certificates, "10-agent.toml", &issuance)
}

/// Hub and device id that DPS gave the device.
fn provisioned(device: &Device) -> Result<(String, String)> {
    let body = json!({ "type": "aziot" }).to_string();
    let reply = device.call(Daemon::Identity, "POST", "/identities/device?api-version=2020-09-01", Some(&body))?;
    let reply = reply.expect(200)?;
    Ok((reply.text("/spec/hubName")?, reply.text("/spec/deviceId")?))
}

fn identity(device: &Device) -> Result<Identity> {
    // A device that goes on in its folder has the module already.
    Identity::load(device, MODULE).or_else(|_| Identity::create(device, MODULE))
}

fn message(device: &Device, module: &Identity) -> Result<u16> {
    let token = module.token(device, TOKEN_LIFETIME)?;
    Ok(module.send_message(device, &token, r#"{"temperature":21.5}"#)?.expect(204)?.status)
}

fn certificate(device: &Device) -> Result<String> {
    let request = openssl::make_request(&device.path("module/sampler.key.pem"), MODULE)?;
    let body = json!({ "certId": CERTIFICATE, "csr": request }).to_string();
    let reply = device.call(Daemon::Certificates, "POST", "/certificates?api-version=2020-09-01", Some(&body))?;
    let pem = reply.expect(201)?.text("/pem")?;
    let file = device.path("module/sampler.pem");
    #[expect(clippy::disallowed_methods, reason = "a certificate for openssl to read; nothing is lost with it")]
    fs::write(&file, pem).with_context(|| format!("could not write {}", file.display()))?;
    let verdict = openssl::verify(&device.path("var/secrets/local-ca.pem"), &file)?;
    Ok(verdict.trim().rsplit(": ").next().unwrap_or_default().to_owned())
}

fn footprint(device: &Device, programs: &Programs) -> Result<()> {
    report::line(format_args!("  {:<12} {:>10} {:>14} {:>14}", "idle daemon", "binary", "resident", "proportional"))?;
    let size = |program: &str| -> Result<u64> {
        Ok(fs::metadata(programs.path(program)).with_context(|| format!("could not see the size of {program}"))?.len())
    };
    for daemon in Daemon::ALL.into_iter().chain([Daemon::Edge]) {
        // The module runtime is there where Docker is.
        let Ok(process) = device.process(daemon) else { continue };
        let (resident, proportional) = process.memory()?;
        let size = size(if daemon == Daemon::Edge { "aziot-edged" } else { "aziotd" })?;
        let proportional = proportional.map_or_else(|| "-".to_owned(), mebibytes);
        let (name, resident) = (daemon.name(), mebibytes(resident));
        report::line(format_args!("  {name:<12} {:>10} {resident:>14} {proportional:>14}", mebibytes(size / 1024)))?;
    }
    report::line("  (one executable, aziotd, serves the first three)")
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is printed")]
fn mebibytes(kibibytes: u64) -> String {
    format!("{:.1} MiB", kibibytes as f64 / 1024.0)
}

fn invite(device: &Device) -> Result<()> {
    let socket = |daemon| device.socket(daemon).display().to_string();
    let (keyd, certd, identityd) = (socket(Daemon::Keys), socket(Daemon::Certificates), socket(Daemon::Identity));
    report::line(format_args!(
        "\nThe device goes on running; Ctrl-C stops it. Try:\n\n\
         curl --unix-socket {keyd} -H 'content-type: application/json' -d '{{\"keyId\":\"k1\",\"usage\":\"sign\"}}' 'http://keyd.sock/key?api-version=2020-09-01'\n\
         curl --unix-socket {certd} 'http://certd.sock/certificates/{CERTIFICATE}?api-version=2020-09-01'\n\
         curl --unix-socket {identityd} 'http://identityd.sock/identities/identity?api-version=2020-09-01'\n\
         curl --unix-socket {identityd} 'http://identityd.sock/identities/modules?api-version=2020-09-01&type=aziot'\n\
         curl --unix-socket {} http://control/journal\n\n\
         Configuration: {}   logs: {}",
        device.path("cloud/control.sock").display(),
        device.path("etc/aziot").display(),
        device.path("log").display(),
    ))
}
