//! Damaged, slipped and unreadable files, and a disk without room: a clear word in the log, and nothing lost.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aziot_tests::{
    Daemon, Device, Reply, World,
    calls::{VERSION, create_key},
    device::write_private,
    eventually, module, openssl,
    process::wrap,
};
use serde_json::json;

const UNUSABLE_SETTINGS: Option<i32> = Some(153);

fn get(device: &Device, target: &str) -> Result<Reply> {
    device.call(Daemon::Keys, "GET", &format!("{target}?{VERSION}"), None)
}

fn key_files(device: &Device) -> Result<Vec<PathBuf>> {
    let folder = device.path("var/lib/aziot/keyd/keys");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

fn key_file(device: &Device, id: &str) -> Result<PathBuf> {
    let letters: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let files = key_files(device)?;
    let is_it = |path: &&PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{letters}-")))
    };
    files.iter().find(is_it).cloned().with_context(|| format!("no file for {id} among {files:?}"))
}

fn logged(device: &Device, daemon: Daemon, words: &[&str]) -> Result<String> {
    let log = device.log(daemon)?;
    let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
    line.map(str::to_owned).with_context(|| format!("no line with {words:?} in\n{log}"))
}

/// `common.md`, section 9: "an unknown key is a warning with file, line, key and the nearest known name".
#[test]
fn a_slip_in_a_daemons_config_is_a_warning_with_place_and_suggestion() -> Result<()> {
    let mut world = World::configured()?;
    for daemon in Daemon::ALL {
        world.drop_in(daemon, "50-slip.toml", "# comment\n\nmax_requets = 5\n")?;
        world.start(daemon)?;
        let file = world.path(&format!("etc/aziot/{}/config.d/50-slip.toml:3:1", daemon.name()));
        let line = logged(&world, daemon, &[&file.display().to_string(), "`max_requets`", "`max_requests`"])?;
        assert!(line.contains("[WARN]"), "{line}");
    }
    // They run all the same.
    let _ = create_key(&world, "k")?.expect(200)?;
    Ok(())
}

/// The same slip in the super-config, told by the CLI to the person who made it, and an error where asked for.
#[test]
fn a_slip_in_the_super_config_is_told_by_aziotctl() -> Result<()> {
    let mut world = World::empty()?;
    world.start_cloud()?;
    let provisioning = world.dps_provisioning()?.replace("registration_id", "registraton_id = \"x\"\nregistration_id");
    let text = world.configure(&format!("hostname = \"pump\"\n\n{provisioning}"))?;
    let line = 1 + text_lines_before(&format!("hostname = \"pump\"\n\n{provisioning}"), "registraton_id");
    let place = format!("{}:{line}:1", world.path("etc/aziot/config.toml").display());
    assert!(
        text.contains(&place) && text.contains("`registraton_id`") && text.contains("`registration_id`"),
        "{place}: {text}"
    );
    let written = world.path("etc/aziot/identityd/config.d/00-super.toml");
    let before = fs::read_to_string(&written)?;
    fs::remove_file(&written)?;
    let strict = world.aziotctl(&["config", "apply", "--strict"])?;
    assert_eq!(strict.status.code(), Some(1), "{}", String::from_utf8_lossy(&strict.stderr));
    assert!(!written.exists(), "--strict wrote files");
    let again = world.aziotctl(&["config", "apply"])?;
    assert!(again.status.success());
    assert_eq!(fs::read_to_string(&written)?, before);
    Ok(())
}

fn text_lines_before(text: &str, word: &str) -> usize {
    text.split(word).next().unwrap_or_default().matches('\n').count()
}

/// `design.md`, exit code: "153 for unusable settings in every daemon", so that the service manager does not try again and again.
#[test]
fn a_config_of_the_wrong_type_ends_the_start_with_its_place() -> Result<()> {
    let world = World::configured()?;
    for daemon in Daemon::ALL {
        world.drop_in(daemon, "50-wrong.toml", "\nmax_requests = \"many\"\n")?;
        assert_eq!(world.run_to_end(daemon, |_| {})?.code(), UNUSABLE_SETTINGS, "{}", daemon.name());
        let file = world.path(&format!("etc/aziot/{}/config.d/50-wrong.toml:2:", daemon.name()));
        let line = logged(&world, daemon, &[&file.display().to_string(), "max_requests"])?;
        assert!(line.contains("[ERR!]"), "{line}");
        assert!(!world.socket(daemon).exists());
        // Broken syntax, and no text at all.
        for (text, word) in
            [(b"max_requests = \n".as_slice(), "50-wrong.toml:1:"), (b"a = \"\xff\"\n", "50-wrong.toml")]
        {
            write_private(&world.path(&format!("etc/aziot/{}/config.d/50-wrong.toml", daemon.name())), text)?;
            fs::remove_file(world.log_path(daemon))?;
            assert_eq!(world.run_to_end(daemon, |_| {})?.code(), UNUSABLE_SETTINGS, "{}", daemon.name());
            logged(&world, daemon, &[word])?;
        }
    }
    Ok(())
}

/// `common.md`, section 9: an unreadable file is fatal and named; a missing one is empty. Section 2: exit code 1, as the trouble may pass.
#[test]
fn an_unreadable_config_ends_the_start_with_its_name() -> Result<()> {
    let world = World::configured()?;
    for daemon in Daemon::ALL {
        // A folder where the file should be is unreadable to root, too.
        let main = world.path(&format!("etc/aziot/{}/config.toml", daemon.name()));
        fs::create_dir(&main)?;
        let status = world.run_to_end(daemon, |_| {})?;
        assert_eq!(status.code(), Some(1), "{}: {}", daemon.name(), world.log(daemon)?);
        logged(&world, daemon, &["could not read config"])?;
        logged(&world, daemon, &[&main.display().to_string()])?;
    }
    Ok(())
}

/// `aziotctl` refuses what the daemons could not use, says where, and leaves the files of the last good run as they were.
#[test]
fn a_broken_super_config_changes_nothing() -> Result<()> {
    let world = World::configured()?;
    let files: Vec<PathBuf> = Daemon::ALL
        .iter()
        .map(|daemon| world.path(&format!("etc/aziot/{}/config.d/00-super.toml", daemon.name())))
        .collect();
    let read = || files.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>();
    let before = read()?;
    let main = world.path("etc/aziot/config.toml");
    for (text, word) in [
        ("hostname = \n", "config.toml:1:"),
        ("hostname = 7\n\n[provisioning]\nsource = \"none\"\n", "config.toml:1:"),
        ("hostname = \"pump\"\n\n[provisioning]\nsource = \"dsp\"\n", "config.toml:4:"),
        ("hostname = \"pump\"\n", "provisioning"),
    ] {
        write_private(&main, text)?;
        let output = world.aziotctl(&["config", "apply"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text:?}: {said}");
        assert!(said.contains(word), "{text:?}: {said}");
        assert_eq!(read()?, before, "{text:?}");
    }
    Ok(())
}

/// `keys.md`, 5.2: files of the public service have mode 0644 and are used; 11, item 5: "warn on lax modes".
#[test]
fn a_key_file_that_others_may_read_is_used_with_a_warning() -> Result<()> {
    let mut world = World::keys("")?;
    let handle = create_key(&world, "k")?.expect(200)?.text("/keyHandle")?;
    let signature = module::sign(&world, &handle, b"m")?;
    let file = key_file(&world, "k")?;
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(file.parent().context("no folder")?)?.permissions().mode() & 0o777, 0o700);
    world.stop(Daemon::Keys)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    world.start(Daemon::Keys)?;
    assert_eq!(module::sign(&world, &handle, b"m")?, signature);
    let line = logged(&world, Daemon::Keys, &[&file.display().to_string(), "0644"])?;
    assert!(line.contains("[WARN]"), "{line}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o644, "the operator's business");
    Ok(())
}

/// `design.md`, preloaded keys, and `keys.md`, 11, item 4: a damaged key is a 500 and never silently replaced.
#[test]
fn a_key_file_cut_in_half_is_told_and_left_alone() -> Result<()> {
    let mut world = World::empty()?;
    let preloaded = world.path("var/secrets/preloaded.pem");
    let empty = world.path("var/secrets/empty.key");
    openssl::make_key(&preloaded)?;
    write_private(&empty, "")?;
    let (half, nothing) = (preloaded.display(), empty.display());
    world.configure_keys(&format!(
        "[[principal]]\nuid = {}\nkeys = [\"*\"]\n\n[preloaded_keys]\nhalf = \"file://{half}\"\nnothing = \"file://{nothing}\"\n",
        world.uid()?
    ))?;
    world.start(Daemon::Keys)?;
    let pair = json!({ "keyId": "pair" }).to_string();
    let _ = world.call(Daemon::Keys, "POST", &format!("/keypair?{VERSION}"), Some(&pair))?.expect(200)?;
    let _ = create_key(&world, "whole")?.expect(200)?;
    world.stop(Daemon::Keys)?;
    let dynamic = key_file(&world, "pair")?;
    for file in [&preloaded, &dynamic] {
        let text = fs::read_to_string(file)?;
        write_private(file, &text[..text.len() / 2])?;
    }
    world.start(Daemon::Keys)?;
    for (id, file) in [("half", &preloaded), ("pair", &dynamic)] {
        let before = fs::read(file)?;
        let create = json!({ "keyId": id }).to_string();
        for reply in [
            get(&world, &format!("/keypair/{id}"))?,
            world.call(Daemon::Keys, "POST", &format!("/keypair?{VERSION}"), Some(&create))?,
        ] {
            assert_eq!((reply.status, reply.message().as_str()), (500, "internal error"), "{id}");
        }
        assert_eq!(fs::read(file)?, before, "{id} was changed");
        logged(&world, Daemon::Keys, &["[ERR!]", id, &file.display().to_string()])?;
    }
    // A file of no bytes is no key either; where an operator put it, it stays.
    assert_eq!(get(&world, "/key/nothing")?.status, 500);
    assert_eq!(create_key(&world, "nothing")?.status, 500);
    assert_eq!(fs::metadata(&empty)?.len(), 0);
    // The others are as good as ever.
    let _ = get(&world, "/key/whole")?.expect(200)?;
    Ok(())
}

/// Issue 2 and `design.md`: an operator's key is read, never changed.
#[test]
fn a_preloaded_key_is_never_overwritten_or_deleted() -> Result<()> {
    let mut world = World::empty()?;
    let file = world.path("var/secrets/operators.key");
    write_private(&file, "0123456789abcdef0123456789abcdef")?;
    world.configure_keys(&format!(
        "[[principal]]\nuid = {}\nkeys = [\"*\"]\n\n[preloaded_keys]\nmine = \"file://{}\"\n",
        world.uid()?,
        file.display()
    ))?;
    world.start(Daemon::Keys)?;
    let handle = create_key(&world, "mine")?.expect(200)?.text("/keyHandle")?;
    let import = r#"{"keyId":"mine","usage":"sign","keyBytes":"AAAA"}"#;
    let _ = world.call(Daemon::Keys, "POST", &format!("/key?{VERSION}"), Some(import))?.expect(403)?;
    let delete = json!({ "keyHandle": handle }).to_string();
    let _ = world.call(Daemon::Keys, "DELETE", &format!("/key?{VERSION}"), Some(&delete))?.expect(403)?;
    assert_eq!(fs::read_to_string(&file)?, "0123456789abcdef0123456789abcdef");
    Ok(())
}

/// Runs a daemon in a mount namespace of its own, with a disk of `size` at `folder`. Any user may do that where user namespaces are allowed.
fn on_small_disk(command: &mut Command, folder: &Path, size: &str, is_root: bool) {
    let mut wrapper = Command::new("unshare");
    wrapper.arg("--mount");
    if !is_root {
        wrapper.arg("--map-root-user");
    }
    let script = r#"mount -t tmpfs -o "size=$1,mode=0700" small "$2" && exec "$0""#;
    wrapper.args(["sh", "-c", script]);
    wrap(command, wrapper);
    command.arg(size).arg(folder);
}

/// Fills a disk to the last byte.
fn fill(file: &Path) -> Result<()> {
    let mut filled = fs::File::create(file).with_context(|| file.display().to_string())?;
    for size in [4096, 1] {
        while std::io::Write::write_all(&mut filled, &vec![0; size]).is_ok() {
            ensure!(filled.metadata()?.len() < 1 << 24, "the small disk is not small");
        }
    }
    Ok(())
}

/// Issue 2, "a full disk while a key is written"; `design.md`, files: "no temporary is left".
#[test]
fn a_full_disk_costs_no_key() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_keys(&format!("[[principal]]\nuid = {}\nkeys = [\"*\"]\n", world.uid()?))?;
    let home = world.path("var/lib/aziot/keyd");
    fs::create_dir_all(&home)?;
    let (mounted, is_root) = (home.clone(), world.uid()? == 0);
    world.start_with(Daemon::Keys, move |command| on_small_disk(command, &mounted, "64k", is_root))?;
    let pid = world.process(Daemon::Keys)?.pid()?;
    // The disk as the daemon sees it.
    let seen = PathBuf::from(format!("/proc/{pid}/root{}", home.display()));

    let earlier = create_key(&world, "earlier")?.expect(200)?.text("/keyHandle")?;
    let pair = json!({ "keyId": "pair" }).to_string();
    let _ = world.call(Daemon::Keys, "POST", &format!("/keypair?{VERSION}"), Some(&pair))?.expect(200)?;
    let signature = module::sign(&world, &earlier, b"m")?;
    let names = || -> Result<Vec<_>> {
        let mut names = fs::read_dir(seen.join("keys"))?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()?;
        names.sort();
        Ok(names)
    };
    let before = names()?;

    fill(&seen.join("full"))?;
    let failed = create_key(&world, "later")?;
    assert_eq!((failed.status, failed.message().as_str()), (500, "internal error"));
    let import = r#"{"keyId":"earlier","usage":"sign","keyBytes":"AAAA"}"#;
    assert_eq!(world.call(Daemon::Keys, "POST", &format!("/key?{VERSION}"), Some(import))?.status, 500);
    let new_pair = json!({ "keyId": "later-pair" }).to_string();
    assert_eq!(world.call(Daemon::Keys, "POST", &format!("/keypair?{VERSION}"), Some(&new_pair))?.status, 500);
    logged(&world, Daemon::Keys, &["[ERR!]", "No space left on device"])?;
    // What was there is there, the key that an import would have replaced too, and no half of a new one.
    assert_eq!(names()?, before);
    assert_eq!(module::sign(&world, &earlier, b"m")?, signature);
    let _ = get(&world, "/keypair/pair")?.expect(200)?;
    assert_eq!(get(&world, "/key/later")?.status, 400);

    fs::remove_file(seen.join("full"))?;
    let later = create_key(&world, "later")?.expect(200)?.text("/keyHandle")?;
    module::sign(&world, &later, b"m")?;
    Ok(())
}

/// The same for certificates: the old one stays.
#[test]
fn a_full_disk_costs_no_certificate() -> Result<()> {
    let mut world = World::empty()?;
    world.configure_certificates(&format!("[[principal]]\nuid = {}\ncerts = [\"*\"]\n", world.uid()?))?;
    let home = world.path("var/lib/aziot/certd");
    fs::create_dir_all(&home)?;
    let (mounted, is_root) = (home.clone(), world.uid()? == 0);
    world.start_with(Daemon::Certificates, move |command| on_small_disk(command, &mounted, "64k", is_root))?;
    let seen = PathBuf::from(format!("/proc/{}/root{}", world.process(Daemon::Certificates)?.pid()?, home.display()));
    let put = |pem: &str| {
        let body = json!({ "pem": pem }).to_string();
        world.call(Daemon::Certificates, "PUT", &format!("/certificates/c?{VERSION}"), Some(&body))
    };
    let _ = put("old")?.expect(201)?;
    fill(&seen.join("full"))?;
    assert_eq!(put("new")?.status, 500);
    let read = world.call(Daemon::Certificates, "GET", &format!("/certificates/c?{VERSION}"), None)?.expect(200)?;
    assert_eq!(read.body, r#"{"pem":"old"}"#);
    assert_eq!(fs::read_dir(seen.join("certs"))?.count(), 1);
    fs::remove_file(seen.join("full"))?;
    let _ = put("new")?.expect(201)?;
    Ok(())
}

/// Two daemons on one socket: the second one goes, the first one stays, and with it the socket.
#[test]
fn a_second_daemon_on_the_same_socket_ends_and_harms_nothing() -> Result<()> {
    let mut world = World::configured()?;
    world.start_all()?;
    for daemon in Daemon::ALL {
        let status = world.run_to_end(daemon, |_| {})?;
        assert_eq!(status.code(), Some(1), "{}", daemon.name());
        let socket = world.socket(daemon).display().to_string();
        logged(&world, daemon, &["another process is listening on", &socket])?;
        let reply = world.call(daemon, "GET", &format!("/nope?{VERSION}"), None)?;
        assert_eq!(reply.status, 404);
    }
    Ok(())
}

/// `identity.md`, W48: a damaged state file costs a registration at most, never the start.
#[test]
fn a_damaged_state_of_identityd_is_told_and_mended() -> Result<()> {
    let mut world = World::configured()?;
    world.start_all()?;
    let target = format!("/identities/device?{VERSION}");
    let ask = |device: &Device| device.call(Daemon::Identity, "POST", &target, Some(r#"{"type":"aziot"}"#));
    let id = ask(&world)?.expect(200)?.text("/spec/deviceId")?;
    let made = module::Identity::create(&world, "sampler")?;
    let home = world.path("var/lib/aziot/identityd");
    for file in ["device_info", "prev_state"] {
        let path = home.join(file);
        eventually(file, Duration::from_secs(10), || Ok(path.exists().then_some(())))?;
        for damage in ["", "hub_name = \"loc", "\u{0}\u{1}"] {
            world.stop(Daemon::Identity)?;
            write_private(&path, damage)?;
            world.start(Daemon::Identity)?;
            assert_eq!(ask(&world)?.expect(200)?.text("/spec/deviceId")?, id, "{file} {damage:?}");
            // Taken over, not deleted and created anew: `design.md`, reprovisioning.
            assert_eq!(module::Identity::load(&world, "sampler")?.generation, made.generation, "{file} {damage:?}");
        }
    }
    Ok(())
}
