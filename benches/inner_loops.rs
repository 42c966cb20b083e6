//! The inner loops of the key service, one by one, in process: `cargo bench -p aziot-benches`. What the whole costs over its socket is
//! measured by `cargo xtask bench`.

use std::{hint::black_box, path::Path, sync::Arc};

use aziot_http::{Peer, testing};
use aziot_keyd::testing::KeyService;
use aziot_keys::{KeyUsage, Keys, Settings, SymmetricUse, file_name};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};

const ROOT: Peer = Peer::new(0, 0, 1);
const VERSION: &str = "api-version=2021-05-01";

fn library(home: &Path) -> Keys {
    let settings = Settings { homedir_path: Some(home.to_owned()), ..Settings::default() };
    let keys = Keys::new(settings).expect("a folder for keys");
    keys.create_key("k", KeyUsage::SIGN).expect("a key");
    keys.create_key_pair("ec", Some("ec-p256")).expect("a key pair");
    keys.create_key_pair("rsa", Some("rsa-2048")).expect("a key pair");
    keys
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What a key does once its file has been read.
fn keys(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = library(folder.path());
    let key = SymmetricUse::Stored("k");
    criterion.bench_function("HMAC of 64 bytes", |bench| bench.iter(|| keys.sign_hmac(key, black_box(&[1; 64]))));
    let derived = SymmetricUse::Derived { base: "k", data: b"modA:1:primary" };
    criterion
        .bench_function("HMAC by a derived key", |bench| bench.iter(|| keys.sign_hmac(derived, black_box(&[1; 64]))));
    criterion.bench_function("AEAD of 1 KiB", |bench| {
        bench.iter(|| keys.encrypt_aead(key, &[7; 12], b"$iotedged", black_box(&[1; 1024])));
    });
    criterion.bench_function("ECDSA P-256", |bench| bench.iter(|| keys.sign_ecdsa("ec", black_box(&[1; 32]))));
}

/// What a key costs when it is used for the first time.
fn key_files(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    drop(library(folder.path()));
    for (name, id) in [("32 bytes", "k"), ("P-256 pair", "ec"), ("RSA-2048 pair", "rsa")] {
        let settings = Settings { homedir_path: Some(folder.path().to_owned()), ..Settings::default() };
        criterion.bench_function(&format!("read and check the file of {name}"), |bench| {
            bench.iter(|| {
                // A new one has read nothing yet.
                let keys = Keys::new(settings.clone()).expect("a folder with keys");
                if id == "k" { keys.load_key(id) } else { keys.load_key_pair(id) }
            });
        });
    }
    criterion
        .bench_function("file name of a key", |bench| bench.iter(|| file_name(black_box("aziot_identityd_master_id"))));
}

/// Handles and requests, the socket left out.
fn service(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let service = KeyService::new(Arc::new(library(folder.path())), &[]);
    let runtime = runtime();
    let handle = runtime.block_on(service.mint("k"));
    criterion.bench_function("mint a handle", |bench| bench.iter(|| runtime.block_on(service.mint(black_box("k")))));
    criterion.bench_function("a handle that is remembered", |bench| {
        bench.iter(|| runtime.block_on(service.is_genuine(black_box(&handle))));
    });
    // Unknown parts do not count: each is genuine, and none was seen before.
    let mut others = (0_u64..).map(|number| format!("{handle}&number={number}"));
    criterion.bench_function("verify a handle that is not remembered", |bench| {
        let other = || others.next().expect("endless");
        bench.iter_batched(other, |other| runtime.block_on(service.is_genuine(&other)), BatchSize::SmallInput);
    });
    let hmac = format!(
        r#"{{"keyHandle":"{handle}","algorithm":"HMAC-SHA256","parameters":{{"message":"bWVzc2FnZSB0byBzaWduIHdpdGggYSBrZXkgb2YgdGhlIGRldmljZQ=="}}}}"#
    );
    for (name, path, body) in
        [("that does not exist", "/nothing", String::new()), ("that signs with HMAC", "/sign", hmac)]
    {
        criterion.bench_function(&format!("a request {name}, from its head to its answer"), |bench| {
            bench.iter(|| {
                let request = http::Request::post(format!("{path}?{VERSION}")).body(body.clone().into_bytes());
                runtime.block_on(testing::answer(service.routes(), ROOT, request.expect("a request")))
            });
        });
    }
}

criterion_group!(inner_loops, keys, key_files, service);
criterion_main!(inner_loops);
