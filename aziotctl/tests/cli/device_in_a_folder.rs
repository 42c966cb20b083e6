//! `config apply --root` as an operator meets it: what is made, what stays, and what is said when something is wrong.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::device::{Device, mode};
use crate::running::{Program, Run, aziotctl, run};

const DPS: &str = r#"hostname = "pump-7"

[provisioning]
source = "dps"
global_endpoint = "https://localhost:8443"
id_scope = "0ne1"

[provisioning.attestation]
method = "symmetric_key"
registration_id = "pump7"
symmetric_key = { value = "AAECAw==" }
"#;

fn device(super_config: &str) -> Device {
    Device::new(Program::Aziotctl, super_config)
}

#[test]
fn everything_lies_in_the_folder_with_the_right_modes() {
    let device = device(DPS);
    device.applied();
    for service in ["keyd", "certd", "identityd", "tpmd"] {
        assert_eq!(mode(&device.path(&format!("etc/aziot/{service}/config.d"))), 0o700);
        assert_eq!(mode(&device.path(&format!("etc/aziot/{service}/config.d/00-super.toml"))), 0o600);
        assert_eq!(mode(&device.path(&format!("var/lib/aziot/{service}"))), 0o700);
        let config = device.config(service);
        let folder = device.folder();
        let paths = config.lines().filter(|line| line.contains("/aziot/") && !line.starts_with('#'));
        for line in paths {
            assert!(line.contains(folder), "{service}: {line} leaves the folder");
        }
        let socket = format!("aziot_{service} = \"unix://{folder}/run/aziot/{service}.sock\"");
        assert!(config.contains(&socket), "{config}");
    }
    assert_eq!(mode(&device.path("run/aziot")), 0o755);
    assert_eq!(mode(&device.path("var/secrets/aziot/keyd")), 0o700);
    assert_eq!(mode(&device.path("var/secrets/aziot/keyd/device-id")), 0o600);
    assert_eq!(fs::read(device.path("var/secrets/aziot/keyd/device-id")).unwrap(), [0, 1, 2, 3]);
    let uid = device.path("").metadata().unwrap().uid();
    assert!(device.config("keyd").contains(&format!("uid = {uid}\n")), "{}", device.config("keyd"));
    assert!(device.config("identityd").contains("hostname = \"pump-7\""));
}

fn load<T: serde::de::DeserializeOwned>(text: &str) -> T {
    let loaded = aziot_config::load_str("00-super.toml", text).unwrap();
    assert_eq!(loaded.findings, []);
    loaded.value
}

const ISSUED: &str = r#"hostname = "pump-7"

[provisioning]
source = "dps"
global_endpoint = "https://localhost:8443"
id_scope = "0ne1"

[provisioning.attestation]
method = "x509"
registration_id = "pump7"

[provisioning.attestation.identity_cert]
method = "est"
subject = { O = "Acme", CN = "pump7" }
expiry_days = 3
auto_renew = { rotate_key = false }
url = "https://localhost:8444/est"
username = "u"
password = "p"
bootstrap_identity_cert = "file:///c/b.pem"
bootstrap_identity_pk = "file:///c/b.key"

[tpm]
tcti = "swtpm:port=2400"
auth_key_index = 5
hierarchy_authorization = { owner = "o", endorsement = { hex = "00ff" } }

[aziot_max_requests]
tpmd = 3
"#;

#[test]
fn the_services_read_what_is_written_without_a_word() {
    for super_config in [DPS, ISSUED] {
        let device = device(super_config);
        device.applied();
        let _: aziot_keyd_api::config::Config = load(&device.config("keyd"));
        let _: aziot_certd_api::config::Config = load(&device.config("certd"));
        let identityd: aziot_identityd_api::config::Config = load(&device.config("identityd"));
        identityd.check().unwrap();
        let tpmd: aziot_tpmd_api::config::Config = load(&device.config("tpmd"));
        let is_set = super_config == ISSUED;
        assert_eq!(tpmd.auth_key_index.offset(), if is_set { 5 } else { 0x100 });
        assert_eq!(tpmd.hierarchy_authorization.endorsement.expose(), if is_set { &[0, 0xff][..] } else { &[] });
    }
}

/// `aziotctl.md`, 7.1: "check scheme, existence, JSON".
#[test]
fn files_that_are_not_what_they_should_be_are_told() {
    let device = device("");
    let file = |name: &str| format!("file://{}", device.path(name).display());
    let settings = format!(
        "[provisioning]\nsource = 'dps'\nglobal_endpoint = 'https://localhost:8443'\nid_scope = '0ne1'\npayload.uri = '{}'\n\
         [provisioning.attestation]\nmethod = 'x509'\nidentity_cert = '{}'\nidentity_pk = '{}'\n\
         [cert_issuance.est]\ntrusted_certs = ['{}']\n[cert_issuance.est.auth]\nbootstrap_identity_cert = '{}'\n\
         bootstrap_identity_pk = '{}'\n[cert_issuance.local_ca]\ncert = '{}'\npk = '{}'\n",
        file("payload.json"),
        file("device.pem"),
        file("device.key"),
        file("root.pem"),
        file("bootstrap.pem"),
        file("bootstrap.key"),
        file("ca.pem"),
        file("etc"),
    );
    device.write(&settings);
    let told = device.applied().stderr;
    for name in ["device.pem", "device.key", "root.pem", "bootstrap.pem", "bootstrap.key", "ca.pem"] {
        assert!(told.contains(&format!("the file {} is not there", device.path(name).display())), "{told}");
        aziot_files::write(device.path(name), aziot_files::Mode::PRIVATE, "").unwrap();
    }
    assert!(
        told.contains(":5:9: `provisioning.payload.uri`: the file is not there; the device cannot register"),
        "{told}"
    );
    assert!(told.contains("etc is not a file"), "{told}");

    let write = |text: &str| aziot_files::write(device.path("payload.json"), aziot_files::Mode::PRIVATE, text).unwrap();
    write("{");
    let told = device.applied().stderr;
    assert!(told.contains("the file is not JSON") && !told.contains("is not there"), "{told}");
    write("{}");
    let told = device.applied().stderr;
    assert!(told.contains("is not a file") && told.matches("warning: ").count() == 1, "{told}");
}

#[test]
fn a_second_run_changes_nothing_and_says_so() {
    let device = device(DPS);
    device.applied();
    let inode = |path: &str| device.path(path).metadata().unwrap().ino();
    let paths = ["etc/aziot/keyd/config.d/00-super.toml", "var/secrets/aziot/keyd/device-id"];
    let before = paths.map(inode);
    let second = device.applied();
    assert_eq!(second.stderr, "nothing changed: all files are as the super-config says\n");
    assert_eq!(paths.map(inode), before);
}

#[test]
fn only_what_differs_is_written() {
    let device = device(DPS);
    device.applied();
    device.write(&DPS.replace("pump-7", "pump-8"));
    let run = device.applied();
    let identityd = device.path("etc/aziot/identityd/config.d/00-super.toml");
    assert_eq!(run.stderr, format!("wrote {}\n", identityd.display()));

    fs::set_permissions(&identityd, fs::Permissions::from_mode(0o644)).unwrap();
    device.applied();
    assert_eq!(mode(&identityd), 0o600);
}

#[test]
fn hand_written_drop_ins_stay() {
    let device = device(DPS);
    device.applied();
    let drop_in = device.path("etc/aziot/keyd/config.d/99-mine.toml");
    aziot_files::write(&drop_in, aziot_files::Mode::PRIVATE, "[[principal]]\nuid = 5\nkeys = []\n").unwrap();
    device.write(&DPS.replace("AAECAw==", "BBBB"));
    device.applied();
    assert!(drop_in.exists());
    let names: Vec<_> =
        fs::read_dir(drop_in.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_typing_slip_is_told_with_its_line_and_strict_stops_at_it() {
    let device = device(&DPS.replace("hostname =", "hostnam ="));
    let strict = device.apply(&["--strict"]);
    assert_eq!(strict.code, 1);
    assert!(strict.stderr.contains("config.toml:1:1: unknown key `hostnam`"), "{}", strict.stderr);
    assert!(strict.stderr.contains("did you mean `hostname`?"), "{}", strict.stderr);
    assert!(strict.stderr.contains("\nnext: "), "{}", strict.stderr);
    assert!(!device.path("etc/aziot/keyd").exists(), "nothing is written");

    let lenient = device.applied();
    assert!(lenient.stderr.contains("did you mean `hostname`?"), "{}", lenient.stderr);
}

#[test]
fn a_bad_key_is_told_with_its_line_and_without_the_key() {
    let device = device(&DPS.replace("AAECAw==", "hunter 2"));
    let run = device.apply(&[]);
    assert_eq!(run.code, 1);
    let place = "config.toml:11:19: `provisioning.attestation.symmetric_key.value`: this is not base64: character 7";
    assert!(run.stderr.contains(place), "{}", run.stderr);
    assert!(!run.stderr.contains("hunter"), "{}", run.stderr);
}

#[test]
fn a_dry_run_shows_the_files_without_secrets_and_writes_nothing() {
    let est = "\n[cert_issuance.est.auth]\nusername = \"u\"\npassword = \"hunter2\"\n\n[preloaded_keys]\nk = \
               \"pkcs11:token=t?pin-value=4711\"\n";
    let device = device(&format!("{DPS}{est}"));
    let run = device.apply(&["--dry-run"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for shown in
        ["keyd/device-id (mode 0600, owner the caller, new)\n*** (4 bytes)", "password = \"***\"", "pin-value=***"]
    {
        assert!(run.stdout.contains(shown), "{shown}\n{}", run.stdout);
    }
    for secret in ["hunter2", "4711"] {
        assert!(!run.stdout.contains(secret) && !run.stderr.contains(secret), "{}{}", run.stdout, run.stderr);
    }
    assert_eq!(fs::read_dir(device.folder()).unwrap().count(), 1, "only etc is there");
    device.applied();
    assert!(device.config("certd").contains("hunter2"));
    assert!(device.apply(&["--dry-run"]).stdout.contains(", unchanged)"));
}

#[test]
fn a_key_that_is_no_longer_used_is_told() {
    let device = device(DPS);
    device.applied();
    let key = device.path("var/secrets/aziot/keyd/device-id");
    let advice = format!("next: remove it with `rm {}`", key.display());

    device.write("provisioning.source = \"none\"\n");
    let run = device.applied();
    assert!(run.stderr.contains(&advice), "{}", run.stderr);
    assert!(key.exists());

    device.write(&format!("provisioning.source = \"none\"\npreloaded_keys.mine = \"file://{}\"\n", key.display()));
    assert!(!device.applied().stderr.contains(&advice));
}

const ANEW: &str =
    "the device registers anew when the identity service restarts; its former identity is not used any more";

/// A device that has been provisioned, by our identity service where there is an `origin`.
fn provisioned(with_origin: bool) -> Device {
    let device = device(DPS);
    device.applied();
    let record = |name: &str| {
        let path = device.path(&format!("var/lib/aziot/identityd/{name}"));
        aziot_files::write(path, aziot_files::Mode::PRIVATE, "").unwrap();
    };
    record("device_info");
    if with_origin {
        record("device_origin");
    }
    device
}

#[test]
fn a_change_that_makes_it_another_device_is_told() {
    let unknown = device(DPS);
    unknown.applied();
    unknown.write(&DPS.replace("0ne1", "0ne2"));
    assert!(!unknown.applied().stderr.contains("regist"), "there is no device yet");

    let device = provisioned(true);
    for (old, new) in [("localhost:8443", "localhost:8444"), ("0ne1", "0ne2"), ("pump7", "pump8")] {
        device.write(&DPS.replace(old, new));
        for run in [device.apply(&["--dry-run"]), device.applied()] {
            assert!(run.stderr.contains(ANEW) && !run.stderr.contains("reprovision"), "{new}: {}", run.stderr);
        }
        assert!(!device.applied().stderr.contains("regist"), "{new}: it is told once");
    }
    device.write("provisioning.source = \"none\"\n");
    assert!(!device.applied().stderr.contains("regist"), "there is nothing to register with");
    device.write(DPS);
    assert!(device.applied().stderr.contains(ANEW), "the source is another one");
}

#[test]
fn a_change_that_waits_for_reprovisioning_is_told() {
    let device = provisioned(true);
    let advice = format!("`aziotctl system reprovision --uri unix://{}/run/aziot/identityd.sock`", device.folder());
    let with_payload = DPS.replace("id_scope", "payload = { uri = \"file:///nonexistent.json\" }\nid_scope");
    device.write(&with_payload);
    let run = device.applied();
    assert!(run.stderr.contains(&advice) && !run.stderr.contains(ANEW), "{}", run.stderr);
    device.write(&with_payload.replace("pump-7", "pump-8"));
    assert!(!device.applied().stderr.contains("reprovision"), "only the host name is new");
}

/// The public packages' service does not keep what provisioned the device, and ours goes on with such a device.
#[test]
fn a_device_of_unknown_origin_waits_for_reprovisioning() {
    let device = provisioned(false);
    device.write(&DPS.replace("0ne1", "0ne2"));
    let run = device.applied();
    assert!(run.stderr.contains("aziotctl system reprovision") && !run.stderr.contains(ANEW), "{}", run.stderr);
}

#[test]
fn a_folder_in_the_way_stops_it_before_anything_changes() {
    let device = device(DPS);
    fs::create_dir_all(device.path("etc/aziot")).unwrap();
    aziot_files::write(device.path("etc/aziot/certd"), aziot_files::Mode::PRIVATE, "not a folder").unwrap();
    let run = device.apply(&[]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("nothing was changed") && run.stderr.contains("\nnext: "), "{}", run.stderr);
    assert!(!device.path("etc/aziot/keyd/config.d/00-super.toml").exists());
    assert!(!device.path("var/secrets").exists());
}

#[test]
fn a_run_that_breaks_off_says_what_is_in_place_and_leaves_no_secret_behind() {
    let device = device(DPS);
    fs::create_dir_all(device.path("etc/aziot/certd/config.d/00-super.toml/in-the-way")).unwrap();
    let run = device.apply(&[]);
    assert_eq!(run.code, 1);
    let keyd = device.path("etc/aziot/keyd/config.d/00-super.toml");
    assert!(run.stderr.contains("only some files") && run.stderr.contains(keyd.to_str().unwrap()), "{}", run.stderr);
    assert!(keyd.exists() && !device.path("etc/aziot/identityd/config.d/00-super.toml").exists());
    for folder in ["etc/aziot/certd/config.d", "etc/aziot/identityd/config.d", "var/secrets/aziot/keyd"] {
        for entry in fs::read_dir(device.path(folder)).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(name == "00-super.toml" || name == "device-id", "{name:?} was left behind");
        }
    }
}

#[test]
fn two_runs_do_not_mix() {
    let device = device(DPS);
    device.applied();
    let folder = fs::File::open(device.path("etc/aziot/keyd/config.d")).unwrap();
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    device.write(&DPS.replace("pump-7", "pump-8"));
    let run = device.apply(&[]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("another `config apply` is writing"), "{}", run.stderr);
    drop(folder);
    device.applied();
}

#[test]
fn what_a_killed_run_has_left_is_cleared_away() {
    let device = device(DPS);
    device.applied();
    let leftover = device.path("var/secrets/aziot/keyd/device-id.new");
    aziot_files::write(&leftover, aziot_files::Mode::PRIVATE, "half a key").unwrap();
    device.applied();
    assert!(!leftover.exists());
}

#[test]
fn a_folder_too_deep_for_sockets_is_refused() {
    let deep = format!("/tmp/{}", "d".repeat(90));
    let run = aziotctl(&["config", "apply", "--root", &deep], b"");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("Unix allows 107"), "{}", run.stderr);
}

#[test]
fn a_missing_super_config_says_where_it_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let run = aziotctl(&["config", "apply", "--root", folder.path().to_str().unwrap()], b"");
    assert_eq!(run.code, 1);
    let path = folder.path().join("etc/aziot/config.toml");
    assert!(run.stderr.starts_with(&format!("error: could not read {}", path.display())), "{}", run.stderr);
    assert!(run.stderr.contains("\nnext: write the super-config there"), "{}", run.stderr);
}

/// A run as an ordinary user: the caller, or `nobody` where the caller is root.
fn as_ordinary_user(folder: &Path, arguments: &[&str]) -> (u32, Run) {
    const NOBODY: u32 = 65534;
    let caller = folder.metadata().unwrap().uid();
    // The build folder may be closed to others.
    let program = folder.join("aziotctl");
    fs::copy(env!("CARGO_BIN_EXE_aziotctl"), &program).unwrap();
    let mut command = Command::new(program);
    command.args(arguments);
    if caller != 0 {
        return (caller, run(&mut command, b""));
    }
    chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    (NOBODY, run(command.uid(NOBODY).gid(NOBODY), b""))
}

#[test]
fn an_ordinary_user_has_a_device_of_its_own() {
    let device = device(DPS);
    let super_config = device.path("etc/aziot/config.toml");
    fs::set_permissions(&super_config, fs::Permissions::from_mode(0o644)).unwrap();
    let own = device.path("own");
    let arguments = ["config", "apply", "-c", super_config.to_str().unwrap(), "--root", own.to_str().unwrap()];
    let (uid, run) = as_ordinary_user(device.folder().as_ref(), &arguments);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let keyd = own.join("etc/aziot/keyd/config.d/00-super.toml");
    assert_eq!(keyd.metadata().unwrap().uid(), uid);
    assert!(fs::read_to_string(keyd).unwrap().contains(&format!("uid = {uid}\n")));
}

#[test]
fn the_machine_itself_takes_root() {
    let device = device(DPS);
    let super_config = device.path("etc/aziot/config.toml");
    fs::set_permissions(&super_config, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, run) =
        as_ordinary_user(device.folder().as_ref(), &["config", "apply", "-c", super_config.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(
        run.stderr.starts_with("error: applying to this machine needs root\nnext: run it with sudo"),
        "{}",
        run.stderr
    );
}
