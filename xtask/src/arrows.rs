//! The arrows of the design, held by tests: which crate may depend on which, and which room of a crate may enter which.
//! Cargo forbids circles between crates only.

#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const SERVICES: [&str; 6] = ["keyd", "certd", "identityd", "tpmd", "edged", "updated"];
/// Folders whose crates put the whole together, and may know everybody.
const ASSEMBLIES: [&str; 5] = ["aziotd", "aziotctl", "tests", "benches", "xtask"];

/// Folder of each crate of the workspace, and the folders of the crates it depends on (tests' dependencies left out).
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(crate::root())
        .output()
        .expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON of cargo metadata");
    let root = crate::root();
    let packages = metadata["packages"].as_array().expect("packages");
    let folder = |package: &Value| {
        let manifest = PathBuf::from(package["manifest_path"].as_str().expect("a manifest"));
        manifest.parent().expect("a folder").strip_prefix(&root).expect("inside").to_string_lossy().into_owned()
    };
    let folders: BTreeMap<&str, String> =
        packages.iter().map(|package| (package["name"].as_str().expect("a name"), folder(package))).collect();
    let depends = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies").iter();
        let own = all.filter(|dependency| dependency["kind"] != "dev");
        own.filter_map(|dependency| folders.get(dependency["name"].as_str()?).cloned()).collect()
    };
    packages.iter().map(|package| (folder(package), depends(package))).collect()
}

#[test]
fn no_daemon_depends_on_another_daemon() {
    let mut faults = Vec::new();
    for (here, there) in dependencies() {
        let room = here.split('/').next().unwrap_or_default();
        for there in there {
            let service = there.split('/').next().unwrap_or_default();
            let foreign = SERVICES.contains(&service) && service != room;
            // The key library is a product of its own; the CLI shares its reading of key URIs.
            let library = here == "aziotctl" && there == "keyd/keys";
            let inner = foreign && !there.ends_with("/api") && !library;
            if inner && !(room == "aziotd" || room == "tests") {
                faults.push(format!("{here} -> {there}: depend on {service}/api"));
            }
            if here.starts_with("common/") && SERVICES.contains(&service) {
                faults.push(format!("{here} -> {there}: common knows no service"));
            }
            if here == "pki" && foreign && !["keyd/api", "certd/api"].contains(&there.as_str()) {
                faults.push(format!("{here} -> {there}: pki knows keyd/api and certd/api only"));
            }
            // The tests' programs run in containers, and are called from outside with the same code.
            let own_program = here == "tests" && there == "tests/module";
            let taken = ["xtask", "benches"].contains(&room) && service == "tests";
            if ASSEMBLIES.contains(&service) && !own_program && !taken {
                faults.push(format!("{here} -> {there}: nobody depends on what puts the whole together"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Rooms of the crates, by path from the root, and what none of their lines may name. A file belongs to the first room that fits.
const ROOMS: &[(&str, &[&str], &[&str])] = &[
    (
        "routes",
        &["/src/http.rs", "/src/http/"],
        &["std::fs", "tokio::fs", "aziot_files", "crate::store", "crate::state"],
    ),
    ("stores", &["/src/store", "/src/state"], &["crate::http", "StatusCode", "axum", "Peer", "crate::principals"]),
    (
        "the TPM",
        &["tpmd/src/chip"],
        &["crate::http", "crate::tpm", "crate::worker", "StatusCode", "axum", "Peer", "tokio::"],
    ),
    // Docker's answers have statuses too; what callers get for them is not decided there.
    (
        "the engine",
        &["edged/src/docker"],
        &["std::fs", "tokio::fs", "axum", "Peer", "crate::http", "crate::modules", "crate::workload"],
    ),
    (
        "who calls the runtime",
        &["edged/src/caller", "edged/src/sockets"],
        &["axum", "StatusCode", "crate::http", "crate::modules", "crate::workload", "crate::identities"],
    ),
    (
        "the process and its machine",
        &["edged/src/start", "edged/src/settings", "edged/src/support_bundle", "edged/src/system"],
        &["axum", "StatusCode", "Peer"],
    ),
    // They tell the engine's refusals apart, which are statuses of its own API.
    (
        "domain of the runtime beside the engine",
        &["edged/src/images", "edged/src/modules"],
        &["std::fs", "tokio::fs", "axum", "Peer", "crate::http", "crate::caller", "crate::start"],
    ),
    (
        "domain of the runtime",
        &[
            "edged/src/agent",
            "edged/src/edge_ca",
            "edged/src/identities",
            "edged/src/places",
            "edged/src/provisioning",
            "edged/src/shutdown",
            "edged/src/specification",
            "edged/src/trust_bundle",
            "edged/src/watchdog",
            "edged/src/workload",
        ],
        &["std::fs", "tokio::fs", "StatusCode", "axum", "Peer", "crate::http", "crate::caller", "crate::start"],
    ),
    ("the key library", &["keyd/keys/src/"], &["aziot_http", "aziot_keyd_api", "tokio::"]),
    (
        "domain",
        &["keyd/src/", "certd/src/", "identityd/src/", "tpmd/src/tpm.rs", "tpmd/src/worker.rs", "tpmd/src/blob.rs"],
        &["std::fs", "tokio::fs", "StatusCode", "axum", "crate::http"],
    ),
    ("cloud clients", &["identityd/cloud/src/"], &["std::fs", "axum", "aziot_keyd_api", "crate::http::"]),
    ("X.509", &["pki/src/"], &["axum", "StatusCode"]),
    (
        "what all share",
        &["common/"],
        &["aziot_keyd", "aziot_certd", "aziot_identityd", "aziot_tpmd", "aziot_edged", "aziot_pki"],
    ),
];

#[test]
fn rooms_are_entered_in_one_direction() {
    let root = crate::root();
    let mut faults = Vec::new();
    for file in dependencies().into_keys().flat_map(|folder| rust_files(&root.join(folder).join("src"))) {
        let path = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().into_owned();
        let belongs = ROOMS.iter().find(|(_, places, _)| places.iter().any(|place| path.contains(place)));
        let Some((place, _, forbidden)) = belongs.filter(|_| !is_test(&file)) else { continue };
        let text = fs::read_to_string(&file).expect("a source file");
        for line in without_tests(&text).into_iter().filter(|line| !line.trim_start().starts_with("//")) {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                faults.push(format!("{path} ({place}) names {word}: {}", line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Lines of a source file without the items that are compiled for tests only: an item ends with `;` or `,`, or with a bracket where it began.
fn without_tests(text: &str) -> Vec<&str> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push(line);
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let ends = |line: &str| {
            let is_there = line.len() - line.trim_start().len() == indent && !line.trim().is_empty();
            is_there && !line.trim_start().starts_with('#') && line.ends_with([';', ',', '}'])
        };
        let _ = lines.by_ref().find(|line| ends(line));
    }
    kept
}

#[test]
fn only_the_items_of_tests_are_left_out() {
    let text = "a;\n#[cfg(test)]\nmod tests;\nb;\n    #[cfg(test)]\n    #[must_use]\n    fn c() {\n        d;\n    }\ne;\n#[cfg(test)]\nmod f {\n    g;\n}";
    assert_eq!(without_tests(text), ["a;", "b;", "e;"]);
}

/// Tests may reach anywhere: their files and folders have `test` in their names.
fn is_test(file: &Path) -> bool {
    let inside = file.strip_prefix(crate::root()).unwrap_or(file);
    !inside.starts_with("tests") && inside.components().any(|part| part.as_os_str().to_string_lossy().contains("test"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn every_source_file_says_why_it_exists() {
    let root = crate::root();
    let folders = dependencies().into_keys();
    let silent: Vec<_> = folders
        .flat_map(|folder| rust_files(&root.join(folder).join("src")))
        .filter(|file| !is_test(file) && !fs::read_to_string(file).is_ok_and(|text| text.starts_with("//!")))
        .collect();
    assert!(silent.is_empty(), "no header: {silent:#?}");
}
