use std::os::unix::fs::PermissionsExt as _;

use aziot_identityd_api::config::Provisioning;

use super::*;

fn device() -> DeviceInfo {
    DeviceInfo {
        hub_name: "myhub.azure-devices.net".into(),
        local_gateway_hostname: "myhub.azure-devices.net".into(),
        device_id: "mydevice".into(),
    }
}

fn record(module_id: &str) -> ModuleRecord {
    ModuleRecord {
        module_id: module_id.into(),
        managed_by: Some("iotedge".into()),
        device_id: "mydevice".into(),
        generation_id: Some("637".into()),
    }
}

fn settings() -> Config {
    let text = "hostname = 'e'\nhomedir = '/h'\nprovisioning.source = 'none'\n";
    aziot_config::load_str("config.toml", text).unwrap().value
}

fn open() -> (tempfile::TempDir, State) {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(&folder.path().join("home")).unwrap();
    (folder, state)
}

#[test]
fn paths_are_those_of_the_public_packages() {
    let (folder, state) = open();
    let path = state.module_path(&device(), "$test-module");
    assert_eq!(
        path.strip_prefix(folder.path().join("home")).unwrap().to_str().unwrap(),
        "modules/7d4a2c5ea3b698a673926d4ebb8c0d2034c367424a491480224fbd729008150e-\
         ca3309c99d7e82f4a228ac5de6a852f76c2084f427c388079a3a43fc519e32c5/\
         testmodule-18a48f321c4afc2b6a644482b87a062f9e6ec7f05e4f2ced522437a8c3f0cb39"
    );
}

#[test]
fn a_reconciliation_is_read_back_and_private() {
    let (folder, state) = open();
    assert_eq!((state.device(), state.previous(), state.origin()), (None, None, None));
    let origin = Origin::of(&Provisioning::None);
    state.commit(&settings(), &device(), &origin).unwrap();
    assert_eq!(state.device(), Some(device()));
    assert_eq!(state.previous(), Some(settings()));
    assert_eq!(state.origin(), Some(origin));
    let path = folder.path().join("home/device_info");
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "hub_name = \"myhub.azure-devices.net\"\nlocal_gateway_hostname = \"myhub.azure-devices.net\"\ndevice_id = \"mydevice\"\n"
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(folder.path().join("home").metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn damaged_and_legacy_files_count_as_absent() {
    let (folder, state) = open();
    let path = folder.path().join("home/device_info");
    aziot_files::write(&path, Mode::PRIVATE, "unprovisioned").unwrap();
    assert_eq!(state.device(), None);
    assert!(path.exists());
    aziot_files::write(&path, Mode::PRIVATE, "hub_name = \"cut in ha").unwrap();
    assert_eq!(state.device(), None);
    assert!(!path.exists(), "a damaged record is removed");
    aziot_files::write(folder.path().join("home/prev_state"), Mode::PRIVATE, [0xff, 0xfe]).unwrap();
    assert_eq!(state.previous(), None);
}

#[test]
fn the_copies_follow_the_hubs_list() {
    let (_folder, state) = open();
    state.select_device(&device()).unwrap();
    for name in ["a", "b"] {
        state.put_module(&device(), &record(name)).unwrap();
    }
    let before = state.module_files(&device());
    state.put_module(&device(), &record("made-meanwhile")).unwrap();
    assert_eq!(before.values().flatten().collect::<Vec<_>>(), ["a", "b"]);
    state.replace_modules(&device(), before.into_keys(), &[record("b"), record("$edgeAgent")]).unwrap();
    let names: Vec<_> = state.modules(&device()).unwrap().into_iter().map(|record| record.module_id).collect();
    assert_eq!(names, ["$edgeAgent", "b", "made-meanwhile"]);
    state.remove_module(&device(), "b").unwrap();
    assert_eq!(state.module(&device(), "b"), None);
    assert_eq!(state.module(&device(), "$edgeAgent"), Some(record("$edgeAgent")));
    let text = fs::read_to_string(state.module_path(&device(), "$edgeAgent")).unwrap();
    assert_eq!(text, r#"{"moduleId":"$edgeAgent","managedBy":"iotedge","deviceId":"mydevice","generationId":"637"}"#);
}

#[test]
fn another_device_starts_without_copies_and_the_same_one_keeps_them() {
    let (_folder, state) = open();
    state.select_device(&device()).unwrap();
    state.put_module(&device(), &record("a")).unwrap();
    state.select_device(&device()).unwrap();
    assert!(state.module(&device(), "a").is_some());
    let other = DeviceInfo { device_id: "other".into(), ..device() };
    state.select_device(&other).unwrap();
    assert_eq!(state.modules(&other).unwrap(), []);
    assert!(state.module(&device(), "a").is_none());
}

#[test]
fn a_damaged_copy_spoils_the_list_and_is_no_module() {
    let (_folder, state) = open();
    state.select_device(&device()).unwrap();
    state.put_module(&device(), &record("a")).unwrap();
    aziot_files::write(state.module_path(&device(), "b"), Mode::PRIVATE, "{").unwrap();
    assert!(matches!(state.modules(&device()), Err(Error::Parse { .. })));
    assert_eq!(state.module(&device(), "b"), None);
    assert!(state.module(&device(), "a").is_some());
}

#[test]
fn a_copy_that_cannot_be_written_does_not_keep_vanished_ones_alive() {
    let (_folder, state) = open();
    state.select_device(&device()).unwrap();
    state.put_module(&device(), &record("vanished")).unwrap();
    // A folder in the file's place.
    fs::create_dir(state.module_path(&device(), "a")).unwrap();
    let before = state.module_files(&device()).into_keys();
    state.replace_modules(&device(), before, &[record("a"), record("b")]).unwrap_err();
    let names: Vec<_> = state.modules(&device()).unwrap().into_iter().map(|record| record.module_id).collect();
    assert_eq!(names, ["b"]);
}
